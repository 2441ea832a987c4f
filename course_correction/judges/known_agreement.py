"""How the offline judges agree with labels, by model family, as measured with the weights of this version.

`python -m benchmarks.judge_agreement` writes `judge_agreement.json`. It holds rates, and no text.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any, TypedDict

from course_correction.judges.encoder import WEIGHTS_FILE as ENCODER_WEIGHTS
from course_correction.judges.pattern import WEIGHTS_FILE as PATTERN_WEIGHTS
from course_correction.statistics.corr_at_k import Estimate
from course_correction.statistics.judge_agreement import summarise_agreement
from course_correction.synthesis.sources import DATA_FOLDER

AGREEMENT_FILE = DATA_FOLDER / "judge_agreement.json"
# The encoder judge adds the log-odds of the word patterns, so both files decide its verdicts.
WEIGHTS = {"encoder": (ENCODER_WEIGHTS, PATTERN_WEIGHTS), "pattern": (PATTERN_WEIGHTS,)}


class FamilyAgreement(TypedDict):
    """A judge's agreement with labels on the texts of one model family.

    Attributes:
        precision: With its 95% interval, like the next two.
        sensitivity: Also called recall.
        kappa: Cohen's kappa.
        rows: Number of labelled texts.
        counts: The fields of `Confusion`.
        source: Where the texts come from.
    """

    precision: Estimate
    sensitivity: Estimate
    kappa: Estimate
    rows: int
    counts: dict[str, int]
    source: str


def summarise_family(labels: Sequence[bool], verdicts: Sequence[bool | None], source: str, seed: int = 0) -> FamilyAgreement:
    """Return the agreement of verdicts (None: unscored) with labels."""
    whole = summarise_agreement(labels, verdicts, [""] * len(labels), seed)
    return {
        "precision": whole["precision"],
        "sensitivity": whole["sensitivity"],
        "kappa": whole["kappa"],
        "rows": whole["rows"],
        "counts": whole["counts"],
        "source": source,
    }


def weights_digest(judge_name: str) -> str:
    """Return a digest of the weights that decide the verdicts of an offline judge."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in WEIGHTS[judge_name])).hexdigest()[:16]


@cache
def _known() -> dict[str, Any]:
    return json.loads(AGREEMENT_FILE.read_text())


def known_calibration(judge_name: str) -> dict[str, Any] | None:
    """Return the calibration of an offline judge on the labelled set; None for another judge."""
    entry = _known().get(judge_name)
    return entry["corrections"] if entry else None


def known_refusal_agreement(judge_name: str, family: str | None) -> FamilyAgreement | None:
    """Return how a refusal judge agrees with labels on answers of a family; None if it was not measured there."""
    return _known()[judge_name]["refusals"].get(family)
