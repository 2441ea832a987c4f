"""Compute metrics.json from the finished rows of an evaluation. Runs the model only for the KL on benign answers."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, cast

from course_correction.base.errors import UsageError
from course_correction.base.redaction import public_value
from course_correction.base.run_folder import RUN_FILE, library_versions
from course_correction.evaluation.items import EvaluationItems
from course_correction.evaluation.judge import VERDICTS_FILE
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.generation.evaluated_model import EvaluatedModel
from course_correction.judges.calibration import quote_calibration
from course_correction.judges.choice import make_refusal_judge
from course_correction.judges.families import model_family
from course_correction.judges.known_agreement import known_refusal_agreement
from course_correction.judges.pattern import find_correction
from course_correction.report.run_data import path_key, read_generations, read_run, read_verdicts
from course_correction.report.schema import Metrics, VerdictRow
from course_correction.statistics.corr_at_k import (
    PathVerdict,
    RequestRates,
    request_rates,
    requests_for_width,
    resample_corr_mean,
    summarise,
    summarise_positions,
)
from course_correction.statistics.judge_agreement import Confusion, agreement_matrix, corrected_rate
from course_correction.statistics.paired_differences import paired_difference
from course_correction.suites.benign_answers import measure_over_refusal
from course_correction.suites.benign_kl import measure_benign_kl
from course_correction.suites.choice import SUITES
from course_correction.synthesis.sources import EvalItem, normalise_request

METRICS_FILE = "metrics.json"
_WIDTH = 0.05  # Width of Corr_mean's interval, for which the report estimates the number of requests.


def measure(
    folder: Path,
    settings: EvaluationSettings,
    items: EvaluationItems,
    model: EvaluatedModel,
    judge_name: str,
    seconds: float,
    suites: Mapping[str, Mapping[str, object]],
) -> Metrics:
    """Return the metrics of an evaluation whose paths are sampled and judged.

    Args:
        folder: The run folder.
        settings: Those of the evaluation.
        items: Whose paths are measured.
        model: The model under evaluation.
        judge_name: Name of the judge.
        seconds: The time that sampling and judging took.
        suites: Parts of metrics.json by suite. Those of suites that an earlier run measured stay.

    Raises:
        UsageError: If the baseline or the calibration of the judge does not fit.
    """
    seed, baseline = settings.seed, Path(settings.baseline_dir) if settings.baseline_dir else None
    rates = read_rates(folder, items, settings.prefill_tokens)
    too_short = Counter(row["prefill_tokens"] for row in read_generations(folder) if row.get("too_short"))
    metrics: dict[str, Any] = {**summarise(rates, too_short, seed)}
    verdicts = list(read_verdicts(folder))
    family = settings.model_family or model_family(settings.model_name_or_path)
    quoted = quote_calibration(judge_name, family, Path(file) if (file := settings.judge_calibration) else None)
    metrics["refusal_agreement"] = {
        "judge": settings.refusal_judge,
        "family": family,
        "on_family": known_refusal_agreement(settings.refusal_judge, family),
    }
    metrics |= _about_judging(verdicts, quoted, metrics["corr_mean"], rates, seed)
    metrics["requests_needed"] = {"width": _WIDTH, "requests": requests_for_width(rates, _WIDTH)}
    metrics["first_correction"] = summarise_positions(list(_correction_positions(folder, verdicts, items, model)), seed)
    if settings.max_benign:
        metrics |= measure_over_refusal(folder, baseline, make_refusal_judge(settings.refusal_judge), seed)
        if benign_kl := measure_benign_kl(folder, model, settings.max_benign):
            metrics["benign_kl"] = benign_kl
    if (folder / METRICS_FILE).is_file():
        metrics |= _known_suites(folder, model)
    metrics |= suites
    metrics |= {
        "settings": _shown_settings(settings) | {"items_revision": public_value(items.revision), "dtype": model.dtype},
        "items_digest": items.digest,
        "model": public_value(settings.model_name_or_path),
        "adapter": public_value(settings.adapter_name_or_path),
        "judge": judge_name,
        "versions": library_versions(),
        "seconds": round(seconds, 1),
    }
    if baseline:
        try:
            before = read_rates(baseline, items, settings.prefill_tokens)
            metrics["difference_to_baseline"] = paired_difference(rates, before, seed)
        except ValueError as error:
            raise UsageError(f"{baseline}: {error}") from None
    return cast(Metrics, metrics)


def read_rates(folder: Path, items: EvaluationItems, prefill_tokens: Sequence[int]) -> RequestRates:
    """Count the verdicts in a run folder that belong to the given items into Corr(x, k).

    Raises:
        UsageError: If the folder holds no verdicts.
    """
    if not (folder / VERDICTS_FILE).is_file():
        raise UsageError(f"{folder} contains no {VERDICTS_FILE}. Run eval.py with this output_dir first.")
    verdicts = [
        PathVerdict(
            normalise_request(items.by_id[row["request_id"]]["request"]),
            row["request_id"],
            row["prefill_tokens"],
            row["corrected"],
        )
        for row in read_verdicts(folder)
        if row["request_id"] in items.by_id
    ]
    return request_rates(verdicts, prefill_tokens)


def _shown_settings(settings: EvaluationSettings) -> dict[str, Any]:
    """Return the settings by public values: metrics.json is made to be shown and names no path of this machine."""
    shown = {one.name: getattr(settings, one.name) for one in fields(settings) if not _is_about_output(one, settings)}
    return public_value(shown)


def _is_about_output(one: Field[Any], settings: EvaluationSettings) -> bool:
    """Return whether a setting says where results are written, or whether they are pushed: this does not describe them."""
    group = one.metadata.get("group")
    return group == "output" or (group == "Hub" and isinstance(getattr(settings, one.name), bool))


def _known_suites(folder: Path, model: EvaluatedModel) -> dict[str, Any]:
    """Return the parts of the metrics.json in the folder that suites measured on this very model, without differences."""
    known = cast(dict[str, Any], read_run(folder))
    file = folder / RUN_FILE
    runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    identity = json.loads(json.dumps(model.identity()))
    differences = {"difference", "overall_difference"}
    suites = {}
    for name in SUITES:
        settings = runs.get(name, {}).get("settings", {})
        if name in known and all(settings.get(key) == value for key, value in identity.items()):
            # The baseline may have changed. To run the suite again computes its difference again, at little cost.
            suites[name] = {key: value for key, value in known[name].items() if key not in differences}
    return suites


def _about_judging(
    verdicts: Sequence[VerdictRow],
    quoted: dict[str, Any] | None,
    corr_mean: dict[str, Any],
    rates: RequestRates,
    seed: int,
) -> dict[str, Any]:
    """Return what is unscored, how the judge agrees with labels and other judges, and Corr_mean without its errors."""
    unscored = Counter(row["reason"] for row in verdicts if row["corrected"] is None)
    metrics: dict[str, Any] = {
        "unscored_rate": unscored.total() / len(verdicts) if verdicts else 0.0,
        "unscored_reasons": dict(unscored.most_common()),
        "judge_agreement": quoted,
    }
    if votes := [row["votes"] for row in verdicts if "votes" in row]:
        metrics["judges_kappa"] = agreement_matrix({name: [row[name] for row in votes] for name in votes[0]})
    if quoted and quoted["on_family"] and corr_mean["value"] is not None:
        counts = Confusion(**quoted["on_family"]["counts"])
        estimate = corrected_rate(corr_mean["value"], resample_corr_mean(rates, seed), counts, seed)
        metrics["corr_mean_adjusted"] = estimate
    return metrics


def _correction_positions(
    folder: Path, verdicts: Sequence[VerdictRow], items: EvaluationItems, model: EvaluatedModel
) -> Iterator[tuple[str, str, int, int]]:
    """Yield distinct request, request_id, k and tokens before the correction, for the paths judged corrected."""
    corrected = {path_key(row) for row in verdicts if row["corrected"]}
    for row in read_generations(folder):
        end = find_correction(row["continuation"]) if path_key(row) in corrected else None
        if end is not None:
            tokens = model.tokenizer()(row["continuation"][:end], add_special_tokens=False)["input_ids"]
            item: EvalItem = items.by_id[row["request_id"]]
            yield normalise_request(item["request"]), row["request_id"], row["prefill_tokens"], len(tokens)
