"""Small evaluations for the tests of the suites beside C²-Eval: their settings, and `general` run on one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from course_correction.base.files import read_jsonl
from course_correction.base.ranks import Ranks
from course_correction.evaluation.items import read_items
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.generation.evaluated_model import EvaluatedModel
from course_correction.suites.choice import check_suite, measure_suite, sample_suite
from course_correction.suites.protocol import SuiteInputs


@pytest.fixture
def settings_for(tmp_path, tiny_model_folder):
    def make(name="out", **changes):
        values = {
            "model_name_or_path": str(tiny_model_folder), "max_requests": 3, "num_paths": 1, "prefill_tokens": [5, 12],
            "max_new_tokens": 4, "max_benign": 4, "benign_max_new_tokens": 6, "dtype": "float32",
            "requests_per_unit": 2, "dynamics_tokens": 5, "output_dir": str(tmp_path / name),
        }  # fmt: skip
        return EvaluationSettings(**(values | changes))

    return make


Suite = Callable[..., dict[str, Any]]


def suite_inputs(settings: EvaluationSettings) -> SuiteInputs:
    """Return what suites are given in an evaluation under these settings."""
    return SuiteInputs(Path(settings.output_dir), settings, read_items(settings).rows, EvaluatedModel(settings))


def general_evaluation(folder: Path, model: Any, **changes: Any) -> SuiteInputs:
    values = {"model_name_or_path": str(model), "output_dir": str(folder), "general_limit": 6, "dtype": "float32"}
    return suite_inputs(EvaluationSettings(**values | changes))


@pytest.fixture
def suite(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Runs the suite on the tiny model into a folder by its name and returns its part of metrics.json."""
    pytest.importorskip("lm_eval")
    # What it finds out about the machine by pip, lscpu and the like takes most of so small a run.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)

    def run(name: str = "run", model: Any = tiny_model_folder, **changes: Any) -> dict[str, Any]:
        evaluation = general_evaluation(tmp_path / name, model, **changes)
        check_suite("general", evaluation)
        sample_suite("general", evaluation, Ranks.alone())
        return measure_suite("general", evaluation, None)

    return run


def read_general_rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["request_id"]: row for row in read_jsonl(folder / "general.jsonl")}
