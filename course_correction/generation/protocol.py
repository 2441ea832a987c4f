"""What a sampler takes and returns, whatever its backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Prefill:
    """An answer to go on with.

    Attributes:
        request: What the user asked.
        answer_ids: Token ids of the answer begun, `()` where it has not.
        draw_key: Names the random numbers of what follows.
        prompt_ids: Stand before the answer in the chat prompt's stead, where given.
    """

    request: str
    answer_ids: tuple[int, ...]
    draw_key: str
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """What was written after an answer begun.

    Attributes:
        text: Its leading space included.
        num_tokens: Without the end token.
        ended: Whether the answer ended by itself.
    """

    text: str
    num_tokens: int
    ended: bool


class Sampler(Protocol):
    """Goes on with answers.

    Attributes:
        tokenizer: The model's.
        units_at_once: How many units of work are best in flight together.
        paths_sampled: Since the start.
        tokens_sampled: Likewise.
    """

    tokenizer: Any
    units_at_once: int
    paths_sampled: int
    tokens_sampled: int

    def sample(self, begun: Sequence[Prefill], settings: Any) -> list[Completion]:
        """Return what follows each answer, in order. Answers to one request stand together."""
        ...
