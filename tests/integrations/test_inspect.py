"""Laws of the task for Inspect: it is given eval.py's prefills, and finds its paths and rates, wherever the model runs."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from course_correction.base.errors import UsageError
from course_correction.generation.offline_models import resolve_model_name
from course_correction.generation.protocol import Prefill
from course_correction.generation.samplers import ModelSampler
from course_correction.judges import choice as judging
from course_correction.judges.protocol import ScriptedJudge
from tests.support.evaluation import PREFILL_TOKENS, Paths, run_eval_py
from tests.support.rows import ROOT, read_data, write_rows
from tests.support.server import Scripted

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture(scope="module")
def inspect_task() -> ModuleType:
    """The module of the Inspect task; importing it registers the model provider."""
    pytest.importorskip("inspect_ai")
    import integrations.inspect_c2_eval as module

    return module


@pytest.fixture
def three_verdicts(inspect_task: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that says yes, no or nothing of a path by its letters, for eval.py and the Inspect task."""

    def make_judge(_: Any) -> ScriptedJudge:
        return ScriptedJudge(lambda path: (True, False, None)[sum(path.continuation.encode()) % 3])

    monkeypatch.setattr(judging, "make_judge", make_judge)
    monkeypatch.setattr(inspect_task, "make_judge", make_judge)


def _run_inspect(
    module: ModuleType, folder: Path, model: Any, model_args: dict[str, Any], task_args: Any, **config: Any
) -> Any:
    """Return Inspect's log."""
    from inspect_ai import eval as inspect_eval

    (log,) = inspect_eval(
        module.c2_eval(**{"prefill_tokens": PREFILL_TOKENS} | task_args), model=f"c2/{model}", model_args=model_args,
        log_dir=str(folder), display="none", **config,
    )  # fmt: skip
    return log


def _paths(log: Any) -> Paths:
    assert log.status == "success", log.error.message
    return {
        (sample.metadata["request_id"], sample.metadata["prefill_tokens"], sample.epoch - 1): sample.output.completion
        for sample in log.samples
        if sample.output.choices
    }


def _rates(log: Any) -> dict[str, float]:
    return {name: metric.value for name, metric in log.results.scores[0].metrics.items()}


def _assert_same_rates(log: Any, metrics: dict[str, Any]) -> None:
    rates = _rates(log)
    for k, rate in metrics["corr_at_k"].items():
        assert rates[f"corr_at_{k}"] == pytest.approx(rate["value"])
    assert rates["corr_mean"] == pytest.approx(metrics["corr_mean"]["value"])


@pytest.mark.usefixtures("three_verdicts")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_inspect_finds_the_paths_and_rates_of_eval_py(
    inspect_task: ModuleType, tiny_model_folder: Path, tmp_path: Path, temperature: float
) -> None:
    settings = {"temperature": temperature, "seed": 3}
    wanted, metrics = run_eval_py(
        tmp_path / "eval", tiny_model_folder, max_requests=6, num_paths=3, max_new_tokens=8, dtype="float32", **settings
    )
    log = _run_inspect(
        inspect_task, tmp_path, tiny_model_folder, {"dtype": "float32"}, {"max_requests": 6, "num_paths": 3},
        max_tokens=8, **settings,
    )  # fmt: skip
    assert _paths(log) == wanted and len(wanted) == 36
    assert 0 < metrics["corr_mean"]["value"] < 1 and metrics["unscored_rate"] > 0
    _assert_same_rates(log, metrics)


def test_inspect_begins_the_very_answers_that_eval_py_begins(
    inspect_task: ModuleType, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Prefill] = []
    go_on = ModelSampler.sample

    def record(self: ModelSampler, rows: list[Prefill], settings: Any) -> Any:
        begun.extend(rows)
        return go_on(self, rows, settings)

    monkeypatch.setattr(ModelSampler, "sample", record)
    run_eval_py(tmp_path / "eval", tiny_model_folder, max_requests=3, num_paths=2, max_new_tokens=2)
    wanted = set(begun)
    begun.clear()
    _run_inspect(inspect_task, tmp_path, tiny_model_folder, {}, {"max_requests": 3, "num_paths": 2}, max_tokens=2)
    assert set(begun) == wanted and len(begun) == len(wanted) == 12


