"""A finished evaluation on disk, as reports read it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl
from course_correction.judges.pattern import find_correction
from course_correction.report.schema import GenerationRow, Item, Metrics, VerdictRow

PrefillText = Callable[[Item, int], str] | Mapping[tuple[str, int], str]
PathKey = tuple[str, int, int]


@dataclass(frozen=True)
class RunData:
    """A finished evaluation and the texts to show of it.

    Attributes:
        metrics: Its metrics.json.
        folder: The folder of generations.jsonl and verdicts.jsonl.
        items: The evaluated items.
        prefill_text: The text of the first k tokens: a function of item and k, or a mapping by (request_id, k).
        find_end: Locates a correction; see `find_correction`.
    """

    metrics: Metrics
    folder: Path
    items: Sequence[Item]
    prefill_text: PrefillText
    find_end: Callable[[str], int | None] = find_correction

    def prefill(self, item: Item, k: int) -> str:
        """Return the text of an item's first k tokens."""
        source = self.prefill_text
        return source(item, k) if callable(source) else source.get((item["request_id"], k), "")


def read_run(folder: Path) -> Metrics:
    """Return the metrics.json of a finished evaluation.

    Raises:
        UsageError: If there is none.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise UsageError(
            f"{folder} contains no finished evaluation (no metrics.json). Run eval.py with this output_dir first."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def read_generations(folder: Path) -> Iterator[GenerationRow]:
    """Yield the rows of generations.jsonl; none if there is no such file."""
    return cast(Iterator[GenerationRow], _rows(folder / "generations.jsonl"))


def read_verdicts(folder: Path) -> Iterator[VerdictRow]:
    """Yield the rows of verdicts.jsonl; none if there is no such file."""
    return cast(Iterator[VerdictRow], _rows(folder / "verdicts.jsonl"))


def path_key(row: GenerationRow | VerdictRow) -> PathKey:
    """Return what identifies a path: request_id, prefill_tokens, path."""
    return row["request_id"], row["prefill_tokens"], row["path"]


def _rows(path: Path) -> Iterator[dict]:
    return read_jsonl(path) if path.is_file() else iter(())
