"""Corr@k and Corr_mean: by hand, where something is missing, as JSON, and what no order or single verdict can change."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.statistics.corr_at_k import (
    corr_at_k,
    corr_mean,
    rate_with_interval,
    request_rates,
    summarise,
    summarise_positions,
)
from course_correction.statistics.paired_differences import paired_difference
from tests.support.evaluation import BY_HAND, verdicts_of


def test_corr_at_k_is_the_mean_over_requests_of_each_requests_share_of_corrected_paths():
    table = request_rates(verdicts_of(BY_HAND))
    assert table.request_ids == ("a", "b", "c")
    assert table.prefill_tokens == (10, 20)
    np.testing.assert_allclose(table.rates, [[1 / 2, 0], [1 / 4, 1], [1, np.nan]])
    np.testing.assert_allclose(corr_at_k(table.rates), [7 / 12, 1 / 2])


def test_corr_mean_is_the_mean_over_the_prefill_lengths():
    assert corr_mean(request_rates(verdicts_of(BY_HAND)).rates) == pytest.approx(13 / 24)


def test_the_summary_states_the_values_computed_by_hand():
    metrics = summarise(request_rates(verdicts_of(BY_HAND)), {20: 3})
    assert metrics["corr_at_k"]["10"]["value"] == pytest.approx(7 / 12)
    assert metrics["corr_at_k"]["20"]["value"] == pytest.approx(1 / 2)
    assert metrics["corr_mean"]["value"] == pytest.approx(13 / 24)
    assert [metrics["corr_at_k"][k]["requests"] for k in ("10", "20")] == [3, 2]


def test_requests_count_alike_however_many_paths_each_has():
    table = request_rates(verdicts_of({("few", 10): [True], ("many", 10): [False] * 99}))
    assert corr_at_k(table.rates)[0] == 0.5


def test_an_unscored_verdict_is_left_out_of_the_rate_and_reported():
    metrics = summarise(request_rates(verdicts_of(BY_HAND)))
    assert metrics["corr_at_k"]["10"]["unscored_rate"] == 0
    assert metrics["corr_at_k"]["20"]["unscored_rate"] == pytest.approx(3 / 6)
    with_unscored = {key: [*values, None, None] for key, values in BY_HAND.items()}
    again = summarise(request_rates(verdicts_of(with_unscored)))
    assert again["corr_mean"] == metrics["corr_mean"]
    assert again["corr_at_k"]["10"]["unscored_rate"] == pytest.approx(6 / 13)


def test_items_shorter_than_k_are_counted_at_their_k_and_nowhere_else():
    metrics = summarise(request_rates(verdicts_of(BY_HAND)), {20: 3})
    assert {k: entry["too_short"] for k, entry in metrics["corr_at_k"].items()} == {"10": 0, "20": 3}


def test_a_prefill_length_that_no_item_reaches_is_null_and_left_out_of_the_mean():
    metrics = summarise(request_rates(verdicts_of(BY_HAND), [10, 20, 80]), {80: 3})
    entry = metrics["corr_at_k"]["80"]
    assert (entry["value"], entry["ci95"], entry["requests"], entry["unscored_rate"]) == (None, None, 0, None)
    assert entry["too_short"] == 3
    assert metrics["corr_mean"]["value"] == pytest.approx(13 / 24)


def test_only_unscored_verdicts_give_null_and_not_zero():
    metrics = summarise(request_rates(verdicts_of({("a", 10): [None, None], ("b", 10): [None]})))
    entry = metrics["corr_at_k"]["10"]
    assert (entry["value"], entry["ci95"], entry["requests"], entry["unscored_rate"]) == (None, None, 0, 1.0)
    assert metrics["corr_mean"] == {"value": None, "ci95": None}


def test_no_verdict_at_all_gives_null_and_not_zero():
    metrics = summarise(request_rates([], [10]), {10: 2})
    assert metrics["corr_at_k"]["10"]["value"] is None
    assert metrics["corr_mean"] == {"value": None, "ci95": None}


@pytest.mark.parametrize(
    "table",
    [
        BY_HAND,
        {("a", 10): [None]},
        {("a", 10): [True], ("b", 20): [None]},
        {("a", 10): [True], ("b", 20): [False]},
        {},
    ],
)
def test_metrics_are_json_without_nan(table):
    rates = request_rates(verdicts_of(table), [10, 20, 80])
    json.dumps(summarise(rates, {80: 3}), allow_nan=False)
    if table:
        json.dumps(paired_difference(rates, rates), allow_nan=False)


def test_a_difference_without_a_known_request_is_json_without_nan():
    after = request_rates(verdicts_of({("a", 10): [True], ("b", 10): [None]}))
    before = request_rates(verdicts_of({("a", 10): [None], ("b", 10): [True]}))
    difference = paired_difference(after, before)
    json.dumps(difference, allow_nan=False)
    assert difference["corr_mean"]["value"] is None


def test_the_cluster_of_a_verdict_reaches_the_table():
    table = request_rates(verdicts_of({("a", 10): [True], ("b", 10): [False]}, {"a": "same", "b": "same"}))
    assert table.clusters == ("same", "same")


def test_the_rate_of_no_outcome_is_null():
    assert rate_with_interval([]) == {"value": None, "ci95": None, "count": 0}


VERDICT_TABLES = st.dictionaries(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([10, 20, 30])),
    st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=4),
    min_size=1,
    max_size=16,
)


@settings(max_examples=60, deadline=None)
@given(VERDICT_TABLES)
def test_rates_and_bounds_lie_between_zero_and_one_and_in_order(table):
    metrics = summarise(request_rates(verdicts_of(table)))
    for entry in (*metrics["corr_at_k"].values(), metrics["corr_mean"]):
        assert (entry["value"] is None) == (entry["ci95"] is None)
        if entry["value"] is not None:
            low, high = entry["ci95"]
            assert 0 <= entry["value"] <= 1
            assert 0 <= low <= high <= 1
    for entry in metrics["corr_at_k"].values():
        assert entry["unscored_rate"] is None or 0 <= entry["unscored_rate"] <= 1


@settings(max_examples=40, deadline=None)
@given(VERDICT_TABLES, st.randoms(use_true_random=False))
def test_the_order_of_the_verdicts_is_irrelevant(table, random_source):
    verdicts = verdicts_of(table)
    shuffled = list(verdicts)
    random_source.shuffle(shuffled)
    first, second = (summarise(request_rates(some)) for some in (verdicts, shuffled))
    assert first["corr_at_k"].keys() == second["corr_at_k"].keys()
    for one, other in (
        *((first["corr_at_k"][k], second["corr_at_k"][k]) for k in first["corr_at_k"]),
        (first["corr_mean"], second["corr_mean"]),
    ):
        assert one["value"] == pytest.approx(other["value"])
        assert one["ci95"] == pytest.approx(other["ci95"])


@settings(max_examples=40, deadline=None)
@given(VERDICT_TABLES)
def test_changing_one_verdict_to_corrected_never_lowers_a_rate(table):
    key = next(iter(table))
    raised = {**table, key: [True if value is False else value for value in table[key]]}
    before, after = (summarise(request_rates(verdicts_of(some)))["corr_mean"]["value"] for some in (table, raised))
    assert before is None or after >= before - 1e-12


def test_positions_are_averaged_over_paths_then_requests_then_lengths() -> None:
    positions = [("a", "a", 10, 4), ("a", "a", 10, 8), ("b", "b", 10, 20), ("a", "a", 40, 2)]
    summary = summarise_positions(positions)
    assert summary["by_prefill"] == {"10": 13.0, "40": 2.0} and summary["mean"] == 7.5 and summary["paths"] == 4
    assert summary["ci95"][0] <= 7.5 <= summary["ci95"][1]
    assert summarise_positions([]) == {"mean": None, "ci95": None, "by_prefill": {}, "paths": 0}
