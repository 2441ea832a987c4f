"""The settings of a training: which rows it reads and which terms it minimises. Imports nothing heavy, for `--help`."""

from dataclasses import dataclass
from typing import Literal

from course_correction.base.errors import UsageError
from course_correction.base.settings import check_values, setting
from course_correction.synthesis.sources import SEED


@dataclass
class TrainingData:
    """The rows that a training reads."""

    dataset_name: str = setting("c2-syn", "Hub id or folder of C²-Syn", group="data", identity="training", common=True)
    dataset_split: str = setting("train", "split of the dataset", group="data", identity="training")
    dataset_revision: str | None = setting(None, "revision of the dataset on the Hub", group="data", identity="training")
    mix_with: list[str] = setting(
        default_factory=list,
        help="further folders or Hub ids of C²-Syn to train on, as `name` or `name@revision`; a dataset named twice counts "
        "twice",
        group="data",
        identity="training",
    )
    held_out: list[str] = setting(
        default_factory=lambda: [SEED],
        help="C²-Eval sources (seed, pku500, files); training on one of their requests is refused",
        group="data",
        identity=(),
    )
    max_groups: int | None = setting(
        None,
        "number of requests to train on, from the first, of each dataset",
        group="data",
        identity="training",
        at_least=1,
    )
    drop_long_rows: bool = setting(
        False, "drop rows longer than max_length and report their number", group="data", identity="training"
    )
    retention_file: str | None = setting(
        None, "JSONL of benign `prompt` and `response`; the seed set's by default", group="data", identity="training"
    )

    def __post_init__(self) -> None:
        """Refuse values of another type or out of range."""
        check_values(self)


@dataclass
class ObjectiveSettings:
    """The minimised terms. `grouped` with all weights at 0 is the paper's objective: DPO on the 15 pairs of a group."""

    objective: Literal["grouped", "pairwise"] = setting(
        "grouped",
        "grouped: 15 losses from 6 responses; pairwise: stock TRL on pairs",
        group="training",
        identity="training",
        common=True,
    )
    dpo_weight: float = setting(
        1.0,
        "weight of the 15 pair losses; 0 leaves preferences out (grouped only)",
        group="training",
        identity="training",
        at_least=0,
    )
    correction_nll_weight: float = setting(
        0.0,
        "weight of the NLL of the corrective parts (grouped only)",
        group="training",
        identity="training",
        common=True,
        at_least=0,
    )
    safe_nll_weight: float = setting(
        0.0,
        "weight of the NLL of the safe responses (grouped only); it also raises over-refusal",
        group="training",
        identity="training",
        at_least=0,
    )
    correction_nll_tokens: int | None = setting(
        None,
        "number of tokens of a corrective part, from its first, in that NLL; all by default",
        group="training",
        identity="training",
        at_least=1,
    )
    transition_weight: float = setting(
        0.0,
        "weight of the NLL of starting a correction, at each word of the harmful response (grouped only)",
        group="training",
        identity="training",
        common=True,
        at_least=0,
    )
    transition_target: float = setting(
        0.5,
        "probability of a correction at a word from which the transition term is 0",
        group="training",
        identity="training",
        above=0,
        at_most=1,
    )
    transition_rows: int = setting(
        0,
        "further groups per step and process, whose harmful responses enter the transition term alone",
        group="training",
        identity="training",
        at_least=0,
    )
    transition_tokens: int | None = setting(
        None,
        "number of tokens of those responses, from the first; all by default",
        group="training",
        identity="training",
        at_least=1,
    )
    retention_weight: float = setting(
        0.0,
        "weight of the KL divergence to the reference on benign rows (grouped only)",
        group="training",
        identity="training",
        common=True,
        at_least=0,
    )
    retention_rows: int = setting(3, "benign rows per step and process", group="training", identity="training", at_least=1)
    retention_tokens: int | None = setting(
        None,
        "number of tokens of a benign answer, from the first; all by default",
        group="training",
        identity="training",
        at_least=1,
    )
    retention_start_boost: float = setting(
        0.0,
        "extra weight of the start of a benign answer, where refusals occur; it halves every 8 tokens",
        group="training",
        identity="training",
        at_least=0,
    )
    retention_own_answers: int = setting(
        0,
        "number of greedy answers of the reference itself to add to the benign rows",
        group="training",
        identity="training",
        at_least=0,
    )
    retention_own_tokens: int = setting(
        48, "number of tokens of each of those answers", group="training", identity="training", at_least=1
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, and terms that stock TRL does not have."""
        check_values(self)
        terms = ("correction_nll_weight", "safe_nll_weight", "transition_weight", "retention_weight")
        if self.objective == "pairwise":
            for name in terms:
                if getattr(self, name):
                    raise UsageError(f"{name} needs objective: grouped; stock pairwise DPO has no such term.")
            if self.dpo_weight != 1:
                raise UsageError("dpo_weight needs objective: grouped; stock pairwise DPO has no other term.")
        if not self.dpo_weight and not any(getattr(self, name) for name in terms[:3]):
            raise UsageError("dpo_weight is 0 and no other term trains corrections. Set the weight of another term.")
