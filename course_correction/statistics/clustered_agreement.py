"""Agreement of verdicts with labels where rows share prompts: intervals resample prompts. Pure: numbers in, numbers out."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from course_correction.statistics.corr_at_k import BOOTSTRAP_SAMPLES, Estimate, interval
from course_correction.statistics.judge_agreement import Confusion

# Cells of a Confusion, in the order of its fields.
_CELLS = {(True, True): 0, (False, True): 1, (True, False): 2, (False, False): 3}


class ClusteredAgreement(TypedDict):
    """How verdicts agree with labels. Positive means yes.

    Attributes:
        rows: Number of rows.
        clusters: Number of distinct prompts.
        rate_by_labels: Share of yes among the labels.
        rate_by_verdicts: Share of yes among the verdicts.
        difference: `rate_by_verdicts` minus `rate_by_labels`.
        kappa: Cohen's κ.
        precision: Share of true labels among the verdicts of yes.
        recall: Share of verdicts of yes among the true labels.
    """

    rows: int
    clusters: int
    rate_by_labels: Estimate
    rate_by_verdicts: Estimate
    difference: Estimate
    kappa: Estimate
    precision: Estimate
    recall: Estimate


def clustered_agreement(
    labels: Sequence[bool], verdicts: Sequence[bool], clusters: Sequence[str], seed: int = 0
) -> ClusteredAgreement:
    """Return the agreement of verdicts with labels, with 95% bootstrap intervals over clusters.

    Args:
        labels: One per row.
        verdicts: Likewise.
        clusters: The prompt of each row.
        seed: Of the bootstrap.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    counts = np.zeros((len(names), 5), dtype=int)
    for label, verdict, cluster in zip(labels, verdicts, clusters, strict=True):
        counts[names[cluster], _CELLS[label, verdict]] += 1
    whole = Confusion(*map(int, counts.sum(0)))
    share = np.full(len(names), 1 / max(1, len(names)))
    draws = np.random.default_rng(seed).multinomial(len(names), share, size=BOOTSTRAP_SAMPLES) @ counts
    drawn = [Confusion(*map(int, row)) for row in draws]

    def estimate(measure: Callable[[Confusion], float]) -> Estimate:
        value = measure(whole)
        return {
            "value": None if np.isnan(value) else float(value),
            "ci95": interval(np.array([measure(one) for one in drawn])),
        }

    return {
        "rows": len(labels),
        "clusters": len(names),
        "rate_by_labels": estimate(_label_rate),
        "rate_by_verdicts": estimate(_verdict_rate),
        "difference": estimate(lambda one: _verdict_rate(one) - _label_rate(one)),
        "kappa": estimate(lambda one: one.kappa),
        "precision": estimate(lambda one: one.precision),
        "recall": estimate(lambda one: one.sensitivity),
    }


def _rows(one: Confusion) -> float:
    return one.true_positives + one.false_positives + one.false_negatives + one.true_negatives or float("nan")


def _label_rate(one: Confusion) -> float:
    return (one.true_positives + one.false_negatives) / _rows(one)


def _verdict_rate(one: Confusion) -> float:
    return (one.true_positives + one.false_positives) / _rows(one)
