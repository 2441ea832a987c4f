"""Show an evaluation as one page: report.html, its rates, curves and paths. Opens from disk and loads nothing.

The page holds requests, prefills and what models said, blurred at first: it is read beside a run and never pushed.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, text_digest, write_atomically
from course_correction.judges.pattern import find_correction
from course_correction.report.summary_table import ability_shares, headline

PrefillText = Callable[[dict[str, str], int], str] | Mapping[tuple[str, int], str]
_TEMPLATE = Path(__file__).parent / "page" / "report.html"
# What of metrics.json the page shows; nothing that is added there later gets into a page unasked.
_RATES = {"corr_at_k", "corr_mean", "corr_mean_less_judge_errors", "first_correction", "over_refusal", "benign_kl"}
_JUDGING = {"judge", "judge_agreement", "judges_kappa", "unscored_rate", "unscored_reasons", "requests_needed"}
_ABOUT = {"jailbreak", "general", "benign", "dynamics", "settings", "model", "adapter", "versions", "seconds"}
_SHOWN = _RATES | _JUDGING | _ABOUT | {"over_refusal_difference"}
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
# Where a clause may begin: behind the end of a sentence, or at a comma before a turn ("..., but I can't").
_TURNING_COMMA = r"(?<!wait)(?<!sorry)(?<!\bno)(?<!honest)(?<!actually),\s+(?=(?:but|however|though|i)\b)"
_CLAUSE_STARTS = re.compile(rf"[.!?…]+[\"'”’)]*\s+|\n+|;\s+|\s*—\s*|{_TURNING_COMMA}", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[.!?…,:;—\n]")
_VOTES = {True: "yes", False: "no", None: "–"}
YES, NO, UNSCORED = 0, 1, 2  # Places in a cell's counts, and verdicts of its paths.


@dataclass(frozen=True)
class RunData:
    """A finished evaluation, as the page reads it.

    Attributes:
        metrics: Its metrics.json.
        folder: Where generations.jsonl and verdicts.jsonl lie.
        items: Rows of `request_id`, `request`, `full_harmful_response`.
        prefill_text: The text of the first k tokens: by a function of item and k, or by (request_id, k).
        find_end: Where a correction is found; see `find_correction`. A caller that has asked before may remember.
    """

    metrics: dict[str, Any]
    folder: Path
    items: Sequence[dict[str, str]]
    prefill_text: PrefillText
    find_end: Callable[[str], int | None] = find_correction

    def prefill(self, item: dict[str, str], k: int) -> str:
        """Return the text of an item's first k tokens."""
        given = self.prefill_text
        return given(item, k) if callable(given) else given.get((item["request_id"], k), "")


@dataclass(frozen=True)
class PageLimits:
    """What a page holds at most: paths of an item and k, characters of a text, bytes of all texts together."""

    paths: int = 20
    characters: int = 2_000
    bytes: int = 60_000_000


@dataclass
class _Cell:
    """The paths of one item and k: how many of each verdict, and rows of path, verdict, text, full length, reason."""

    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    rows: list[tuple[int, int, str, int, str]] = field(default_factory=list)
    too_short: bool = False

    def seen(self) -> list[int] | int:
        """Return the counts; without a path 1 where the response is shorter than k, else 0."""
        return self.counts if self.rows else int(self.too_short)


Cells = dict[tuple[str, int], _Cell]  # By request_id and k.


