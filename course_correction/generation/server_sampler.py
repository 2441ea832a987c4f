"""Continuations from an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`. Knows no files."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest
from course_correction.generation.chat_format import render_prompt
from course_correction.generation.openai_client import Server, ServerError
from course_correction.generation.protocol import Completion, Prefill

logger = logging.getLogger(__name__)


class ServerSampler:
    """Samples from any OpenAI-compatible server's `/v1/completions`: vLLM, SGLang, llama.cpp, `transformers serve`.

    The prefill is rendered here. What the server can do is found out by one call: whether it takes token ids, and whether
    it gives several choices (`n`); else the prefill goes as text, and a call is made for each path. Seeds are sent, but
    what they mean is up to the server: rows come out alike again only where it keeps to them.

    Args:
        server: The client.
        model: Name of the served model.
        tokenizer: That model's.
    """

    units_at_once = 4

    def __init__(self, server: Server, model: str, tokenizer: Any) -> None:
        """Send nothing yet."""
        self.server, self.model, self.tokenizer = server, model, tokenizer
        self.paths_sampled = self.tokens_sampled = 0
        self._takes_ids = self._gives_many = self._adds_bos = False
        self._probing, self._is_probed = threading.Lock(), False

    def sample(self, begun: Sequence[Prefill], settings: Any) -> list[Completion]:
        """Return what follows each answer, in order.

        Raises:
            UsageError: If the server cannot be reached, or a call fails for good.
        """
        self._probe(begun[0])
        rows: dict[tuple, list[int]] = {}
        for index, row in enumerate(begun):
            rows.setdefault((row.request, row.prompt_ids, row.answer_ids), []).append(index)
        calls = list(rows.values()) if self._gives_many else [[index] for indices in rows.values() for index in indices]
        with ThreadPoolExecutor(self.server.max_parallel) as pool:
            running = [pool.submit(self._ask, [begun[index] for index in indices], settings) for indices in calls]
            try:
                answers = [call.result() for call in running]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        written = {
            index: row
            for indices, call in zip(calls, answers, strict=True)
            for index, row in zip(indices, call, strict=True)
        }
        with self._probing:
            self.paths_sampled += len(written)
            self.tokens_sampled += sum(row.num_tokens for row in written.values())
        return [written[index] for index in range(len(begun))]

    def _prompt_ids(self, row: Prefill) -> list[int]:
        return list(row.prompt_ids or render_prompt(self.tokenizer, row.request)) + list(row.answer_ids)

    def _as_text(self, ids: list[int]) -> str:
        if self._adds_bos and ids[:1] == [self.tokenizer.bos_token_id]:
            ids = ids[1:]
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _complete(self, prompt: Any, **options: Any) -> Any:
        def ask(client: Any) -> Any:
            answer = client.completions.create(model=self.model, prompt=prompt, **options)
            if not answer.choices or any(not isinstance(choice.text, str) for choice in answer.choices):
                raise ValueError("no choices")
            return answer

        return self.server.call(ask, self.model)

    def _probe(self, row: Prefill) -> None:
        """Find out what the server can do, once."""
        with self._probing:
            if self._is_probed:
                return
            ids = self._prompt_ids(row)

            def tokens_read(answer: Any) -> int | None:
                return getattr(answer.usage, "prompt_tokens", None)

            try:
                answer = self._complete(ids, max_tokens=1, temperature=0.7, n=2)
                # A server that takes the ids for something else reads another number of tokens.
                self._takes_ids = tokens_read(answer) == len(ids)
                self._gives_many = len(answer.choices) == 2
            except ServerError:
                self._takes_ids = False
            if not self._takes_ids:
                try:
                    answer = self._complete(self._as_text(ids), max_tokens=1, temperature=0.7, n=2)
                    self._gives_many = len(answer.choices) == 2
                    read = tokens_read(answer)
                    if read == len(ids) + 1 and ids[0] == self.tokenizer.bos_token_id:
                        self._adds_bos = True
                        read = tokens_read(self._complete(self._as_text(ids), max_tokens=1))
                except ServerError as error:
                    raise self._explain(error) from None
                exact = "to the same tokens" if read == len(ids) else f"to {read} tokens where {len(ids)} were meant"
                logger.info(f"{self.server.name} takes no token ids: prefills go as text, which it reads {exact}.")
            if not self._gives_many:
                logger.info(f"{self.server.name} gives one choice a call: every path is a call of its own.")
            self._is_probed = True

    def _ask(self, rows: list[Prefill], settings: Any) -> list[Completion]:
        ids = self._prompt_ids(rows[0])
        options = {
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": int(text_digest(str(settings.seed), rows[0].draw_key)[:7], 16),
        }
        if self._gives_many and len(rows) > 1:
            options["n"] = len(rows)
        try:
            answer = self._complete(ids if self._takes_ids else self._as_text(ids), **options)
        except ServerError as error:
            raise self._explain(error) from None
        if len(answer.choices) < len(rows):
            raise UsageError(f"{self.server.name} gave {len(answer.choices)} choices where {len(rows)} were asked for.")
        return [self._read(choice) for choice in answer.choices[: len(rows)]]

    def _read(self, choice: Any) -> Completion:
        counted = len(self.tokenizer(choice.text, add_special_tokens=False)["input_ids"])
        return Completion(choice.text, counted, choice.finish_reason == "stop")

    def _explain(self, error: ServerError) -> UsageError:
        return UsageError(
            f"{self.server.name} failed ({error.reason}). What is finished is kept; run the same command again."
        )
