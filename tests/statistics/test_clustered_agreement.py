"""Laws of agreement where rows share prompts."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, precision_score, recall_score

from course_correction.statistics.clustered_agreement import clustered_agreement


def test_the_measures_equal_those_of_scikit_learn():
    source = np.random.default_rng(0)
    labels, verdicts = (source.random(200) < 0.4).tolist(), (source.random(200) < 0.5).tolist()
    agreement = clustered_agreement(labels, verdicts, [str(row) for row in range(200)])
    assert agreement["kappa"]["value"] == pytest.approx(cohen_kappa_score(labels, verdicts), abs=1e-12)
    assert agreement["precision"]["value"] == pytest.approx(precision_score(labels, verdicts), abs=1e-12)
    assert agreement["recall"]["value"] == pytest.approx(recall_score(labels, verdicts), abs=1e-12)
    assert agreement["rate_by_labels"]["value"] == pytest.approx(np.mean(labels))
    assert agreement["rate_by_verdicts"]["value"] == pytest.approx(np.mean(verdicts))
    assert agreement["difference"]["value"] == pytest.approx(np.mean(verdicts) - np.mean(labels))


def test_rows_of_one_prompt_are_resampled_together():
    labels, verdicts = [True, False] * 30, [True, True] * 30
    alone = clustered_agreement(labels, verdicts, [str(row) for row in range(60)])
    together = clustered_agreement(labels, verdicts, [str(row // 20) for row in range(60)])
    assert (alone["clusters"], together["clusters"]) == (60, 3)
    low, high = alone["precision"]["ci95"]
    assert low < 0.5 < high
    # Every prompt holds as many right verdicts as wrong ones, so no draw of prompts changes the rate.
    assert together["precision"]["ci95"] == [0.5, 0.5]


def test_perfect_agreement_has_kappa_one_and_no_difference():
    agreement = clustered_agreement([True, False, True], [True, False, True], ["a", "b", "c"])
    assert agreement["kappa"]["value"] == 1 and agreement["difference"] == {"value": 0, "ci95": [0, 0]}


def test_where_nobody_says_yes_precision_and_recall_are_unknown():
    agreement = clustered_agreement([False, False], [False, False], ["a", "b"])
    assert agreement["precision"] == {"value": None, "ci95": None} and agreement["recall"]["value"] is None
