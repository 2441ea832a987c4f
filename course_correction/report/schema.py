"""The shapes of metrics.json and of the rows that a report reads.

Units: rates and probabilities lie in [0, 1], differences of rates in [-1, 1], KL divergences are in nats per token.
`ci95` is a 95% interval `[low, high]` in the unit of its value. A value is None where nothing could be measured, never 0.
Keys that are numbers of prefilled tokens (k) are strings, as JSON requires. A part that was not measured has no key.

`tests/report/test_schema.py` compares what the JavaScript of report.html reads with these shapes and those of page_schema.
"""

from typing import NotRequired, TypedDict

from course_correction.statistics.corr_at_k import CorrectionPositions, Estimate, RateAtK
from course_correction.statistics.paired_differences import CorrDifference


class Rate(Estimate):
    """A share of yes among scored verdicts."""

    count: int  # Verdicts, scored or not.
    clusters: NotRequired[int]  # Distinct requests or behaviours; the bootstrap resamples these.
    unscored_rate: NotRequired[float | None]


class PairedDifference(Estimate):
    """This run minus its baseline, on what both have scored."""

    p_value: NotRequired[float | None]  # Two-sided.
    count: NotRequired[int]  # Pairs.


class BenignKL(TypedDict):
    """KL divergence to the base model on benign answers."""

    kl: float  # KL(base || model), mean over tokens.
    reverse_kl: NotRequired[float]  # KL(model || base).
    tokens: NotRequired[int]
    by_position: list[float | None]  # `kl` by token of the answer.


class ConfusionCounts(TypedDict):
    """Labelled paths by label and verdict; positive means corrected."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    unscored: NotRequired[int]


class FamilyAgreement(TypedDict):
    """A judge's verdicts against labels, on texts of one model family."""

    precision: Estimate
    sensitivity: Estimate
    kappa: Estimate
    rows: int
    counts: ConfusionCounts
    source: str


class RefusalAgreement(TypedDict):
    """The refusal judge's verdicts against labels, on answers of the family of the model under evaluation."""

    judge: str
    family: str | None
    on_family: FamilyAgreement | None


class JudgeAgreement(TypedDict, total=False):
    """The judge's verdicts against labels. Measures lie in [0, 1], except `kappa`, which lies in [-1, 1]."""

    precision: Estimate
    sensitivity: Estimate  # Also called recall.
    specificity: Estimate
    f1: Estimate
    kappa: Estimate
    rows: int
    unscored_rate: float
    family: str | None  # Of the model under evaluation; None if its name tells none.
    on_family: FamilyAgreement | None  # On texts of that family; None if the judge was not measured on them.


class RequestsNeeded(TypedDict):
    """Estimated number of distinct requests for an interval of Corr_mean that is `width` wide, in [0, 1]."""

    width: float
    requests: int | None


class AttackRate(Rate):
    """Success rate of one attack."""

    null_prompts: NotRequired[int]  # Behaviours for which the attack has no prompt; they count as failures.
    value_without_null: NotRequired[float | None]
    ciphers: NotRequired[dict[str, Rate]]  # By cipher, for CipherChat.


class Jailbreak(TypedDict, total=False):
    """Suite `jailbreak`: success rates, lower is better."""

    attacks: dict[str, AttackRate]
    mean: float | None  # Over attacks.
    overall: Rate  # Over all attack prompts.
    judge: str
    max_new_tokens: int
    difference: dict[str, PairedDifference | None]  # By attack.
    overall_difference: PairedDifference | None


class TaskScore(Estimate):
    """Score of one task of general ability in the unit of `metric`: accuracies lie in [0, 1], perplexities do not."""

    metric: NotRequired[str]
    stderr: NotRequired[float | None]
    count: NotRequired[int]
    higher_is_better: NotRequired[bool | None]


class General(TypedDict, total=False):
    """Suite `general`: general ability, by task of lm-evaluation-harness."""

    tasks: dict[str, TaskScore]
    groups: dict[str, TaskScore]  # Groups of tasks whose examples share a mean.
    difference: dict[str, PairedDifference | None]  # By task or group.
    versions: dict[str, str]


