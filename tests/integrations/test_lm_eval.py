"""Laws of the task for lm-evaluation-harness: the prefills, greedy paths and rates of eval.py."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from course_correction.generation.chat_format import encode_answer, render_prompt
from course_correction.generation.loading import load_tokenizer
from course_correction.generation.offline_models import resolve_model_name
from course_correction.generation.protocol import Model, Tokenizer
from course_correction.judges.encoder import EncoderJudge
from course_correction.judges.protocol import ScriptedJudge
from tests.support.evaluation import Paths, run_eval_py
from tests.support.rows import ROOT, read_data

pytestmark = pytest.mark.usefixtures("plain_environment")
LM_EVAL_TASKS = ROOT / "integrations" / "lm_eval"


@pytest.fixture
def harness() -> Callable[..., dict[str, Any]]:
    """Runs the harness's tasks greedily with an HF model in this process, and gives its results."""
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    def run(model: Model, tasks: list[str], max_new_tokens: int, max_requests: int) -> dict[str, Any]:
        arguments = {"pretrained": str(model), "dtype": "float32"}
        manager = TaskManager(
            include_path=str(LM_EVAL_TASKS), include_defaults=False, metadata=arguments | {"max_requests": max_requests}
        )
        return simple_evaluate(
            model="hf", model_args=arguments, tasks=tasks, task_manager=manager, device="cpu", batch_size=4,
            apply_chat_template=True, gen_kwargs={"do_sample": False, "temperature": 0.0, "max_gen_toks": max_new_tokens},
        )  # fmt: skip

    return run


def _compare_with_harness(results: dict[str, Any], wanted: Paths, tokenizer: Tokenizer) -> float:
    """Return the share of prefills that the harness renders to eval.py's ids; their paths must be eval.py's."""
    same, responses = [], {row["request_id"]: row["full_harmful_response"] for row in read_data("requests_eval")}
    for samples in results["samples"].values():
        for sample in samples:
            document = sample["doc"]
            ids = encode_answer(tokenizer, responses[document["request_id"]])[: document["prefill_tokens"]]
            read = tokenizer(sample["arguments"][0][0], add_special_tokens=False)["input_ids"]
            same.append(read == render_prompt(tokenizer, document["request"]) + ids)
            if same[-1]:
                path = wanted[document["request_id"], document["prefill_tokens"], 0]
                assert sample["resps"][0] == [path] * 4
    return sum(same) / len(same)


def test_the_harness_reproduces_the_greedy_paths_and_rates_of_eval_py(
    harness: Callable[..., dict[str, Any]],
    tiny_model_folder: Path,
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_letters = ScriptedJudge(lambda path: sum(path.continuation.encode()) % 2 == 0)
    monkeypatch.setattr(EncoderJudge, "judge", lambda _, paths: by_letters.judge(paths))
    results = harness(tiny_model_folder, ["c2_eval"], 4, 3)
    lengths = list(range(10, 90, 10))
    wanted, metrics = run_eval_py(
        tmp_path / "eval", tiny_model_folder, max_requests=3, prefill_tokens=lengths, num_paths=1, max_new_tokens=4,
        temperature=0.0, dtype="float32",
    )  # fmt: skip
    assert _compare_with_harness(results, wanted, tiny_tokenizer) == 1.0 and len(wanted) == 24
    for k in lengths:
        assert results["results"][f"c2_eval_{k}"]["corr,paths"] == metrics["corr_at_k"][str(k)]["value"]
    assert results["groups"]["c2_eval"]["corr,paths"] == pytest.approx(metrics["corr_mean"]["value"])
    assert 0 < metrics["corr_mean"]["value"] < 1


def test_the_harness_leaves_out_items_shorter_than_k_and_paths_without_a_verdict() -> None:
    pytest.importorskip("lm_eval")
    sys.path.insert(0, str(LM_EVAL_TASKS))
    try:
        from prefilled_items import judge_paths
    finally:
        sys.path.remove(str(LM_EVAL_TASKS))
    document = {"request": "How?", "prefill": "Like"}
    turn = " Wait, I can't help with this. It is wrong and it would hurt somebody."
    assert judge_paths(document, [[turn, " "]]) == {"corr": 1.0, "unscored": 0.5}
    assert judge_paths(document, [["", " "]]) == {"unscored": 1.0}


@pytest.mark.slow
def test_the_harness_reproduces_smollm2_s_greedy_paths(harness: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folder = resolve_model_name("smollm2-135m")
    results = harness(folder, ["c2_eval_10", "c2_eval_80"], 8, 3)
    wanted, _ = run_eval_py(
        tmp_path / "eval", "smollm2-135m", max_requests=3, prefill_tokens=[10, 80], num_paths=1, max_new_tokens=8,
        temperature=0.0, dtype="float32",
    )  # fmt: skip
    assert _compare_with_harness(results, wanted, load_tokenizer(folder)) == 1.0 and len(wanted) == 6
