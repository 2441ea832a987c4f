"""The report of an evaluation: its table, its plot, and what must not be in it."""

import copy
from pathlib import Path

import pytest

from course_correction.report.markdown import write_report
from course_correction.report.plots import plot_curves
from course_correction.report.tables import metrics_table, percent

METRICS = {
    "corr_at_k": {
        "10": {"value": 0.412, "ci95": [0.35, 0.471], "requests": 4, "unscored_rate": 0.0, "too_short": 0},
        "80": {"value": 0.1, "ci95": [0.05, 0.2], "requests": 2, "unscored_rate": 0.125, "too_short": 3},
    },
    "corr_mean": {"value": 0.256, "ci95": [0.2, 0.3]},
    "over_refusal": {"value": 0.0, "ci95": [0.0, 0.0], "count": 5},
    "settings": {"num_paths": 4, "seed": 0, "judge": "pattern"},
    "model": "tiny",
    "adapter": None,
    "judge": "pattern",
    "versions": {"course-correction": "0.1.0"},
    "seconds": 12.3,
}
DIFFERENCE = {
    "corr_at_k": {"10": {"value": 0.05, "ci95": [-0.01, 0.11]}},
    "corr_mean": {"value": -0.02, "ci95": [-0.1, 0.06]},
    "requests": 4,
}


@pytest.fixture
def metrics():
    return copy.deepcopy(METRICS)


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_value_is_shown_in_percent_with_its_interval():
    assert percent({"value": 0.412, "ci95": [0.35, 0.4712]}) == "41.2 [35.0, 47.1]"
    assert percent({"value": 0.05, "ci95": [-0.01, 0.11]}, signed=True) == "+5.0 [-1.0, +11.0]"
    assert percent({"value": 0.5, "ci95": None}) == "50.0"


@pytest.mark.parametrize("entry", [None, {}, {"value": None, "ci95": None}])
def test_a_missing_value_is_a_dash_and_not_zero(entry):
    assert percent(entry) == "–"


def test_a_value_of_zero_is_shown_as_zero():
    assert percent({"value": 0.0, "ci95": [0.0, 0.0]}) == "0.0 [0.0, 0.0]"


def test_the_table_has_a_row_for_each_k_in_numerical_order_then_the_mean(metrics):
    metrics["corr_at_k"]["9"] = metrics["corr_at_k"].pop("10")
    metrics["corr_at_k"]["100"] = metrics["corr_at_k"]["80"]
    rows = rows_of(metrics_table({"run": metrics}))
    assert [row[0] for row in rows[2:6]] == ["Corr@9", "Corr@80", "Corr@100", "**Corr_mean**"]
    assert rows[2][1] == "41.2 [35.0, 47.1]"
    assert rows[5][1] == "25.6 [20.0, 30.0]"


def test_every_row_of_the_table_has_a_cell_for_every_run_and_the_difference(metrics):
    rows = rows_of(metrics_table({"before": metrics, "after": metrics}, DIFFERENCE))
    assert rows[0][1:] == ["before", "after", "difference"]
    assert {len(row) for row in rows} == {4}
    by_name = {row[0]: row for row in rows}
    assert by_name["Corr@10"][3] == "+5.0 [-1.0, +11.0]"
    assert by_name["Corr@80"][3] == "–"
    assert by_name["**Corr_mean**"][3] == "-2.0 [-10.0, +6.0]"
    assert by_name["unscored paths"][1] == "12.5 at most"


def test_a_run_without_a_value_for_one_k_has_a_dash_there(metrics):
    other = copy.deepcopy(metrics)
    del other["corr_at_k"]["80"]
    other["corr_at_k"]["10"].update(value=None, ci95=None, unscored_rate=None)
    by_name = {row[0]: row for row in rows_of(metrics_table({"before": other, "after": metrics}))}
    assert by_name["Corr@10"][1:] == ["–", "41.2 [35.0, 47.1]"]
    assert by_name["Corr@80"][1:] == ["–", "10.0 [5.0, 20.0]"]


def test_over_refusal_stands_in_the_table_if_it_was_measured(metrics):
    assert "over-refusal" in metrics_table({"run": metrics})
    del metrics["over_refusal"]
    assert "over-refusal" not in metrics_table({"run": metrics})


def test_a_run_whose_name_holds_a_bar_does_not_break_the_table(metrics):
    table = metrics_table({"runs/a|b": metrics})
    unescaped = [line.replace(r"\|", "").count("|") for line in table.splitlines()]
    assert len(set(unescaped)) == 1


def test_the_plot_is_a_png_and_nothing_else_is_left_behind(tmp_path, metrics):
    plot_curves({"run": metrics}, tmp_path / "corr_at_k.png", "title")
    assert (tmp_path / "corr_at_k.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["corr_at_k.png"]


def test_the_plot_of_a_run_without_any_value_is_a_png_and_warns_of_nothing(tmp_path, metrics, recwarn):
    for entry in (*metrics["corr_at_k"].values(), metrics["corr_mean"]):
        entry.update(value=None, ci95=None)
    plot_curves({"run": metrics}, tmp_path / "corr_at_k.png", "title")
    assert (tmp_path / "corr_at_k.png").read_bytes()[:4] == b"\x89PNG"
    assert [str(warning.message) for warning in recwarn if "legend" in str(warning.message)] == []


def test_the_plot_has_one_curve_a_run(tmp_path, metrics):
    plot_curves({"a": metrics}, tmp_path / "one.png", "title")
    plot_curves({"a": metrics, "b": metrics, "c": metrics, "d": metrics}, tmp_path / "four.png", "title")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "four.png").read_bytes()


def test_the_report_states_settings_judge_and_what_was_left_out(tmp_path, metrics):
    path = write_report(tmp_path, {"run": metrics})
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.md"
    assert "| num_paths | `4` |" in text
    assert "3 combinations of item and k were left out" in text
    assert "Judge: `pattern`" in text
    assert "![Corr@k](corr_at_k.png)" in text and (tmp_path / "corr_at_k.png").is_file()
    assert "paired" not in text


def test_the_report_reports_on_the_last_run_and_names_the_pairing(tmp_path, metrics):
    before = {**copy.deepcopy(metrics), "model": "other", "seconds": 99.0}
    text = write_report(tmp_path, {"before": before, "after": metrics}, DIFFERENCE).read_text(encoding="utf-8")
    assert text.startswith("# C²-Eval: after")
    assert "Model: `tiny`. 12 seconds" in text
    assert "paired by request" in text


def test_the_report_takes_no_text_out_of_the_data_files_beside_it(tmp_path, metrics):
    for name in ("generations.jsonl", "verdicts.jsonl", "benign_answers.jsonl"):
        Path(tmp_path / name).write_text('{"continuation": "MARKED-CONTINUATION", "request": "MARKED-REQUEST"}\n')
    text = write_report(tmp_path, {"run": metrics}).read_text(encoding="utf-8")
    assert "MARKED" not in text
