"""Corr@k and Corr_mean with intervals: numbers in, numbers out. Knows nothing of models, judges or files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

BOOTSTRAP_SAMPLES = 2000
_LEVEL = (2.5, 97.5)


@dataclass(frozen=True)
class PathVerdict:
    """One judged path.

    Attributes:
        cluster: Name of the distinct request.
        request_id: The item.
        prefill_tokens: The prefill length k.
        corrected: Whether the path corrects itself, None if it was not scored. Numbers are averaged in the same way.
    """

    cluster: str
    request_id: str
    prefill_tokens: int
    corrected: bool | float | None


@dataclass(frozen=True)
class RequestRates:
    """Corr(x, k) of every request x and prefill length k.

    Attributes:
        request_ids: The n requests, in order of first appearance.
        clusters: The distinct request of each. Items with the same request text are resampled together.
        prefill_tokens: The K prefill lengths, ascending.
        rates: [n, K] share of scored paths that correct themselves, NaN where no path was scored.
        scored: [n, K] number of scored paths.
        paths: [n, K] number of paths, scored or not.
    """

    request_ids: tuple[str, ...]
    clusters: tuple[str, ...]
    prefill_tokens: tuple[int, ...]
    rates: np.ndarray
    scored: np.ndarray
    paths: np.ndarray


class Estimate(TypedDict):
    """A rate in [0, 1], or a difference of rates in [-1, 1], with its 95% interval. Both are None if nothing was scored."""

    value: float | None
    ci95: list[float] | None


class RateAtK(Estimate):
    """Corr@k.

    Attributes:
        requests: Number of requests with a scored path.
        unscored_rate: Share of the paths that were not scored, None if there is no path.
        too_short: Number of items whose response has fewer than k tokens.
    """

    requests: int
    unscored_rate: float | None
    too_short: int


class CorrSummary(TypedDict):
    """Corr@k, by k as a string, and Corr_mean."""

    corr_at_k: dict[str, RateAtK]
    corr_mean: Estimate


class CountedRate(Estimate):
    """A rate of `count` independent outcomes."""

    count: int


class CorrectionPositions(TypedDict):
    """Number of tokens before a correction: the mean, its 95% interval, the mean by k, and the number of paths."""

    mean: float | None
    ci95: list[float] | None
    by_prefill: dict[str, float]
    paths: int


def request_rates(verdicts: Sequence[PathVerdict], prefill_tokens: Sequence[int] | None = None) -> RequestRates:
    """Count verdicts into Corr(x, k), the share of a request's scored paths that correct themselves (Eq. 1)."""
    lengths = tuple(sorted(set(prefill_tokens or ()) | {verdict.prefill_tokens for verdict in verdicts}))
    clusters = {verdict.request_id: verdict.cluster for verdict in verdicts}
    row = {request_id: index for index, request_id in enumerate(clusters)}
    column = {length: index for index, length in enumerate(lengths)}
    corrected, scored, paths = (np.zeros((len(row), len(column))) for _ in range(3))
    for verdict in verdicts:
        place = row[verdict.request_id], column[verdict.prefill_tokens]
        paths[place] += 1
        if verdict.corrected is not None:
            scored[place] += 1
            corrected[place] += verdict.corrected
    with np.errstate(invalid="ignore"):
        rates = corrected / np.where(scored == 0, np.nan, scored)
    return RequestRates(tuple(clusters), tuple(clusters.values()), lengths, rates, scored, paths)


def corr_at_k(rates: np.ndarray) -> np.ndarray:
    """Return Corr@k, the mean of Corr(x, k) over requests that have one. [n, K] -> [K], NaN where none has."""
    known = ~np.isnan(rates)
    totals = known.sum(0)
    return np.where(totals > 0, np.nansum(rates, 0) / np.maximum(totals, 1), np.nan)


def corr_mean(rates: np.ndarray) -> float:
    """Return Corr_mean, the mean of Corr@k over the prefill lengths that have a value."""
    values = corr_at_k(rates)
    return float(np.mean(values[~np.isnan(values)])) if (~np.isnan(values)).any() else float("nan")


def bootstrap_rates(
    rates: np.ndarray, clusters: Sequence[str], seed: int = 0, samples: int = BOOTSTRAP_SAMPLES
) -> np.ndarray:
    """Resample distinct requests with replacement. The paths of a request are not independent, so they stay together.

    Args:
        rates: [n, K] rates or differences of rates, NaN where unknown.
        clusters: [n] names. Rows of one name are drawn together.
        seed: Of the resampling.
        samples: Number of resamples B.

    Returns:
        Corr@k of each resample, [B, K], NaN where a resample holds no known rate.
    """
    names, index = np.unique(np.array(clusters, dtype=str), return_inverse=True)
    random_source = np.random.default_rng(seed)
    draws = random_source.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)[:, index]
    known = ~np.isnan(rates)
    weights = draws @ known
    totals = draws @ np.where(known, rates, 0.0)
    return np.where(weights > 0, totals / np.maximum(weights, 1), np.nan)


