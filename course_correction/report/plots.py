"""Plots: Corr@k curves and training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from course_correction.report.schema import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Legible on white and on grey; the markers distinguish the curves without colour.
_COLOURS, _MARKERS = ("#8c8c8c", "#1f6fb4", "#c8553d"), ("o", "s", "^")


def plot_curves(runs: Mapping[str, Metrics], path: Path, title: str) -> None:
    """Draw Corr@k over k, one line per run, with 95% intervals, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), dpi=150)
    for index, (name, metrics) in enumerate(runs.items()):
        points = [
            (int(length), value, entry.get("ci95") or [value, value])
            for length, entry in metrics["corr_at_k"].items()
            if (value := entry["value"]) is not None
        ]
        if not points:
            continue
        mean = metrics["corr_mean"]["value"]
        axes.errorbar(
            [length for length, _, _ in points],
            [value for _, value, _ in points],
            yerr=[
                [max(0.0, value - low) for _, value, (low, _) in points],
                [max(0.0, high - value) for _, value, (_, high) in points],
            ],
            label=f"{name} (Corr_mean {mean:.2f})",
            capsize=3,
            linewidth=1.8,
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=5,
        )
    axes.set(xlabel="prefilled harmful tokens (k)", ylabel="Corr@k", ylim=(-0.03, 1.03), title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best")
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    pyplot.close(figure)
    temporary.replace(path)


def plot_training(log: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw loss, reward accuracy by rank distance, and reward margin over the steps of a training, as PNG.

    Args:
        log: The trainer's `log_history`; entries without a loss are ignored.
        path: Path of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = [entry for entry in log if "loss" in entry]
    steps = [entry["step"] for entry in entries]

    def draw(axes: "Axes", key: str, label: str, colour: object) -> None:
        # Averaged over a tenth of the training: one group per step is noisy.
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
