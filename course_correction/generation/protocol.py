"""What a sampler takes and returns, whatever its backend. Knows nothing of models, servers or judges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from course_correction.base.settings import check_values, setting

# transformers types neither what `from_pretrained` returns nor what these objects take.
Model: TypeAlias = Any
Tokenizer: TypeAlias = Any


@dataclass(frozen=True)
class SamplingSettings:
    """How paths are sampled. Defaults: the reference's `eval_data.py` at 44da12c and, for m, the paper.

    Raises:
        UsageError: If a value is outside its range.
    """

    max_new_tokens: int = setting(32, "tokens per path (m)", group="sampling", identity="sampling", at_least=1)
    temperature: float = setting(0.8, "0 is greedy", group="sampling", identity="sampling", at_least=0)
    top_p: float = setting(
        0.7, "nucleus; 1 is the whole distribution", group="sampling", identity="sampling", above=0, at_most=1
    )
    seed: int = setting(0, "seed of the random numbers of every path", group="sampling", identity="sampling", at_least=0)

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_values(self)


@dataclass(frozen=True)
class Prefill:
    """A request with the beginning of an answer, which the model is to continue.

    Attributes:
        request: What the user asks.
        answer_ids: Token ids of the prefilled answer; `()` to sample an answer from its beginning.
        draw_key: Names the random numbers of the path.
        prompt_ids: Token ids to put before the answer instead of the rendered chat prompt.
    """

    request: str
    answer_ids: tuple[int, ...]
    draw_key: str
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prefill.

    Attributes:
        text: Its leading space included.
        num_tokens: Without the end token.
        ended: Whether the model ended the answer.
    """

    text: str
    num_tokens: int
    ended: bool


class Sampler(Protocol):
    """Continues prefills.

    Attributes:
        tokenizer: The model's.
        units_at_once: How many units of work are best in flight together.
        paths_sampled: Number of paths since the start.
        tokens_sampled: Number of tokens since the start.
    """

    tokenizer: Tokenizer
    units_at_once: int
    paths_sampled: int
    tokens_sampled: int

    def sample(self, prefills: Sequence[Prefill], settings: SamplingSettings) -> list[Completion]:
        """Return the continuation of each prefill, in order. Prefills of one request stand together."""
        ...
