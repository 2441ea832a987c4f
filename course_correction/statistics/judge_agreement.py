"""How well a judge agrees with labels, and how its errors change a rate. Knows nothing of texts or files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

import numpy as np

from course_correction.statistics.corr_at_k import BOOTSTRAP_SAMPLES, Estimate, interval


@dataclass(frozen=True)
class Confusion:
    """Counts of verdicts against labels. `unscored` counts the rows without a verdict, which are in no other count."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    unscored: int = 0

    @property
    def sensitivity(self) -> float:
        """Share of the corrected rows that are judged corrected (recall)."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float:
        """Share of the uncorrected rows that are judged uncorrected."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def precision(self) -> float:
        """Share of the rows judged corrected that are corrected."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and sensitivity."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance."""
        yes_yes, yes_no, no_yes, no_no = self.true_positives, self.false_positives, self.false_negatives, self.true_negatives
        count = yes_yes + yes_no + no_yes + no_no
        if not count:
            return float("nan")
        observed = (yes_yes + no_no) / count
        chance = ((yes_yes + yes_no) * (yes_yes + no_yes) + (no_yes + no_no) * (yes_no + no_no)) / count**2
        return _ratio(observed - chance, 1 - chance)


class KindErrors(TypedDict):
    """A judge's errors on one kind of row.

    Attributes:
        corrected: The label of this kind.
        rows: Number of rows.
        error_rate: Share of the scored rows whose verdict is wrong, None if none is scored.
        ci95: Its Wilson interval.
    """

    corrected: bool
    rows: int
    error_rate: float | None
    ci95: list[float] | None


class Agreement(TypedDict):
    """A judge's agreement with labels.

    Attributes:
        precision: As in `Confusion`, like the other measures.
        sensitivity: See `precision`.
        specificity: See `precision`.
        f1: See `precision`.
        kappa: See `precision`.
        rows: Number of rows.
        counts: The fields of `Confusion`.
        unscored_rate: Share of the rows without a verdict.
        by_kind: Errors on each kind of row.
    """

    precision: Estimate
    sensitivity: Estimate
    specificity: Estimate
    f1: Estimate
    kappa: Estimate
    rows: int
    counts: dict[str, int]
    unscored_rate: float
    by_kind: dict[str, KindErrors]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def count_agreement(labels: Sequence[bool], verdicts: Sequence[bool | None]) -> Confusion:
    """Count verdicts (None: unscored) against labels, row by row."""
    pairs = [(label, verdict) for label, verdict in zip(labels, verdicts, strict=True) if verdict is not None]
    return Confusion(
        true_positives=sum(bool(label and verdict) for label, verdict in pairs),
        false_positives=sum(bool(not label and verdict) for label, verdict in pairs),
        false_negatives=sum(label and not verdict for label, verdict in pairs),
        true_negatives=sum(not label and not verdict for label, verdict in pairs),
        unscored=len(labels) - len(pairs),
    )


MEASURES = ("precision", "sensitivity", "specificity", "f1", "kappa")


def summarise_agreement(
    labels: Sequence[bool], verdicts: Sequence[bool | None], kinds: Sequence[str], seed: int = 0
) -> Agreement:
    """Return a judge's measures with 95% bootstrap intervals over rows, and its error rate on each kind of row.

    Args:
        labels: Whether each row is corrected.
        verdicts: The judge's verdict on each row, None if unscored.
        kinds: The kind of each row.
        seed: Of the bootstrap.
    """
    whole = count_agreement(labels, verdicts)
    random_source = np.random.default_rng(seed)
    resampled: dict[str, list[float]] = {name: [] for name in MEASURES}
    # Rows with the same label and verdict count the same, so counts are drawn instead of rows.
    cells = [whole.true_positives, whole.false_positives, whole.false_negatives, whole.true_negatives, whole.unscored]
    for draw in random_source.multinomial(len(labels), np.array(cells) / max(1, len(labels)), size=BOOTSTRAP_SAMPLES):
        drawn = Confusion(*map(int, draw))
        for name in MEASURES:
            resampled[name].append(getattr(drawn, name))
    by_kind: dict[str, KindErrors] = {}
    for kind in dict.fromkeys(kinds):
        rows = [index for index, other in enumerate(kinds) if other == kind]
        scored = [index for index in rows if verdicts[index] is not None]
        wrong = sum(verdicts[index] != labels[index] for index in scored)
        by_kind[kind] = {
            "corrected": labels[rows[0]],
            "rows": len(rows),
            "error_rate": _none_if_nan(_ratio(wrong, len(scored))),
            "ci95": wilson_interval(wrong, len(scored)),
        }

    def measure(name: str) -> Estimate:
        return {"value": _none_if_nan(getattr(whole, name)), "ci95": interval(np.array(resampled[name]))}

    return {
        "precision": measure("precision"),
        "sensitivity": measure("sensitivity"),
        "specificity": measure("specificity"),
        "f1": measure("f1"),
        "kappa": measure("kappa"),
        "rows": len(labels),
        "counts": asdict(whole),
        "unscored_rate": _ratio(whole.unscored, len(labels)),
        "by_kind": by_kind,
    }


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def wilson_interval(successes: int, count: int) -> list[float] | None:
    """Return Wilson's 95% interval of a share of `count` independent outcomes, or None without outcomes."""
    from scipy.stats import binomtest

    if not count:
        return None
    bounds = binomtest(successes, count).proportion_ci(method="wilson")
    return [float(bounds.low), float(bounds.high)]


