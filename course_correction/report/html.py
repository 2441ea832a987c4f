"""Write report.html: an evaluation's rates, curves and paths on one page. It opens from disk and loads nothing.

The page contains requests, prefills and continuations, blurred at first. It stays beside the run and is never pushed.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from course_correction.base.files import text_digest, write_atomically
from course_correction.report.page_schema import IndexRow, PageItem, PageSummary
from course_correction.report.path_texts import Cell, PageLimits, item_texts, mark_corrections, read_cells
from course_correction.report.run_data import RunData
from course_correction.report.schema import PAGE_METRICS, CorrDifference, PageMetrics
from course_correction.report.summary_table import ability_scores, summary_rows

_PAGE = Path(__file__).parent / "page"
# The page's modules, each after those that it imports.
SCRIPTS = (
    "data", "elements", "numbers", "tables",
    "cards", "line_chart", "bar_charts", "heat_map",
    "summary", "curves", "side_effects", "dynamics", "judge", "settings",
    "filters", "texts", "item", "item_list", "controls",
    "main",
)  # fmt: skip
_IMPORT = re.compile(r"^import\b[^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|function)", re.MULTILINE)
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def write_html_report(
    path: Path, runs: dict[str, RunData], difference: CorrDifference | None = None, limits: PageLimits | None = None
) -> Path:
    """Write the page, the same bytes for the same runs.

    Args:
        path: Path of the page.
        runs: Runs by the name to show: the last one is reported on; if there are several, the first is its baseline.
        difference: `paired_difference` of the last run to the first.
        limits: If the items do not fit, a sample is drawn, and the page states so.
    """
    limits = limits or PageLimits()
    names = list(dict.fromkeys([next(iter(runs)), list(runs)[-1]]))
    shown = [runs[name] for name in names]
    tables = [read_cells(run, limits) for run in shown]
    lengths = sorted({k for cells in tables for _, k in cells})
    items = [item for item in shown[-1].items if any((item["request_id"], k) in cells for cells in tables for k in lengths)]
    texts = [item_texts(item, lengths, list(zip(shown, tables, strict=True)), limits) for item in items]
    kept = _draw([item["request_id"] for item in items], texts, limits.bytes)
    words_before = mark_corrections([texts[place] for place in kept], shown)
    metrics = [cast(PageMetrics, {key: value for key, value in run.metrics.items() if key in PAGE_METRICS}) for run in shown]
    summary: PageSummary = {
        "runs": [{"name": name, "metrics": one} for name, one in zip(names, metrics, strict=True)],
        "difference": difference,
        "summary_rows": summary_rows(metrics, difference),
        "tasks": sorted({name for one in metrics for name in ability_scores(one)}),
        "prefill_tokens": lengths,
        "items": len(items),
        "words_before": [sorted(counts.items()) for counts in words_before],
        "limits": {"paths": limits.paths, "characters": limits.characters, "bytes": limits.bytes},
        "left_out": sum(sum(cell.counts) - len(cell.paths) for cells in tables for cell in cells.values()),
    }
    ids = [items[place]["request_id"] for place in kept]
    index: list[IndexRow] = [
        (name, [[cells.get((name, k), Cell()).summary() for cells in tables] for k in lengths]) for name in ids
    ]
    blocks = {"summary": summary, "index": index} | {f"item-{number}": texts[place] for number, place in enumerate(kept)}
    write_atomically(path, _fill(names[-1], blocks).encode("utf-8", "replace"))
    return path


def page_script() -> str:
    """Return the page's modules as one script: imports are dropped, exports are plain definitions in one shared scope."""
    modules = ((_PAGE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    body = "\n".join(_EXPORT.sub("", _IMPORT.sub("", module)).strip("\n") for module in modules)
    return f'"use strict";\n(() => {{\n{body}\n}})();\n'


def _draw(ids: Sequence[str], texts: Sequence[PageItem], most: int) -> list[int]:
    """Return the places, ascending, of items whose texts take at most `most` bytes: all, or a draw by digests of the ids."""
    kept = []
    for place in sorted(range(len(ids)), key=lambda place: text_digest(ids[place])):
        if (size := len(_block(texts[place]).encode("utf-8", "replace"))) <= most:
            kept.append(place)
            most -= size
    return sorted(kept)


def _block(value: object) -> str:
    """Encode as JSON for the inside of a script element: no character in it has a meaning in HTML."""
    return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)


def _finite(value: object) -> object:
    if isinstance(value, float):  # JSON has no NaN and no infinities.
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def _fill(name: str, blocks: Mapping[str, object]) -> str:
    style, script = (_PAGE / "report.css").read_text(encoding="utf-8"), page_script()

    def allow(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    data = (f'<script type="application/json" id="{key}">{_block(value)}</script>\n' for key, value in blocks.items())
    parts = {"title": html.escape(f"C²-Eval: {name}"), "style": style, "script": script, "blocks": "".join(data)}
    allowed = f"script-src {allow(script)}; style-src {allow(style)}; img-src data:"
    parts["policy"] = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    # One substitution: braces inside the data are not filled in.
    template = (_PAGE / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
