"""The shapes of the JSON blocks inside report.html. Units as in schema.py."""

from typing import Literal, TypedDict

from course_correction.report.schema import CorrDifference, PageMetrics, PairedDifference

Unit = Literal["percent", "nats"]


class SummaryRow(TypedDict):
    """A row of the first table."""

    label: str
    values: list[PairedDifference | None]  # One per run.
    difference: PairedDifference | None  # The last run minus the first.
    unit: Unit
    better: int  # 1 if higher is better, -1 if lower is better.


class PageRun(TypedDict):
    """A run."""

    name: str
    metrics: PageMetrics


class Limits(TypedDict):
    """The values of `PageLimits`."""

    paths: int
    characters: int
    bytes: int


class PageSummary(TypedDict):
    """The block `summary`: everything except texts and counts of paths."""

    runs: list[PageRun]  # One or two; the last one is reported on.
    difference: CorrDifference | None
    summary_rows: list[SummaryRow]
    tasks: list[str]  # Tasks and groups of general ability to show.
    prefill_tokens: list[int]  # All k, ascending.
    items: int  # Items with paths; the page may contain fewer.
    words_before: list[list[tuple[int, int]]]  # Per run: (words before the correction, number of paths).
    limits: Limits
    left_out: int  # Paths that the page does not contain.


CutText = tuple[str, int]  # A text cut to the limit; its full length in characters.
PathRow = tuple[int, int, str, str, str, int, str]  # path, verdict, before, correcting clause, after, full length, reason


class PageTexts(TypedDict):
    """The texts of an item for one k; one entry per run."""

    prefills: list[CutText | None]  # None where the run has no path.
    paths: list[list[PathRow]]


class PageItem(TypedDict):
    """The block `item-{number}`: the texts of an item, with an entry of `lengths` for each k."""

    request: CutText
    lengths: list[PageTexts]


Counts = list[int] | int  # Paths by verdict (YES, NO, UNSCORED); without paths 1 if the response is shorter than k, else 0.
IndexRow = tuple[str, list[list[Counts]]]  # Block `index`: request_id, and for each k the counts of each run.
