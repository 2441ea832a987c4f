"""Sample continuations of prefills from an OpenAI-compatible server. Knows nothing of judges, triggers or files."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest
from course_correction.generation.chat_format import render_prompt
from course_correction.generation.openai_client import Server, ServerError
from course_correction.generation.protocol import Completion, Prefill, SamplingSettings, Tokenizer

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Completion as ServerAnswer
    from openai.types import CompletionChoice

logger = logging.getLogger(__name__)


class ServerSampler:
    """Samples from any OpenAI-compatible server's `/v1/completions`: vLLM, SGLang, llama.cpp, `transformers serve`.

    The prefill is rendered here. A first call tests whether the server takes token ids and returns several choices (`n`).
    If not, the prefill is sent as text, and each path is a call. Seeds are sent, but a run can be repeated exactly only if
    the server honours them.

    Args:
        server: The client.
        model: Name of the served model.
        tokenizer: That model's.
    """

    units_at_once = 4

    def __init__(self, server: Server, model: str, tokenizer: Tokenizer) -> None:
        """Send nothing yet."""
        self.server, self.model, self.tokenizer = server, model, tokenizer
        self.paths_sampled = self.tokens_sampled = 0
        self._takes_ids = self._returns_many = self._adds_bos = False
        self._probing, self._is_probed = threading.Lock(), False

    def sample(self, prefills: Sequence[Prefill], settings: SamplingSettings) -> list[Completion]:
        """Return the continuation of each prefill, in order.

        Raises:
            UsageError: If the server cannot be reached, or a call fails after all retries.
        """
        self._probe(prefills[0])
        paths: dict[object, list[int]] = {}
        for index, row in enumerate(prefills):
            paths.setdefault((row.request, row.prompt_ids, row.answer_ids), []).append(index)
        calls = list(paths.values()) if self._returns_many else [[index] for indices in paths.values() for index in indices]
        with ThreadPoolExecutor(self.server.max_parallel) as pool:
            running = [pool.submit(self._ask, [prefills[index] for index in indices], settings) for indices in calls]
            try:
                answers = [call.result() for call in running]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        completions = {
            index: row
            for indices, call in zip(calls, answers, strict=True)
            for index, row in zip(indices, call, strict=True)
        }
        with self._probing:
            self.paths_sampled += len(completions)
            self.tokens_sampled += sum(row.num_tokens for row in completions.values())
        return [completions[index] for index in range(len(prefills))]

    def _prompt_ids(self, row: Prefill) -> list[int]:
        return list(row.prompt_ids or render_prompt(self.tokenizer, row.request)) + list(row.answer_ids)

    def _as_text(self, ids: list[int]) -> str:
        if self._adds_bos and ids[:1] == [self.tokenizer.bos_token_id]:
            ids = ids[1:]
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _complete(self, prompt: str | list[int], **options: Any) -> "ServerAnswer":
        def ask(client: "OpenAI") -> "ServerAnswer":
            answer = client.completions.create(model=self.model, prompt=prompt, **options)
            if not answer.choices or any(not isinstance(choice.text, str) for choice in answer.choices):
                raise ValueError("no choices")
            return answer

        return self.server.call(ask, self.model)

    def _probe(self, row: Prefill) -> None:
        """Test what the server can do, once."""
        with self._probing:
            if self._is_probed:
                return
            ids = self._prompt_ids(row)

            def tokens_read(answer: "ServerAnswer") -> int | None:
                return getattr(answer.usage, "prompt_tokens", None)

            try:
                answer = self._complete(ids, max_tokens=1, temperature=0.7, n=2)
                # A server that misreads the ids counts another number of tokens.
                self._takes_ids = tokens_read(answer) == len(ids)
                self._returns_many = len(answer.choices) == 2
            except ServerError:
                self._takes_ids = False
            if not self._takes_ids:
                try:
                    answer = self._complete(self._as_text(ids), max_tokens=1, temperature=0.7, n=2)
                    self._returns_many = len(answer.choices) == 2
                    read = tokens_read(answer)
                    if read == len(ids) + 1 and ids[0] == self.tokenizer.bos_token_id:
                        self._adds_bos = True
                        read = tokens_read(self._complete(self._as_text(ids), max_tokens=1))
                except ServerError as error:
                    raise self._explain(error) from None
                exact = "the same tokens" if read == len(ids) else f"{read} tokens instead of {len(ids)}"
                logger.info(f"{self.server.name} takes no token ids: prefills are sent as text, which it reads as {exact}.")
            if not self._returns_many:
                logger.info(f"{self.server.name} returns one choice per call: each path is a separate call.")
            self._is_probed = True

    def _ask(self, rows: list[Prefill], settings: SamplingSettings) -> list[Completion]:
        ids = self._prompt_ids(rows[0])
        options: dict[str, Any] = {
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": int(text_digest(str(settings.seed), rows[0].draw_key)[:7], 16),
        }
        if self._returns_many and len(rows) > 1:
            options["n"] = len(rows)
        try:
            answer = self._complete(ids if self._takes_ids else self._as_text(ids), **options)
        except ServerError as error:
            raise self._explain(error) from None
        if len(answer.choices) < len(rows):
            raise UsageError(
                f"{self.server.name} returned {len(answer.choices)} choices instead of {len(rows)}. Check the server's log."
            )
        return [self._read(choice) for choice in answer.choices[: len(rows)]]

    def _read(self, choice: "CompletionChoice") -> Completion:
        num_tokens = len(self.tokenizer(choice.text, add_special_tokens=False)["input_ids"])
        return Completion(choice.text, num_tokens, choice.finish_reason == "stop")

    def _explain(self, error: ServerError) -> UsageError:
        return UsageError(
            f"{self.server.name} failed ({error.reason}). Finished rows are kept. Run the same command again to continue."
        )
