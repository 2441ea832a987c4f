"""The settings of the objective: which terms are minimised, and with what weights. Imports nothing heavy, for `--help`."""

from dataclasses import dataclass, field
from typing import Literal

from course_correction.base.errors import UsageError

_END = "its value at the last step, reached in a line, if the term is on; it stays the same without"


@dataclass
class ObjectiveSettings:
    """What is minimised. Grouped with all weights at 0 is the paper's objective: DPO on the 15 pairs of a group."""

    objective: Literal["grouped", "pairwise"] = field(
        default="grouped", metadata={"help": "15 losses from 6 responses, or stock TRL on pairs"}
    )
    dpo_weight: float = field(
        default=1.0, metadata={"help": "of the 15 pair losses; 0 leaves preferences out (grouped only)"}
    )
    correction_nll_weight: float = field(default=0.0, metadata={"help": "NLL of the corrective parts (grouped only)"})
    safe_nll_weight: float = field(
        default=0.0, metadata={"help": "NLL of the safe responses (grouped only); teaches to refuse, also too much"}
    )
    correction_nll_tokens: int | None = field(
        default=None, metadata={"help": "NLL on this many tokens of a corrective part at most; all without it"}
    )
    transition_weight: float = field(
        default=0.0, metadata={"help": "NLL of turning back, at each word of the harmful response (grouped only)"}
    )
    transition_target: float = field(default=0.5, metadata={"help": "probability of turning back that is enough"})
    transition_rows: int = field(
        default=0, metadata={"help": "further groups a step and process whose harmful responses only turn back"}
    )
    transition_tokens: int | None = field(default=None, metadata={"help": "of those responses, the first n tokens only"})
    retention_weight: float = field(default=0.0, metadata={"help": "KL to the reference on benign rows (grouped only)"})
    retention_rows: int = field(default=3, metadata={"help": "benign rows a step and process"})
    retention_tokens: int | None = field(default=None, metadata={"help": "of a benign answer, the first n tokens only"})
    retention_start_boost: float = field(
        default=0.0,
        metadata={"help": "extra weight of an answer's start, where refusals stand; halves every 8 tokens"},
    )
    retention_own_answers: int = field(
        default=0, metadata={"help": "also keep close on this many benign answers of the reference's own, greedy"}
    )
    retention_own_tokens: int = field(default=48, metadata={"help": "tokens of each of them"})
    correction_nll_weight_end: float | None = field(default=None, metadata={"help": f"of correction_nll_weight: {_END}"})
    transition_weight_end: float | None = field(default=None, metadata={"help": f"of transition_weight: {_END}"})
    retention_weight_end: float | None = field(default=None, metadata={"help": f"of retention_weight: {_END}"})
    pair_distance_power: float = field(default=0.0, metadata={"help": "pair weight: rank distance to this power"})

    def __post_init__(self) -> None:
        """Refuse values outside their range, and terms that stock TRL does not have."""
        terms = ("correction_nll_weight", "safe_nll_weight", "transition_weight", "retention_weight")
        if self.dpo_weight < 0:
            raise UsageError(f"dpo_weight is {self.dpo_weight}, but must be at least 0.")
        if self.dpo_weight != 1 and self.objective == "pairwise":
            raise UsageError("dpo_weight needs objective: grouped; stock pairwise DPO has no other term.")
        if not self.dpo_weight and not any(getattr(self, name) for name in terms[:3]):
            raise UsageError("dpo_weight is 0 and no other term teaches anything. Set one of their weights.")
        for name in terms:
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 0.")
            if getattr(self, name) and self.objective == "pairwise":
                raise UsageError(f"{name} needs objective: grouped; stock pairwise DPO has no such term.")
        for name in ("correction_nll_weight", "transition_weight", "retention_weight"):
            end = getattr(self, f"{name}_end")
            if end is not None and end < 0:
                raise UsageError(f"{name}_end is {end}, but must be at least 0.")
        if not 0 < self.transition_target <= 1:
            raise UsageError(f"transition_target is {self.transition_target}, but is a probability in (0, 1].")
        for name in ("transition_rows", "retention_own_answers", "retention_start_boost"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 0.")
        for name in ("correction_nll_tokens", "transition_tokens", "retention_tokens", "retention_own_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1, or null for all.")
        if self.retention_weight and self.retention_rows < 1:
            raise UsageError(f"retention_rows is {self.retention_rows}, but must be at least 1.")
