"""The settings of an evaluation: which stages each decides, and what is refused before any work."""

import dataclasses

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.settings import identity_of
from course_correction.evaluation.settings import EvaluationSettings

# Rows depend on these by a digest of what they name, or not at all.
DECIDED = {
    "model": {
        "model_name_or_path", "model_revision", "adapter_name_or_path", "dtype", "attn_implementation", "load_in_4bit",
        "reference_model", "share_prefix", "batch_size", "backend", "server_url", "server_model", "chat_template", "seed",
    },
    "sampling": {
        "items", "prefill_tokens", "num_paths", "max_new_tokens", "temperature", "top_p", "benign_max_new_tokens",
        "requests_per_unit", "prefill_mode", "max_benign",
    },
    "judging": {
        "judge", "judge_model", "judge_revision", "judge_threshold", "judge_by_probability", "judge_label",
        "judge_base_url", "refusal_judge", "judge_critique_tokens",
    },
    "jailbreak": {"jailbreak_ciphers", "jailbreak_max_new_tokens", "max_attack_prompts"},
    "jailbreak_judging": {"refusal_judge", "jailbreak_judge", "jailbreak_judge_model", "jailbreak_judge_revision"},
    "general": {
        "general_tasks", "general_limit", "general_num_fewshot", "general_batch_size", "general_chat_template",
    },
    "benign": {"benign_max_new_tokens", "max_new_tokens"},
    "dynamics": {"dynamics_tokens", "dynamics_max_requests", "prefill_tokens", "requests_per_unit"},
}  # fmt: skip


@pytest.mark.parametrize("stage", DECIDED)
def test_the_rows_of_a_stage_are_decided_by_these_settings(stage):
    assert identity_of(EvaluationSettings(), stage).keys() == DECIDED[stage]


def test_no_setting_decides_an_unknown_stage():
    named = {stage for one in dataclasses.fields(EvaluationSettings) for stage in one.metadata["identity"]}
    assert named <= DECIDED.keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_paths": 0}, {"max_new_tokens": 0}, {"benign_max_new_tokens": 0}, {"requests_per_unit": 0}, {"max_requests": 0},
        {"prefill_tokens": [0]}, {"prefill_tokens": []}, {"prefill_tokens": [5, 5]}, {"temperature": -0.1}, {"top_p": 0.0},
        {"top_p": 1.1}, {"dtype": "int8"}, {"max_benign": -1}, {"prefill_mode": "both"}, {"suite": ["poetry"]},
        {"server_url": "http://localhost:1/v1"}, {"backend": "openai"},
        {"load_in_4bit": True, "backend": "openai", "server_url": "http://localhost:1/v1"},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_or_without_effect_are_refused_by_name_in_one_line(changes):
    with pytest.raises(UsageError, match=next(iter(changes))) as error:
        EvaluationSettings(**changes)
    assert "\n" not in str(error.value)


def test_a_single_name_is_a_list_of_one():
    settings = EvaluationSettings(judge="pattern", suite="benign", benign_files="x.csv", general_tasks="mmlu")
    assert (settings.judge, settings.suite) == (["pattern"], ["benign"])
    assert (settings.benign_files, settings.general_tasks) == (["x.csv"], ["mmlu"])
