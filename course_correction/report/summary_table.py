"""The first table of report.html: one row per claim that was measured. Reads metrics.json only."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

from course_correction.report.page_schema import SummaryRow, Unit
from course_correction.report.schema import CorrDifference, Estimate, PageMetrics, PairedDifference, TaskScore

_FALSE_CORRECTION = re.compile(r"false correction @\d+")


def summary_rows(metrics: Sequence[PageMetrics], difference: CorrDifference | None) -> list[SummaryRow]:
    """Return the rows of the first table.

    Args:
        metrics: Of each run; the last one is reported on.
        difference: `paired_difference` of the last run to the first.
    """
    last, rows = metrics[-1], list[SummaryRow]()

    def at(*keys: str) -> Callable[[PageMetrics], object]:
        return lambda one: _at(one, *keys)

    def add(
        label: str, read: Callable[[PageMetrics], object], paired: object = None, unit: Unit = "percent", better: int = 1
    ) -> None:
        values = [_entry(read(one)) for one in metrics]
        if any(values):
            row: SummaryRow = {
                "label": label, "values": values, "difference": _entry(paired), "unit": unit, "better": better,
            }  # fmt: skip
            rows.append(row)

    add("Corr_mean", at("corr_mean"), _at(difference, "corr_mean"))
    add("Corr_mean, adjusted for judge errors", at("corr_mean_adjusted"))
    add("over-refusal, benign prompts", at("over_refusal"), last.get("over_refusal_difference"), better=-1)
    benign = last.get("benign", {})
    for group in filter(_FALSE_CORRECTION.fullmatch, benign.get("correction", {})):
        add(group, at("benign", "correction", group), _at(benign, "difference", group), better=-1)
    for k in benign.get("twin_difference", {}):
        add(f"twin difference @{k}", at("benign", "twin_difference", k))
    add("KL to the base, benign answers", at("benign_kl", "kl"), unit="nats", better=-1)
    paired = _at(last, "jailbreak", "overall_difference")
    add("jailbreak success, all prompts", at("jailbreak", "overall"), paired, better=-1)
    add("general ability, mean of tasks", _mean_ability, _mean_ability_difference(last, ability_scores(last)))
    return rows


def ability_scores(metrics: PageMetrics) -> dict[str, TaskScore]:
    """Return the scores of general ability that lie in [0, 1] and are better if higher.

    A group replaces its members, which are recognised by their names (`mmlu` replaces `mmlu_law`).
    """
    general = metrics.get("general", {})
    scores = {**general.get("tasks", {}), **general.get("groups", {})}
    whole = {name: score for name, score in scores.items() if not any(name.startswith(f"{other}_") for other in scores)}
    return {name: score for name, score in whole.items() if score.get("higher_is_better", True) and _is_share(score)}


def _is_share(score: TaskScore) -> bool:
    return (value := score.get("value")) is not None and 0 <= value <= 1


def _at(value: object, *keys: str) -> object:
    """Return the value under the keys, one inside the other; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _entry(value: object) -> PairedDifference | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"value": value, "ci95": None}
    if isinstance(value, Mapping) and value.get("value") is not None:
        return cast(PairedDifference, dict(value))
    return None


def _mean_ability_difference(metrics: PageMetrics, names: Iterable[str]) -> Estimate | None:
    entries = [_entry(_at(metrics, "general", "difference", name)) for name in names]
    values = [entry["value"] for entry in entries if entry and entry["value"] is not None]
    return {"value": sum(values) / len(values), "ci95": None} if values and len(values) == len(entries) else None


def _mean_ability(metrics: PageMetrics) -> Estimate | None:
    """Return the mean over tasks; its interval assumes that they are independent."""
    scores = list(ability_scores(metrics).values())
    values = [score["value"] for score in scores if score["value"] is not None]
    if not values:
        return None
    mean = sum(values) / len(values)
    half = 1.96 * math.sqrt(sum((score.get("stderr") or math.nan) ** 2 for score in scores)) / len(scores)
    return {"value": mean, "ci95": None if math.isnan(half) else [max(0.0, mean - half), min(1.0, mean + half)]}
