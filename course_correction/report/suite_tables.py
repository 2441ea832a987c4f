"""The suites' part of metrics.json as a Markdown table, for report.md and the console. Prints rates, never a text."""

from collections.abc import Iterator
from typing import Any

from course_correction.report.tables import escape_cell, percent


def _rows(metrics: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None, dict[str, Any] | None]]:
    """Yield a label, the value and the paired difference to the baseline of each thing that the suites measured."""
    if jailbreak := metrics.get("jailbreak"):
        differences = jailbreak.get("difference") or {}
        for name, entry in jailbreak["attacks"].items():
            yield f"attack success, {name}", entry, differences.get(name)
        yield "attack success, all prompts", jailbreak["overall"], jailbreak.get("overall_difference")
    if benign := metrics.get("benign"):
        differences = benign.get("difference") or {}
        for name, entry in benign["refusal"].items():
            yield f"refused: {name}", entry, differences.get(name)
        for name, entry in benign["turned_back"].items():
            yield f"turned back {name}", entry, differences.get(name)
        for k, entry in benign["told_apart"].items():
            yield f"harmful less harmless twins, after {k} tokens", entry, None
    if dynamics := metrics.get("dynamics"):
        yield "mass of safety tokens after a prefill", dynamics.get("mean_mass"), None


def suites_table(runs: dict[str, dict[str, Any]]) -> str:
    """Return a table with a row for each thing measured and a column for each run; "" where no suite was run.

    Args:
        runs: metrics.json by the name to show; differences are those of the last one.
    """
    measured = {name: {label: entry for label, entry, _ in _rows(metrics)} for name, metrics in runs.items()}
    last = list(runs.values())[-1]
    labels = list(dict.fromkeys(label for found in measured.values() for label in found))
    differences = {label: difference for label, _, difference in _rows(last)}
    lines = [
        [escape_cell(label), *(percent(found.get(label)) for found in measured.values()), _change(differences.get(label))]
        for label in labels
    ]
    for task, cells, change in _tasks(runs):
        lines.append([escape_cell(task), *cells, change])
    if not lines:
        return ""
    header = ["percent [95% interval]", *map(escape_cell, runs), "difference"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] + ["--:"] * (len(header) - 1), *lines])


def _tasks(runs: dict[str, dict[str, Any]]) -> Iterator[tuple[str, list[str], str]]:
    """Yield the tasks of general ability, whose metrics are shares or not, as label, cells and difference."""
    found = {name: (metrics.get("general") or {}).get("tasks") or {} for name, metrics in runs.items()}
    differences = (list(runs.values())[-1].get("general") or {}).get("difference") or {}
    for task in dict.fromkeys(task for tasks in found.values() for task in tasks):
        entries = [tasks.get(task) for tasks in found.values()]
        metric = next(entry["metric"] for entry in entries if entry)
        is_share = metric.startswith(("acc", "exact_match"))
        yield (
            f"{task}, {metric}",
            [percent(entry) if is_share else _plain(entry) for entry in entries],
            _change(differences.get(task), is_share),
        )


def _plain(entry: dict[str, Any] | None, signed: bool = False) -> str:
    if not entry or entry.get("value") is None:
        return "–"
    number = "{:+.3f}" if signed else "{:.3f}"
    text = number.format(entry["value"])
    return text + (" [{}, {}]".format(*map(number.format, entry["ci95"])) if entry.get("ci95") else "")


def _change(entry: dict[str, Any] | None, is_share: bool = True) -> str:
    if not entry:
        return ""
    text = percent(entry, True) if is_share else _plain(entry, True)
    p_value = entry.get("p_value")
    if p_value is None:
        return text
    return f"{text}, p < 0.001" if p_value < 0.0005 else f"{text}, p {p_value:.3f}"
