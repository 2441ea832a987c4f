"""report.md: its content."""

import copy

import pytest

from course_correction.report.markdown import write_report
from tests.support.report import TWO_LENGTHS, TWO_LENGTHS_DIFFERENCE, full_metrics


@pytest.fixture
def metrics():
    return copy.deepcopy(TWO_LENGTHS)


def test_the_report_states_settings_judge_and_what_was_left_out(tmp_path, metrics):
    path = write_report(tmp_path, {"run": metrics})
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.md"
    assert "| num_paths | `4` |" in text
    assert "3 combinations of item and k were left out" in text
    assert "Judge of corrections: `pattern`" in text
    assert "![Corr@k](corr_at_k.png)" in text and (tmp_path / "corr_at_k.png").is_file()
    assert "paired" not in text


def test_the_report_reports_on_the_last_run_and_names_the_pairing(tmp_path, metrics):
    before = {**copy.deepcopy(metrics), "model": "other", "seconds": 99.0}
    text = write_report(tmp_path, {"before": before, "after": metrics}, TWO_LENGTHS_DIFFERENCE).read_text(encoding="utf-8")
    assert text.startswith("# C²-Eval: after")
    assert "Model: `tiny`. Sampling and judging took 12 seconds" in text
    assert "paired by request" in text


def test_the_report_states_the_judges_agreement_with_labels_and_the_requests_needed(tmp_path):
    text = write_report(tmp_path, {"run": full_metrics()}).read_text(encoding="utf-8")
    assert "precision 0.20 [0.10, 0.30], recall 0.20 [0.10, 0.30] on 9 labelled" in text
    assert "An interval of ±2.5 points for Corr_mean needs about 39 distinct requests." in text


def test_the_report_says_how_far_its_judges_go_on_the_family_of_the_model(tmp_path):
    text = write_report(tmp_path, {"run": full_metrics()}).read_text(encoding="utf-8")
    quote = "On 9 texts of the family smollm2: Cohen's κ 0.20 [0.10, 0.30] (labelled set)."
    assert text.count(quote) == 2 and "Judge of refusals: `encoder`." in text
    metrics = full_metrics()
    metrics["refusal_agreement"] |= {"family": "gemma", "on_family": None}
    metrics["judge_agreement"] |= {"family": None, "on_family": None}
    text = write_report(tmp_path, {"run": metrics}).read_text(encoding="utf-8")
    assert "It was not measured on texts of the family gemma." in text
    assert "is not known for this model, whose name tells no family (--model_family)." in text
