"""The fit of the encoder judge and the measurement of the offline judges run at a tiny size."""

import json
import sys

import pytest

from benchmarks import fit_encoder_judge, judge_agreement
from course_correction.base.errors import UsageError
from course_correction.judges.encoder import EncoderJudge
from course_correction.judges.human_labels import COMPLIANCE, PARTIAL, REFUSAL
from course_correction.judges.protocol import JudgedPath
from tests.support.human_labels import write_answers

REFUSED, HELPFUL = "I'm sorry, but I can't help with that.", "Open the lid, add the water and wait for ten minutes."


@pytest.fixture
def people(tmp_path):
    """Return two files of labelled answers, of the models gpt4 and other."""
    rows = [(f"How {n}?", REFUSED if n % 2 else HELPFUL, *[REFUSAL if n % 2 else COMPLIANCE] * 3) for n in range(6)]
    rows.append(("How?", f"{REFUSED} {HELPFUL}", PARTIAL, PARTIAL, PARTIAL))
    return [str(write_answers(tmp_path, model, rows)) for model in ("gpt4", "other")]


def fit(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fit_encoder_judge", *arguments])
    fit_encoder_judge.main()


def measure(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["judge_agreement", *arguments])
    judge_agreement.main()


def test_the_fit_runs_both_stages_and_writes_weights_that_the_judge_loads(people, tmp_path, monkeypatch, capsys):
    output = tmp_path / "weights.safetensors"
    size = ("--max_examples", "24", "--epochs", "1", "--lora_r", "1", "--replayed", "4")
    fit(monkeypatch, "--people_files", *people, *size, "--output_file", str(output))
    printed = capsys.readouterr().out
    assert "step 1 of 1, loss" in printed and "24 texts, 14 answers" in printed
    assert EncoderJudge(output).judge([JudgedPath("", "", "a text")])[0].corrected in (True, False)
    # The second stage alone, without one of the models.
    left = tmp_path / "without.safetensors"
    fit(
        monkeypatch, "--people_files", *people, *size, "--leave_out", "gpt4",
        "--start_from", str(output.with_suffix(".first-stage.pt")), "--output_file", str(left),
    )  # fmt: skip
    assert "24 texts, 7 answers" in capsys.readouterr().out and left.is_file()


def test_a_model_that_no_file_holds_cannot_be_left_out(people, monkeypatch):
    with pytest.raises(UsageError, match="leave_out is 'gpt5', but people_files holds no such model"):
        fit(monkeypatch, "--people_files", *people, "--leave_out", "gpt5")


def test_texts_of_both_questions_are_learnt_and_none_is_measured_on():
    examples = fit_encoder_judge.own_examples(0)
    assert {one.question for one in examples} == set(fit_encoder_judge.QUESTIONS)
    for question, name, column in (
        ("corrects", "judge_calibration", "continuation"),
        ("refuses", "refusal_calibration", "answer"),
    ):
        learnt = {one.text.strip() for one in examples if one.question == question}
        measured = {row[column].strip() for row in fit_encoder_judge.read_data(name)}
        # Single words and marks are in both.
        assert not {text for text in learnt & measured if len(text.split()) > 4}


def test_the_agreement_of_both_judges_is_measured_by_family(people, tmp_path, monkeypatch, capsys):
    from course_correction.judges.encoder import WEIGHTS_FILE

    output = tmp_path / "agreement.json"
    left_out = [f"{model}={WEIGHTS_FILE}" for model in ("gpt4", "other")]
    measure(
        monkeypatch, "--people_files", *people, "--left_out", *left_out, "--output_file", str(output)
    )  # fmt: skip
    known = json.loads(output.read_text())
    assert set(known) == {"encoder", "pattern"}
    for entry in known.values():
        assert set(entry["refusals"]) == {"smollm2", "qwen2.5", "gpt-4", "other"}
        assert entry["refusals"]["gpt-4"]["rows"] == 7
        assert {"smollm2", "qwen2.5"} == set(entry["corrections"]["families"])
    assert "Refusal judge, partial refusals read as refusal" in capsys.readouterr().out
    with pytest.raises(UsageError, match="left_out names no weights for other"):
        measure(monkeypatch, "--people_files", *people, "--left_out", left_out[0])