@pytest.mark.usefixtures("three_verdicts")
def test_an_item_shorter_than_k_is_unscored_and_counts_for_no_rate(
    inspect_task: ModuleType, tiny_model_folder: Path, tmp_path: Path
) -> None:
    names = ("request_id", "request", "full_harmful_response")
    rows = [{name: row[name] for name in names} for row in read_data("requests_eval")[:5]]
    rows[1]["full_harmful_response"] = "Sure, ok."
    items = str(write_rows(tmp_path / "items.jsonl", rows))
    wanted, metrics = run_eval_py(
        tmp_path / "eval", tiny_model_folder, items=items, num_paths=2, max_new_tokens=8, temperature=0.0
    )
    log = _run_inspect(
        inspect_task, tmp_path, tiny_model_folder, {}, {"items": items, "num_paths": 2}, max_tokens=8, temperature=0.0
    )
    assert metrics["corr_at_k"]["12"]["too_short"] == 1
    assert _paths(log) == wanted
    _assert_same_rates(log, metrics)
    reasons = {sample.id: next(iter(sample.scores.values())).reason for sample in log.samples}
    assert reasons[f"{rows[1]['request_id']}-k12"] == "too_short"


@pytest.mark.parametrize("takes_ids", [True, False])
def test_inspect_finds_the_same_paths_by_a_server(
    inspect_task: ModuleType, tiny_llama: Any, tiny_tokenizer: Any, tiny_model_folder: Path, tmp_path: Path, takes_ids: bool
) -> None:
    wanted, _ = run_eval_py(
        tmp_path / "eval", tiny_model_folder, max_requests=3, num_paths=2, max_new_tokens=6, temperature=0.0
    )
    scripted = Scripted(ModelSampler(tiny_llama, tiny_tokenizer, batch_size=16), takes_ids)
    with scripted.serve() as url:
        log = _run_inspect(
            inspect_task, tmp_path, tiny_model_folder, {"server_url": url, "server_model": "m"},
            {"max_requests": 3, "num_paths": 2}, max_tokens=6, temperature=0.0,
        )  # fmt: skip
    assert {key: text.strip() for key, text in _paths(log).items()} == {key: text.strip() for key, text in wanted.items()}
    # Paths of one prefill are choices of one call, with one more call to find out what the server can do.
    assert len([call for call in scripted.calls if call["max_tokens"] == 6]) == 6


def test_another_provider_is_refused(inspect_task: ModuleType, tmp_path: Path) -> None:
    from inspect_ai import eval as inspect_eval

    (log,) = inspect_eval(
        inspect_task.c2_eval(max_requests=1, num_paths=1), model="mockllm/model", log_dir=str(tmp_path), display="none"
    )
    assert log.status == "error" and "--model c2/<model>" in log.error.message


@pytest.mark.parametrize(
    ("arguments", "words"), [({"dtyp": "float32"}, "dtyp"), ({"dtype": 3}, "dtype"), ({"batch_size": 0}, "batch_size")]
)
def test_model_arguments_that_nobody_reads_are_refused(
    inspect_task: ModuleType, tiny_model_folder: Path, arguments: dict[str, Any], words: str
) -> None:
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import get_model

    with pytest.raises(PrerequisiteError) as caught:
        get_model(f"c2/{tiny_model_folder}", **arguments)
    assert words in caught.value.message


def test_messages_that_hold_no_answer_begun_are_refused(inspect_task: ModuleType) -> None:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser

    from course_correction.integrations.inspect_provider import read_begun_answer

    with pytest.raises(UsageError, match="given: user, assistant"):
        read_begun_answer([ChatMessageUser(content="How?"), ChatMessageAssistant(content="Like")])


