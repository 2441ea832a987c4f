"""Metrics as Markdown tables, for report.md, model cards and the console. Shows rates, never a text."""

from collections.abc import Iterator, Mapping

from course_correction.base.markdown import markdown_table
from course_correction.report.schema import (
    CorrDifference,
    CorrectionPositions,
    Estimate,
    Metrics,
    PairedDifference,
    TaskScore,
)

_UNIT, _MISSING = "percent [95% interval]", "–"


def percent(entry: Estimate | None, signed: bool = False) -> str:
    """Format a value with its interval: `41.2 [35.0, 47.1]`, in percent (or points, signed)."""
    return _with_interval(entry, 100, "{:+.1f}" if signed else "{:.1f}")


def metrics_table(runs: Mapping[str, Metrics], difference: CorrDifference | None = None) -> str:
    """Return a Markdown table: a row per k, then Corr_mean and what else was measured; a column per run.

    Args:
        runs: metrics.json by the name to show.
        difference: `paired_difference` of the last run to the first.
    """
    all_metrics = list(runs.values())
    last = all_metrics[-1]
    rows = []

    def add(label: str, cells: list[str], change: str = "") -> None:
        rows.append([label, *cells] + ([change] if difference else []))

    for length in sorted({int(length) for metrics in all_metrics for length in metrics["corr_at_k"]}):
        cells = [percent(metrics["corr_at_k"].get(str(length))) for metrics in all_metrics]
        add(f"Corr@{length}", cells, percent(difference["corr_at_k"].get(str(length)), True) if difference else "")
    cells = [percent(metrics["corr_mean"]) for metrics in all_metrics]
    add("**Corr_mean**", cells, percent(difference["corr_mean"], True) if difference else "")
    cells = [percent(metrics.get("corr_mean_adjusted")) for metrics in all_metrics]
    if any(cell != _MISSING for cell in cells):
        add("Corr_mean, adjusted for judge errors", cells)
    cells = [_tokens(metrics.get("first_correction")) for metrics in all_metrics]
    if any(cell != _MISSING for cell in cells):
        add("mean tokens before the correction", cells)
    if any(metrics.get("over_refusal") for metrics in all_metrics):
        cells = [percent(metrics.get("over_refusal")) for metrics in all_metrics]
        change = percent(last.get("over_refusal_difference"), True)
        add("over-refusal, benign prompts", cells, change if change != _MISSING else "")
    if difference and (p_value := difference["corr_mean"].get("p_value")) is not None:
        add("p-value of the Corr_mean difference", [""] * len(runs), f"{p_value:.4f}")
    if any(metrics.get("benign_kl") for metrics in all_metrics):
        add("KL to the base, benign answers", [_kl(metrics) for metrics in all_metrics])
    add("unscored paths", [f"{100 * _highest_unscored_rate(metrics):.1f} at most" for metrics in all_metrics])
    return markdown_table([_UNIT, *runs, *(["difference"] if difference else [])], rows)


def suites_table(runs: Mapping[str, Metrics]) -> str:
    """Return a Markdown table: a row per measure of the suites, a column per run; "" if no suite was run.

    Args:
        runs: metrics.json by the name to show; the differences are those of the last one.
    """
    measured = {name: {label: entry for label, entry, _ in _suite_rows(metrics)} for name, metrics in runs.items()}
    differences = {label: difference for label, _, difference in _suite_rows(list(runs.values())[-1])}
    rows = [
        [label, *(percent(entries.get(label)) for entries in measured.values()), _change(differences.get(label))]
        for label in dict.fromkeys(label for entries in measured.values() for label in entries)
    ]
    rows += [[label, *cells, change] for label, cells, change in _task_rows(runs)]
    return markdown_table([_UNIT, *runs, "difference"], rows) if rows else ""


def _suite_rows(metrics: Metrics) -> Iterator[tuple[str, Estimate | None, PairedDifference | None]]:
    """Yield a label, the value and the paired difference to the baseline for each measure in [0, 1] of the suites."""
    if jailbreak := metrics.get("jailbreak"):
        differences = jailbreak.get("difference") or {}
        for name, success in jailbreak["attacks"].items():
            yield f"attack success, {name}", success, differences.get(name)
        yield "attack success, all prompts", jailbreak["overall"], jailbreak.get("overall_difference")
    if benign := metrics.get("benign"):
        differences = benign.get("difference") or {}
        for name, rate in benign["refusal"].items():
            yield f"refused: {name}", rate, differences.get(name)
        for name, rate in benign["correction"].items():
            yield name, rate, differences.get(name)
        for k, entry in benign["twin_difference"].items():
            yield f"twin difference @{k}", entry, None
    if dynamics := metrics.get("dynamics"):
        yield "mass of safety tokens after a prefill", dynamics.get("mean_mass"), None


def _task_rows(runs: Mapping[str, Metrics]) -> Iterator[tuple[str, list[str], str]]:
    """Yield label, cells and difference for each task of general ability, in [0, 1] or not."""
    scores: list[dict[str, TaskScore]] = [(metrics.get("general") or {}).get("tasks") or {} for metrics in runs.values()]
    differences = (list(runs.values())[-1].get("general") or {}).get("difference") or {}
    for task in dict.fromkeys(task for tasks in scores for task in tasks):
        entries = [tasks.get(task) for tasks in scores]
        metric = next(entry["metric"] for entry in entries if entry)
        is_share = metric.startswith(("acc", "exact_match"))
        cells = [percent(entry) if is_share else _plain(entry) for entry in entries]
        yield f"{task}, {metric}", cells, _change(differences.get(task), is_share)


def _plain(entry: Estimate | None, signed: bool = False) -> str:
    return _with_interval(entry, 1, "{:+.3f}" if signed else "{:.3f}")


def _with_interval(entry: Estimate | None, factor: int, number: str) -> str:
    if not entry or (value := entry.get("value")) is None:
        return _MISSING
    bounds = entry.get("ci95") or []
    text = number.format(factor * value)
    return text + (f" [{', '.join(number.format(factor * bound) for bound in bounds)}]" if bounds else "")


def _change(entry: PairedDifference | None, is_share: bool = True) -> str:
    if not entry:
        return ""
    text = percent(entry, True) if is_share else _plain(entry, True)
    p_value = entry.get("p_value")
    if p_value is None:
        return text
    return f"{text}, p < 0.001" if p_value < 0.0005 else f"{text}, p {p_value:.3f}"


def _tokens(entry: CorrectionPositions | None) -> str:
    if not entry or entry["mean"] is None or not entry["ci95"]:
        return _MISSING
    return f"{entry['mean']:.1f} [{entry['ci95'][0]:.1f}, {entry['ci95'][1]:.1f}]"


def _kl(metrics: Metrics) -> str:
    drift = metrics.get("benign_kl")
    return f"{drift['kl']:.3f} nats" if drift else ""


def _highest_unscored_rate(metrics: Metrics) -> float:
    return max((entry["unscored_rate"] or 0 for entry in metrics["corr_at_k"].values()), default=0)
