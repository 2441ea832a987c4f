"""C²-Syn's continuations: the engine against plain ways of running the teacher, in turn, on the same requests.

`reference`: batches in the order of the rows, not sorted, by beam search with 2 beams, the reference's setting
(`synthesize.py` at 44da12c has it diverse, in two groups; transformers took that out of the library, plain beams cost
the same forward passes). `sorted`: greedy batches of rows sorted by length. Both by `model.generate`.

python -m benchmarks.bench_synthesis
python -m benchmarks.bench_synthesis --model llama2-7b-shape --dtype bfloat16 --requests 32   # random weights, needs a GPU
"""

import logging
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.models import RANDOM_7B, load_for_bench
from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import chunked, write_json
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import parse_settings

logger = logging.getLogger("course_correction")


@dataclass
class BenchSettings:
    """What is timed."""

    model: str = field(default="smollm2-135m", metadata={"help": f"model, or {RANDOM_7B}: random weights of that shape"})
    dtype: str = field(default="bfloat16", metadata={"help": "bfloat16 or float32"})
    requests: int = field(default=20, metadata={"help": "requests a turn, 5 continuations each"})
    max_new_tokens: int = field(default=128, metadata={"help": "tokens a continuation"})
    plain_batch: int = field(default=20, metadata={"help": "rows of the plain ways' batches, the reference's"})
    batch_size: int = field(default=160, metadata={"help": "the engine's rows"})
    rounds: int = field(default=3, metadata={"help": "turns of each, after a small one to warm up"})
    output_dir: str = field(default="runs/bench-synthesis", metadata={"help": "where bench_synthesis.json goes"})

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("requests", "max_new_tokens", "plain_batch", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1.")


def main() -> None:
    """Time the three in turn and print their speeds and the ratios."""
    import torch

    from c2_syn import SynthesisSettings, select_pairs
    from course_correction.generation.chat_format import encode_answer, render_prompt
    from course_correction.generation.decoding import SamplingSettings
    from course_correction.generation.protocol import Prefill
    from course_correction.generation.samplers import ModelSampler
    from course_correction.synthesis.ranked_groups import draft_corrections
    from course_correction.synthesis.triggers import join_trigger

    (settings,) = parse_settings([BenchSettings], description=__doc__)
    model, tokenizer = load_for_bench(settings.model, settings.dtype)
    greedy = SamplingSettings(settings.max_new_tokens, temperature=0)
    sampler = ModelSampler(model, tokenizer, settings.batch_size)
    pairs, _ = select_pairs(SynthesisSettings())

    def begin(turn: int, count: int) -> list[Prefill]:
        begun = []
        for number in range(count):
            pair = pairs[(turn * count + number) % len(pairs)]
            _, initial_responses, triggers = draft_corrections(pair, 0, 0.6, 0.5)
            pieces = zip(initial_responses, triggers, strict=True)
            for rank, text in enumerate(["", *(join_trigger(*piece)[0] for piece in pieces)]):
                ids = tuple(encode_answer(tokenizer, text))
                begun.append(Prefill(pair.request, ids, f"{pair.request_id} {rank}"))
        return begun

    def generate(begun: list[Prefill], in_order_of_length: bool, num_beams: int) -> None:
        prefills = [render_prompt(tokenizer, row.request) + list(row.answer_ids) for row in begun]
        if in_order_of_length:
            prefills.sort(key=len)
        for batch in chunked(prefills, settings.plain_batch):
            longest = max(map(len, batch))
            ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
            for row, prefill in enumerate(batch):
                ids[row, longest - len(prefill) :] = torch.tensor(prefill)
            mask = torch.tensor([[0] * (longest - len(prefill)) + [1] * len(prefill) for prefill in batch])
            model.generate(
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                num_beams=num_beams,
                pad_token_id=tokenizer.pad_token_id,
            )

    ways = {
        "reference": lambda begun: generate(begun, False, 2),
        "sorted": lambda begun: generate(begun, True, 1),
        "engine": lambda begun: sampler.sample(begun, greedy),
    }
    for run in ways.values():
        run(begin(0, 2))
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(settings.rounds):
        begun = begin(turn, settings.requests)
        for name, run in ways.items():
            start = time.perf_counter()
            run(begun)
            speeds[name].append(len(begun) / (time.perf_counter() - start))
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
