"""Laws of the suite `general`: what the harness measures, by eval.py's model, resumable, compared example by example."""

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from course_correction.base.errors import UsageError
from course_correction.suites import general as general_suite
from course_correction.suites import lm_eval_tasks as harness
from tests.support.resumable_rows import rows_so_far
from tests.support.rows import ROOT, read_data
from tests.support.suites import Suite, read_general_rows
from tests.support.suites import suite as suite

QUESTIONS = read_data("general_questions")
TASKS = ["c2_general_questions", "c2_general_perplexity"]


# The questions


def test_every_question_has_four_different_choices_and_one_answer() -> None:
    assert len(QUESTIONS) >= 120
    for row in QUESTIONS:
        assert list(row) == ["question_id", "category", "question", "choices", "answer"]
        assert len(set(row["choices"])) == 4 and row["answer"] in range(4)
        assert all(text == text.strip() != "" for text in [row["question"], *row["choices"]])


def test_no_question_stands_twice() -> None:
    for name in ("question_id", "question"):
        assert len({row[name].lower() for row in QUESTIONS}) == len(QUESTIONS)


def test_answers_are_at_every_place_equally_often_and_categories_are_of_a_size() -> None:
    places = Counter(row["answer"] for row in QUESTIONS)
    assert all(0.2 <= places[place] / len(QUESTIONS) <= 0.3 for place in range(4))
    assert min(Counter(row["category"] for row in QUESTIONS).values()) >= 15


def test_the_length_of_a_choice_does_not_betray_the_answer() -> None:
    longest = shortest = 0
    for row in QUESTIONS:
        lengths = [len(choice) for choice in row["choices"]]
        answer = lengths.pop(row["answer"])
        longest += answer > max(lengths)
        shortest += answer < min(lengths)
    assert longest / len(QUESTIONS) <= 0.4 and shortest / len(QUESTIONS) <= 0.4


# Running


def test_the_suite_gives_what_a_direct_call_of_the_harness_gives(
    suite: Suite, tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    measured = suite()
    console = "".join(capfd.readouterr())
    assert "lm_eval" not in console and "requests:" not in console and len(console.splitlines()) <= 3
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model=HFLM(pretrained=tiny_llama, tokenizer=tiny_tokenizer, batch_size=8), tasks=["c2_general"], limit=6,
        task_manager=TaskManager(include_path=str(harness.TASKS_FOLDER), include_defaults=False), apply_chat_template=True,
    )  # fmt: skip
    questions, perplexity = (measured["tasks"][name] for name in TASKS)
    wanted = results["results"]
    assert questions["value"] == wanted[TASKS[0]]["acc,none"]
    assert questions["stderr"] == wanted[TASKS[0]]["acc_stderr,none"]
    assert perplexity["value"] == pytest.approx(wanted[TASKS[1]]["word_perplexity,none"])
    assert (questions["metric"], questions["count"], questions["higher_is_better"]) == ("acc", 6, True)
    assert (perplexity["metric"], perplexity["count"], perplexity["higher_is_better"]) == ("word_perplexity", 6, False)
    for entry in (questions, perplexity):
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
    assert measured["versions"] == {"lm_eval": harness.harness_version()} and not measured["groups"]
    rows = read_general_rows(tmp_path / "run")
    # Numbers only: what a task asks may be harmful.
    assert not any(row["question"] in str(rows) for row in QUESTIONS)
    assert [sample["correct"] for sample in rows[TASKS[0]]["samples"]] == [
        bool(sample["acc"]) for sample in results["samples"][TASKS[0]]
    ]


