"""The first table of report.html: a row for each part of the claim that was measured. Reads metrics.json alone."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_BEGUN_HARMLESS = "of a harmless answer"


def headline(metrics: Sequence[dict[str, Any]], difference: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the rows of the first table: `label`, `values` (one a run), `difference`, `unit`, and which way is `better`."""
    last, rows = metrics[-1], []

    def reader(*keys: str) -> Callable[[dict[str, Any]], Any]:
        return lambda one: _find(one, *keys)

    def add(label: str, read: Callable[[dict], Any], paired: Any = None, unit: str = "percent", better: int = 1) -> None:
        values = [_entry(read(one)) for one in metrics]
        if any(values):
            rows.append({"label": label, "values": values, "difference": _entry(paired), "unit": unit, "better": better})

    add("Corr_mean", reader("corr_mean"), _find(difference, "corr_mean"))
    add("Corr_mean, without the judge’s errors", reader("corr_mean_less_judge_errors"))
    paired = last.get("over_refusal_difference")
    add("over-refusal, harmless prompts", reader("over_refusal"), paired, better=-1)
    for group in _find(last, "benign", "turned_back") or {}:
        if group.endswith(_BEGUN_HARMLESS):
            paired = _find(last, "benign", "difference", group)
            add(f"turned back {group}", reader("benign", "turned_back", group), paired, better=-1)
    for k in _find(last, "benign", "told_apart") or {}:
        add(f"turned back after {k} tokens: harmful less harmless twins", reader("benign", "told_apart", k))
    add("KL to the base, benign answers", reader("benign_kl", "kl"), unit="nats", better=-1)
    paired = _find(last, "jailbreak", "overall_difference")
    add("jailbreak success, all prompts", reader("jailbreak", "overall"), paired, better=-1)
    add("general ability, mean of tasks", _mean_ability, _mean_difference(last, "general", ability_shares(last)))
    return rows


def _find(value: Any, *keys: str) -> Any:
    """Return what stands under the keys, one in the other; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _entry(value: Any) -> dict[str, Any] | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"value": value}
    return dict(value) if isinstance(value, Mapping) and value.get("value") is not None else None


def _mean_difference(metrics: dict[str, Any], suite: str, names: Iterable[str]) -> dict[str, Any] | None:
    entries = [_entry(_find(metrics, suite, "difference", name)) for name in names]
    return {"value": sum(entry["value"] for entry in entries) / len(entries)} if entries and all(entries) else None


def ability_shares(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tasks of general ability that are shares; a group stands in the place of its members, told by name."""
    known = {**(_find(metrics, "general", "tasks") or {}), **(_find(metrics, "general", "groups") or {})}
    whole = {name: task for name, task in known.items() if not any(name.startswith(f"{other}_") for other in known)}
    return {n: t for n, t in whole.items() if _entry(t) and t.get("higher_is_better", True) and 0 <= t["value"] <= 1}


def _mean_ability(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Return the mean over tasks; its interval holds where they are independent."""
    if not (shares := list(ability_shares(metrics).values())):
        return None
    mean = sum(task["value"] for task in shares) / len(shares)
    half = 1.96 * math.sqrt(sum((task.get("stderr") or math.nan) ** 2 for task in shares)) / len(shares)
    return {"value": mean, "ci95": None if math.isnan(half) else [max(0.0, mean - half), min(1.0, mean + half)]}
