"""Inspect's model provider `c2`: goes on inside the assistant's open turn, by the project's samplers. Knows no task.

Inspect makes the model before it reads the task file, so it finds this module by the entry point group `inspect_ai`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import anyio
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from course_correction.base.errors import UsageError
from course_correction.base.settings import check_values
from course_correction.generation.chat_format import render_prompt
from course_correction.generation.choice import SamplerSettings, load_sampler
from course_correction.generation.decoding import SamplingSettings
from course_correction.generation.protocol import Completion, Prefill

# Samples that start together are computed together: the first waits until none has come for so long.
_GATHER_S = 0.1
# Paths that may wait at once. While an evaluation has no more than these, its units are those of eval.py.
MOST_WAITING = 4096


@dataclass
class ModelArguments(SamplerSettings):
    """What `-M` takes: the settings of eval.py that say which model samples, and how."""

    model_revision: str | None = None
    adapter_name_or_path: str | None = None
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    load_in_4bit: bool = False
    requests_per_unit: int = 4

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_values(self)
        self.check()
        if self.requests_per_unit < 1:
            raise UsageError(f"requests_per_unit is {self.requests_per_unit}, but must be at least 1.")
        if self.server_url and (self.adapter_name_or_path or self.load_in_4bit):
            raise UsageError("With server_url the server holds the model: no adapter_name_or_path, no load_in_4bit.")


@dataclass
class _Call:
    """One answer to go on with, and what came of it."""

    begun: Prefill
    sampling: SamplingSettings
    written: Completion | None = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether it was gone on with, or failed."""
        return self.written is not None or self.error is not None


class PrefillAPI(ModelAPI):
    """Goes on with [the user's request, the answer begun (`begin_answer`)], in this process or by a server.

    Args:
        model_name: As `--model_name_or_path` of eval.py.
        base_url: Another way to give `server_url`.
        api_key: Not used; the server's key is OPENAI_API_KEY.
        config: Inspect's.
        model_args: Of `ModelArguments`.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        **model_args: Any,
    ) -> None:
        """Load the tokenizer, and the model unless a server holds it."""
        super().__init__(model_name, base_url, api_key, [], config)
        try:
            settings = ModelArguments(**({"server_url": base_url} if base_url else {}) | model_args)
            names = ("adapter_name_or_path", "dtype", "attn_implementation", "load_in_4bit")
            loading = {name.removesuffix("_name_or_path"): getattr(settings, name) for name in names}
            self.sampler = load_sampler(model_name, settings.model_revision, loading, settings)
        except (TypeError, UsageError) as error:
            raise PrerequisiteError(f"c2/{model_name}: {error}") from None
        self._requests_per_unit = settings.requests_per_unit
        self._waiting: list[_Call] = []
        self._turn = anyio.Lock()
        self._prompt_tokens = cache(lambda request: len(render_prompt(self.sampler.tokenizer, request)))

    def max_connections(self) -> int:
        """Return how many samples may wait here; how many are computed together is `batch_size`'s business."""
        return MOST_WAITING

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Return the continuation alone."""
        begun = read_begun_answer(input)
        named = {
            "max_new_tokens": config.max_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed,
        }
        call = _Call(begun, SamplingSettings(**{name: value for name, value in named.items() if value is not None}))
        self._waiting.append(call)
        async with self._turn:
            if not call.is_done:
                await self._gather()
            while not call.is_done:
                # Else a sample that is given up would take the others of its unit along.
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._go_on, self._take_unit())
        if call.error:
            raise call.error
        read = self._prompt_tokens(begun.request) + len(begun.answer_ids)
        message = ChatMessageAssistant(content=call.written.text, model=self.model_name, source="generate")
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason="stop" if call.written.ended else "max_tokens")],
            usage=ModelUsage(
                input_tokens=read, output_tokens=call.written.num_tokens, total_tokens=read + call.written.num_tokens
            ),
        )

    async def _gather(self) -> None:
        known = 0
        while known < len(self._waiting):
            known = len(self._waiting)
            await anyio.sleep(_GATHER_S)

    def _take_unit(self) -> list[_Call]:
        """Take the waiting calls of the first few requests, in eval.py's order: rounding depends on who shares a batch."""
        requests = list(dict.fromkeys(call.begun.request for call in self._waiting))[: self._requests_per_unit]
        unit = [call for call in self._waiting if call.begun.request in requests]
        self._waiting = [call for call in self._waiting if call.begun.request not in requests]
        # Draw keys of one prefill differ in the number of the path.
        return sorted(
            unit,
            key=lambda call: (
                requests.index(call.begun.request),
                len(call.begun.answer_ids),
                len(call.begun.draw_key),
                call.begun.draw_key,
            ),
        )

    def _go_on(self, calls: list[_Call]) -> None:
        for sampling in dict.fromkeys(call.sampling for call in calls):
            alike = [call for call in calls if call.sampling == sampling]
            try:
                for call, written in zip(alike, self.sampler.sample([c.begun for c in alike], sampling), strict=True):
                    call.written = written
            except Exception as error:
                for call in alike:
                    call.error = error


def begin_answer(text: str, answer_ids: list[int], draw_key: str) -> ChatMessageAssistant:
    """Return the message of an answer begun; its ids travel along, for encoding the text again may give others."""
    return ChatMessageAssistant(content=text, metadata={"answer_ids": answer_ids, "draw_key": draw_key})


def read_begun_answer(messages: list[ChatMessage]) -> Prefill:
    """Return what `begin_answer` wrote.

    Raises:
        UsageError: If the messages are not one request and an answer begun.
    """
    about = (messages[-1].metadata or {}) if messages else {}
    if [message.role for message in messages] != ["user", "assistant"] or "answer_ids" not in about:
        roles = ", ".join(message.role for message in messages)
        raise UsageError(f"c2 goes on with one request and an answer begun by `begin_answer`; it was given: {roles}.")
    return Prefill(messages[0].text, tuple(about["answer_ids"]), about["draw_key"])


@modelapi("c2")
def c2() -> type[ModelAPI]:
    """Register the provider."""
    return PrefillAPI
