"""From verdicts to metrics.json and the report. The last stage of eval.py; loads no model but for the drift."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, text_digest, write_json
from course_correction.base.redaction import public_value
from course_correction.base.resumable_rows import BENIGN_ANSWERS_FILE
from course_correction.base.run_folder import RUN_FILE, library_versions
from course_correction.judges.calibration import quote_calibration
from course_correction.judges.pattern import find_correction, judge_refusal
from course_correction.report.html import write_html_report
from course_correction.report.markdown import write_report
from course_correction.report.run_data import RunData, path_key, read_generations, read_run, read_verdicts
from course_correction.report.tables import suites_table
from course_correction.statistics.clustered_rates import paired_rate_difference
from course_correction.statistics.corr_at_k import (
    PathVerdict,
    RequestRates,
    paired_difference,
    rate_with_interval,
    request_rates,
    requests_for_width,
    resample_corr_mean,
    summarise,
    summarise_positions,
)
from course_correction.statistics.judge_agreement import Confusion, agreement_matrix, corrected_rate
from course_correction.suites.choice import SUITES
from course_correction.synthesis.sources import normalise_request

# Where results lie and go says nothing of them.
NOT_SHOWN = frozenset({"output_dir", "baseline_dir", "push_to_hub", "hub_private_repo", "create_pr"})
WIDTH = 0.05  # Of the interval that the report says how many requests it takes.


def measure(
    evaluation: Any, judge_name: str, seconds: float, suites: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Compute metrics.json from the finished rows of an `Evaluation`, and the report beside it.

    Args:
        evaluation: Whose paths are sampled and judged.
        judge_name: Name of the judge.
        seconds: What sampling and judging took.
        suites: Parts of metrics.json by the suite; those of suites that an earlier run measured stay.

    Raises:
        UsageError: If the baseline or the judge's calibration does not fit.
    """
    settings, folder = evaluation.settings, evaluation.folder
    short_rows = (row for row in read_jsonl(folder / "generations.jsonl") if row.get("too_short"))
    table = read_rates(folder, evaluation.by_id, settings.prefill_tokens)
    metrics = summarise(table, Counter(row["prefill_tokens"] for row in short_rows), settings.seed)
    metrics |= _about_judging(folder, metrics["corr_mean"], table, judge_name, settings)
    metrics["requests_needed"] = {"width": WIDTH, "requests": requests_for_width(table, WIDTH)}
    metrics["first_correction"] = summarise_positions(list(_find_positions(evaluation)), settings.seed)
    if settings.max_benign:
        answers = [row["answer"] for row in read_jsonl(folder / BENIGN_ANSWERS_FILE)]
        metrics["over_refusal"] = rate_with_interval(judge_refusal(answers), settings.seed)
        if settings.baseline_dir:
            metrics["over_refusal_difference"] = _refusal_difference(folder, Path(settings.baseline_dir), settings.seed)
        if drift := evaluation.measure_drift():
            metrics["benign_kl"] = drift
    if (folder / "metrics.json").is_file():
        metrics |= _known_suites(evaluation, json.loads((folder / "metrics.json").read_text()))
    metrics |= suites or {}
    # metrics.json and the report are made to be shown: they name no path of this machine. run.json does.
    metrics |= {
        "settings": public_value(
            {k: v for k, v in asdict(settings).items() if k not in NOT_SHOWN}
            | {"items_revision": evaluation.items_revision, "dtype": evaluation.model_identity()["dtype"]}
        ),
        "items_digest": text_digest(*(text for item in evaluation.items for text in item.values())),
        "model": public_value(settings.model_name_or_path),
        "adapter": public_value(settings.adapter_name_or_path),
        "judge": judge_name,
        "versions": library_versions(),
        "seconds": round(seconds, 1),
    }
    runs, difference = {metrics["adapter"] or metrics["model"]: metrics}, None
    if settings.baseline_dir:
        baseline = Path(settings.baseline_dir)
        before = read_run(baseline)
        try:
            difference = paired_difference(
                table, read_rates(baseline, evaluation.by_id, settings.prefill_tokens), settings.seed
            )
        except ValueError as error:
            raise UsageError(f"{baseline}: {error}") from None
        metrics["difference_to_baseline"] = difference
        modes = [run["settings"]["prefill_mode"] for run in (before, metrics)]
        names = ["before", "after"] if modes[0] == modes[1] else [f"prefill: {mode}" for mode in modes]
        runs = dict(zip(names, (before, metrics), strict=True))
    write_json(folder / "metrics.json", metrics)
    table = suites_table(runs)
    write_html_report(folder / "report.html", read_pages(evaluation, list(runs)), difference)
    write_report(folder, runs, difference, f"\n## Beside C²-Eval\n\n{table}\n" if table else "")
    return metrics


