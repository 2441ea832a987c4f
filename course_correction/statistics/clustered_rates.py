"""Shares of yes among three-valued verdicts that come in clusters, and paired differences of them. Pure.

What the suites beside C²-Eval report: attack success, refusals. Intervals are bootstrapped over clusters (behaviours,
requests), whose verdicts are not independent.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from course_correction.statistics.corr_at_k import bootstrap_rates, interval, sign_flip_p_value


def clustered_rate(verdicts: Sequence[bool | None], clusters: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Return the share of yes among the scored verdicts.

    Args:
        verdicts: True, False or None for unscored, which counts for no rate.
        clusters: The cluster of each.
        seed: Of the bootstrap.

    Returns:
        `value` and `ci95` in [0, 1] (None if nothing is scored), `count` of verdicts, `clusters`, `unscored_rate`.
    """
    values = np.array([np.nan if verdict is None else float(verdict) for verdict in verdicts])[:, None]
    scored = ~np.isnan(values)
    found: dict[str, Any] = {"value": None, "ci95": None}
    if scored.any():
        resampled = bootstrap_rates(values, clusters, seed)
        found = {"value": float(values[scored].mean()), "ci95": interval(resampled[:, 0])}
    unscored = float(1 - scored.mean()) if len(values) else None
    return found | {"count": len(values), "clusters": len(set(clusters)), "unscored_rate": unscored}


def paired_rate_difference(
    after: Mapping[Hashable, bool | None],
    before: Mapping[Hashable, bool | None],
    clusters: Mapping[Hashable, str],
    seed: int = 0,
) -> dict[str, Any] | None:
    """Return the share of yes of `after` minus that of `before`, on what both have scored; None if that is nothing.

    Args:
        after: Verdicts by what they are of.
        before: Likewise.
        clusters: The cluster of each.
        seed: Of bootstrap and p-value.

    Returns:
        `value`, `ci95` and `p_value` (sign flips of whole clusters), `count`.
    """
    keys = [key for key in after if after[key] is not None and before.get(key) is not None]
    if not keys:
        return None
    names = [clusters[key] for key in keys]
    difference = np.array([float(after[key]) - float(before[key]) for key in keys])[:, None]
    resampled = bootstrap_rates(difference, names, seed)
    return {
        "value": float(difference.mean()),
        "ci95": interval(resampled[:, 0]),
        "p_value": sign_flip_p_value(difference, names, seed),
        "count": len(keys),
    }
