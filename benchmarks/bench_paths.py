"""Sampling of C²-Eval: the engine against a plain loop as in the reference, in turn, on the same items.

The plain loop calls `model.generate` on batches of 10 equal rows, one prefill after another (`eval_data.py` of the reference
at 44da12c), with a token-exact prefill. Both sample with the same settings. Each turn of either samples all prefill lengths
and paths of the same requests.

python -m benchmarks.bench_paths
python -m benchmarks.bench_paths --model llama2-7b-shape --dtype bfloat16 --rounds 5   # random weights, needs a GPU
"""

import logging
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from benchmarks.models import RANDOM_7B, load_for_bench
from course_correction.base.console import run_script
from course_correction.base.files import write_json
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import parse_settings, setting

logger = logging.getLogger("course_correction")

Items = list[tuple[str, tuple[int, ...]]]  # Request and token ids of its answer.


@dataclass
class BenchSettings:
    """What is timed."""

    model: str = setting(
        "smollm2-135m", f"model, or {RANDOM_7B} for random weights of that shape", group="model", identity=()
    )
    dtype: Literal["bfloat16", "float32"] = setting("bfloat16", "bfloat16 or float32", group="model", identity=())
    num_paths: int = setting(20, "paths per request and prefill length", group="sampling", identity=(), at_least=1)
    prefill_tokens: list[int] = setting(
        default_factory=lambda: [10, 20, 30, 40, 50, 60, 70, 80],
        help="prefill lengths in tokens",
        group="sampling",
        identity=(),
        at_least=1,
    )
    max_new_tokens: int = setting(32, "tokens per path", group="sampling", identity=(), at_least=1)
    plain_batch: int = setting(10, "batch size of the plain loop", group="sampling", identity=(), at_least=1)
    batch_size: int = setting(160, "batch size of the engine", group="sampling", identity=(), at_least=1)
    requests_per_turn: int = setting(1, "requests that the engine samples together", group="data", identity=(), at_least=1)
    rounds: int = setting(3, "turns of each, after a warm-up turn", group="data", identity=(), at_least=1)
    output_dir: str = setting("runs/bench-paths", "folder for bench_paths.json", group="output", identity=())


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
    items: Items = [
        (item["request"], tuple(encode_answer(tokenizer, item["full_harmful_response"]))) for item in read_eval_items("seed")
    ]
    items = [(request, answer) for request, answer in items if len(answer) >= longest]

    def engine(chosen: Items) -> int:
        prefills = [
            Prefill(request, answer[:k], f"{request} {k} {path}")
            for request, answer in chosen
            for k in settings.prefill_tokens
            for path in range(settings.num_paths)
        ]
        return sum(completion.num_tokens for completion in sampler.sample(prefills, sampling))

    def plain(chosen: Items) -> int:
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

    paths_per_turn = settings.requests_per_turn * len(settings.prefill_tokens) * settings.num_paths
    speeds: dict[str, list[float]] = {"plain": [], "engine": []}
    for turn in range(settings.rounds + 1):
        chosen = [items[(turn * settings.requests_per_turn + n) % len(items)] for n in range(settings.requests_per_turn)]
        tokens = {}
        for name, run in (("plain", plain), ("engine", engine)):
            start = time.perf_counter()
            tokens[name] = run(chosen)
            speeds[name].append(paths_per_turn / (time.perf_counter() - start))
        label = f"round {turn}" if turn else "warm-up"
        last = {name: values[-1] for name, values in speeds.items()}
        logger.info(
            f"{label}: plain {last['plain']:.1f} paths/s ({tokens['plain']} tokens), engine {last['engine']:.1f} paths/s "
            f"({tokens['engine']} tokens), ratio {last['engine'] / last['plain']:.2f}"
        )
    report(settings, {name: values[1:] for name, values in speeds.items()})


def report(settings: BenchSettings, speeds: dict[str, list[float]]) -> None:
    """Print the medians and the ratio, and write bench_paths.json."""
    ratios = [engine / plain for plain, engine in zip(speeds["plain"], speeds["engine"], strict=True)]
    for name, values in speeds.items():
        print(f"{name:8} {statistics.median(values):7.1f} paths/s")
    print(f"ratio    median {statistics.median(ratios):.2f}, range {min(ratios):.2f} to {max(ratios):.2f}")
    result = {"settings": asdict(settings), "versions": library_versions(), "paths_per_second": speeds, "ratios": ratios}
    write_json(Path(settings.output_dir) / "bench_paths.json", result)


if __name__ == "__main__":
    run_script(main)
