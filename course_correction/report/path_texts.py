"""Collect the paths of finished evaluations and their texts for report.html, within the limits of the page."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from course_correction.report.page_schema import Counts, CutText, PageItem, PageTexts, PathRow
from course_correction.report.run_data import RunData, path_key, read_generations, read_verdicts
from course_correction.report.schema import Item, VerdictRow

YES, NO, UNSCORED = 0, 1, 2  # Verdicts of a path, and their places in the counts of a cell.
# Starts of a clause: the end of a sentence, or a comma before a contrast ("..., but I can't").
_CONTRAST_COMMA = r"(?<!wait)(?<!sorry)(?<!\bno)(?<!honest)(?<!actually),\s+(?=(?:but|however|though|i)\b)"
_CLAUSE_STARTS = re.compile(rf"[.!?…]+[\"'”’)]*\s+|\n+|;\s+|\s*—\s*|{_CONTRAST_COMMA}", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[.!?…,:;—\n]")
_VOTES = {True: "yes", False: "no", None: "–"}


@dataclass(frozen=True)
class PageLimits:
    """The most that a page contains: paths per item and k, characters per text, bytes of all texts together."""

    paths: int = 20
    characters: int = 2_000
    bytes: int = 60_000_000


@dataclass(frozen=True)
class ShownPath:
    """A path; its text is cut to the limit of the page, `length` is that of the whole text in characters."""

    path: int
    verdict: int
    text: str
    length: int
    reason: str


@dataclass
class Cell:
    """The paths of one item and k: number per verdict, and the paths to show."""

    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    paths: list[ShownPath] = field(default_factory=list)
    too_short: bool = False

    def summary(self) -> Counts:
        """Return the counts; without a path 1 if the response is shorter than k, else 0."""
        return self.counts if self.paths else int(self.too_short)


Cells = dict[tuple[str, int], Cell]  # By request_id and k.


def read_cells(run: RunData, limits: PageLimits) -> Cells:
    """Return the paths of a run's items by request_id and k."""
    wanted = {item["request_id"] for item in run.items}
    verdicts = {path_key(row): (row["corrected"], _reason(row)) for row in read_verdicts(run.folder)}
    cells: Cells = {}
    for row in read_generations(run.folder):
        if row["request_id"] not in wanted:
            continue
        cell = cells.setdefault((row["request_id"], row["prefill_tokens"]), Cell())
        if row.get("too_short"):
            cell.too_short = True
            continue
        corrected, reason = verdicts.get(path_key(row), (None, "no verdict"))
        verdict = UNSCORED if corrected is None else YES if corrected else NO
        cell.counts[verdict] += 1
        text = row["continuation"]  # May be a megabyte long: only the part to show is kept.
        cell.paths.append(ShownPath(row["path"], verdict, text[: limits.characters], len(text), reason))
    for cell in cells.values():
        cell.paths = sorted(cell.paths, key=lambda one: one.path)[: limits.paths]
    return cells


def _reason(row: VerdictRow) -> str:
    votes = [f"{judge} {_VOTES[vote]}" for judge, vote in row.get("votes", {}).items()]
    return "; ".join([str(row["reason"] or ""), *votes]).strip("; ")[:200]


def item_texts(item: Item, lengths: Sequence[int], sources: Sequence[tuple[RunData, Cells]], limits: PageLimits) -> PageItem:
    """Return an item's texts by k and run. The correcting clauses are not split off yet."""

    def cut(text: str) -> CutText:
        return text[: limits.characters], len(text)

    by_length: list[PageTexts] = []
    for k in lengths:
        cells = [(run, cells.get((item["request_id"], k), Cell())) for run, cells in sources]
        prefills = [cut(run.prefill(item, k)) if cell.paths else None for run, cell in cells]
        paths: list[list[PathRow]] = [
            [(one.path, one.verdict, one.text, "", "", one.length, one.reason) for one in cell.paths] for _, cell in cells
        ]
        by_length.append({"prefills": prefills, "paths": paths})
    return {"request": cut(item["request"]), "lengths": by_length}


def mark_corrections(items: Sequence[PageItem], runs: Sequence[RunData]) -> list[Counter[int]]:
    """Split the corrected paths at their correcting clause, in place.

    Returns:
        For each run, the number of paths by the number of words before the correction.
    """
    counters: list[Counter[int]] = [Counter() for _ in runs]
    split: dict[str, tuple[str, str, str]] = {}
    for texts in (texts for item in items for texts in item["lengths"]):
        for run, counter, rows in zip(runs, counters, texts["paths"], strict=True):
            for place, (path, verdict, text, *_, length, reason) in enumerate(rows):
                if verdict != YES:
                    continue
                if text not in split:
                    split[text] = split_at_correction(text, run.find_end(text))
                before, clause, after = split[text]
                rows[place] = (path, verdict, before, clause, after, length, reason)
                if clause:
                    counter[len(before.split())] += 1
    return counters


def split_at_correction(text: str, end: int | None) -> tuple[str, str, str]:
    """Split at the clause that contains `end` (see `find_correction`): before, clause, after. If None, all is before."""
    if end is None:
        return text, "", ""
    start = max((match.end() for match in _CLAUSE_STARTS.finditer(text, 0, end) if match.end() < end), default=0)
    start += len(text[start:end]) - len(text[start:end].lstrip())
    stop = match.start() if (match := _CLAUSE_END.search(text, end)) else len(text)
    return text[:start], text[start:stop], text[stop:]
