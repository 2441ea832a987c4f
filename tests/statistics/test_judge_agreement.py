"""Laws of agreement with labels, against closed forms and libraries."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.statistics.judge_agreement import (
    Confusion,
    agreement_matrix,
    corrected_rate,
    count_agreement,
    fit_threshold,
    majority,
    rogan_gladen,
    summarise_agreement,
    wilson_interval,
)

COUNTS = st.integers(0, 40)


@settings(max_examples=100, deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_counts_are_taken_row_by_row_and_measures_follow_their_definitions(tp: int, fp: int, fn: int, tn: int) -> None:
    labels = [True] * tp + [False] * fp + [True] * fn + [False] * tn
    verdicts = [True] * (tp + fp) + [False] * (fn + tn)
    confusion = count_agreement([*labels, True], [*verdicts, None])
    assert confusion == Confusion(tp, fp, fn, tn, 1)
    for value, part, whole in (
        (confusion.precision, tp, tp + fp), (confusion.sensitivity, tp, tp + fn), (confusion.specificity, tn, tn + fp),
    ):  # fmt: skip
        assert value == part / whole if whole else math.isnan(value)
    if tp:
        assert confusion.f1 == pytest.approx(scipy.stats.hmean([confusion.precision, confusion.sensitivity]))


def test_kappa_is_one_zero_or_below_as_agreement_is_full_chance_or_less() -> None:
    assert Confusion(10, 0, 0, 10).kappa == 1
    assert Confusion(5, 5, 5, 5).kappa == 0
    assert Confusion(0, 10, 10, 0).kappa == -1
    # A worked example: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: observed .7, by chance .5.
    assert Confusion(20, 5, 10, 15).kappa == pytest.approx(0.4)


def test_without_outcomes_there_is_no_interval() -> None:
    assert wilson_interval(0, 0) is None


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.floats(0.55, 1), st.floats(0.55, 1))
def test_rogan_and_gladens_estimate_undoes_what_the_judges_errors_do(
    true: float, sensitivity: float, specificity: float
) -> None:
    seen = true * sensitivity + (1 - true) * (1 - specificity)
    assert rogan_gladen(seen, sensitivity, specificity) == pytest.approx(true, abs=1e-9)


def test_a_judge_no_better_than_chance_corrects_nothing() -> None:
    with pytest.raises(ValueError, match="no better than chance"):
        rogan_gladen(0.5, 0.4, 0.6)
    assert corrected_rate(0.5, np.full(10, 0.5), Confusion(4, 4, 6, 6)) == {"value": None, "ci95": None}
    assert corrected_rate(0.5, np.full(10, 0.5), Confusion(0, 0, 0, 0)) == {"value": None, "ci95": None}


def test_the_interval_of_a_corrected_rate_covers_the_truth_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    true, sensitivity, specificity, covered = 0.4, 0.9, 0.93, 0
    for _ in range(300):
        positives, negatives = rng.binomial(110, sensitivity), rng.binomial(115, specificity)
        judge = Confusion(int(positives), int(115 - negatives), int(110 - positives), int(negatives))
        seen = rng.binomial(400, true * sensitivity + (1 - true) * (1 - specificity)) / 400
        resampled = rng.binomial(400, seen, 400) / 400
        low, high = corrected_rate(seen, resampled, judge, seed=1)["ci95"]
        covered += low <= true <= high
    assert 0.91 <= covered / 300 <= 0.99


def test_error_rates_are_by_kind_and_leave_out_unscored_rows() -> None:
    labels = [True, True, False, False, False]
    agreement = summarise_agreement(labels, [True, False, False, True, None], ["a", "a", "b", "b", "b"])
    assert agreement["by_kind"]["a"] == {"corrected": True, "rows": 2, "error_rate": 0.5, "ci95": wilson_interval(1, 2)}
    assert agreement["by_kind"]["b"]["rows"] == 3 and agreement["by_kind"]["b"]["error_rate"] == 0.5
    assert agreement["unscored_rate"] == 0.2 and agreement["rows"] == 5
    assert agreement["precision"]["value"] == 0.5
    low, high = agreement["specificity"]["ci95"]
    assert 0 <= low <= 0.5 <= high <= 1


def test_judges_are_compared_on_the_rows_that_both_scored() -> None:
    matrix = agreement_matrix(
        {"a": [True, False, None, True], "b": [True, False, True, None], "c": [False, True, True, True]}
    )
    assert matrix["a"]["a"] == 1 and matrix["a"]["b"] == matrix["b"]["a"] == 1
    assert matrix["a"]["c"] < 0


@pytest.mark.parametrize(
    ("votes", "wanted"),
    [
        ([True], True),
        ([True, False], None),
        ([True, None, True, False], True),
        ([None], None),
        ([], None),
        ([False, False, True], False),
    ],
)
def test_a_majority_is_of_the_judges_that_have_a_verdict(votes: list[bool | None], wanted: bool | None) -> None:
    assert majority(votes) is wanted


# Against statsmodels and scikit-learn


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 60))
def test_wilsons_interval_is_that_of_statsmodels(successes: int, more: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    count = successes + more
    expected = proportion_confint(successes, count, method="wilson")
    assert wilson_interval(successes, count) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(*[st.integers(1, 40)] * 4)
def test_the_measures_are_those_of_scikit_learn(tp: int, fp: int, fn: int, tn: int) -> None:
    from sklearn import metrics

    confusion = Confusion(tp, fp, fn, tn)
    cells = {"y1": [1, 0, 1, 0], "y2": [1, 1, 0, 0], "sample_weight": [tp, fp, fn, tn]}
    assert confusion.kappa == pytest.approx(metrics.cohen_kappa_score(**cells), abs=1e-12)
    cells = {"y_true": cells["y1"], "y_pred": cells["y2"], "sample_weight": cells["sample_weight"]}
    assert confusion.precision == pytest.approx(metrics.precision_score(**cells), abs=1e-12)
    assert confusion.sensitivity == pytest.approx(metrics.recall_score(**cells), abs=1e-12)
    assert confusion.specificity == pytest.approx(metrics.recall_score(**cells, pos_label=0), abs=1e-12)
    assert confusion.f1 == pytest.approx(metrics.f1_score(**cells), abs=1e-12)


def test_a_threshold_is_fitted_beyond_chance_and_not_by_always_answering_yes() -> None:
    labels = [True] * 8 + [False] * 4
    scores = [0.9, 0.8, 0.7, 0.6, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.1]
    # Here, yes to everything has the highest F1 but no agreement beyond chance.
    assert fit_threshold([*labels, True], [*scores, None]) == pytest.approx(0.45)
    with pytest.raises(ValueError, match="No row has a score"):
        fit_threshold([True], [None])
