"""Inspect's model provider `c2`: continues prefills in the assistant's open turn with the project's samplers. Knows no task.

Inspect creates the model before it reads the task file, and finds this module through the entry point group `inspect_ai`.
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
from course_correction.base.settings import check_values, setting
from course_correction.generation.chat_format import render_prompt
from course_correction.generation.choice import SamplerSettings, load_sampler
from course_correction.generation.protocol import Completion, Prefill, SamplingSettings

# Samples that start together are computed together: the first waits until no other has started for this long.
_GATHER_S = 0.1
# Paths that may wait at once. An evaluation with no more paths has the units of eval.py.
MOST_WAITING = 4096


@dataclass
class ModelArguments(SamplerSettings):
    """The arguments of `-M`: the settings of eval.py for the model and its sampling. Inspect keeps them in its log."""

    model_revision: str | None = setting(None, "the model's revision on the Hub", group="model", identity=())
    adapter_name_or_path: str | None = setting(None, "a trained LoRA adapter to load on it", group="model", identity=())
    dtype: str = setting("auto", "auto, bfloat16, float16 or float32", group="model", identity=())
    attn_implementation: str = setting("sdpa", "as for from_pretrained", group="model", identity=())
    load_in_4bit: bool = setting(False, "load the model in 4-bit NF4", group="model", identity=())
    requests_per_unit: int = setting(4, "requests sampled together", group="sampling", identity=(), at_least=1)

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_values(self)
        if self.server_url and (self.adapter_name_or_path or self.load_in_4bit):
            raise UsageError("With server_url the server loads the model. Remove adapter_name_or_path and load_in_4bit.")


@dataclass
class _Call:
    """One prefill to continue, and its outcome."""

    prefill: Prefill
    sampling: SamplingSettings
    outcome: Completion | Exception | None = None


class PrefillAPI(ModelAPI):
    """Continues [the user's request, the prefilled answer (`prefill_message`)], in this process or through a server.

    Args:
        model_name: As `--model_name_or_path` of eval.py.
        base_url: Another name of `server_url`.
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
            loading = {
                "adapter": settings.adapter_name_or_path,
                "dtype": settings.dtype,
                "attn_implementation": settings.attn_implementation,
                "load_in_4bit": settings.load_in_4bit,
            }
            self.sampler = load_sampler(model_name, settings.model_revision, loading, settings)
        except (TypeError, UsageError) as error:
            raise PrerequisiteError(f"c2/{model_name}: {error}") from None
        self._requests_per_unit = settings.requests_per_unit
        self._waiting: list[_Call] = []
        self._turn = anyio.Lock()
        self._prompt_tokens = cache(lambda request: len(render_prompt(self.sampler.tokenizer, request)))

    def max_connections(self) -> int:
        """Return the number of samples that may wait; `batch_size` limits those computed together."""
        return MOST_WAITING

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Return the continuation alone."""
        prefill = read_prefill(input)
        named = {
            "max_new_tokens": config.max_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed,
        }
        call = _Call(prefill, SamplingSettings(**{name: value for name, value in named.items() if value is not None}))
        self._waiting.append(call)
        async with self._turn:
            if call.outcome is None:
                await self._gather()
            while call.outcome is None:
                # Without the shield, a cancelled sample would cancel the others of its unit.
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._sample, self._take_unit())
        if isinstance(call.outcome, Exception):
            raise call.outcome
        written, tokens_read = call.outcome, self._prompt_tokens(prefill.request) + len(prefill.answer_ids)
        message = ChatMessageAssistant(content=written.text, model=self.model_name, source="generate")
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason="stop" if written.ended else "max_tokens")],
            usage=ModelUsage(
                input_tokens=tokens_read,
                output_tokens=written.num_tokens,
                total_tokens=tokens_read + written.num_tokens,
            ),
        )

    async def _gather(self) -> None:
        known = 0
        while known < len(self._waiting):
            known = len(self._waiting)
            await anyio.sleep(_GATHER_S)

    def _take_unit(self) -> list[_Call]:
        """Take the waiting calls of the first few requests, in eval.py's order: rounding depends on the rows of a batch."""
        requests = list(dict.fromkeys(call.prefill.request for call in self._waiting))[: self._requests_per_unit]
        unit = [call for call in self._waiting if call.prefill.request in requests]
        self._waiting = [call for call in self._waiting if call.prefill.request not in requests]
        # Draw keys of one prefill differ in the number of the path, which may have one digit or more.
        return sorted(
            unit,
            key=lambda call: (
                requests.index(call.prefill.request),
                len(call.prefill.answer_ids),
                len(call.prefill.draw_key),
                call.prefill.draw_key,
            ),
        )

    def _sample(self, calls: list[_Call]) -> None:
        for sampling in dict.fromkeys(call.sampling for call in calls):
            alike = [call for call in calls if call.sampling == sampling]
            try:
                for call, written in zip(alike, self.sampler.sample([c.prefill for c in alike], sampling), strict=True):
                    call.outcome = written
            except Exception as error:
                for call in alike:
                    call.outcome = error


def prefill_message(text: str, answer_ids: list[int], draw_key: str) -> ChatMessageAssistant:
    """Return the message of a prefilled answer, with its token ids: encoding the text again may give others."""
    return ChatMessageAssistant(content=text, metadata={"answer_ids": answer_ids, "draw_key": draw_key})


def read_prefill(messages: list[ChatMessage]) -> Prefill:
    """Return the prefill of a request and a `prefill_message`.

    Raises:
        UsageError: If the messages are anything else.
    """
    about = (messages[-1].metadata or {}) if messages else {}
    if [message.role for message in messages] != ["user", "assistant"] or "answer_ids" not in about:
        roles = ", ".join(message.role for message in messages)
        raise UsageError(f"c2 continues one request with a `prefill_message`, but received: {roles}. Use the task c2_eval.")
    return Prefill(messages[0].text, tuple(about["answer_ids"]), about["draw_key"])


@modelapi("c2")
def c2() -> type[ModelAPI]:
    """Register the provider."""
    return PrefillAPI
