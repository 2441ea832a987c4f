"""C²-Eval's sampling: the engine against a plain loop as the reference runs it, in turn, on the same items.

The plain loop is `model.generate` with batches of 10 equal rows, a prefill for each row, one k after another
(`eval_data.py` of the reference at 44da12c), on the right prefill. Both sample at the same settings; every turn of either
is a request with all its k's and paths.

python -m benchmarks.bench_paths
python -m benchmarks.bench_paths --model llama2-7b-shape --dtype bfloat16 --rounds 5   # random weights, needs a GPU
"""

import logging
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.models import RANDOM_7B, load_for_bench
from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import parse_settings

logger = logging.getLogger("course_correction")


@dataclass
class BenchSettings:
    """What is timed."""

    model: str = field(default="smollm2-135m", metadata={"help": f"model, or {RANDOM_7B}: random weights of that shape"})
    dtype: str = field(default="bfloat16", metadata={"help": "bfloat16 or float32"})
    num_paths: int = field(default=20, metadata={"help": "paths a k (b)"})
    prefill_tokens: list[int] = field(default_factory=lambda: [10, 20, 30, 40, 50, 60, 70, 80], metadata={"help": "the k's"})
    max_new_tokens: int = field(default=32, metadata={"help": "tokens a path (m)"})
    plain_batch: int = field(default=10, metadata={"help": "rows of the plain loop's batches"})
    requests_a_turn: int = field(default=1, metadata={"help": "requests that the engine samples together"})
    batch_size: int = field(default=160, metadata={"help": "the engine's rows"})
    rounds: int = field(default=3, metadata={"help": "turns of each, after one to warm up"})
    output_dir: str = field(default="runs/bench-paths", metadata={"help": "where bench_paths.json goes"})

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("num_paths", "max_new_tokens", "plain_batch", "requests_a_turn", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1.")


def main() -> None:
    """Time both in turn and print their speeds and the ratio."""
    import torch

    from course_correction.generation.chat_format import encode_answer, render_prompt
    from course_correction.generation.decoding import SamplingSettings
    from course_correction.generation.protocol import Prefill
    from course_correction.generation.samplers import ModelSampler
    from course_correction.synthesis.sources import read_eval_items

    (settings,) = parse_settings([BenchSettings], description=__doc__)
    model, tokenizer = load_for_bench(settings.model, settings.dtype)
    sampling = SamplingSettings(settings.max_new_tokens)
    sampler = ModelSampler(model, tokenizer, settings.batch_size)
    longest = max(settings.prefill_tokens)
    items = [
        (item["request"], tuple(encode_answer(tokenizer, item["full_harmful_response"]))) for item in read_eval_items("seed")
    ]
    items = [(request, answer) for request, answer in items if len(answer) >= longest]

    def engine(chosen: list[tuple[str, tuple[int, ...]]]) -> int:
        begun = [
            Prefill(request, answer[:k], f"{request} {k} {path}")
            for request, answer in chosen
            for k in settings.prefill_tokens
            for path in range(settings.num_paths)
        ]
        return sum(written.num_tokens for written in sampler.sample(begun, sampling))

    def plain(chosen: list[tuple[str, tuple[int, ...]]]) -> int:
        tokens = 0
        for request, answer in chosen:
            for k in settings.prefill_tokens:
                ids = torch.tensor([render_prompt(tokenizer, request) + list(answer[:k])], device=model.device)
                for start in range(0, settings.num_paths, settings.plain_batch):
                    rows = ids.expand(min(settings.plain_batch, settings.num_paths - start), -1)
                    output = model.generate(
                        rows,
                        attention_mask=torch.ones_like(rows),
                        max_new_tokens=settings.max_new_tokens,
                        do_sample=True,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        top_k=0,
                        pad_token_id=tokenizer.pad_token_id,
                    )
                    tokens += int((output[:, ids.shape[1] :] != tokenizer.pad_token_id).sum())
        return tokens

    paths_a_turn = settings.requests_a_turn * len(settings.prefill_tokens) * settings.num_paths
    speeds: dict[str, list[float]] = {"plain": [], "engine": []}
    for turn in range(settings.rounds + 1):
        chosen = [items[(turn * settings.requests_a_turn + n) % len(items)] for n in range(settings.requests_a_turn)]
        tokens = {}
        for name, run in (("plain", plain), ("engine", engine)):
            start = time.perf_counter()
            tokens[name] = run(chosen)
            speeds[name].append(paths_a_turn / (time.perf_counter() - start))
        label = f"round {turn}" if turn else "warm-up"
        now = {name: values[-1] for name, values in speeds.items()}
        logger.info(
            f"{label}: plain {now['plain']:.1f} paths/s ({tokens['plain']} tokens), engine {now['engine']:.1f} paths/s "
            f"({tokens['engine']} tokens), ratio {now['engine'] / now['plain']:.2f}"
        )
    report(settings, {name: values[1:] for name, values in speeds.items()})


def report(settings: Any, speeds: dict[str, list[float]]) -> None:
    """Print the medians and the ratio, and write bench_paths.json."""
    ratios = [engine / plain for plain, engine in zip(speeds["plain"], speeds["engine"], strict=True)]
    for name, values in speeds.items():
        print(f"{name:8} {statistics.median(values):7.1f} paths/s")
    print(f"ratio    median {statistics.median(ratios):.2f}, range {min(ratios):.2f} to {max(ratios):.2f}")
    result = {"settings": asdict(settings), "versions": library_versions(), "paths_per_second": speeds, "ratios": ratios}
    write_json(Path(settings.output_dir) / "bench_paths.json", result)


if __name__ == "__main__":
    run_script(main)
