"""Metrics as Markdown tables. Prints rates, never a text."""

from typing import Any


def percent(entry: dict[str, Any] | None, signed: bool = False) -> str:
    """Format a value with its interval: `41.2 [35.0, 47.1]`, in percent (or points, signed)."""
    if not entry or entry.get("value") is None:
        return "–"
    number = "{:+.1f}" if signed else "{:.1f}"
    text = number.format(100 * entry["value"])
    if entry.get("ci95"):
        text += " [{}, {}]".format(*(number.format(100 * bound) for bound in entry["ci95"]))
    return text


def escape_cell(value: Any) -> str:
    """Return the value as text that does not end a cell of a Markdown table."""
    return str(value).replace("|", r"\|")


def metrics_table(runs: dict[str, dict[str, Any]], difference: dict[str, Any] | None = None) -> str:
    """Return a Markdown table: a row for each k, then Corr_mean and over-refusal; a column for each run."""
    names = list(runs)
    lengths = sorted({int(length) for metrics in runs.values() for length in metrics["corr_at_k"]})
    header = ["percent [95% interval]", *map(escape_cell, names)] + (["difference"] if difference else [])
    rows = [header, ["---"] + ["--:"] * (len(header) - 1)]
    for length in lengths:
        row = [f"Corr@{length}", *(percent(metrics["corr_at_k"].get(str(length))) for metrics in runs.values())]
        rows.append(row + ([percent(difference["corr_at_k"].get(str(length)), True)] if difference else []))
    row = ["**Corr_mean**", *(percent(metrics["corr_mean"]) for metrics in runs.values())]
    rows.append(row + ([percent(difference["corr_mean"], True)] if difference else []))
    if any((metrics.get("corr_mean_less_judge_errors") or {}).get("value") is not None for metrics in runs.values()):
        cells = [percent(metrics.get("corr_mean_less_judge_errors")) for metrics in runs.values()]
        rows.append(["Corr_mean, estimated without the judge's errors", *cells] + ([""] if difference else []))
    if any(metrics.get("first_correction", {}).get("paths") for metrics in runs.values()):
        cells = [_tokens(metrics.get("first_correction")) for metrics in runs.values()]
        rows.append(["tokens said before the correction, mean", *cells] + ([""] if difference else []))
    if any(metrics.get("over_refusal") for metrics in runs.values()):
        row = ["over-refusal, benign prompts", *(percent(metrics.get("over_refusal")) for metrics in runs.values())]
        change = percent(list(runs.values())[-1].get("over_refusal_difference"), True)
        rows.append(row + ([change if change != "–" else ""] if difference else []))
    if difference and difference["corr_mean"].get("p_value") is not None:
        p_value = difference["corr_mean"]["p_value"]
        rows.append(["p of no difference in Corr_mean", *[""] * len(names), f"{p_value:.4f}"])
    if any(metrics.get("benign_kl") for metrics in runs.values()):
        cells = [f"{metrics['benign_kl']['kl']:.3f} nats" if metrics.get("benign_kl") else "" for metrics in runs.values()]
        rows.append(["KL to the base, benign answers", *cells] + ([""] if difference else []))
    rows.append(
        ["unscored paths", *(f"{100 * _worst(metrics, 'unscored_rate'):.1f} at most" for metrics in runs.values())]
        + ([""] if difference else [])
    )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _needed(entry: dict[str, Any] | None) -> str:
    if not entry or not entry["requests"]:
        return ""
    half = 100 * entry["width"] / 2
    return f"An interval of Corr_mean of ±{half:g} points would take about {entry['requests']} distinct requests.\n"


def _tokens(entry: dict[str, Any] | None) -> str:
    if not entry or entry["mean"] is None:
        return "–"
    return f"{entry['mean']:.1f} [{entry['ci95'][0]:.1f}, {entry['ci95'][1]:.1f}]"


def _worst(metrics: dict[str, Any], key: str) -> float:
    return max((entry[key] or 0 for entry in metrics["corr_at_k"].values()), default=0)
