"""Sample the paths of C²-Eval: generations.jsonl. Knows nothing of judges or metrics."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from course_correction.base.files import chunked
from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import Rows
from course_correction.base.settings import identity_of
from course_correction.evaluation.items import EvaluationItems
from course_correction.evaluation.prefills import reference_prefill
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.generation.chat_format import encode_answer, render_closed_turn
from course_correction.generation.evaluated_model import EvaluatedModel, sample_rows
from course_correction.generation.protocol import Prefill, SamplingSettings
from course_correction.report.run_data import read_generations
from course_correction.report.schema import GenerationRow
from course_correction.synthesis.sources import EvalItem

GENERATIONS_FILE = "generations.jsonl"


def read_paths(folder: Path) -> Iterator[GenerationRow]:
    """Yield the rows of the sampled paths, without those of items that are too short."""
    return (row for row in read_generations(folder) if not row.get("too_short"))


def sampling_identity(settings: EvaluationSettings, items: EvaluationItems, model: EvaluatedModel) -> dict[str, object]:
    """Return what decides the sampled rows: a folder that holds rows under other values is refused."""
    about_items = {"num_requests": len(items.rows), "items_digest": items.digest}
    return model.identity() | identity_of(settings, "sampling") | about_items


def sample_paths(
    folder: Path, settings: EvaluationSettings, items: EvaluationItems, model: EvaluatedModel, ranks: Ranks
) -> None:
    """Write generations.jsonl: rows by item, then k, then path."""
    units = chunked(items.rows, settings.requests_per_unit)

    def is_complete(rows: Rows) -> bool:
        short = sum(row.get("too_short", False) for row in rows)
        return len(rows) - short == (len(settings.prefill_tokens) - short) * settings.num_paths

    sample_rows(
        folder / GENERATIONS_FILE,
        [[item["request_id"] for item in unit] for unit in units],
        lambda unit: _sample_items(units[unit], settings, model),
        model,
        ranks,
        "sampling",
        is_complete,
    )


def _sample_items(items: Sequence[EvalItem], settings: EvaluationSettings, model: EvaluatedModel) -> list[GenerationRow]:
    sampler = model.sampler()
    sampling = SamplingSettings(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
    keys: list[tuple[str, int, int | None]] = []
    prefills = []
    for item in items:
        answer = tuple(encode_answer(sampler.tokenizer, item["full_harmful_response"]))
        for k in sorted(settings.prefill_tokens):
            prompt, start, is_long_enough = None, answer[:k], k <= len(answer)
            if settings.prefill_mode == "reference":
                # Here k counts words, and a shorter response is prefilled as a whole.
                text = reference_prefill(item, k, settings.seed)
                prompt, start = tuple(render_closed_turn(sampler.tokenizer, item["request"], text)), ()
                is_long_enough = True
            for path in range(settings.num_paths if is_long_enough else 0):
                keys.append((item["request_id"], k, path))
                prefills.append(Prefill(item["request"], start, "\x1f".join(map(str, keys[-1])), prompt))
            if not is_long_enough:
                keys.append((item["request_id"], k, None))
    completions = iter(sampler.sample(prefills, sampling) if prefills else [])
    rows: list[GenerationRow] = []
    for request_id, k, number in keys:
        if number is None:
            rows.append(
                cast(GenerationRow, {"request_id": request_id, "prefill_tokens": k, "path": None, "too_short": True})
            )
        else:
            one = next(completions)
            rows.append(
                {
                    "request_id": request_id, "prefill_tokens": k, "path": number,
                    "continuation": one.text, "num_tokens": one.num_tokens, "ended": one.ended,
                }
            )  # fmt: skip
    return rows