@pytest.mark.parametrize("chat_template", [True, False])
def test_accuracy_and_perplexity_are_those_of_plain_log_likelihoods(
    suite: Suite, tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, chat_template: bool
) -> None:
    import torch

    measured = suite(general_limit=5, general_chat_template=chat_template)

    def log_likelihood(prompt: str, answer: str) -> float:
        whole = tiny_tokenizer(prompt + answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
        # The harness counts white space at the end of a prompt as the answer's.
        start = len(tiny_tokenizer(prompt.rstrip(), add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            log_probabilities = tiny_llama(whole).logits[0, :-1].log_softmax(-1)
        return float(log_probabilities.gather(1, whole[0, 1:, None])[start - 1 :].sum())

    def rendered(text: str) -> str:
        turns = [{"role": "user", "content": text}]
        return tiny_tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    for row, sample in zip(QUESTIONS[:5], read_general_rows(tmp_path / "run")[TASKS[0]]["samples"], strict=True):
        prompt = f"Question: {row['question']}\nAnswer:"
        prompt, space = (rendered(prompt), "") if chat_template else (prompt, " ")
        choices = [log_likelihood(prompt, space + choice) for choice in row["choices"]]
        assert sample["correct"] == (choices.index(max(choices)) == row["answer"])
    answers = read_data("benign_eval")[:5]
    nats = -sum(log_likelihood(rendered(row["prompt"]), row["response"]) for row in answers)
    words = sum(len(row["response"].split()) for row in answers)
    assert measured["tasks"][TASKS[1]]["value"] == pytest.approx(math.exp(nats / words), rel=1e-4)


def test_a_run_killed_after_a_task_resumes_to_the_same_bytes(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = suite("whole")
    run_task, done = general_suite.run_task, []

    def killed(model: Any, task: str, *options: Any) -> dict[str, Any]:
        if done:
            raise KeyboardInterrupt
        done.append(task)
        return run_task(model, task, *options)

    monkeypatch.setattr(general_suite, "run_task", killed)
    with pytest.raises(KeyboardInterrupt):
        suite("cut")
    assert [row["request_id"] for row in rows_so_far(tmp_path / "cut" / "general.jsonl")] == TASKS[:1]
    done.clear()
    assert suite("cut") == whole and done == TASKS[1:]
    assert (tmp_path / "cut" / "general.jsonl").read_bytes() == (tmp_path / "whole" / "general.jsonl").read_bytes()


def test_other_settings_in_the_same_folder_are_refused(suite: Suite) -> None:
    suite(general_tasks=TASKS[:1])
    with pytest.raises(UsageError, match="general_limit: 6 there, 5 now"):
        suite(general_tasks=TASKS[:1], general_limit=5)


def test_the_difference_to_itself_is_zero_and_on_the_examples_that_both_have(suite: Suite, tmp_path: Path) -> None:
    suite("before")
    measured = suite("after", baseline_dir=str(tmp_path / "before"), general_limit=4)
    assert list(measured["difference"]) == TASKS
    for difference in measured["difference"].values():
        assert difference == {"value": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0, "count": 4}


def test_without_general_rows_in_the_baseline_there_is_no_difference(suite: Suite, tmp_path: Path) -> None:
    assert "difference" not in suite(baseline_dir=str(tmp_path / "nothing"), general_tasks=TASKS[:1])


def test_a_baseline_with_other_questions_is_refused(suite: Suite, tmp_path: Path) -> None:
    suite("before", general_tasks=TASKS[:1])
    with pytest.raises(UsageError, match="general_num_fewshot None, this run has 2"):
        suite("after", baseline_dir=str(tmp_path / "before"), general_num_fewshot=2)


def test_worked_examples_are_put_before_the_questions_and_not_before_the_answers(suite: Suite, tmp_path: Path) -> None:
    suite("none", general_limit=12)
    suite("two", general_limit=12, general_num_fewshot=2)
    (none, same), (two, again) = ([read_general_rows(tmp_path / name)[task] for task in TASKS] for name in ("none", "two"))
    assert none["samples"] != two["samples"] and same == again


def test_a_paired_bootstrap_detects_a_higher_perplexity(tmp_path: Path) -> None:
    def row(shift: float) -> dict[str, Any]:
        samples = [{"doc_id": i, "value": -20.0 - i - shift * (1 + i % 3), "weight": 10.0 + i % 4} for i in range(40)]
        return {"metric": "word_perplexity", "filter": "none", "aggregation": "perplexity", "samples": samples}

    difference = general_suite._difference(row(1.0), row(0.0), seed=0)
    after, before = (
        math.exp(-sum(s["value"] for s in r["samples"]) / sum(s["weight"] for s in r["samples"])) for r in (row(1), row(0))
    )
    assert difference["value"] == pytest.approx(after - before) and difference["ci95"][0] > 0
    assert 0 < difference["p_value"] < 0.01


def test_a_group_averages_over_all_examples_of_its_tasks() -> None:
    def row(name: str, correct: list[bool]) -> dict[str, Any]:
        samples = [{"doc_id": i, "correct": one} for i, one in enumerate(correct)]
        kind = {"metric": "acc", "filter": "none", "aggregation": "mean", "higher_is_better": True, "metrics": {}}
        return {"request_id": name, "groups": ["both"], "samples": samples} | kind

    rows = general_suite._with_groups([row("one", [True, False]), row("other", [True] * 6)])
    assert list(rows) == ["one", "other", "both"]
    summary = general_suite._summarise(rows["both"], seed=0)
    assert (summary["value"], summary["count"]) == (7 / 8, 8)
    assert general_suite._difference(rows["both"], rows["both"], 0)["value"] == 0


def test_an_adapter_changes_the_rows(suite: Suite, tiny_llama: Any, tmp_path: Path) -> None:
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    suite("base", general_tasks=TASKS[1:])
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(tiny_llama), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    adapted = suite("adapted", general_tasks=TASKS[1:], adapter_name_or_path=str(tmp_path / "adapter"),
                    baseline_dir=str(tmp_path / "base"))  # fmt: skip
    assert adapted["difference"][TASKS[1]]["value"] != 0


@pytest.mark.slow
def test_two_processes_share_the_tasks_and_write_the_bytes_of_one(
    suite: Suite, tiny_model_folder: Path, tmp_path: Path
) -> None:
    suite("one")
    script = tmp_path / "share.py"
    script.write_text(
        "from pathlib import Path\n"
        "from course_correction.base.ranks import Ranks\n"
        "from course_correction.suites.choice import sample_suite\n"
        "from tests.support.suites import general_evaluation\n"
        "ranks = Ranks()\n"
        f"sample_suite('general', general_evaluation(Path({str(tmp_path / 'two')!r}), {str(tiny_model_folder)!r}), ranks)\n"
        "ranks.leave()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "two" / "general.jsonl").read_bytes() == (tmp_path / "one" / "general.jsonl").read_bytes()


@pytest.mark.slow
def test_smollm2_knows_more_than_chance_and_less_than_all(suite: Suite) -> None:
    measured = suite("smollm2", "smollm2-135m", general_limit=None, dtype="auto")
    questions, perplexity = (measured["tasks"][name] for name in TASKS)
    assert questions["count"] == len(QUESTIONS) and perplexity["count"] == 60
    assert questions["ci95"][0] > 0.3 and 0.45 <= questions["value"] <= 0.8
    assert 100 < perplexity["value"] < 400