def interval(values: np.ndarray) -> list[float] | None:
    """Return the 95% percentile interval of resampled values, or None if all are NaN."""
    values = values[~np.isnan(values)]
    return [float(bound) for bound in np.percentile(values, _LEVEL)] if len(values) else None


def summarise(table: RequestRates, too_short: dict[int, int] | None = None, seed: int = 0) -> CorrSummary:
    """Return the `corr_at_k` and `corr_mean` parts of metrics.json.

    Args:
        table: Rates of each request.
        too_short: Number of items shorter than k, by k.
        seed: Of the bootstrap.
    """
    resampled = bootstrap_rates(table.rates, table.clusters, seed) if len(table.clusters) else None
    values = corr_at_k(table.rates)
    by_length: dict[str, RateAtK] = {}
    for column, length in enumerate(table.prefill_tokens):
        paths, scored = table.paths[:, column].sum(), table.scored[:, column].sum()
        by_length[str(length)] = {
            "value": None if np.isnan(values[column]) else float(values[column]),
            "ci95": None if resampled is None else interval(resampled[:, column]),
            "requests": int((~np.isnan(table.rates[:, column])).sum()),
            "unscored_rate": float(1 - scored / paths) if paths else None,
            "too_short": (too_short or {}).get(length, 0),
        }
    mean = corr_mean(table.rates)
    return {
        "corr_at_k": by_length,
        "corr_mean": {
            "value": None if np.isnan(mean) else mean,
            "ci95": None if resampled is None else interval(mean_over_lengths(resampled)),
        },
    }


def resample_corr_mean(table: RequestRates, seed: int = 0) -> np.ndarray:
    """Return Corr_mean of each bootstrap resample, [B], NaN where a resample holds no known rate."""
    return mean_over_lengths(bootstrap_rates(table.rates, table.clusters, seed))


def summarise_positions(positions: Sequence[tuple[str, str, int, int]], seed: int = 0) -> CorrectionPositions:
    """Return how many tokens come before the correction, in paths that correct themselves.

    Numbers are averaged as rates are: over the paths of a request, then over requests, then over k.

    Args:
        positions: Distinct request, request_id, k and number of tokens of each path that corrects itself.
        seed: Of the bootstrap over distinct requests.
    """
    if not positions:
        return {"mean": None, "ci95": None, "by_prefill": {}, "paths": 0}
    table = request_rates([PathVerdict(*position) for position in positions])
    means = zip(table.prefill_tokens, corr_at_k(table.rates), strict=True)
    return {
        "mean": corr_mean(table.rates),
        "ci95": interval(resample_corr_mean(table, seed)),
        "by_prefill": {str(length): float(value) for length, value in means},
        "paths": len(positions),
    }


def requests_for_width(table: RequestRates, width: float, paths: int | None = None) -> int | None:
    """Estimate how many distinct requests a 95% interval of Corr_mean of this full width needs.

    The variance within a request falls as 1 / paths, the variance between requests does not. Both are estimated from the
    table, by a one-way analysis of variance of each request's mean over k.

    Args:
        table: A finished evaluation.
        width: Full width of the interval, such as 0.05 for plus and minus 2.5 points.
        paths: Paths per request and k. The number in the table by default.

    Returns:
        The number of requests, or None with fewer than two.
    """
    from scipy.special import ndtri

    known = ~np.isnan(table.rates)
    rows = known.any(1)
    if rows.sum() < 2:
        return None
    rates, known, scored = table.rates[rows], known[rows], table.scored[rows]
    means = np.nansum(rates, 1) / known.sum(1)
    total = means.var(ddof=1)
    here = scored[known].mean()
    # Variance of a request's mean within its paths: p (1 - p) / b at each k, over the square of the number of k's.
    with np.errstate(invalid="ignore"):
        of_paths = np.where(known, rates * (1 - rates) / np.maximum(scored - 1, 1), 0.0).sum(1) / known.sum(1) ** 2
    within = float(of_paths.mean())
    between = max(0.0, float(total) - within)
    variance = between + within * (here / paths if paths else 1.0)
    return max(2, int(np.ceil(variance * (2 * float(ndtri(0.975)) / width) ** 2)))


def rate_with_interval(flags: Sequence[bool], seed: int = 0) -> CountedRate:
    """Return the share of independent yes/no outcomes with its bootstrap interval."""
    rates = np.array(flags, dtype=float)[:, None]
    if not len(rates):
        return {"value": None, "ci95": None, "count": 0}
    resampled = bootstrap_rates(rates, [str(index) for index in range(len(rates))], seed)
    return {"value": float(rates.mean()), "ci95": interval(resampled[:, 0]), "count": len(rates)}


def mean_over_lengths(resampled: np.ndarray) -> np.ndarray:
    """Return [samples], the mean of each row of [samples, lengths] over its known lengths; NaN where none is known."""
    known = ~np.isnan(resampled)
    return np.where(known.any(1), np.nansum(resampled, 1) / np.maximum(known.sum(1), 1), np.nan)
