"""Tasks of the suite `general`: any of the harness's, measured as it measures them, and what is refused before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.settings import check_values
from course_correction.suites import general as general_suite
from course_correction.suites import lm_eval_tasks as harness
from course_correction.suites.choice import check_suite
from course_correction.suites.settings import GeneralSettings
from tests.support.rows import write_rows
from tests.support.suites import Suite, general_evaluation, read_general_rows
from tests.support.suites import suite as suite


@pytest.mark.parametrize(
    "changes",
    [
        {"general_tasks": []},
        {"general_tasks": ["c2_general", "c2_general"]},
        {"general_limit": 0},
        {"general_num_fewshot": -1},
        {"general_batch_size": 0},
    ],
)
def test_values_out_of_range_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        settings = GeneralSettings(**changes)
        check_values(settings)
        settings.check_general()


def test_a_missing_harness_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path, tmp_path: Path
) -> None:
    def missing(name: str) -> str:
        raise harness.PackageNotFoundError(name)

    monkeypatch.setattr(harness, "version", missing)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[lm-eval\]'") as caught:
        check_suite("general", general_evaluation(tmp_path, tiny_model_folder))
    assert "\n" not in str(caught.value)


def test_a_model_behind_a_server_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    server = {"backend": "openai", "server_url": "http://localhost:1/v1"}
    with pytest.raises(UsageError, match="backend is openai"):
        check_suite("general", general_evaluation(tmp_path, tiny_model_folder, **server))


def test_an_unknown_task_is_refused_with_the_nearest_name(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    # The harness's own thousands take seconds to read.
    monkeypatch.setattr(harness, "_manager_for", lambda _: harness._task_manager(False))
    with pytest.raises(UsageError, match=r"c2_genral is no task .* did you mean c2_general\?") as caught:
        check_suite("general", general_evaluation(tmp_path, tiny_model_folder, general_tasks=["c2_genral"]))
    assert "\n" not in str(caught.value)


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives the harness a task `own` of some YAML, with ten questions of words and a yes or no."""
    rows = write_rows(tmp_path / "own.jsonl", [{"q": f"Say {n}.", "a": str(n), "yes": n % 2} for n in range(10)])
    folder = tmp_path / "tasks"
    folder.mkdir()

    def write(text: str) -> None:
        head = f"""task: own
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
  cache_dir: {tmp_path / "cache"}
test_split: test
doc_to_text: q
"""
        (folder / "own.yaml").write_text(head + text)

    monkeypatch.setattr(harness, "TASKS_FOLDER", folder)
    harness._task_manager.cache_clear()
    harness.check_tasks.cache_clear()
    yield write
    harness._task_manager.cache_clear()
    harness.check_tasks.cache_clear()


def test_tasks_that_generate_are_run_too(suite: Suite, own_task: Callable[[str], None], tmp_path: Path) -> None:
    own_task("""output_type: generate_until
doc_to_target: a
generation_kwargs: {until: ["<stop>"], max_gen_toks: 3}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""")
    entry = suite(general_tasks=["own"])["tasks"]["own"]
    assert (entry["metric"], entry["count"], entry["value"]) == ("exact_match", 6, 0.0)
    assert all(sample["correct"] is False for sample in read_general_rows(tmp_path / "run")["own"]["samples"])


@pytest.mark.filterwarnings("ignore:F-score")
def test_a_metric_that_examples_do_not_make_up_has_the_harness_s_interval_and_no_difference(
    suite: Suite, own_task: Callable[[str], None], tmp_path: Path
) -> None:
    own_task(
        """output_type: multiple_choice
doc_to_target: yes
doc_to_choice: ["no", "yes"]
metric_list: [{metric: f1, aggregation: f1, higher_is_better: true}]
""".replace("target: yes", "target: '{{yes}}'")
    )
    entry = suite(general_tasks=["own"])["tasks"]["own"]
    assert entry["metric"] == "f1" and 0 <= entry["value"] <= 1 and entry["count"] == 6
    assert entry["ci95"] == [entry["value"] - 1.96 * entry["stderr"], entry["value"] + 1.96 * entry["stderr"]]
    row = read_general_rows(tmp_path / "run")["own"]
    assert general_suite._difference(row, row, seed=0) is None


def test_a_task_that_executes_what_the_model_writes_is_refused(suite: Suite, own_task: Callable[[str], None]) -> None:
    own_task("output_type: generate_until\ndoc_to_target: a\nunsafe_code: true\n")
    with pytest.raises(UsageError, match="own executes code"):
        suite(general_tasks=["own"])


def test_missing_data_are_refused_before_any_work(suite: Suite, own_task: Callable[[str], None]) -> None:
    own_task(
        "output_type: generate_until\ndoc_to_target: a\ndataset_path: /nowhere\n".replace("dataset_path", "dataset_name")
    )
    with pytest.raises(UsageError, match="own cannot be loaded") as caught:
        suite(general_tasks=["own"])
    assert "\n" not in str(caught.value)
