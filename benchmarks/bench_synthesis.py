"""Speed of C²-Syn's teacher: the project's sampler against `model.generate`, in turn, on the same requests.

`reference`: batches in the order of the rows, by beam search with 2 beams, the reference's setting. (`synthesize.py` at
44da12c uses diverse beam search in two groups, which transformers has removed; plain beams need the same forward passes.)
`sorted`: greedy batches of rows sorted by length. `engine`: the project's sampler.

python -m benchmarks.bench_synthesis
python -m benchmarks.bench_synthesis --smallest true   # one request, two tokens: tries the benchmark out
python -m benchmarks.bench_synthesis --model llama2-7b-shape --dtype bfloat16 --requests 32   # random weights, needs a GPU
"""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.models import RANDOM_7B, load_for_bench
from course_correction.base.console import run_script
from course_correction.base.files import chunked, write_json
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import check_values, parse_settings, setting
from course_correction.generation.chat_format import encode_answer, render_prompt
from course_correction.generation.protocol import Prefill
from course_correction.synthesis.ranked_groups import draft_corrections
from course_correction.synthesis.run import select_pairs
from course_correction.synthesis.settings import SynthesisSettings
from course_correction.synthesis.triggers import join_trigger

logger = logging.getLogger("course_correction")


@dataclass
class BenchSettings:
    """What is timed."""

    model: str = setting(
        "smollm2-135m", f"the teacher, or {RANDOM_7B}: random weights of that shape",
        group="model", identity=(), common=True,
    )  # fmt: skip
    dtype: Literal["bfloat16", "float32"] = setting("bfloat16", "dtype of the teacher", group="model", identity=())
    requests: int = setting(
        20, "requests per round, 5 continuations each", group="data", identity=(), common=True, at_least=1
    )
    max_new_tokens: int = setting(128, "tokens per continuation", group="sampling", identity=(), at_least=1)
    plain_batch: int = setting(
        20, "rows per batch of `reference` and `sorted`; the reference's value", group="sampling", identity=(), at_least=1
    )
    batch_size: int = setting(160, "rows per batch of `engine`", group="sampling", identity=(), at_least=1)
    rounds: int = setting(3, "rounds, after a short one to warm up", group="sampling", identity=(), at_least=1)
    smallest: bool = setting(
        False, "one request, two tokens and one round, whatever their settings are", group="data", identity=(), common=True
    )
    output_dir: str = setting(
        "runs/bench-synthesis", "folder of bench_synthesis.json", group="output", identity=(), common=True
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_values(self)


def main() -> None:
    """Time the three ways in turn; print their speeds and the ratios."""
    import torch

    from course_correction.generation.decoding import SamplingSettings
    from course_correction.generation.samplers import ModelSampler

    (settings,) = parse_settings([BenchSettings], description=__doc__)
    if settings.smallest:
        settings = replace(settings, requests=1, max_new_tokens=2, rounds=1)
    model, tokenizer = load_for_bench(settings.model, settings.dtype)
    greedy = SamplingSettings(settings.max_new_tokens, temperature=0)
    sampler = ModelSampler(model, tokenizer, settings.batch_size)
    pairs = select_pairs(SynthesisSettings()).pairs

    def prefills_of(turn: int, count: int) -> list[Prefill]:
        prefills = []
        for number in range(count):
            pair = pairs[(turn * count + number) % len(pairs)]
            draft = draft_corrections(pair, 0, 0.6, 0.5)
            corrections = zip(draft.initial_responses, draft.triggers, strict=True)
            for rank, text in enumerate(["", *(join_trigger(*correction)[0] for correction in corrections)]):
                ids = tuple(encode_answer(tokenizer, text))
                prefills.append(Prefill(pair.request, ids, f"{pair.request_id} {rank}"))
        return prefills

    def generate(prefills: list[Prefill], in_order_of_length: bool, num_beams: int) -> None:
        rows = [render_prompt(tokenizer, prefill.request) + list(prefill.answer_ids) for prefill in prefills]
        if in_order_of_length:
            rows.sort(key=len)
        for batch in chunked(rows, settings.plain_batch):
            longest = max(map(len, batch))
            ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
            for place, row in enumerate(batch):
                ids[place, longest - len(row) :] = torch.tensor(row)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
            model.generate(
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                num_beams=num_beams,
                pad_token_id=tokenizer.pad_token_id,
            )

    ways: dict[str, Callable[[list[Prefill]], Any]] = {
        "reference": lambda prefills: generate(prefills, False, 2),
        "sorted": lambda prefills: generate(prefills, True, 1),
        "engine": lambda prefills: sampler.sample(prefills, greedy),
    }
    for run in ways.values():
        run(prefills_of(0, min(2, settings.requests)))
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(settings.rounds):
        prefills = prefills_of(turn, settings.requests)
        for name, run in ways.items():
            start = time.perf_counter()
            run(prefills)
            speeds[name].append(len(prefills) / (time.perf_counter() - start))
        logger.info(f"round {turn + 1}: " + ", ".join(f"{name} {values[-1]:.2f} rows/s" for name, values in speeds.items()))
    ratios = {
        name: [engine / other for engine, other in zip(speeds["engine"], speeds[name], strict=True)]
        for name in ("reference", "sorted")
    }
    for name, values in speeds.items():
        print(f"{name:10} {statistics.median(values):7.2f} rows/s")
    for name, values in ratios.items():
        median = statistics.median(values)
        print(f"engine / {name:10} median {median:.2f}, range {min(values):.2f} to {max(values):.2f}")
    result = {"settings": asdict(settings), "versions": library_versions(), "rows_per_second": speeds, "ratios": ratios}
    write_json(Path(settings.output_dir) / "bench_synthesis.json", result)


if __name__ == "__main__":
    run_script(main)
