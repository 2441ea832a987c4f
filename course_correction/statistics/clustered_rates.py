"""Rates of three-valued verdicts that come in clusters, and paired differences of such rates.

The suites beside C²-Eval report them: attack success, refusals. Intervals are bootstrapped over clusters (behaviours,
requests), because the verdicts of a cluster are not independent.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from course_correction.statistics.corr_at_k import Estimate, bootstrap_rates, interval
from course_correction.statistics.paired_differences import DifferenceWithPValue, sign_flip_p_value

Key = TypeVar("Key", bound=Hashable)


class ClusteredRate(Estimate):
    """A rate of `count` verdicts in `clusters`. `unscored_rate` is None if there is no verdict."""

    count: int
    clusters: int
    unscored_rate: float | None


class RateDifference(DifferenceWithPValue):
    """A paired difference of two rates, on `count` pairs."""

    count: int


def clustered_rate(verdicts: Sequence[bool | None], clusters: Sequence[str], seed: int = 0) -> ClusteredRate:
    """Return the share of yes among the scored verdicts.

    Args:
        verdicts: True, False, or None if unscored. Unscored verdicts are left out of the rate.
        clusters: The cluster of each verdict.
        seed: Of the bootstrap.
    """
    values = np.array([np.nan if verdict is None else float(verdict) for verdict in verdicts])[:, None]
    scored = ~np.isnan(values)
    has_rate = bool(scored.any())
    return {
        "value": float(values[scored].mean()) if has_rate else None,
        "ci95": interval(bootstrap_rates(values, clusters, seed)[:, 0]) if has_rate else None,
        "count": len(values),
        "clusters": len(set(clusters)),
        "unscored_rate": float(1 - scored.mean()) if len(values) else None,
    }


def paired_rate_difference(
    after: Mapping[Key, bool | None],
    before: Mapping[Key, bool | None],
    clusters: Mapping[Key, str],
    seed: int = 0,
) -> RateDifference | None:
    """Return the share of yes of `after` minus that of `before`.

    Args:
        after: Verdicts by key.
        before: Verdicts by the same keys.
        clusters: The cluster of each key.
        seed: Of the bootstrap and of the p-value, which flips the signs of whole clusters.

    Returns:
        The difference on the keys that both have scored, or None if there are none.
    """
    keys = [key for key in after if after[key] is not None and before.get(key) is not None]
    if not keys:
        return None
    names = [clusters[key] for key in keys]
    difference = np.array([float(after[key] or 0) - float(before[key] or 0) for key in keys])[:, None]
    resampled = bootstrap_rates(difference, names, seed)
    return {
        "value": float(difference.mean()),
        "ci95": interval(resampled[:, 0]),
        "p_value": sign_flip_p_value(difference, names, seed),
        "count": len(keys),
    }