def rogan_gladen(rate: float, sensitivity: float, specificity: float) -> float:
    """Estimate the true rate behind a judge's: (rate + specificity - 1) / (sensitivity + specificity - 1), in [0, 1].

    Source: Rogan and Gladen, American Journal of Epidemiology 107(1), 1978.

    Raises:
        ValueError: If the judge is no better than chance (sensitivity + specificity <= 1).
    """
    gain = sensitivity + specificity - 1
    if not gain > 0:
        raise ValueError(f"The judge is no better than chance: sensitivity {sensitivity}, specificity {specificity}.")
    return float(np.clip((rate + specificity - 1) / gain, 0.0, 1.0))


def corrected_rate(rate: float, resampled_rates: np.ndarray, judge: Confusion, seed: int = 0) -> Estimate:
    """Adjust a judged rate for the judge's errors, with an interval that covers both uncertainties.

    Args:
        rate: The judged rate.
        resampled_rates: Its bootstrap resamples, [B].
        judge: The judge's counts on labelled rows.
        seed: Of the draws of the judge's error rates.

    Returns:
        The adjusted rate, with None where the judge is no better than chance or was not measured.
    """
    try:
        value = rogan_gladen(rate, judge.sensitivity, judge.specificity)
    except ValueError:
        return {"value": None, "ci95": None}
    random_source = np.random.default_rng(seed)
    count = len(resampled_rates)
    positives, negatives = judge.true_positives + judge.false_negatives, judge.true_negatives + judge.false_positives
    # Error rates are drawn from Jeffreys' posterior: counts alone give no width where a judge made no error.
    sensitivity = random_source.beta(judge.true_positives + 0.5, positives - judge.true_positives + 0.5, count)
    specificity = random_source.beta(judge.true_negatives + 0.5, negatives - judge.true_negatives + 0.5, count)
    gain = sensitivity + specificity - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(gain > 0, np.clip((resampled_rates + specificity - 1) / gain, 0.0, 1.0), np.nan)
    return {"value": value, "ci95": interval(values)}


def agreement_matrix(verdicts: dict[str, Sequence[bool | None]]) -> dict[str, dict[str, float | None]]:
    """Return Cohen's kappa of every pair of judges on the rows that both scored."""
    matrix: dict[str, dict[str, float | None]] = {}
    for one, ones in verdicts.items():
        matrix[one] = {}
        for other, others in verdicts.items():
            both = [(a, b) for a, b in zip(ones, others, strict=True) if a is not None and b is not None]
            kappa = count_agreement([a for a, _ in both], [b for _, b in both]).kappa
            matrix[one][other] = _none_if_nan(kappa)
    return matrix


def majority(votes: Sequence[bool | None]) -> bool | None:
    """Return the verdict of more than half of the judges that have one, or None on a tie or without verdicts."""
    known = [vote for vote in votes if vote is not None]
    yes = sum(known)
    return None if yes * 2 == len(known) else yes * 2 > len(known)


def fit_threshold(labels: Sequence[bool], scores: Sequence[float | None]) -> float:
    """Return the threshold on scores with the highest Cohen's kappa, halfway to the next lower score.

    Raises:
        ValueError: If no row has a score.
    """
    known = sorted({score for score in scores if score is not None}, reverse=True)
    if not known:
        raise ValueError("No row has a score, so no threshold can be fitted.")

    # Not F1: where most rows are corrected, a judge that always says yes may have the highest.
    def kappa(threshold: float) -> float:
        value = count_agreement(labels, [None if score is None else score >= threshold for score in scores]).kappa
        return -1.0 if np.isnan(value) else value

    best = max(known, key=kappa)
    lower = [score for score in known if score < best]
    return (best + lower[0]) / 2 if lower else best
