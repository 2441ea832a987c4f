"""Measure a judge on the labelled set. Shows rates, never texts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, write_json
from course_correction.base.markdown import markdown_table
from course_correction.base.run_folder import library_versions
from course_correction.judges.pattern import PatternJudge
from course_correction.judges.protocol import Judge, JudgedPath
from course_correction.judges.server import check_calls
from course_correction.statistics.judge_agreement import (
    MEASURES,
    agreement_matrix,
    count_agreement,
    fit_threshold,
    summarise_agreement,
)
from course_correction.synthesis.sources import DATA_FOLDER

# For fitting; for measuring, with all kinds of difficulty; for measuring on what models really say.
SPLITS = ("development", "measured", "sampled")
_KEYS = {"split": str, "kind": str, "corrected": bool, "request": str, "initial_harmful_response": str, "continuation": str}


def read_labelled(path: Path | None = None) -> list[dict[str, Any]]:
    """Return the labelled rows of a JSONL file; the project's own without it.

    Raises:
        UsageError: If a row lacks a column or has another split.
    """
    path = path or DATA_FOLDER / "judge_calibration.jsonl"
    if not path.is_file():
        raise UsageError(f"There is no labelled set {path}.")
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows, 1):
        wrong = [name for name, kind in _KEYS.items() if not isinstance(row.get(name), kind)]
        if wrong or row["split"] not in SPLITS:
            raise UsageError(f"{path}: row {number} lacks {', '.join(wrong) or 'a split of ' + ' or '.join(SPLITS)}.")
    if not rows:
        raise UsageError(f"{path} holds no row.")
    return rows


def calibrate(judge: Judge, rows: Sequence[dict[str, Any]], seed: int = 0, max_calls: int | None = None) -> dict[str, Any]:
    """Return a judge's measures on each part of a labelled set.

    A judge that gives scores is measured at the threshold that fits the development part best (`threshold` in the result).
    """
    texts = [JudgedPath(row["request"], row["initial_harmful_response"], row["continuation"]) for row in rows]
    found: dict[str, Any] = {"judge": judge.name, "versions": library_versions()}
    if getattr(judge, "threshold", None) is not None:
        check_calls(judge, texts, max_calls)
        scores = judge.scores(texts)
        fitted = [index for index, row in enumerate(rows) if row["split"] == SPLITS[0]]
        found["threshold"] = fit_threshold([rows[n]["corrected"] for n in fitted], [scores[n] for n in fitted])
        verdicts = [None if score is None else score >= found["threshold"] for score in scores]
    else:
        check_calls(judge, texts, max_calls)
        verdicts = [verdict.corrected for verdict in judge.judge(texts)]
    if several := getattr(judge, "judges", None):
        found["kappa"] = agreement_matrix({one.name: [v.corrected for v in one.judge(texts)] for one in several})
    for split in SPLITS:
        chosen = [index for index, row in enumerate(rows) if row["split"] == split]
        if chosen:
            found[split] = summarise_agreement(
                [rows[index]["corrected"] for index in chosen],
                [verdicts[index] for index in chosen],
                [rows[index]["kind"] for index in chosen],
                seed,
            )
    # What models said, where the set marks it: the rows that a rate's error is judged by.
    measured = [index for index, row in enumerate(rows) if row["split"] != SPLITS[0]]
    said = [index for index in measured if rows[index]["kind"].startswith("sampled")] or measured
    found["sampled_counts"] = asdict(
        count_agreement([rows[index]["corrected"] for index in said], [verdicts[index] for index in said])
    )
    return found


def calibration_table(found: dict[str, Any]) -> str:
    """Return the Markdown tables: the measures of each part, then the errors by kind on the measured one."""

    def cell(entry: dict[str, Any]) -> str:
        if entry["value"] is None:
            return "–"
        low, high = entry["ci95"]
        return f"{entry['value']:.2f} [{low:.2f}, {high:.2f}]"

    parts = [split for split in SPLITS if split in found]
    detailed = SPLITS[1] if SPLITS[1] in found else parts[-1]
    names = {"sensitivity": "recall (sensitivity)", "f1": "F1", "kappa": "Cohen's κ"}
    rows = [[names.get(name, name), *(cell(found[part][name]) for part in parts)] for name in MEASURES]
    rows.append(["unscored", *(f"{found[part]['unscored_rate']:.3f}" for part in parts)])
    rows.append(["rows", *(found[part]["rows"] for part in parts)])
    tables, rows = [f"Judge {found['judge']}", markdown_table(["[95% interval]", *parts], rows)], []
    for kind, entry in sorted(found[detailed]["by_kind"].items(), key=lambda item: (not item[1]["corrected"], item[0])):
        label = "mixed" if kind.startswith("sampled") else "corrected" if entry["corrected"] else "not corrected"
        rate = "–" if entry["error_rate"] is None else cell({"value": entry["error_rate"], "ci95": entry["ci95"]})
        rows.append([kind.replace("_", " "), label, entry["rows"], rate])
    head = [f"kind ({detailed} part)", "label", "rows", "error rate [95% interval]"]
    tables.append(markdown_table(head, rows, ["left", "left", "right", "right"]))
    if "kappa" in found:
        rows = [
            [name, *("–" if kappa is None else f"{kappa:.2f}" for kappa in row.values())]
            for name, row in found["kappa"].items()
        ]
        tables.append(markdown_table(["Cohen's κ", *found["kappa"]], rows))
    return "\n\n".join(tables)


def quote_calibration(judge_name: str, path: Path | None) -> dict[str, Any] | None:
    """Return a judge's measures on the measured part, to stand beside its rates; None if nobody measured it.

    Args:
        judge_name: Name of the judge.
        path: Its `judge_calibration.json`; the pattern judge, which takes no time, is measured now without it.

    Raises:
        UsageError: If the file is of another judge, or is none.
    """
    if path is None:
        if judge_name != PatternJudge.name:
            return None
        found = calibrate(PatternJudge(), read_labelled())
    else:
        try:
            found = json.loads(path.read_text())
            known = found["judge"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{path} is no judge_calibration.json; eval.py --calibrate true writes one.") from None
        if known != judge_name:
            raise UsageError(f"{path} is about the judge {known}, not {judge_name}.")
    part = found["measured"]
    return {name: part[name] for name in (*MEASURES, "rows", "unscored_rate")} | {"sampled_counts": found["sampled_counts"]}


def write_calibration(folder: Path, found: dict[str, Any]) -> Path:
    """Write the measures as `judge_calibration.json` into a folder."""
    path = folder / "judge_calibration.json"
    write_json(path, found)
    return path
