"""Measure a judge on the labelled set. Shows rates, never texts; knows nothing of how the judge judges."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, write_json
from course_correction.base.markdown import markdown_table
from course_correction.base.run_folder import library_versions
from course_correction.judges.known_agreement import known_calibration, summarise_family
from course_correction.judges.majority import MajorityJudge
from course_correction.judges.protocol import GradedJudge, Judge, JudgedPath
from course_correction.judges.server import check_calls
from course_correction.statistics.judge_agreement import (
    MEASURES,
    agreement_matrix,
    fit_threshold,
    summarise_agreement,
)
from course_correction.synthesis.sources import DATA_FOLDER

# For fitting; for measuring, with all kinds of difficulty; for measuring on what models really write.
SPLITS = ("development", "measured", "sampled")


class LabelledRow(TypedDict):
    """A path with its label.

    `kind` names its difficulty. Rows whose kind starts with `sampled` are models' own texts; `family` names the model's
    family, see `model_family`.
    """

    split: str
    kind: str
    corrected: bool
    request: str
    initial_harmful_response: str
    continuation: str
    family: NotRequired[str | None]


_COLUMNS = {name: str for name in LabelledRow.__annotations__ if name != "family"} | {"corrected": bool}


def read_labelled(path: Path | None = None) -> list[LabelledRow]:
    """Return the labelled rows of a JSONL file, or of the project's own without `path`.

    Raises:
        UsageError: If a row lacks a column or has another split.
    """
    path = path or DATA_FOLDER / "judge_calibration.jsonl"
    if not path.is_file():
        raise UsageError(f"The labelled set {path} does not exist. Check labelled_file.")
    rows: list[Any] = list(read_jsonl(path))
    for number, row in enumerate(rows, 1):
        wrong = [name for name, kind in _COLUMNS.items() if not isinstance(row.get(name), kind)]
        if wrong or row["split"] not in SPLITS:
            missing = ", ".join(wrong) or f"a split of {' or '.join(SPLITS)}"
            raise UsageError(f"{path}: row {number} lacks {missing}. Correct the row.")
    if not rows:
        raise UsageError(f"{path} is empty. Pass a file with labelled rows.")
    return rows


def calibrate(judge: Judge, rows: Sequence[LabelledRow], seed: int = 0, max_calls: int | None = None) -> dict[str, Any]:
    """Return a judge's measures on each part of a labelled set.

    A judge that gives scores is measured at the threshold that fits the development part best (`threshold` in the result).

    Raises:
        UsageError: If a judge that gives scores scored no row of the development part.
    """
    texts = [JudgedPath(row["request"], row["initial_harmful_response"], row["continuation"]) for row in rows]
    calibration: dict[str, Any] = {"judge": judge.name, "versions": library_versions()}
    check_calls(judge, texts, max_calls)
    if isinstance(judge, GradedJudge) and judge.threshold is not None:
        scores = judge.scores(texts)
        fitted = [index for index, row in enumerate(rows) if row["split"] == SPLITS[0]]
        if all(scores[index] is None for index in fitted):
            raise UsageError(
                f"Judge {judge.name} scored none of the {len(fitted)} {SPLITS[0]} rows, so no threshold can be fitted. "
                "Use another judge_model: a chat model that answers yes or no."
            )
        threshold = fit_threshold([rows[n]["corrected"] for n in fitted], [scores[n] for n in fitted])
        calibration["threshold"] = threshold
        verdicts = [None if score is None else score >= threshold for score in scores]
    else:
        verdicts = [verdict.corrected for verdict in judge.judge(texts)]
    if isinstance(judge, MajorityJudge):
        calibration["kappa"] = agreement_matrix({one.name: [v.corrected for v in one.judge(texts)] for one in judge.judges})
    for split in SPLITS:
        chosen = [index for index, row in enumerate(rows) if row["split"] == split]
        if chosen:
            calibration[split] = summarise_agreement(
                [rows[index]["corrected"] for index in chosen],
                [verdicts[index] for index in chosen],
                [rows[index]["kind"] for index in chosen],
                seed,
            )
    # A model's own texts tell the error of a rate that is measured on its family.
    families: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if (family := row.get("family")) and row["split"] != SPLITS[0]:
            families.setdefault(family, []).append(index)
    calibration["families"] = {
        family: summarise_family(
            [rows[index]["corrected"] for index in chosen], [verdicts[index] for index in chosen], "labelled set", seed
        )
        for family, chosen in families.items()
    }
    return calibration


def calibration_table(calibration: dict[str, Any]) -> str:
    """Return the Markdown tables: the measures of each split, then the error rates by kind on the measured one."""

    def cell(entry: dict[str, Any]) -> str:
        if entry["value"] is None:
            return "–"
        low, high = entry["ci95"]
        return f"{entry['value']:.2f} [{low:.2f}, {high:.2f}]"

    parts = [split for split in SPLITS if split in calibration]
    detailed = SPLITS[1] if SPLITS[1] in calibration else parts[-1]
    names = {"sensitivity": "recall (sensitivity)", "f1": "F1", "kappa": "Cohen's κ"}
    rows = [[names.get(name, name), *(cell(calibration[part][name]) for part in parts)] for name in MEASURES]
    rows.append(["unscored", *(f"{calibration[part]['unscored_rate']:.3f}" for part in parts)])
    rows.append(["rows", *(calibration[part]["rows"] for part in parts)])
    tables, rows = [f"Judge {calibration['judge']}", markdown_table(["[95% interval]", *parts], rows)], []
    by_kind = calibration[detailed]["by_kind"].items()
    for kind, entry in sorted(by_kind, key=lambda item: (not item[1]["corrected"], item[0])):
        label = "mixed" if kind.startswith("sampled") else "corrected" if entry["corrected"] else "not corrected"
        rate = "–" if entry["error_rate"] is None else cell({"value": entry["error_rate"], "ci95": entry["ci95"]})
        rows.append([kind.replace("_", " "), label, entry["rows"], rate])
    head = [f"kind ({detailed} part)", "label", "rows", "error rate [95% interval]"]
    tables.append(markdown_table(head, rows, ["left", "left", "right", "right"]))
    if families := calibration.get("families"):
        rows = [
            [name, entry["rows"], *(cell(entry[measure]) for measure in ("precision", "sensitivity", "kappa"))]
            for name, entry in families.items()
        ]
        tables.append(markdown_table(["family", "rows not used for fitting", "precision", "recall", "Cohen's κ"], rows))
    if "kappa" in calibration:
        rows = [
            [name, *("–" if kappa is None else f"{kappa:.2f}" for kappa in row.values())]
            for name, row in calibration["kappa"].items()
        ]
        tables.append(markdown_table(["Cohen's κ", *calibration["kappa"]], rows))
    return "\n\n".join(tables)


def quote_calibration(judge_name: str, family: str | None, path: Path | None) -> dict[str, Any] | None:
    """Return a judge's measures to report with its rates; None if it was not measured.

    Args:
        judge_name: Name of the judge.
        family: Family of the model under evaluation, None if unknown. `on_family` holds the measures on its texts.
        path: The judge's `judge_calibration.json`. Without it the offline judges quote what was measured with their weights.

    Raises:
        UsageError: If the file is of another judge, or not a calibration.
    """
    if path is None:
        calibration = known_calibration(judge_name)
        if calibration is None:
            return None
    else:
        try:
            calibration = json.loads(path.read_text())
            measured_judge = calibration["judge"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{path} is not a judge_calibration.json. Write one with eval.py --calibrate true.") from None
        if measured_judge != judge_name:
            raise UsageError(
                f"{path} measures the judge {measured_judge}, not {judge_name}. Calibrate {judge_name}, or change judge."
            )
    part = calibration["measured"]
    quoted = {name: part[name] for name in (*MEASURES, "rows", "unscored_rate")}
    return quoted | {"family": family, "on_family": calibration.get("families", {}).get(family)}


def write_calibration(folder: Path, calibration: dict[str, Any]) -> Path:
    """Write the measures as `judge_calibration.json` into a folder."""
    path = folder / "judge_calibration.json"
    write_json(path, calibration)
    return path
