"""Stock TRL on 15 pairs against the grouped objective on their 6 responses: pairs/s and peak memory.

Two processes, one per trainer, take turns on the same groups in the same dtype on the same device, so that the noise of the
machine affects both alike. A turn is the forward passes of policy and reference and the backward pass of one group.

python -m benchmarks.bench_dpo --rounds 5
python -m benchmarks.bench_dpo --dtype bfloat16 --precomputed true
python -m benchmarks.bench_dpo --model llama2-7b-shape --dtype bfloat16 --stock_batch 3   # random weights, needs a GPU
"""

import logging
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from benchmarks.models import RANDOM_7B, random_model_folder
from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import parse_settings, setting

logger = logging.getLogger("course_correction")

KINDS = ("stock", "grouped")
PAIRS_PER_GROUP = 15


@dataclass
class BenchSettings:
    """What is timed."""

    model: str = setting("smollm2-135m", f"model, or {RANDOM_7B}: random weights of that shape", group="model", identity=())
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "bfloat16 is autocast, with LoRA weights in float32", group="model", identity=()
    )
    lora_r: int = setting(
        16, "LoRA rank on all linear layers; 0 trains all weights", group="training", identity=(), at_least=0
    )
    precomputed: bool = setting(
        False, "compute the reference's log-probabilities beforehand, for both", group="training", identity=()
    )
    stock_batch: int = setting(
        5, "pairs per forward pass of stock TRL; a divisor of 15", group="training", identity=(), at_least=1
    )
    rounds: int = setting(5, "groups, each timed once by both", group="data", identity=(), at_least=1)
    output_dir: str = setting("runs/bench-dpo", "where bench_dpo.json goes", group="output", identity=())

    def __post_init__(self) -> None:
        """Refuse a batch that leaves some of the 15 pairs out."""
        if self.stock_batch < 1 or PAIRS_PER_GROUP % self.stock_batch:
            raise UsageError(f"stock_batch is {self.stock_batch}, but must divide {PAIRS_PER_GROUP}.")


def make_trainer(kind: str, settings: BenchSettings, folder: Path) -> tuple[Any, list[list[Any]]]:
    """Return a trainer and, for each group, its batches."""
    import torch
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from course_correction.generation.loading import keep_freed_memory, load_tokenizer
    from course_correction.generation.offline_models import resolve_model_name
    from course_correction.training.data import load_rows
    from course_correction.training.settings import ObjectiveSettings, TrainingData
    from course_correction.training.trainer import GroupedDPOTrainer

    keep_freed_memory()
    is_grouped, cuda = kind == "grouped", torch.cuda.is_available()
    training = DPOConfig(
        output_dir=str(folder / kind), use_cpu=not cuda, bf16=settings.dtype == "bfloat16", report_to="none",
        max_length=None,
        per_device_train_batch_size=1 if is_grouped else settings.stock_batch, save_strategy="no",
        activation_checkpointing=settings.model == RANDOM_7B, precompute_ref_log_probs=settings.precomputed,
        disable_tqdm=True, dataloader_pin_memory=False, model_init_kwargs={"dtype": settings.dtype},
    )  # fmt: skip
    adapter = None
    if settings.lora_r:
        adapter = LoraConfig(
            r=settings.lora_r, lora_alpha=2 * settings.lora_r, target_modules="all-linear", lora_dropout=0.0
        )
    model: Any = resolve_model_name(settings.model)
    tokenizer_name = settings.model
    if settings.model == RANDOM_7B:
        tokenizer_name = random_model_folder(folder / "shape")
        with torch.device("cuda" if cuda else "cpu"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tokenizer_name), dtype=torch.bfloat16)
        training.model_init_kwargs = None
    terms: dict[str, Any] = {"objective": ObjectiveSettings(), "benign_rows": []} if is_grouped else {}
    trainer = (GroupedDPOTrainer if is_grouped else DPOTrainer)(
        model,
        args=training,
        train_dataset=load_rows(TrainingData(max_groups=settings.rounds + 1), "grouped" if is_grouped else "pairwise"),
        processing_class=load_tokenizer(tokenizer_name),
        peft_config=adapter,
        **terms,
    )
    dataset, collate = trainer.train_dataset, trainer.data_collator
    size, rows_per_group = training.per_device_train_batch_size, 1 if is_grouped else PAIRS_PER_GROUP
    groups = []
    for group in range(settings.rounds + 1):
        starts = range(group * rows_per_group, (group + 1) * rows_per_group, size)
        groups.append([collate([dataset[index] for index in range(start, start + size)]) for start in starts])
    return trainer, groups


