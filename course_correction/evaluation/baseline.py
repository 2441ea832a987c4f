"""May two evaluations be compared? Knows nothing of their rows."""

import json
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.run_folder import RUN_FILE
from course_correction.base.settings import identity_of
from course_correction.evaluation.judge import VERDICTS_FILE
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.report.run_data import read_run

# The items and lengths are compared row by row; another model or prefill mode is what one compares.
_SAMPLING = ("num_paths", "max_new_tokens", "temperature", "top_p", "benign_max_new_tokens")


def check_baseline(settings: EvaluationSettings) -> None:
    """Refuse a baseline that was sampled or judged otherwise: the difference would be that of the measurements.

    Raises:
        UsageError: If it has no metrics or verdicts; or naming what differs, with both values.
    """
    if not settings.baseline_dir:
        return
    folder = Path(settings.baseline_dir)
    read_run(folder)
    if not (folder / VERDICTS_FILE).is_file():
        raise UsageError(f"{folder} contains no {VERDICTS_FILE}. Run eval.py with this output_dir first.")
    path = folder / RUN_FILE
    try:
        runs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise UsageError(f"{path} is not valid JSON. Measure the baseline again, or leave out baseline_dir.") from None
    different = []
    for stage, now in (
        ("sampling", {name: getattr(settings, name) for name in _SAMPLING}),
        ("judging", identity_of(settings, "judging")),
    ):
        # A setting that an earlier version did not have is not compared.
        there = runs.get(stage, {}).get("settings", {})
        different += [
            f"{name}: {there[name]!r} there, {value!r} now"
            for name, value in json.loads(json.dumps(now)).items()
            if name in there and there[name] != value
        ]
    if different:
        raise UsageError(
            f"The baseline {folder} was measured otherwise ({', '.join(different)}), so a difference would mix both. "
            "Measure it again in another --output_dir under these settings, or leave out baseline_dir."
        )