def _known_suites(evaluation: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of an earlier metrics.json that suites measured on this very model, without differences."""
    path = evaluation.folder / RUN_FILE
    runs = json.loads(path.read_text()) if path.is_file() else {}
    identity = json.loads(json.dumps(evaluation.model_identity()))
    differences = {"difference", "overall_difference"}
    found = {}
    for name in SUITES:
        settings = runs.get(name, {}).get("settings", {})
        if name in known and all(settings.get(key) == value for key, value in identity.items()):
            # The baseline may be another one now; a suite that is run again takes its difference again, which costs little.
            found[name] = {key: value for key, value in known[name].items() if key not in differences}
    return found


def _refusal_difference(folder: Path, baseline: Path, seed: int) -> dict[str, Any] | None:
    """Return the paired difference in over-refusal; None if the baseline answered no benign prompt."""

    def refusals(path: Path) -> dict[str, bool]:
        rows = list(read_jsonl(path)) if path.is_file() else []
        found = judge_refusal([row["answer"] for row in rows])
        return {row["request_id"]: refused for row, refused in zip(rows, found, strict=True)}

    after, before = (refusals(place / BENIGN_ANSWERS_FILE) for place in (folder, baseline))
    return paired_rate_difference(after, before, {name: name for name in after}, seed)


def read_pages(evaluation: Any, names: list[str]) -> dict[str, RunData]:
    """Return what report.html shows of a finished evaluation, its baseline first if it has one, by the names to show."""
    folders = [Path(evaluation.settings.baseline_dir)] if evaluation.settings.baseline_dir else []
    pages = {}
    for name, folder in zip(names, [*folders, evaluation.folder], strict=True):
        metrics = read_run(folder)
        mode = metrics["settings"]["prefill_mode"]
        pages[name] = RunData(
            metrics, folder, evaluation.items, lambda item, k, mode=mode: evaluation.prefill_text(item, k, mode)
        )
    return pages


def _about_judging(
    folder: Path, corr_mean: dict[str, Any], table: RequestRates, judge_name: str, settings: Any
) -> dict[str, Any]:
    """Return what is unscored, how the judge agrees with labels and other judges, and Corr_mean without its errors."""
    verdicts = list(read_jsonl(folder / "verdicts.jsonl"))
    unscored = Counter(row["reason"] for row in verdicts if row["corrected"] is None)
    quoted = quote_calibration(judge_name, Path(file) if (file := settings.judge_calibration) else None)
    found = {
        "unscored_rate": unscored.total() / len(verdicts) if verdicts else 0.0,
        "unscored_reasons": dict(unscored.most_common()),
        "judge_agreement": quoted,
    }
    if votes := [row["votes"] for row in verdicts if "votes" in row]:
        found["judges_kappa"] = agreement_matrix({name: [row[name] for row in votes] for name in votes[0]})
    if quoted and corr_mean["value"] is not None:
        counts = Confusion(**quoted["sampled_counts"])
        estimate = corrected_rate(corr_mean["value"], resample_corr_mean(table, settings.seed), counts, settings.seed)
        found["corr_mean_adjusted"] = estimate
    return found


def _find_positions(evaluation: Any) -> Iterator[tuple[str, str, int, int]]:
    """Yield distinct request, request_id, k and tokens said before the correction, for the paths judged corrected."""
    folder, by_id = evaluation.folder, evaluation.by_id
    corrected = {path_key(row) for row in read_verdicts(folder) if row["corrected"]}
    tokenizer = None
    for row in read_generations(folder):
        end = find_correction(row["continuation"]) if path_key(row) in corrected else None
        if end is not None:
            tokenizer = tokenizer or evaluation.tokenizer()
            tokens = len(tokenizer(row["continuation"][:end], add_special_tokens=False)["input_ids"])
            yield normalise_request(by_id[row["request_id"]]["request"]), row["request_id"], row["prefill_tokens"], tokens


def read_rates(folder: Path, by_id: dict[str, dict[str, str]], prefill_tokens: list[int]) -> RequestRates:
    """Count the verdicts in `folder` that belong to the given items into Corr(x, k)."""
    path = folder / "verdicts.jsonl"
    if not path.is_file():
        raise UsageError(f"{folder} holds no verdicts.jsonl. Run eval.py into it first.")
    verdicts = [
        PathVerdict(
            normalise_request(by_id[row["request_id"]]["request"]),
            row["request_id"],
            row["prefill_tokens"],
            row["corrected"],
        )
        for row in read_jsonl(path)
        if row["request_id"] in by_id
    ]
    return request_rates(verdicts, prefill_tokens)