def work(kind: str, settings: BenchSettings, folder: Path, pipe: Connection) -> None:
    """Time one group per message; answer with seconds, packed tokens and loss, and at the end with the peak memory."""
    import resource

    import torch

    trainer, groups = make_trainer(kind, settings, folder)
    trainer.model.train()
    cuda = torch.cuda.is_available()
    pipe.send("ready")
    for batches in groups:
        pipe.recv()
        start, loss, tokens = time.perf_counter(), 0.0, 0
        for batch in batches:
            batch = trainer._prepare_inputs(batch)
            tokens += batch["input_ids"].numel()
            with trainer.compute_loss_context_manager():
                part = trainer._compute_loss(trainer.model, batch, False)
            trainer.accelerator.backward(part / len(batches))
            loss += part.item() / len(batches)
        trainer.model.zero_grad()
        if cuda:
            torch.cuda.synchronize()
        pipe.send({"seconds": time.perf_counter() - start, "tokens": tokens, "loss": loss})
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send(peak / 2**30)


def receive(kind: str, worker: Connection) -> Any:
    """Return the next message of a worker."""
    try:
        return worker.recv()
    except EOFError:
        raise UsageError(f"The {kind} trainer failed. Its error is printed above.") from None


def take_turns(settings: BenchSettings) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Time both trainers on every group.

    Returns:
        For each round after the warm-up, the measurements of both and the ratio of their seconds; peak memory in GiB.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(kind, settings, Path(folder), theirs), daemon=True)
            process.start()
            theirs.close()
            receive(kind, ours)
            workers[kind] = ours
        for number in range(settings.rounds + 1):
            measured = {}
            # Who goes first changes from round to round.
            for kind in KINDS if number % 2 else KINDS[::-1]:
                workers[kind].send("start")
                measured[kind] = receive(kind, workers[kind])
            ratio = measured["stock"]["seconds"] / measured["grouped"]["seconds"]
            speeds = {kind: PAIRS_PER_GROUP / measured[kind]["seconds"] for kind in KINDS}
            logger.info(
                f"{f'round {number}' if number else 'warm-up'}: stock {speeds['stock']:.2f} pairs/s, grouped "
                f"{speeds['grouped']:.2f} pairs/s, ratio {ratio:.2f}, "
                f"losses {measured['stock']['loss']:.5f} and {measured['grouped']['loss']:.5f}"
            )
            if number:
                rounds.append(measured | {"ratio": ratio})
        return rounds, {kind: receive(kind, workers[kind]) for kind in KINDS}


def main() -> None:
    """Let both take turns, print and save the comparison."""
    (settings,) = parse_settings([BenchSettings], description=__doc__)
    rounds, peaks = take_turns(settings)
    speeds = {kind: statistics.median(PAIRS_PER_GROUP / entry[kind]["seconds"] for entry in rounds) for kind in KINDS}
    tokens = {kind: statistics.mean(entry[kind]["tokens"] for entry in rounds) for kind in KINDS}
    ratios = [entry["ratio"] for entry in rounds]
    for kind in KINDS:
        print(
            f"{kind:8} {speeds[kind]:6.2f} pairs/s, {tokens[kind]:6.0f} tokens per group, peak memory {peaks[kind]:.2f} GiB"
        )
    print(
        f"ratio    median {statistics.median(ratios):.2f}, range {min(ratios):.2f} to {max(ratios):.2f}, "
        f"{len(ratios)} rounds"
    )
    result = {"settings": asdict(settings), "rounds": rounds, "peak_gib": peaks, "pairs_per_second": speeds}
    result |= {"ratio_median": statistics.median(ratios), "versions": library_versions()}
    write_json(Path(settings.output_dir) / "bench_dpo.json", result)


if __name__ == "__main__":
    run_script(main)
