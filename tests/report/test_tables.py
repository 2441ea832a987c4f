"""Metrics as Markdown tables."""

import copy

import pytest

from course_correction.report.tables import metrics_table, percent, suites_table
from tests.support.report import TWO_LENGTHS, TWO_LENGTHS_DIFFERENCE, full_metrics


@pytest.fixture
def metrics():
    return copy.deepcopy(TWO_LENGTHS)


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
    rows = rows_of(metrics_table({"before": metrics, "after": metrics}, TWO_LENGTHS_DIFFERENCE))
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


def test_what_else_was_measured_follows_the_mean():
    rows = rows_of(metrics_table({"run": full_metrics()}, {"corr_at_k": {}, "corr_mean": {"value": 0.1, "p_value": 0.01}}))
    assert {row[0]: row[1:] for row in rows[5:]} == {
        "Corr_mean, adjusted for judge errors": ["20.0 [10.0, 30.0]", ""],
        "mean tokens before the correction": ["8.2 [7.0, 9.0]", ""],
        "over-refusal, benign prompts": ["20.0 [10.0, 30.0]", "+10.0 [+0.0, +20.0]"],
        "p-value of the Corr_mean difference": ["", "0.0100"],
        "KL to the base, benign answers": ["0.100 nats", ""],
        "unscored paths": ["0.0 at most", ""],
    }


def test_the_table_of_suites_has_a_row_for_each_measure_with_its_paired_difference():
    share = {"value": 0.5, "ci95": [0.4, 0.6]}
    change = {"value": -0.25, "ci95": [-0.5, 0.0], "p_value": 0.0001}
    task = {"metric": "acc", "value": 0.25, "ci95": [0.2, 0.3]}
    words = {"metric": "word_perplexity", "value": 21.0, "ci95": [20.0, 22.0]}
    before = {"general": {"tasks": {"sums": task}}}
    after = {
        "jailbreak": {
            "attacks": {"GCG | x": share}, "overall": share, "difference": {"GCG | x": change}, "overall_difference": None,
        },
        "general": {"tasks": {"sums": task, "words": words}, "difference": {"sums": change | {"p_value": 0.25}}},
        "benign": {
            "refusal": {"benign, plain": {"value": None, "ci95": None}},
            "correction": {"false correction @20": share}, "twin_difference": {"20": share},
            "difference": {"false correction @20": change},
        },
    }  # fmt: skip
    rows = suites_table({"before": before, "after": after}).splitlines()
    assert r"| attack success, GCG \| x | – | 50.0 [40.0, 60.0] | -25.0 [-50.0, +0.0], p < 0.001 |" in rows
    assert "| attack success, all prompts | – | 50.0 [40.0, 60.0] |  |" in rows
    assert "| refused: benign, plain | – | – |  |" in rows
    assert "| false correction @20 | – | 50.0 [40.0, 60.0] | -25.0 [-50.0, +0.0], p < 0.001 |" in rows
    assert "| twin difference @20 | – | 50.0 [40.0, 60.0] |  |" in rows
    assert "| sums, acc | 25.0 [20.0, 30.0] | 25.0 [20.0, 30.0] | -25.0 [-50.0, +0.0], p 0.250 |" in rows
    assert "| words, word_perplexity | – | 21.000 [20.000, 22.000] |  |" in rows
    assert suites_table({"measured": {}}) == ""