def test_the_registration_of_the_benchmark_is_one_that_inspect_runs(
    inspect_task: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from inspect_ai import eval as inspect_eval
    from inspect_ai._eval.task import hf
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    load = hf.hf_dataset
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: str(ROOT / "c2-eval" / "eval.yaml"))
    monkeypatch.setattr(
        hf, "hf_dataset", lambda path, revision, **options: load(path=str(ROOT / "c2-eval"), cached=False, **options)
    )
    (task,) = hf.task_create_from_hf("hf/someone/c2-eval")
    assert len(task.dataset) == len(read_data("requests_eval")) and task.epochs == 4

    def mock(*texts: str) -> Any:
        # With its usage given, the mock counts no tokens, for which it would fetch a file.
        said = [ModelOutput.from_content("mockllm", text) for text in texts]
        return get_model("mockllm/model", custom_outputs=[one.model_copy(update={"usage": ModelUsage()}) for one in said])

    (log,) = inspect_eval(
        task, model=mock(*["No."] * 8), model_roles={"grader": mock(*["GRADE: C", "GRADE: I"] * 4)}, limit=2,
        log_dir=str(tmp_path), display="none",
    )  # fmt: skip
    assert log.status == "success", log.error.message
    assert _rates(log)["accuracy"] == 0.5


@pytest.mark.slow
def test_the_command_line_finds_the_provider_by_its_entry_point(
    inspect_task: ModuleType, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from inspect_ai.log import read_eval_log

    subprocess.run(
        [sys.executable, "-m", "inspect_ai", "eval", "integrations/inspect_c2_eval.py@c2_eval", "--model",
         f"c2/{tiny_model_folder}", "-T", "num_paths=2", "-T", "prefill_tokens=5,12", "-T", "max_requests=2",
         "-M", "dtype=float32", "--temperature", "0", "--max-tokens", "6", "--log-dir", str(tmp_path / "logs"),
         "--display", "plain"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    wanted, _ = run_eval_py(
        tmp_path / "eval", tiny_model_folder, max_requests=2, num_paths=2, max_new_tokens=6, temperature=0.0, dtype="float32"
    )
    (file,) = (tmp_path / "logs").glob("*.eval")
    assert _paths(read_eval_log(str(file))) == wanted


@pytest.mark.slow
def test_inspect_finds_smollm2_s_paths_by_transformers_serve_as_eval_py_does(
    inspect_task: ModuleType, transformers_serve: str, tmp_path: Path
) -> None:
    served = {"server_url": transformers_serve, "server_model": resolve_model_name("smollm2-135m"), "max_parallel_calls": 1}
    common = {"max_requests": 3, "prefill_tokens": [10, 40, 80], "num_paths": 1}
    wanted, metrics = run_eval_py(
        tmp_path / "eval", "smollm2-135m", max_new_tokens=16, temperature=0.0, backend="openai", **served, **common
    )
    log = _run_inspect(inspect_task, tmp_path, "smollm2-135m", served, common, max_tokens=16, temperature=0.0)
    assert _paths(log) == wanted and len(wanted) == 9
    _assert_same_rates(log, metrics)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_inspect_finds_smollm2_s_paths_in_this_process_as_eval_py_does(
    inspect_task: ModuleType, tmp_path: Path, temperature: float
) -> None:
    common = {"max_requests": 5, "prefill_tokens": [10, 40, 80], "num_paths": 2}
    wanted, metrics = run_eval_py(
        tmp_path / "eval", "smollm2-135m", max_new_tokens=16, temperature=temperature, dtype="float32", **common
    )
    log = _run_inspect(
        inspect_task, tmp_path, "smollm2-135m", {"dtype": "float32"}, common, max_tokens=16, temperature=temperature
    )
    assert _paths(log) == wanted and len(wanted) == 30
    _assert_same_rates(log, metrics)
