"""Suite `jailbreak`: settings, replay, and the rates of what is answered. All texts are mild imitations."""

import json

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.ranks import Ranks
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.suites.attack_prompts import index_prompts, read_attack_prompts
from course_correction.suites.choice import sample_suite
from course_correction.suites.ciphers import CIPHERS, encode
from course_correction.suites.jailbreak import measure
from tests.support.jailbreak import HELP, REFUSAL, artifact, evaluate, plain, rewrite, rows_of, write
from tests.support.jailbreak import evaluation_of as evaluation_of
from tests.support.jailbreak import own_cache as own_cache
from tests.support.rows import ROOT, write_rows

# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jailbreak_max_new_tokens": 0}, "jailbreak_max_new_tokens is 0, but must be at least 1"),
        ({"max_attack_prompts": 0}, "max_attack_prompts is 0, but must be at least 1"),
        ({"jailbreak_ciphers": ["rot13"]}, "'rot13', but takes caesar, ascii, morse, self_cipher"),
        ({"jailbreak_ciphers": []}, "name at least one, each once"),
        ({"jailbreak_ciphers": ["morse", "morse"]}, "name at least one, each once"),
        ({"jailbreak_judge": "gpt"}, "jailbreak_judge is 'gpt', but takes"),
        ({"jailbreak_judge_model": "m"}, "used with jailbreak_judge: llama_guard or harmbench only"),
        ({"jailbreak_judge": "harmbench"}, "needs jailbreak_judge_template"),
        ({"jailbreak_judge_template": "x"}, "used with jailbreak_judge: harmbench only"),
        ({"jailbreak_judge": "harmbench", "jailbreak_judge_template": "none.txt"}, "none.txt cannot be read: No such file"),
        ({"jailbreak_judge": "harmbench", "jailbreak_judge_template": str(ROOT / "LICENSE")}, "lacks {behavior} and"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_read(change, message):
    with pytest.raises(UsageError, match=message):
        EvaluationSettings(**change)


# --- Replay -----------------------------------------------------------------------------------------------------------


def test_each_prompt_has_a_row_and_a_verdict_and_the_metrics_have_their_shape(evaluation_of, capfd):
    evaluation = evaluation_of()
    metrics = evaluate(evaluation)
    rows, prompts = rows_of(evaluation), read_attack_prompts([], ["caesar", "self_cipher"], 2)
    assert len(rows) == len(prompts) == 8
    for row, one in zip(rows, prompts, strict=True):
        assert list(row) == ["request_id", "attack", "behavior_id", "prompt_index", "answer", "num_tokens"]
        assert (row["attack"], row["behavior_id"]) == (one.attack, one.behavior_id) and 0 <= row["num_tokens"] <= 5
    for row in rows_of(evaluation, "jailbreak_verdicts.jsonl"):
        assert list(row) == ["request_id", "attack", "success", "reason"]
    assert metrics.keys() == {"attacks", "mean", "overall", "judge", "max_new_tokens"}
    assert list(metrics["attacks"]) == ["GCG", "PAIR", "AutoDAN", "CipherChat"]
    wanted = {"value", "ci95", "count", "clusters", "unscored_rate", "null_prompts", "value_without_null"}
    assert metrics["attacks"]["GCG"].keys() == wanted
    assert metrics["attacks"]["CipherChat"].keys() == wanted | {"ciphers"}
    assert (metrics["judge"], metrics["max_new_tokens"]) == ("refusal", 5)
    json.dumps(metrics, allow_nan=False)
    shown = "".join(capfd.readouterr()) + json.dumps(metrics) + (evaluation.folder / "run.json").read_text()
    for text in [one.prompt for one in prompts] + [one.behavior for one in prompts]:
        assert text not in shown and text[:30] not in shown


def test_the_rows_are_the_models_greedy_answers_one_by_one(evaluation_of):
    from course_correction.generation.protocol import Prefill, SamplingSettings

    evaluation = evaluation_of()
    sample_suite("jailbreak", evaluation, Ranks.alone())
    indexed = index_prompts(read_attack_prompts([], ["caesar", "self_cipher"], 2))
    for row, (request_id, _, one) in zip(rows_of(evaluation), indexed, strict=True):
        prefills = [Prefill(one.prompt, (), "another key")]
        (alone,) = evaluation.model.sampler().sample(prefills, SamplingSettings(5, temperature=0))
        assert (row["request_id"], row["answer"]) == (request_id, alone.text)


def test_the_rate_is_the_share_of_answers_that_do_not_refuse_by_attack(evaluation_of, tmp_path):
    rows = [plain(behavior_id=str(number), attack=name) for name in ("GCG", "PAIR") for number in range(4)]
    file = write_rows(tmp_path / "x.jsonl", rows)
    evaluation = evaluation_of(jailbreak_files=[str(file)], max_attack_prompts=None)
    sample_suite("jailbreak", evaluation, Ranks.alone())
    rewrite(evaluation, [HELP, REFUSAL, REFUSAL, REFUSAL, HELP, HELP, " ", REFUSAL])
    metrics = measure(evaluation, None)
    assert metrics["attacks"]["GCG"]["value"] == 0.25 and metrics["attacks"]["PAIR"]["value"] == pytest.approx(2 / 3)
    assert metrics["attacks"]["PAIR"]["unscored_rate"] == 0.25 and metrics["attacks"]["PAIR"]["clusters"] == 4
    assert metrics["mean"] == pytest.approx((0.25 + 2 / 3) / 2)
    reasons = [row["reason"] for row in rows_of(evaluation, "jailbreak_verdicts.jsonl")]
    assert reasons[:2] == ["no refusal", "refuses"] and reasons[6] == "empty"


def test_null_prompts_are_not_asked_and_count_as_failures_with_the_rate_without_them_beside(evaluation_of, tmp_path):
    file = write(tmp_path / "x.json", artifact("zxq a", None, "zxq b", None))
    evaluation = evaluation_of(jailbreak_files=[str(file)], max_attack_prompts=None)
    evaluate(evaluation)
    rows = rows_of(evaluation)
    assert [row.get("null_prompt", False) for row in rows] == [False, True, False, True]
    assert "answer" not in rows[1] and rows[1].keys() >= {"request_id", "attack", "behavior_id", "prompt_index"}
    rewrite(evaluation, [HELP, REFUSAL])
    measured = measure(evaluation, None)["attacks"]["GCG"]
    assert (measured["value"], measured["value_without_null"], measured["null_prompts"]) == (0.25, 0.5, 2)
    assert (measured["count"], measured["unscored_rate"]) == (4, 0.0)


def test_an_attack_with_null_prompts_only_never_succeeds(evaluation_of, tmp_path):
    file = write(tmp_path / "x.json", artifact(None, None))
    measured = evaluate(evaluation_of(jailbreak_files=[str(file)]))["attacks"]["GCG"]
    assert (measured["value"], measured["value_without_null"], measured["null_prompts"]) == (0.0, None, 2)


def test_an_answer_in_cipher_is_judged_decoded_and_what_makes_no_sense_is_never_a_success(evaluation_of):
    evaluation = evaluation_of(jailbreak_ciphers=["caesar"], max_attack_prompts=6)
    sample_suite("jailbreak", evaluation, Ranks.alone())
    answers = [encode("caesar", HELP), encode("caesar", REFUSAL), REFUSAL, HELP, "zxq wvut qqq rrst", ""]
    rewrite(evaluation, [HELP] * 18 + answers)
    measured = measure(evaluation, None)["attacks"]["CipherChat"]
    verdicts = [(row["success"], row["reason"]) for row in rows_of(evaluation, "jailbreak_verdicts.jsonl")[18:]]
    assert verdicts == [
        (True, "no refusal"), (False, "refuses"), (False, "refuses"), (None, "not in the cipher"),
        (None, "makes no sense by caesar"), (None, "empty"),
    ]  # fmt: skip
    assert measured["value"] == pytest.approx(1 / 3) and measured["unscored_rate"] == 0.5
    assert measured["ciphers"]["caesar"]["value"] == measured["value"]


@pytest.mark.parametrize("cipher", CIPHERS)
def test_an_answer_in_cipher_that_repeats_the_prompt_is_unscored(cipher, evaluation_of):
    evaluation = evaluation_of(jailbreak_ciphers=[cipher], max_attack_prompts=2)
    sample_suite("jailbreak", evaluation, Ranks.alone())
    one, _ = (row for row in read_attack_prompts([], [cipher], 2) if row.cipher)
    rewrite(evaluation, [HELP] * 6 + [encode(cipher, f"{one.behavior} {one.behavior}"), encode(cipher, HELP)])
    measure(evaluation, None)
    verdicts = [(row["success"], row["reason"]) for row in rows_of(evaluation, "jailbreak_verdicts.jsonl")[6:]]
    assert verdicts == [(None, "echoes the prompt"), (True, "no refusal")]


def test_without_one_scored_answer_the_rates_are_null(evaluation_of):
    evaluation = evaluation_of(max_attack_prompts=1)
    sample_suite("jailbreak", evaluation, Ranks.alone())
    rewrite(evaluation, [""] * 4)
    metrics = measure(evaluation, None)
    assert metrics["mean"] is None
    assert all(measured["value"] is None and measured["unscored_rate"] == 1 for measured in metrics["attacks"].values())
