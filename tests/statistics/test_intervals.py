"""Intervals of the metrics, paired differences and how many requests are enough, against scipy and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.statistics.corr_at_k import (
    PathVerdict,
    RequestRates,
    bootstrap_rates,
    interval,
    rate_with_interval,
    request_rates,
    requests_for_width,
    summarise,
)
from course_correction.statistics.paired_differences import paired_difference, sign_flip_p_value
from tests.support.evaluation import BY_HAND, verdicts_of

NORMAL_975 = 1.959964


def test_the_interval_of_independent_requests_is_that_of_the_normal_approximation():
    random_source = np.random.default_rng(1)
    rates = random_source.integers(0, 5, 300)[:, None] / 4
    low, high = interval(bootstrap_rates(rates, [str(row) for row in range(300)], samples=8000)[:, 0])
    error = rates.std() / math.sqrt(300)  # The bootstrap's variance divides by n.
    assert low == pytest.approx(rates.mean() - NORMAL_975 * error, abs=0.12 * error)
    assert high == pytest.approx(rates.mean() + NORMAL_975 * error, abs=0.12 * error)


def test_the_interval_of_yes_and_no_outcomes_is_that_of_the_binomial():
    from scipy import stats

    flags = [True] * 30 + [False] * 70
    measured = rate_with_interval(flags)
    exact = np.array(stats.binom.ppf([0.025, 0.975], 100, 0.3)) / 100
    assert measured["value"] == 0.3
    assert measured["count"] == 100
    np.testing.assert_allclose(measured["ci95"], exact, atol=0.0101)


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    from scipy import stats

    rates = np.random.default_rng(2).beta(2, 3, size=120)
    ours = interval(bootstrap_rates(rates[:, None], [str(row) for row in range(120)], samples=8000)[:, 0])
    reference = stats.bootstrap(
        (rates,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    np.testing.assert_allclose(ours, [reference.low, reference.high], atol=0.12 * rates.std() / math.sqrt(120))


def test_items_of_one_distinct_request_are_resampled_together():
    """m copies of each request add nothing: the interval is that of the distinct ones, not sqrt(m) narrower."""
    distinct = np.random.default_rng(4).random((60, 1))
    names = [str(row) for row in range(60)]
    together = bootstrap_rates(np.repeat(distinct, 4, axis=0), np.repeat(names, 4).tolist(), samples=4000)
    alone = bootstrap_rates(distinct, names, samples=4000)
    np.testing.assert_allclose(together, alone)
    as_if_independent = bootstrap_rates(np.repeat(distinct, 4, axis=0), list(map(str, range(240))), samples=4000)
    assert as_if_independent.std() == pytest.approx(alone.std() / 2, rel=0.1)


def test_a_single_distinct_request_has_an_interval_of_no_width():
    table = request_rates(verdicts_of({("a", 10): [True], ("b", 10): [False]}, {"a": "same", "b": "same"}))
    assert summarise(table)["corr_at_k"]["10"]["ci95"] == [0.5, 0.5]


def test_a_resample_without_a_known_rate_is_nan_and_left_out_of_the_interval():
    rates = np.array([[0.25], [np.nan], [np.nan]])
    resampled = bootstrap_rates(rates, ["a", "b", "c"])
    assert np.isnan(resampled).mean() == pytest.approx((2 / 3) ** 3, abs=0.04)
    assert interval(resampled[:, 0]) == [0.25, 0.25]


def test_the_interval_of_corr_mean_resamples_requests_across_all_prefill_lengths():
    """Rates equal over k make Corr_mean vary as much as one Corr@k; independent columns would narrow it by sqrt(K)."""
    rates = np.tile(np.random.default_rng(5).random((80, 1)), (1, 4))
    verdicts = [
        PathVerdict(str(row), str(row), length, path < round(rates[row, 0] * 20))
        for row in range(80)
        for length in (10, 20, 30, 40)
        for path in range(20)
    ]
    metrics = summarise(request_rates(verdicts))
    assert metrics["corr_mean"]["ci95"] == pytest.approx(metrics["corr_at_k"]["10"]["ci95"])


def test_the_paired_difference_of_equal_runs_is_zero_with_no_width():
    table = request_rates(verdicts_of(BY_HAND))
    difference = paired_difference(table, table)
    assert difference["requests"] == 3
    assert difference["corr_mean"].pop("p_value") == 1
    for entry in (*difference["corr_at_k"].values(), difference["corr_mean"]):
        assert entry == {"value": 0.0, "ci95": [0.0, 0.0]}


def test_the_paired_difference_is_after_minus_before_on_what_both_have():
    after = request_rates(verdicts_of({("a", 10): [True], ("b", 10): [True], ("x", 10): [True], ("a", 30): [True]}))
    before = request_rates(verdicts_of({("b", 10): [True], ("a", 10): [False], ("y", 10): [False], ("a", 20): [True]}))
    difference = paired_difference(after, before)
    assert difference["requests"] == 2
    assert list(difference["corr_at_k"]) == ["10"]
    assert difference["corr_at_k"]["10"]["value"] == difference["corr_mean"]["value"] == 0.5
    assert paired_difference(before, after)["corr_mean"]["value"] == -0.5


def test_pairing_by_request_makes_the_interval_of_a_constant_shift_vanish():
    before = {(str(row), 10): [True] * row + [False] * (10 - row) for row in range(9)}
    after = {(str(row), 10): [True] * (row + 1) + [False] * (9 - row) for row in range(9)}
    difference = paired_difference(request_rates(verdicts_of(after)), request_rates(verdicts_of(before)))
    assert difference["corr_mean"]["ci95"] == pytest.approx([0.1, 0.1])


def test_two_evaluations_that_share_nothing_cannot_be_compared():
    first = request_rates(verdicts_of({("a", 10): [True]}))
    with pytest.raises(ValueError, match="share no request"):
        paired_difference(first, request_rates(verdicts_of({("b", 10): [True]})))
    with pytest.raises(ValueError, match="prefill length"):
        paired_difference(first, request_rates(verdicts_of({("a", 20): [True]})))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    table = request_rates(verdicts_of({(str(row), 10): [row % 3 == 0, row % 2 == 0] for row in range(40)}))
    assert summarise(table, seed=1) == summarise(table, seed=1)
    assert (
        bootstrap_rates(table.rates, table.clusters, 1).tolist() != bootstrap_rates(table.rates, table.clusters, 2).tolist()
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=20, max_size=40))
def test_the_interval_of_twenty_requests_and_more_contains_the_value(paths):
    metrics = summarise(request_rates(verdicts_of({(str(row), 10): values for row, values in enumerate(paths)})))
    entry = metrics["corr_at_k"]["10"]
    assert entry["ci95"][0] - 1e-9 <= entry["value"] <= entry["ci95"][1] + 1e-9


# Tests of differences, and how many requests are enough


def _table(rates: np.ndarray, paths: int = 4) -> RequestRates:
    names = tuple(f"r{row}" for row in range(len(rates)))
    full = np.full(rates.shape, float(paths))
    return RequestRates(names, names, tuple(range(10, 10 + rates.shape[1])), rates, full, full)


def test_the_p_value_counts_sign_patterns_as_an_exact_test_does() -> None:
    differences = np.array([[0.5, 0.25], [0.0, 0.5], [-0.25, 0.0], [1.0, 0.5]])
    means = differences.mean(1)
    exact = scipy.stats.permutation_test(
        (means,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples", n_resamples=10_000
    )
    assert sign_flip_p_value(differences, list("abcd")) == pytest.approx(exact.pvalue)
    # Rows of one request are flipped together: two requests have four patterns only.
    assert sign_flip_p_value(differences, list("aabb")) == 0.5


def test_p_values_of_equal_models_are_uniform_and_those_of_unequal_ones_small() -> None:
    rng = np.random.default_rng(0)
    values = [sign_flip_p_value(rng.normal(0, 0.3, (30, 4)), [str(n) for n in range(30)], samples=400) for _ in range(200)]
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.001
    assert sign_flip_p_value(rng.normal(0.5, 0.3, (30, 4)), [str(n) for n in range(30)]) < 0.001
    assert sign_flip_p_value(np.zeros((5, 2)), list("abcde")) == 1
    assert sign_flip_p_value(np.full((3, 2), np.nan), list("abc")) is None


def test_the_requests_asked_for_give_about_the_width_that_was_wanted() -> None:
    rng = np.random.default_rng(1)

    def evaluate(requests: int, paths: int) -> RequestRates:
        true = rng.beta(1.5, 1.5, (requests, 1)).repeat(8, 1)
        return _table(rng.binomial(paths, true) / paths, paths)

    for paths in (4, 16):
        needed = requests_for_width(evaluate(400, 4), 0.1, paths)
        low, high = summarise(evaluate(needed, paths))["corr_mean"]["ci95"]
        assert high - low == pytest.approx(0.1, rel=0.2)
    assert requests_for_width(_table(np.ones((1, 2))), 0.1) is None


def test_the_number_of_requests_for_a_width_is_that_of_a_mean_of_independent_requests() -> None:
    from scipy.stats import norm
    from statsmodels.stats.weightstats import DescrStatsW

    random_source = np.random.default_rng(3)
    truth = random_source.beta(2, 2, 400)
    paths = 200
    verdicts = [
        PathVerdict(f"r{number}", f"r{number}", 10, bool(hit))
        for number, rate in enumerate(truth)
        for hit in random_source.random(paths) < rate
    ]
    needed = requests_for_width(request_rates(verdicts), 0.05)
    # With so many paths per request the spread is that between requests, and the width that of statsmodels' mean.
    deviation = DescrStatsW(truth).std
    assert needed == pytest.approx((2 * norm.ppf(0.975) * deviation / 0.05) ** 2, rel=0.15)
