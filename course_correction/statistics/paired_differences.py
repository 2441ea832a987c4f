"""Paired differences of Corr@k between two runs, and their p-values. Pure: numbers in, numbers out."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from course_correction.statistics.corr_at_k import (
    BOOTSTRAP_SAMPLES,
    Estimate,
    RequestRates,
    bootstrap_rates,
    corr_at_k,
    corr_mean,
    interval,
    mean_over_lengths,
)


class DifferenceWithPValue(Estimate):
    """A difference with its p-value."""

    p_value: float | None


class CorrDifference(TypedDict):
    """Differences of Corr@k, by k as a string, and of Corr_mean, on the `requests` that both evaluations have."""

    corr_at_k: dict[str, Estimate]
    corr_mean: DifferenceWithPValue
    requests: int


def paired_difference(after: RequestRates, before: RequestRates, seed: int = 0) -> CorrDifference:
    """Return Corr@k and Corr_mean of `after` minus those of `before`, on the requests that both have.

    Raises:
        ValueError: If the two share no request or no prefill length.
    """
    shared = [name for name in after.request_ids if name in set(before.request_ids)]
    lengths = [length for length in after.prefill_tokens if length in before.prefill_tokens]
    if not shared or not lengths:
        raise ValueError("The two evaluations share no request and prefill length, so they cannot be compared.")

    def pick(table: RequestRates) -> np.ndarray:
        rows = [table.request_ids.index(name) for name in shared]
        return table.rates[np.ix_(rows, [table.prefill_tokens.index(length) for length in lengths])]

    difference = pick(after) - pick(before)
    clusters = [after.clusters[after.request_ids.index(name)] for name in shared]
    resampled = bootstrap_rates(difference, clusters, seed)
    values, mean = corr_at_k(difference), corr_mean(difference)
    return {
        "corr_at_k": {
            str(length): {
                "value": None if np.isnan(values[column]) else float(values[column]),
                "ci95": interval(resampled[:, column]),
            }
            for column, length in enumerate(lengths)
        },
        "corr_mean": {
            "value": None if np.isnan(mean) else mean,
            "ci95": interval(mean_over_lengths(resampled)),
            "p_value": sign_flip_p_value(difference, clusters, seed),
        },
        "requests": len(shared),
    }


def sign_flip_p_value(
    differences: np.ndarray, clusters: Sequence[str], seed: int = 0, samples: int = 10 * BOOTSTRAP_SAMPLES
) -> float | None:
    """Return the two-sided p-value of a paired difference in Corr_mean, by flipping the signs of whole requests.

    If the two models are equal, the differences of each distinct request are as likely to have the other sign. The
    p-value is the share of sign patterns with a difference at least as large. With few requests all patterns are counted.
    Otherwise `samples` of them are drawn, and the observed one is among them.

    Args:
        differences: [n, K], NaN where unknown.
        clusters: [n] names. Rows of one name are flipped together.
        seed: Of the drawn patterns.
        samples: Number of patterns.

    Returns:
        The p-value, or None if no difference is known.
    """
    names, index = np.unique(np.array(clusters, dtype=str), return_inverse=True)
    known = ~np.isnan(differences)
    weights = known / np.maximum(known.sum(0), 1) / max(1, known.any(0).sum())
    parts = np.bincount(index, np.where(known, differences * weights, 0.0).sum(1), len(names))
    if not known.any():
        return None
    if 2 ** len(names) <= samples:
        signs = 1 - 2 * (np.arange(2 ** len(names))[:, None] >> np.arange(len(names)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], size=(samples - 1, len(names)))
        signs = np.vstack([np.ones(len(names)), signs])
    # Sums that differ by rounding only are as large as the observed one.
    return float(np.mean(np.abs(signs @ parts) >= abs(parts.sum()) - 1e-12))
