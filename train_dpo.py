"""Train course-correction by DPO on C²-Syn's pairs: LoRA, QLoRA or all weights, by recipe.

accelerate launch train_dpo.py --config recipes/smollm2-135m/dpo_lora.yaml --output_dir runs/dpo
accelerate launch --config_file recipes/accelerate/zero3.yaml train_dpo.py --config recipes/llama2-7b-chat/dpo_full.yaml
"""

import logging
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course_correction.run_files import UsageError, library_versions, write_json
from course_correction.settings import announce, parse_settings, run_script

PAIR_COLUMNS = ("prompt", "chosen", "rejected")


@dataclass
class TrainingData:
    """Which pairs are trained on."""

    dataset_name: str = field(default="c2-syn", metadata={"help": "Hub id or folder of C²-Syn"})
    dataset_config: str | None = field(default="pairs", metadata={"help": "its config"})
    dataset_split: str = field(default="train", metadata={"help": "its split"})
    dataset_revision: str | None = field(default=None, metadata={"help": "its revision on the Hub"})
    max_groups: int | None = field(default=None, metadata={"help": "train on the pairs of the first n requests only"})
    drop_long_rows: bool = field(
        default=False, metadata={"help": "drop pairs longer than max_length, with a count, instead of refusing"}
    )


def load_pairs(data: TrainingData) -> Any:
    """Load and check the pairs.

    Raises:
        UsageError: If they cannot be loaded, a column is missing, or a row has a null or empty text.
    """
    from datasets import load_dataset

    try:
        pairs = load_dataset(
            data.dataset_name, data.dataset_config, split=data.dataset_split, revision=data.dataset_revision
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"The dataset {data.dataset_name} cannot be loaded: {reason}") from None
    missing = [column for column in PAIR_COLUMNS if column not in pairs.column_names]
    if missing:
        raise UsageError(
            f"{data.dataset_name} lacks the columns {', '.join(missing)}; it has {', '.join(pairs.column_names)}. "
            "Train on the config `pairs`."
        )
    if data.max_groups is not None and "request_id" in pairs.column_names:
        wanted = set(list(dict.fromkeys(pairs["request_id"]))[: data.max_groups])
        pairs = pairs.filter(lambda name: name in wanted, input_columns="request_id")
    pairs = pairs.select_columns(list(PAIR_COLUMNS))
    for number, row in enumerate(pairs, 1):
        turns = [turn for column in PAIR_COLUMNS for turn in (row[column] or [{}])]
        if not all(isinstance(turn.get("content"), str) and turn["content"].strip() for turn in turns):
            raise UsageError(f"{data.dataset_name}: row {number} has a null or empty text. Remove that row.")
    if len(pairs) == 0:
        raise UsageError(f"{data.dataset_name} holds no pair to train on.")
    return pairs


def check_lengths(pairs: Any, tokenizer: Any, max_length: int | None, drop_long_rows: bool) -> tuple[Any, int]:
    """Refuse or drop pairs longer than `max_length` tokens: cutting them would cut off the corrections at their ends.

    Returns:
        The pairs that are left, and how many were dropped.

    Raises:
        UsageError: If a pair is too long and is not to be dropped.
    """
    if max_length is None:
        return pairs, 0

    def longest_side(row: dict[str, Any]) -> int:
        sides = (row["prompt"] + row[side] for side in ("chosen", "rejected"))
        return max(len(tokenizer.apply_chat_template(side, tokenize=True, return_dict=False)) for side in sides)

    lengths = [longest_side(row) for row in pairs]
    fitting = [index for index, length in enumerate(lengths) if length <= max_length]
    num_long = len(lengths) - len(fitting)
    if num_long and not drop_long_rows:
        raise UsageError(
            f"{num_long} of {len(lengths)} pairs are longer than max_length {max_length} (the longest has {max(lengths)} "
            "tokens), and cutting them would cut off the corrections. Raise --max_length or set --drop_long_rows true."
        )
    if not fitting:
        raise UsageError(f"Every pair is longer than max_length {max_length}.")
    return pairs.select(fitting), num_long


