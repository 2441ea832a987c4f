"""The committed agreement of the offline judges: of these weights, and quoted for the right family alone."""

import json

import pytest

from course_correction.judges.calibration import calibrate, quote_calibration, read_labelled
from course_correction.judges.choice import JudgeSettings, make_judge, make_refusal_judge
from course_correction.judges.known_agreement import (
    AGREEMENT_FILE,
    known_calibration,
    known_refusal_agreement,
    summarise_family,
    weights_digest,
)
from tests.support.rows import read_data


@pytest.mark.parametrize("name", ["encoder", "pattern"])
def test_the_committed_agreement_was_measured_with_the_committed_weights(name):
    known = json.loads(AGREEMENT_FILE.read_text())[name]
    assert known["weights"] == weights_digest(name), "run python -m benchmarks.judge_agreement"
    measured = calibrate(make_judge(JudgeSettings(judge=[name])), read_labelled())
    for part in ("measured", "sampled"):
        for measure in ("precision", "sensitivity", "kappa"):
            # Verdicts at the threshold may differ between machines.
            expected = known["corrections"][part][measure]["value"]
            assert measured[part][measure]["value"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", ["encoder", "pattern"])
def test_refusals_of_both_offline_models_agree_with_labels_as_quoted(name):
    rows = read_data("refusal_calibration")
    verdicts = make_refusal_judge(name)([row["answer"] for row in rows])
    for family in ("smollm2", "qwen2.5"):
        chosen = [number for number, row in enumerate(rows) if row["family"] == family]
        fresh = summarise_family([rows[n]["refuses"] for n in chosen], [verdicts[n] for n in chosen], "")
        quoted = known_refusal_agreement(name, family)
        assert quoted is not None and quoted["rows"] == len(chosen)
        assert fresh["kappa"]["value"] == pytest.approx(quoted["kappa"]["value"], abs=0.06)


def test_the_quote_is_for_the_family_of_the_model_or_says_that_there_is_none():
    quoted = quote_calibration("encoder", "smollm2", None)
    assert quoted["family"] == "smollm2"
    assert quoted["on_family"] == known_calibration("encoder")["families"]["smollm2"]
    assert quote_calibration("encoder", "gemma", None)["on_family"] is None
    assert quote_calibration("encoder", None, None)["on_family"] is None
    assert quote_calibration("openai/gpt-4o", "smollm2", None) is None
    assert known_refusal_agreement("encoder", "gemma") is None


def test_the_labelled_answers_are_of_two_families_and_held_out_prompts():
    rows = read_data("refusal_calibration")
    assert {row["family"] for row in rows} == {"smollm2", "qwen2.5"}
    assert {row["prompt"] for row in rows} <= {row["prompt"] for row in read_data("benign_eval")}
    learnt = {row["answer"] for row in read_data("refusal_train")}
    assert not learnt & {row["answer"] for row in rows}
    assert len({row["id"] for row in rows}) == len(rows) == 300
