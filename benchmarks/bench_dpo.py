"""Stock TRL on 15 pairs against the grouped objective on the 6 responses they are made of: pairs/s and peak memory.

Two processes, one a trainer, take turns on the same groups in the same dtype on the same device, so that noise of the
machine hits both alike; a turn is the forward passes of policy and reference and the backward pass of one group.

python -m benchmarks.bench_dpo --rounds 5
python -m benchmarks.bench_dpo --dtype bfloat16 --precomputed true
python -m benchmarks.bench_dpo --model llama2-7b-shape --dtype bfloat16 --stock_batch 3   # random weights, needs a GPU
"""

import logging
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.models import RANDOM_7B, random_model_folder
from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.run_folder import library_versions
from course_correction.base.settings import parse_settings

logger = logging.getLogger("course_correction")

KINDS = ("stock", "grouped")


@dataclass
class BenchSettings:
    """What is timed."""

    model: str = field(default="smollm2-135m", metadata={"help": f"model, or {RANDOM_7B}: random weights of that shape"})
    dtype: str = field(default="float32", metadata={"help": "float32 or bfloat16 (autocast, LoRA weights in float32)"})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank on all linear layers; 0 trains all weights"})
    precomputed: bool = field(default=False, metadata={"help": "reference log-probabilities known beforehand, for both"})
    stock_batch: int = field(default=5, metadata={"help": "pairs a forward pass of stock TRL; a divisor of 15"})
    rounds: int = field(default=5, metadata={"help": "groups, each timed once by both"})
    output_dir: str = field(default="runs/bench-dpo", metadata={"help": "where bench_dpo.json goes"})

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if 15 % self.stock_batch:
            raise UsageError(f"stock_batch is {self.stock_batch}, but must divide 15.")
        if self.rounds < 1 or self.lora_r < 0:
            raise UsageError(f"rounds is {self.rounds} and lora_r {self.lora_r}; at least 1 and 0 are needed.")
        if self.dtype not in ("float32", "bfloat16"):
            raise UsageError(f"dtype is {self.dtype!r}, but takes float32 or bfloat16.")


def make_trainer(kind: str, settings: BenchSettings, folder: Path) -> tuple[Any, list[list[Any]]]:
    """Return a trainer and, for each group, its batches."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from c2_syn import SynthesisSettings, _written_teacher, select_pairs
    from course_correction.generation.loading import keep_freed_memory, load_tokenizer
    from course_correction.generation.offline_models import resolve_model_name
    from course_correction.synthesis.ranked_groups import pairs_table, ranked_table
    from course_correction.training.settings import ObjectiveSettings
    from course_correction.training.trainer import GroupedDPOTrainer

    keep_freed_memory()
    synthesis = SynthesisSettings(max_requests=settings.rounds + 1)
    ranked = ranked_table(_written_teacher(synthesis)(select_pairs(synthesis)[0]))
    rows = Dataset(ranked if kind == "grouped" else pairs_table(ranked).select(["prompt", "chosen", "rejected"]))
    cuda = torch.cuda.is_available()
    training = DPOConfig(
        output_dir=str(folder / kind), use_cpu=not cuda, bf16=settings.dtype == "bfloat16", report_to="none",
        max_length=None,
        per_device_train_batch_size=1 if kind == "grouped" else settings.stock_batch, save_strategy="no",
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
    options = {"objective": ObjectiveSettings(), "benign_rows": []} if kind == "grouped" else {}
    trainer = (GroupedDPOTrainer if kind == "grouped" else DPOTrainer)(
        model, args=training, train_dataset=rows, processing_class=load_tokenizer(tokenizer_name, None, False),
        peft_config=adapter, **options,
    )  # fmt: skip
    dataset, collate = trainer.train_dataset, trainer.data_collator
    size, a_group = training.per_device_train_batch_size, 1 if kind == "grouped" else 15
    groups = []
    for group in range(settings.rounds + 1):
        starts = range(group * a_group, (group + 1) * a_group, size)
        groups.append([collate([dataset[index] for index in range(start, start + size)]) for start in starts])
    return trainer, groups


def work(kind: str, settings: BenchSettings, folder: Path, pipe: Any) -> None:
    """Time one group whenever told to; answer with seconds, packed tokens and loss, at the end with the peak memory."""
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
        pipe.send((time.perf_counter() - start, tokens, loss))
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send(peak / 2**30)


def main() -> None:
    """Let both take turns, print and save the comparison."""
    (settings,) = parse_settings([BenchSettings], description=__doc__)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        workers = {}
        for kind in KINDS:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(kind, settings, Path(folder), theirs), daemon=True)
            process.start()
            theirs.close()
            ours.recv()
            workers[kind] = ours
        rounds: list[dict[str, Any]] = []
        for number in range(settings.rounds + 1):
            found = {}
            # Who goes first changes from round to round.
            for kind in KINDS if number % 2 else KINDS[::-1]:
                workers[kind].send("go")
                seconds, tokens, loss = workers[kind].recv()
                found[kind] = {"seconds": seconds, "tokens": tokens, "loss": loss}
            ratio = found["stock"]["seconds"] / found["grouped"]["seconds"]
            label = "warm-up" if number == 0 else f"round {number}"
            logger.info(
                f"{label}: stock {15 / found['stock']['seconds']:.2f} pairs/s, grouped "
                f"{15 / found['grouped']['seconds']:.2f} pairs/s, ratio {ratio:.2f}, "
                f"losses {found['stock']['loss']:.5f} and {found['grouped']['loss']:.5f}"
            )
            if number:
                rounds.append(found | {"ratio": ratio})
        peaks = {kind: workers[kind].recv() for kind in KINDS}
    ratios = [entry["ratio"] for entry in rounds]
    speeds = {kind: statistics.median(15 / entry[kind]["seconds"] for entry in rounds) for kind in KINDS}
    tokens = {kind: sum(entry[kind]["tokens"] for entry in rounds) / len(rounds) for kind in KINDS}
    for kind in KINDS:
        print(f"{kind:8} {speeds[kind]:6.2f} pairs/s, {tokens[kind]:6.0f} tokens a group, peak memory {peaks[kind]:.2f} GiB")
    print(
        f"ratio    median {statistics.median(ratios):.2f}, range {min(ratios):.2f} to {max(ratios):.2f}, "
        f"{len(ratios)} rounds"
    )
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    result = {"settings": asdict(settings), "rounds": rounds, "peak_gib": peaks, "pairs_per_second": speeds}
    write_json(
        folder / "bench_dpo.json", result | {"ratio_median": statistics.median(ratios), "versions": library_versions()}
    )


if __name__ == "__main__":
    run_script(main)