def build_trainer(data: TrainingData, training: Any, model_arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Return TRL's trainer, ready to train, and facts for train_metrics.json."""
    from trl import DPOTrainer, get_peft_config, get_quantization_config

    from course_correction.loading import (
        explain_loading_error,
        keep_freed_memory,
        load_tokenizer,
        pinned_revision,
        resolve_model_name,
    )

    keep_freed_memory()
    name = model_arguments.model_name_or_path
    if not name:
        raise UsageError("model_name_or_path is not set. Name a chat model.")
    if training.truncation_mode != "keep_start":
        raise UsageError("truncation_mode has no effect here: rows are refused or dropped, never cut.")
    tokenizer = load_tokenizer(name, model_arguments.model_revision, training.trust_remote_code)
    pairs, num_long = check_lengths(load_pairs(data), tokenizer, training.max_length, data.drop_long_rows)
    quantization = get_quantization_config(model_arguments)
    training.model_init_kwargs = {
        "revision": pinned_revision(name, model_arguments.model_revision),
        "attn_implementation": model_arguments.attn_implementation,
        "dtype": model_arguments.dtype or "auto",
        "trust_remote_code": training.trust_remote_code,
    }
    try:
        trainer = DPOTrainer(
            resolve_model_name(name),
            args=training,
            train_dataset=pairs,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_arguments),
            quantization_config=quantization,
        )
    except OSError as error:
        raise explain_loading_error(name, error) from None
    trainable = sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad)
    facts = {
        "model": name,
        "dataset": data.dataset_name,
        "pairs": len(pairs),
        "pairs_dropped_too_long": num_long,
        "trainable_parameters": trainable,
        "adapter": bool(model_arguments.use_peft),
    }
    return trainer, facts


def train(data: TrainingData, training: Any, model_arguments: Any) -> Path:
    """Train, then save the adapter or model, the tokenizer and `train_metrics.json`; push if the recipe says so.

    Returns:
        The output folder.
    """
    from transformers.trainer_utils import get_last_checkpoint

    from course_correction.cards import write_model_card

    folder = Path(training.output_dir)
    if (folder / "train_metrics.json").exists():
        raise UsageError(f"{folder} holds a finished training. Give another --output_dir, or remove that folder.")
    trainer, facts = build_trainer(data, training, model_arguments)
    checkpoint = training.resume_from_checkpoint
    if checkpoint in {"true", "True", "last"}:
        checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if checkpoint is None:
            announce(f"No checkpoint in {folder}: training starts at the beginning.")
    announce(f"Training {facts['trainable_parameters']:,} parameters on {facts['pairs']:,} pairs")
    start = time.monotonic()
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        trainer.processing_class.save_pretrained(folder)
        metrics = {**facts, "seconds": round(time.monotonic() - start, 1), **result.metrics}
        pairs_a_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
        metrics["pairs_seen"] = trainer.state.global_step * pairs_a_step
        metrics |= {"beta": training.beta, "learning_rate": training.learning_rate, "seed": training.seed}
        metrics |= {"versions": library_versions(), "log": trainer.state.log_history}
        base_model, licence = base_model_id(facts["model"])
        name_base_model(folder, base_model)
        write_model_card(folder, base_model, licence, data.dataset_name, metrics)
        write_json(folder / "train_metrics.json", metrics)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=data.dataset_name)
    return folder


def base_model_id(name: str) -> tuple[str, str | None]:
    """Return the Hub id to call the trained model's base by, and its licence if known; never a path of this machine."""
    from course_correction.loading import OFFLINE_MODEL, OFFLINE_MODEL_HUB_ID

    if name == OFFLINE_MODEL:
        return OFFLINE_MODEL_HUB_ID, "apache-2.0"
    return (Path(name).name if Path(name).exists() else name), None


def name_base_model(folder: Path, base_model: str) -> None:
    """Put the base model's Hub id into a saved adapter's config, where PEFT writes the path it was loaded from."""
    import json

    path = folder / "adapter_config.json"
    if path.exists():
        config = json.loads(path.read_text())
        write_json(path, config | {"base_model_name_or_path": base_model})


def main() -> None:
    """Parse, train, say where the result is."""
    if "--help" in sys.argv or "-h" in sys.argv:
        # TRL's settings take seconds to import, so --help shows this project's and names theirs.
        import argparse

        from transformers.hf_argparser import HfArgumentParser

        HfArgumentParser(
            [TrainingData],
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="Also every field of trl.DPOConfig (beta, learning_rate, max_length, max_steps, ...) and of "
            "trl.ModelConfig (model_name_or_path, use_peft, lora_r, load_in_4bit, ...), and --config recipe.yaml.",
        ).parse_args()
    # What the libraries say of their own defaults, nobody here can act on.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import torch
    from trl import DPOConfig, ModelConfig

    if not torch.cuda.is_available() and not any(argument.startswith("--use_cpu") for argument in sys.argv):
        announce("No CUDA device: training on the CPU (--use_cpu true).")
        sys.argv += ["--use_cpu", "true"]
    folder = train(*parse_settings([TrainingData, DPOConfig, ModelConfig]))
    announce(f"Saved to {folder}")


if __name__ == "__main__":
    run_script(main)
