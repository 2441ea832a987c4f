"""The model's answers to held-out benign prompts, which every evaluation asks: over-refusal."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict, cast

from course_correction.base.files import chunked, read_jsonl
from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import PROMPTS_PER_UNIT
from course_correction.generation.evaluated_model import EvaluatedModel, sample_rows
from course_correction.generation.protocol import Prefill, SamplingSettings
from course_correction.statistics.clustered_rates import paired_rate_difference
from course_correction.statistics.corr_at_k import rate_with_interval
from course_correction.suites.settings import SuiteSettings
from course_correction.synthesis.sources import read_benign_rows

BENIGN_ANSWERS_FILE = "benign_answers.jsonl"


class BenignAnswerRow(TypedDict):
    """A row of benign_answers.jsonl."""

    request_id: str
    answer: str


def read_benign_answers(folder: Path) -> Iterator[BenignAnswerRow]:
    """Yield the rows of benign_answers.jsonl in a run folder; none if the run asked no benign prompt."""
    path = folder / BENIGN_ANSWERS_FILE
    return cast(Iterator[BenignAnswerRow], read_jsonl(path) if path.is_file() else iter(()))


def sample_benign_answers(folder: Path, settings: SuiteSettings, model: EvaluatedModel, ranks: Ranks) -> None:
    """Write benign_answers.jsonl: the model's greedy answers to the held-out benign prompts."""
    units = chunked(read_benign_rows("eval")[: settings.max_benign], PROMPTS_PER_UNIT)
    sampling = SamplingSettings(settings.benign_max_new_tokens, temperature=0, seed=settings.seed)

    def answer(unit: int) -> list[BenignAnswerRow]:
        prefills = [Prefill(row["prompt"], (), row["request_id"]) for row in units[unit]]
        completions = model.sampler().sample(prefills, sampling)
        return [
            {"request_id": row["request_id"], "answer": completion.text}
            for row, completion in zip(units[unit], completions, strict=True)
        ]

    ids = [[row["request_id"] for row in unit] for unit in units]
    sample_rows(folder / BENIGN_ANSWERS_FILE, ids, answer, model, ranks, "benign prompts")


def measure_over_refusal(
    folder: Path, baseline: Path | None, judge_refusals: Callable[[Sequence[str]], list[bool]], seed: int
) -> dict[str, object]:
    """Return the parts `over_refusal` and, with a baseline, `over_refusal_difference` of metrics.json.

    The difference is None if the baseline asked no benign prompt.

    Args:
        folder: The run folder.
        baseline: That of the baseline, or None.
        judge_refusals: Says of each answer whether it refuses.
        seed: Of the bootstrap.
    """
    refusals = _read_refusals(folder, judge_refusals)
    metrics: dict[str, object] = {"over_refusal": rate_with_interval(list(refusals.values()), seed)}
    if baseline:
        before = _read_refusals(baseline, judge_refusals)
        metrics["over_refusal_difference"] = paired_rate_difference(
            refusals, before, {name: name for name in refusals}, seed
        )
    return metrics


def _read_refusals(folder: Path, judge_refusals: Callable[[Sequence[str]], list[bool]]) -> dict[str, bool]:
    rows = list(read_benign_answers(folder))
    refused = judge_refusals([row["answer"] for row in rows])
    return {row["request_id"]: value for row, value in zip(rows, refused, strict=True)}
