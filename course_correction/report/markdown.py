"""Write report.md: rates, settings and the Corr@k curve, never a model's or a request's text."""

from pathlib import Path
from typing import Any

from course_correction.report.plots import plot_curves
from course_correction.report.tables import _needed, escape_cell, metrics_table


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
        quoted += f" on {agreement['rows']} labelled rows that are meant to be hard (course_correction/data/README.md)"
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