def read_run(folder: Path, items: Sequence[dict[str, str]], prefill_text: PrefillText) -> RunData:
    """Return the evaluation that was finished in `folder`.

    Raises:
        UsageError: If there is no metrics.json.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no finished evaluation (no metrics.json). Run eval.py into it first.")
    return RunData(json.loads(path.read_text(encoding="utf-8")), folder, items, prefill_text)


def write_html_report(
    path: Path, runs: dict[str, RunData], difference: dict[str, Any] | None = None, limits: PageLimits | None = None
) -> Path:
    """Write the page, the same bytes for the same runs.

    Args:
        path: Of the page.
        runs: By the name to show: the last is reported on, the first is its baseline if there are two.
        difference: `paired_difference` of the last run to the first.
        limits: Where many items would make the page too large, some are drawn, and the page says so.
    """
    limits = limits or PageLimits()
    names = list(dict.fromkeys([next(iter(runs)), list(runs)[-1]]))
    shown = [runs[name] for name in names]
    tables = [_read_cells(run, limits) for run in shown]
    lengths = sorted({k for cells in tables for _, k in cells})
    items = [item for item in shown[-1].items if any((item["request_id"], k) in cells for cells in tables for k in lengths)]
    chunks = [_chunk(item, lengths, list(zip(shown, tables, strict=True)), limits) for item in items]
    kept = _draw(items, chunks, limits.bytes)
    words_before = _mark_corrections([chunks[place] for place in kept], shown)
    metrics = [{key: run.metrics[key] for key in run.metrics if key in _SHOWN} for run in shown]
    summary = {
        "runs": [{"name": name, "metrics": one} for name, one in zip(names, metrics, strict=True)],
        "difference": difference,
        "headline": headline(metrics, difference),
        "tasks": sorted({name for one in metrics for name in ability_shares(one)}),
        "prefill_tokens": lengths,
        "items": len(items),
        "words_before": [sorted(counts.items()) for counts in words_before],
        "limits": vars(limits),
        "left_out": sum(sum(cell.counts) - len(cell.rows) for cells in tables for cell in cells.values()),
    }
    ids = [items[place]["request_id"] for place in kept]
    index = [[name, [[cells.get((name, k), _Cell()).seen() for cells in tables] for k in lengths]] for name in ids]
    blocks = {"summary": summary, "index": index} | {f"item-{number}": chunks[place] for number, place in enumerate(kept)}
    write_atomically(path, _fill(names[-1], blocks).encode("utf-8", "replace"))
    return path


def split_at_correction(text: str, end: int | None) -> tuple[str, str, str]:
    """Split at the clause that holds `end` (see `find_correction`): before, clause, after. Without it all is before."""
    if end is None:
        return text, "", ""
    start = max((match.end() for match in _CLAUSE_STARTS.finditer(text, 0, end) if match.end() < end), default=0)
    start += len(text[start:end]) - len(text[start:end].lstrip())
    stop = match.start() if (match := _CLAUSE_END.search(text, end)) else len(text)
    return text[:start], text[start:stop], text[stop:]


def _read_cells(run: RunData, limits: PageLimits) -> Cells:
    wanted = {item["request_id"] for item in run.items}
    judged, said = (
        read_jsonl(path) if (path := run.folder / name).is_file() else () for name in ("verdicts.jsonl", "generations.jsonl")
    )
    verdicts = {_key(row): (row["corrected"], _reason(row)) for row in judged}
    cells: Cells = {}
    for row in said:
        key = _key(row)
        if row["request_id"] not in wanted:
            continue
        cell = cells.setdefault(key[:2], _Cell())
        if row.get("too_short"):
            cell.too_short = True
            continue
        corrected, reason = verdicts.get(key, (None, "no verdict"))
        verdict = UNSCORED if corrected is None else YES if corrected else NO
        cell.counts[verdict] += 1
        text = row["continuation"]  # Perhaps a megabyte: what is not shown is not kept.
        cell.rows.append((row["path"], verdict, text[: limits.characters], len(text), reason))
    for cell in cells.values():
        cell.rows = sorted(cell.rows)[: limits.paths]
    return cells


def _key(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["request_id"], row["prefill_tokens"], row["path"]


def _reason(row: dict[str, Any]) -> str:
    votes = [f"{judge} {_VOTES[vote]}" for judge, vote in row.get("votes", {}).items()]
    return "; ".join([str(row["reason"] or ""), *votes]).strip("; ")[:200]


def _chunk(
    item: dict[str, str], lengths: Sequence[int], sources: Sequence[tuple[RunData, Cells]], limits: PageLimits
) -> dict[str, Any]:
    """Return an item's texts, each path with room for its correcting clause and what follows it."""

    def cut(text: str) -> list[Any]:
        return [text[: limits.characters], len(text)]

    by_length = []
    for k in lengths:
        found = [(run, cells.get((item["request_id"], k), _Cell())) for run, cells in sources]
        prefills = [cut(run.prefill(item, k)) if cell.rows else None for run, cell in found]
        paths = [[[*row[:3], "", "", *row[3:]] for row in cell.rows] for _, cell in found]
        by_length.append({"prefills": prefills, "paths": paths})
    return {"request": cut(item["request"]), "lengths": by_length}


def _mark_corrections(chunks: Sequence[dict[str, Any]], runs: Sequence[RunData]) -> list[Counter[int]]:
    """Split the corrected paths at their correcting clause, and count for each run the words before it."""
    said: list[Counter[int]] = [Counter() for _ in runs]
    remembered: dict[str, tuple[str, str, str]] = {}
    for one in (one for chunk in chunks for one in chunk["lengths"]):
        for run, counter, rows in zip(runs, said, one["paths"], strict=True):
            for row in (row for row in rows if row[1] == YES):
                if (text := row[2]) not in remembered:
                    remembered[text] = split_at_correction(text, run.find_end(text))
                row[2:5] = remembered[text]
                if row[3]:
                    counter[len(row[2].split())] += 1
    return said


def _draw(items: list[dict[str, str]], chunks: list[dict[str, Any]], most: int) -> list[int]:
    """Return places, in order, of chunks that take `most` bytes at most: all, or some drawn by a digest of the ids."""
    kept = []
    for place in sorted(range(len(items)), key=lambda place: text_digest(items[place]["request_id"])):
        if (size := len(_block(chunks[place]).encode("utf-8", "replace"))) <= most:
            kept.append(place)
            most -= size
    return sorted(kept)


def _block(value: Any) -> str:
    """Encode as JSON that can stand inside a script element: no character of it means anything to HTML."""
    return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)


def _finite(value: Any) -> Any:
    if isinstance(value, float):  # JSON knows no NaN and no infinities.
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def _fill(name: str, blocks: Mapping[str, Any]) -> str:
    style, script = (_TEMPLATE.with_suffix(ending).read_text(encoding="utf-8") for ending in (".css", ".js"))

    def allow(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    scripts = (f'<script type="application/json" id="{key}">{_block(value)}</script>\n' for key, value in blocks.items())
    parts = {"title": html.escape(f"C²-Eval: {name}"), "style": style, "script": script, "blocks": "".join(scripts)}
    allowed = f"script-src {allow(script)}; style-src {allow(style)}; img-src data:"
    parts["policy"] = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    # In one go: what data says in braces is not filled in.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _TEMPLATE.read_text(encoding="utf-8"))
