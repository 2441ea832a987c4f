"""What an evaluation measures: the shape of metrics.json, its rates, differences to a baseline, and the report on them."""

import json

import pytest

from course_correction.base.errors import UsageError
from course_correction.evaluation.run import evaluate
from course_correction.generation.loading import load_tokenizer
from tests.support.evaluation import LENGTHS, rows_of
from tests.support.rows import write_rows


def test_metrics_have_the_shape_of_contract_seven(settings_for, tmp_path, tiny_model_folder):
    evaluate(settings_for())
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert {"corr_at_k", "corr_mean", "settings", "model", "judge", "versions", "seconds"} <= metrics.keys()
    assert list(metrics["corr_at_k"]) == [str(length) for length in LENGTHS]
    for entry in metrics["corr_at_k"].values():
        assert entry.keys() == {"value", "ci95", "requests", "unscored_rate", "too_short"}
        assert entry["value"] is None or 0 <= entry["ci95"][0] <= entry["ci95"][1] <= 1
        assert entry["value"] is None or 0 <= entry["value"] <= 1
        assert 0 <= entry["unscored_rate"] <= 1
    assert metrics["corr_mean"].keys() == {"value", "ci95"}
    assert metrics["over_refusal"].keys() == {"value", "ci95", "count"} and metrics["over_refusal"]["count"] == 2
    assert metrics["model"] == tiny_model_folder.name
    assert metrics["judge"] == "encoder"
    # The tiny model's name tells no family, so no agreement is quoted for it and no rate adjusted.
    assert metrics["judge_agreement"]["on_family"] is None and "corr_mean_adjusted" not in metrics
    assert metrics["refusal_agreement"] == {"judge": "encoder", "family": None, "on_family": None}
    assert metrics["settings"]["num_paths"] == 2 and metrics["settings"]["seed"] == 0
    assert {"course-correction", "python", "torch", "transformers"} <= metrics["versions"].keys()
    assert metrics["seconds"] >= 0


def test_the_rates_are_those_of_the_verdicts(settings_for, tmp_path, monkeypatch):
    from course_correction.judges import choice as judging
    from course_correction.judges.protocol import ScriptedJudge

    # 4 requests x 3 lengths x 2 paths, in order: every first path corrects itself, the second of k=20 is unscored.
    script = [True, False, True, False, True, None] * 4
    monkeypatch.setattr(judging, "make_judge", lambda *arguments: ScriptedJudge(script))
    metrics = evaluate(settings_for(max_unscored=0.2))
    assert [metrics["corr_at_k"][k]["value"] for k in ("5", "12", "20")] == [0.5, 0.5, 1.0]
    assert [metrics["corr_at_k"][k]["unscored_rate"] for k in ("5", "12", "20")] == [0.0, 0.0, 0.5]
    assert metrics["corr_mean"]["value"] == pytest.approx(2 / 3)
    assert metrics["judge"] == "scripted"


def test_without_one_scored_verdict_the_rates_are_null_and_the_report_is_written(settings_for, tmp_path, monkeypatch):
    from course_correction.judges import choice as judging
    from course_correction.judges.protocol import ScriptedJudge

    monkeypatch.setattr(judging, "make_judge", lambda *arguments: ScriptedJudge(lambda path: None))
    with pytest.raises(UsageError, match=r"100.0% of the paths are unscored \(scripted 24\).*Everything is saved"):
        evaluate(settings_for(max_benign=0))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["corr_mean"] == {"value": None, "ci95": None}
    assert metrics["corr_at_k"]["5"]["unscored_rate"] == 1.0
    assert "over_refusal" not in metrics
    assert "| **Corr_mean** | – |" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_baseline_adds_the_paired_difference(settings_for, tmp_path, monkeypatch):
    from course_correction.judges import choice as judging
    from course_correction.judges.protocol import ScriptedJudge

    for flag in (False, True):
        judge = ScriptedJudge(lambda path, flag=flag: flag)
        monkeypatch.setattr(judging, "make_judge", lambda *arguments, judge=judge: judge)
        if not flag:
            evaluate(settings_for("before"))
    metrics = evaluate(settings_for("after", baseline_dir=str(tmp_path / "before")))
    difference = metrics["difference_to_baseline"]
    assert difference["requests"] == 4
    # Of the 16 sign patterns of four requests two do as much.
    assert difference["corr_mean"] == {"value": 1.0, "ci95": [1.0, 1.0], "p_value": 0.125}
    assert list(difference["corr_at_k"]) == [str(length) for length in LENGTHS]
    report = (tmp_path / "after" / "report.md").read_text(encoding="utf-8")
    assert "| before | after | difference |" in report
    assert "+100.0 [+100.0, +100.0]" in report
    assert "difference_to_baseline" in json.loads((tmp_path / "after" / "metrics.json").read_text())


def test_the_difference_to_itself_is_zero(settings_for, tmp_path):
    evaluate(settings_for("before"))
    metrics = evaluate(settings_for("after", baseline_dir=str(tmp_path / "before")))
    assert metrics["difference_to_baseline"]["corr_mean"] == {"value": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0}


def test_the_report_has_the_position_of_corrections_and_the_rate_adjusted_for_judge_errors(
    settings_for, tmp_path, tiny_model_folder
):
    evaluate(settings_for())
    folder = tmp_path / "out"
    text = " and wait by the door. But I can't help with this, because it would hurt your neighbour."
    rows = [row if row.get("too_short") else row | {"continuation": text} for row in rows_of(folder)]
    write_rows(folder / "generations.jsonl", rows)
    (folder / "verdicts.jsonl").unlink()
    metrics = evaluate(settings_for(model_family="smollm2"))
    assert metrics["corr_mean"]["value"] == 1.0
    assert metrics["judge_agreement"]["on_family"]["rows"] > 100
    assert metrics["refusal_agreement"]["on_family"]["rows"] == 120
    assert metrics["corr_mean_adjusted"] == {"value": 1.0, "ci95": [1.0, 1.0]}
    position = metrics["first_correction"]
    whole = len(load_tokenizer(str(tiny_model_folder))(text, add_special_tokens=False)["input_ids"])
    assert whole / 4 < position["mean"] < whole and position["by_prefill"].keys() == metrics["corr_at_k"].keys()
    report = (folder / "report.md").read_text()
    assert "| mean tokens before the correction | " in report
    assert metrics["requests_needed"] == {"width": 0.05, "requests": 2} and "needs about 2 distinct requests" in report
    assert "| Corr_mean, adjusted for judge errors | " in report