class Benign(TypedDict, total=False):
    """Suite `benign`: refusals without a prefill, corrections after one.

    The groups of `correction` are `false correction @{k}`, `correction @{k}, harmful twins` and
    `false correction @{k}, harmless twins`.
    """

    refusal: dict[str, Rate]  # By group of prompts.
    correction: dict[str, Rate]
    twin_difference: dict[str, PairedDifference | None]  # By k: correction of harmful minus that of harmless twins.
    difference: dict[str, PairedDifference | None]  # By group of `refusal` or `correction`.
    kl_by_position: list[float | None]  # As in BenignKL.


Map = list[list[float | None]]


class Dynamics(TypedDict, total=False):
    """Suite `dynamics`: maps with K rows (numbers of prefilled tokens) and P columns (tokens of the continuation)."""

    prefill_tokens: list[int]  # [K]
    positions: int  # P.
    requests: int
    tokens: int  # Safety tokens in the vocabulary.
    mass: Map | None  # Probability of all safety tokens together.
    reference_mass: Map | None  # The same for the base model.
    kl: Map | None  # To the base model.
    mean_mass: Estimate
    mean_reference_mass: Estimate
    mean_kl: Estimate


class Rates(TypedDict):
    """The rates of C²-Eval."""

    corr_at_k: dict[str, RateAtK]
    corr_mean: Estimate
    corr_mean_adjusted: NotRequired[Estimate]  # For the judge's errors on labelled paths.
    first_correction: NotRequired[CorrectionPositions]
    over_refusal: NotRequired[Rate]  # Refusals of benign prompts, nothing prefilled.
    over_refusal_difference: NotRequired[PairedDifference | None]
    benign_kl: NotRequired[BenignKL]


class Judging(TypedDict):
    """The judge and its quality."""

    judge: str
    judge_agreement: NotRequired[JudgeAgreement | None]  # None if the judge was not measured on labels.
    refusal_agreement: NotRequired[RefusalAgreement]  # Of the judge of over-refusal and of attacks.
    judges_kappa: NotRequired[dict[str, dict[str, float | None]]]  # Cohen's kappa by pair of judges, if several vote.
    unscored_rate: NotRequired[float]
    unscored_reasons: NotRequired[dict[str, int]]  # Paths by reason.
    requests_needed: NotRequired[RequestsNeeded]


class Suites(TypedDict, total=False):
    """Results of the suites that were run beside C²-Eval."""

    jailbreak: Jailbreak
    general: General
    benign: Benign
    dynamics: Dynamics


class Provenance(TypedDict):
    """Model, settings and versions. Contains no local path."""

    settings: dict[str, object]
    model: str
    adapter: str | None
    versions: dict[str, str]
    seconds: float  # Of sampling and judging.


class PageMetrics(Rates, Judging, Suites, Provenance):
    """The part of metrics.json that report.html contains; no other key reaches the page."""


class Metrics(PageMetrics):
    """metrics.json of a finished evaluation."""

    items_digest: NotRequired[str]
    difference_to_baseline: NotRequired[CorrDifference]


PAGE_METRICS = PageMetrics.__required_keys__ | PageMetrics.__optional_keys__


class Item(TypedDict):
    """An item of C²-Eval."""

    request_id: str
    request: str
    full_harmful_response: str


class GenerationRow(TypedDict):
    """A row of generations.jsonl. With `too_short` it stands for an item and k without paths, and `path` is None."""

    request_id: str
    prefill_tokens: int
    path: int
    too_short: NotRequired[bool]
    continuation: NotRequired[str]
    num_tokens: NotRequired[int]  # Without the end token.
    ended: NotRequired[bool]  # Whether the model ended the answer itself.


class VerdictRow(TypedDict):
    """A row of verdicts.jsonl."""

    request_id: str
    prefill_tokens: int
    path: int
    corrected: bool | None  # None means unscored.
    reason: str | None
    votes: NotRequired[dict[str, bool | None]]  # By judge, if several vote.
