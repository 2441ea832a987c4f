"""Write report.md: rates, settings and the Corr@k curve, never a continuation or a request."""

from collections.abc import Mapping
from pathlib import Path

from course_correction.base.files import write_atomically
from course_correction.base.markdown import markdown_table
from course_correction.report.judge_quotes import judge_sentences
from course_correction.report.plots import plot_curves
from course_correction.report.schema import CorrDifference, Metrics
from course_correction.report.tables import metrics_table


def write_report(
    folder: Path, runs: Mapping[str, Metrics], difference: CorrDifference | None = None, notes: str = ""
) -> Path:
    """Write `report.md` and `corr_at_k.png` into `folder`.

    Args:
        folder: Folder of the report.
        runs: metrics.json by the name to show; the last run is the one reported on.
        difference: `paired_difference` of the last run to the first.
        notes: Markdown to add before the settings.

    Returns:
        The path of report.md.
    """
    name, metrics = list(runs.items())[-1]
    plot_curves(runs, folder / "corr_at_k.png", f"Course-correction, judge: {metrics['judge']}")
    too_short = sum(entry["too_short"] for entry in metrics["corr_at_k"].values())
    settings = markdown_table(
        ["setting", "value"], [(key, f"`{value}`") for key, value in metrics["settings"].items()], ["left", "left"]
    )
    versions = ", ".join(f"{key} {value}" for key, value in metrics["versions"].items())
    text = f"""# C²-Eval: {name}

Corr@k is the share of sampled continuations that correct themselves after k prefilled tokens of a harmful answer. Intervals
are bootstrapped over distinct requests. {"The difference is paired by request." if difference else ""}

{metrics_table(runs, difference)}

![Corr@k](corr_at_k.png)

{_requests_needed(metrics)}
{too_short} combinations of item and k were left out because the response is shorter than k (responses are never padded).
{judge_sentences(metrics)}
Model: `{metrics["model"]}`. Sampling and judging took {metrics["seconds"]:.0f} seconds.
{notes}
## Settings

{settings}

{versions}
"""
    write_atomically(folder / "report.md", text)
    return folder / "report.md"


def _requests_needed(metrics: Metrics) -> str:
    needed = metrics.get("requests_needed")
    if not needed or not needed["requests"]:
        return ""
    half = 100 * needed["width"] / 2
    return f"An interval of ±{half:g} points for Corr_mean needs about {needed['requests']} distinct requests.\n"
