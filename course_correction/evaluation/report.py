"""Write metrics.json and the reports of a measured evaluation, beside its baseline if it has one."""

from pathlib import Path
from typing import cast

from course_correction.base.files import write_json
from course_correction.evaluation.items import EvaluationItems
from course_correction.evaluation.measure import METRICS_FILE
from course_correction.evaluation.prefills import PrefillMode, prefill_texts
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.generation.evaluated_model import EvaluatedModel
from course_correction.report.html import write_html_report
from course_correction.report.markdown import write_report
from course_correction.report.run_data import RunData, read_run
from course_correction.report.schema import Metrics
from course_correction.report.tables import suites_table


def write_reports(
    folder: Path, settings: EvaluationSettings, items: EvaluationItems, model: EvaluatedModel, metrics: Metrics
) -> None:
    """Write metrics.json, report.html, report.md and corr_at_k.png into the run folder."""
    write_json(folder / METRICS_FILE, metrics)
    folders = [Path(settings.baseline_dir)] if settings.baseline_dir else []
    pages = [_read_page(one, settings.seed, items, model) for one in [*folders, folder]]
    modes = [page.metrics["settings"]["prefill_mode"] for page in pages]
    if len(pages) == 1:
        names = [metrics["adapter"] or metrics["model"]]
    else:
        names = ["before", "after"] if modes[0] == modes[1] else [f"prefill: {mode}" for mode in modes]
    runs = {name: page.metrics for name, page in zip(names, pages, strict=True)}
    difference = metrics.get("difference_to_baseline")
    write_html_report(folder / "report.html", dict(zip(names, pages, strict=True)), difference)
    table = suites_table(runs)
    write_report(folder, runs, difference, f"\n## Beside C²-Eval\n\n{table}\n" if table else "")


def _read_page(folder: Path, seed: int, items: EvaluationItems, model: EvaluatedModel) -> RunData:
    """Return what report.html shows of a finished evaluation. Prefills are shown in the mode that it was sampled in."""
    metrics = read_run(folder)
    mode = cast(PrefillMode, metrics["settings"]["prefill_mode"])
    return RunData(metrics, folder, items.rows, prefill_texts(mode, seed, model))
