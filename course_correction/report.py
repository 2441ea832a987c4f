"""Show an evaluation: report.md and a Corr@k curve. Prints rates and settings, never a model's or a request's text."""

from pathlib import Path
from typing import Any

# Read on white and on grey, told apart without colour by their markers.
_COLOURS, _MARKERS = ("#8c8c8c", "#1f6fb4", "#c8553d"), ("o", "s", "^")


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


def plot_curves(runs: dict[str, dict[str, Any]], path: Path, title: str) -> None:
    """Draw Corr@k over k, one line a run, with 95% intervals, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), dpi=150)
    for index, (name, metrics) in enumerate(runs.items()):
        points = [(int(length), entry) for length, entry in metrics["corr_at_k"].items() if entry["value"] is not None]
        if not points:
            continue
        lengths = [length for length, _ in points]
        values = [entry["value"] for _, entry in points]
        low = [max(0.0, entry["value"] - entry["ci95"][0]) for _, entry in points]
        high = [max(0.0, entry["ci95"][1] - entry["value"]) for _, entry in points]
        mean = metrics["corr_mean"]["value"]
        axes.errorbar(
            lengths,
            values,
            yerr=[low, high],
            label=f"{name} (Corr_mean {mean:.2f})",
            capsize=3,
            linewidth=1.8,
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=5,
        )
    axes.set(xlabel="harmful tokens already said (k)", ylabel="Corr@k", ylim=(-0.03, 1.03), title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best")
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    pyplot.close(figure)
    temporary.replace(path)


def write_report(
    folder: Path, runs: dict[str, dict[str, Any]], difference: dict[str, Any] | None = None, notes: str = ""
) -> Path:
    """Write `report.md` and `corr_at_k.png` into `folder`.

    Args:
        folder: Where to.
        runs: metrics.json of each run by the name to show; the last one is the run reported on.
        difference: `paired_difference` of the last run to the first.
        notes: Markdown to add before the settings.

    Returns:
        The path of report.md.
    """
    from course_correction.base.files import write_atomically

    name, metrics = list(runs.items())[-1]
    plot_curves(runs, folder / "corr_at_k.png", f"Course-correction, judge: {metrics['judge']}")
    too_short = sum(entry["too_short"] for entry in metrics["corr_at_k"].values())
    settings = "\n".join(f"| {key} | `{escape_cell(value)}` |" for key, value in metrics["settings"].items())
    versions = ", ".join(f"{key} {value}" for key, value in metrics["versions"].items())
    agreement = metrics.get("judge_agreement")
    quoted = "not measured on labels"
    if agreement and None not in (agreement["precision"]["value"], agreement["sensitivity"]["value"]):
        quoted = ", ".join(
            f"{label} {agreement[key]['value']:.2f} [{agreement[key]['ci95'][0]:.2f}, {agreement[key]['ci95'][1]:.2f}]"
            for label, key in (("precision", "precision"), ("recall", "sensitivity"))
        )
        quoted += f" on {agreement['rows']} labelled rows that are meant to be hard (data/README.md)"
    text = f"""# C²-Eval: {name}

Corr@k: the share of sampled continuations that turn back by themselves after k tokens of a harmful answer. Intervals:
bootstrap over distinct requests. {"The difference is paired by request." if difference else ""}

{metrics_table(runs, difference)}

![Corr@k](corr_at_k.png)

{_needed(metrics.get("requests_needed"))}
{too_short} combinations of item and k were left out because the response is shorter than k (they are never padded).
Judge: `{metrics["judge"]}`, {quoted}. Model: `{metrics["model"]}`. {metrics["seconds"]:.0f} seconds.
{notes}
## Settings

| setting | value |
|---|---|
{settings}

{versions}
"""
    write_atomically(folder / "report.md", text)
    return folder / "report.md"


def plot_training(log: list[dict[str, Any]], path: Path) -> None:
    """Draw a training's loss, reward accuracy by rank distance, and margin over its steps, as PNG.

    Args:
        log: The trainer's `log_history`; entries without a loss are left out.
        path: Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = [entry for entry in log if "loss" in entry]
    steps = [entry["step"] for entry in entries]

    def draw(axes: Any, key: str, label: str, colour: Any) -> None:
        # Averaged over a tenth of the training: one group a step is noisy.
        values = [float(entry[key]) for entry in entries if key in entry]
        width = max(1, len(values) // 10)
        means = [
            sum(values[max(0, end - width) : end]) / len(values[max(0, end - width) : end])
            for end in range(1, 1 + len(values))
        ]
        if len(values) == len(steps):
            axes.plot(steps, means, label=label, color=colour)

    figure, (losses, accuracies, margins) = pyplot.subplots(1, 3, figsize=(13, 3.6), dpi=120)
    parts = sorted({key for entry in entries for key in entry if key.startswith("loss/")})
    for index, key in enumerate(["loss", *parts]):
        draw(losses, key, key.removeprefix("loss/").replace("_", " "), f"C{index}")
    distances = sorted({key for entry in entries for key in entry if key.startswith("rewards/accuracy_distance_")})
    shades = pyplot.get_cmap("viridis")
    for index, key in enumerate(distances or ["rewards/accuracies"]):
        label = f"distance {key[-1]}" if distances else "all pairs"
        draw(accuracies, key, label, shades(index / max(1, len(distances))))
    draw(margins, "rewards/margins", "margin", "C0")
    for axes, title in (
        (losses, "loss"),
        (accuracies, "reward accuracy by rank distance"),
        (margins, "reward margin, nats × β"),
    ):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    accuracies.set_ylim(0, 1.02)
    losses.set_ylim(bottom=0)
    for axes in (losses, accuracies):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
