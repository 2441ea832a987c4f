"""What a judge takes and returns. Knows nothing of models, servers or rates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class JudgedPath:
    """What a judge reads: the request, the prefilled beginning of the answer, and its continuation by the model."""

    request: str
    prefill: str
    continuation: str


@dataclass(frozen=True)
class Verdict:
    """Whether a path corrects itself (None: unscored), and a short reason that never quotes the text.

    `votes` holds the verdict of each judge by name, where several vote.
    """

    corrected: bool | None
    reason: str
    votes: dict[str, bool | None] | None = None


class Judge(Protocol):
    """Gives one verdict per path, in the order of the paths."""

    name: str

    def judge(self, paths: Sequence[JudgedPath]) -> list[Verdict]:
        """Judge the paths."""
        ...


@runtime_checkable
class GradedJudge(Judge, Protocol):
    """A judge that also gives each path a score in [0, 1], and calls it corrected from a threshold on.

    `threshold` is None where it judges by words instead.
    """

    @property
    def threshold(self) -> float | None:
        """Score from which a path is corrected."""
        ...

    def scores(self, paths: Sequence[JudgedPath]) -> list[float | None]:
        """Return the score of each path; None where it is unscored."""
        ...


class ScriptedJudge:
    """A judge for tests: gives the `corrected` values of a list in turn, or those that a function returns."""

    name = "scripted"

    def __init__(self, verdicts: Sequence[bool | None] | Callable[[JudgedPath], bool | None]) -> None:
        """Take the script."""
        self._decide: Callable[[JudgedPath], bool | None]
        if callable(verdicts):
            self._decide = verdicts
        else:
            remaining: Iterator[bool | None] = iter(verdicts)
            self._decide = lambda path: next(remaining)

    def judge(self, paths: Sequence[JudgedPath]) -> list[Verdict]:
        """Give the scripted verdicts."""
        return [Verdict(self._decide(path), "scripted") for path in paths]
