"""What a judge takes and returns. Knows nothing of rates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class JudgedPath:
    """What a judge is given: the request, the start put into the model's mouth, and what the model said next."""

    request: str
    prefill: str
    continuation: str


@dataclass(frozen=True)
class Verdict:
    """Whether a path corrects itself (None: unscored), and a short reason that never quotes the text.

    `votes` holds what each of several judges said, by name.
    """

    corrected: bool | None
    reason: str
    votes: dict[str, bool | None] | None = None


class Judge(Protocol):
    """Whoever gives one verdict a path, in the order of the paths."""

    name: str

    def judge(self, paths: Sequence[JudgedPath]) -> list[Verdict]:
        """Judge the paths."""


class ScriptedJudge:
    """A judge for tests: gives the `corrected` values of a list in turn, or those that a function returns."""

    name = "scripted"

    def __init__(self, verdicts: Sequence[bool | None] | Callable[[JudgedPath], bool | None]) -> None:
        """Take the script."""
        remaining = None if callable(verdicts) else iter(verdicts)
        self._decide = verdicts if remaining is None else lambda path: next(remaining)

    def judge(self, paths: Sequence[JudgedPath]) -> list[Verdict]:
        """Give the scripted verdicts."""
        return [Verdict(self._decide(path), "scripted") for path in paths]
