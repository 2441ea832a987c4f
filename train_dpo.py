"""Train course-correction by DPO on C²-Syn: LoRA, QLoRA or all weights, by recipe.

`objective: grouped` computes a ranked group's 15 pair losses from its 6 responses; `objective: pairwise` is stock TRL.

accelerate launch train_dpo.py --config recipes/smollm2-135m/dpo_lora.yaml --output_dir runs/dpo
accelerate launch --config_file recipes/accelerate/zero3.yaml train_dpo.py --config recipes/llama2-7b-chat/dpo_full.yaml
"""

import json
import logging
import re
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest, write_atomically, write_json
from course_correction.base.redaction import public_name
from course_correction.base.run_folder import library_versions, refuse_other_settings
from course_correction.base.settings import given_names, given_settings, parse_settings
from course_correction.training.data import TrainingData, check_lengths, load_rows, read_retention_rows, rows_digest
from course_correction.training.settings import ObjectiveSettings

logger = logging.getLogger("course_correction")


def build_trainer(
    data: TrainingData, objective: ObjectiveSettings, training: Any, model_arguments: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the trainer, ready to train, and facts for train_metrics.json."""
    from trl import get_peft_config, get_quantization_config

    from course_correction.generation.loading import explain_loading_error, keep_freed_memory, load_tokenizer, pick_dtype
    from course_correction.generation.offline_models import pinned_revision, resolve_model_name
    from course_correction.training.callbacks import PairwiseDPOTrainer

    keep_freed_memory()
    name = model_arguments.model_name_or_path
    if not name:
        raise UsageError("model_name_or_path is not set. Name a chat model.")
    if training.truncation_mode != "keep_start":
        raise UsageError("truncation_mode has no effect here: rows are refused or dropped, never cut.")
    tokenizer = load_tokenizer(name, model_arguments.model_revision, training.trust_remote_code)
    rows, num_long = check_lengths(load_rows(data, objective.objective), tokenizer, training.max_length, data.drop_long_rows)
    model_arguments.dtype = pick_dtype(model_arguments.dtype)
    quantization = get_quantization_config(model_arguments)
    training.model_init_kwargs = {
        "revision": pinned_revision(name, model_arguments.model_revision),
        "attn_implementation": model_arguments.attn_implementation,
        "dtype": model_arguments.dtype,
        "trust_remote_code": training.trust_remote_code,
    }
    options: dict[str, Any] = {}
    benign_rows: list[dict[str, Any]] = []
    trainer_class = PairwiseDPOTrainer
    if objective.objective == "grouped":
        from course_correction.training.trainer import GroupedDPOTrainer

        trainer_class = GroupedDPOTrainer
        if objective.retention_weight:
            benign_rows = read_retention_rows(data.retention_file)
        options = {"objective": objective, "benign_rows": benign_rows}
    try:
        trainer = trainer_class(
            resolve_model_name(name),
            args=training,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_arguments),
            quantization_config=quantization,
            **options,
        )
    except OSError as error:
        raise explain_loading_error(name, error) from None
    trained = [weights for weights in trainer.model.parameters() if weights.requires_grad]
    # Under ZeRO-3 a parameter that is not gathered is empty.
    trainable = sum(getattr(weights, "ds_numel", weights.numel()) for weights in trained)
    facts = {
        "model": public_name(name),
        "dataset": public_name(data.dataset_name),
        "mix_with": [public_name(name) for name in data.mix_with],
        "rows_digest": rows_digest(rows),
        "benign_digest": text_digest(*(f"{row['prompt']} {row['response']}" for row in benign_rows)),
        "objective": asdict(objective),
        "rows": len(rows),
        "rows_dropped_too_long": num_long,
        "trainable_parameters": trainable,
        "adapter": bool(model_arguments.use_peft),
    }
    return trainer, facts


def train(
    data: TrainingData,
    objective: ObjectiveSettings,
    training: Any,
    model_arguments: Any,
    recipe: dict[str, Any] | None = None,
) -> Path:
    """Train, then save the adapter or model, the tokenizer and `train_metrics.json`; push if the recipe says so.

    A finished training in the folder is pushed without training again; without a push it is refused.

    Args:
        data: Which rows.
        objective: What is minimised.
        training: trl.DPOConfig.
        model_arguments: trl.ModelConfig.
        recipe: The settings that were given, for recipe.yaml.

    Returns:
        The output folder.
    """
    import torch
    import yaml

    from course_correction.generation.offline_models import base_model_id
    from course_correction.hub.model_card import write_model_card
    from course_correction.hub.push import HubRepo
    from course_correction.hub.push_training import (
        PushCheckpoints,
        find_checkpoint,
        name_base_model,
        open_model_repo,
        push_model,
    )
    from course_correction.report.plots import plot_training
    from course_correction.training.callbacks import memory_advice

    folder = Path(training.output_dir)
    # A token that may not write is found now. The trainer's own pushes stay off: see published_training.py.
    repo, is_first = None, training.process_index == 0
    if training.push_to_hub:
        repo = open_model_repo(training) if is_first else HubRepo(training.hub_model_id, "model")
        training.push_to_hub = False
    base_model, licence = base_model_id(model_arguments.model_name_or_path or "")
    if (folder / "train_metrics.json").exists():
        if repo is None:
            raise UsageError(f"{folder} holds a finished training. Give another --output_dir, or remove that folder.")
        logger.info(f"{folder} holds a finished training, which is pushed as it is.")
        leave_processes()
        if is_first:
            metrics = json.loads((folder / "train_metrics.json").read_text()) | {"repo_id": repo.repo_id}
            write_model_card(folder, base_model, licence, [data.dataset_name, *data.mix_with], metrics)
            logger.info(f"Pushed: {push_model(repo, folder, base_model)}")
        return folder
    trainer, facts = build_trainer(data, objective, training, model_arguments)
    checkpoint = find_checkpoint(training.resume_from_checkpoint, folder, repo, trainer.accelerator)
    pushing = None
    if repo is not None:
        pushing = PushCheckpoints(repo, training.hub_strategy, base_model)
        trainer.add_callback(pushing)
    identity = json.loads(json.dumps(facts | training_identity(training, model_arguments)))
    if trainer.accelerator.is_main_process:
        if checkpoint and (folder / "run.json").exists():
            refuse_other_settings(folder, json.loads((folder / "run.json").read_text())["training"]["settings"], identity)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", {"training": {"settings": identity, "versions": library_versions()}})
    unit = "groups" if objective.objective == "grouped" else "pairs"
    logger.info(f"Training {facts['trainable_parameters']:,} parameters on {facts['rows']:,} {unit}")
    start = time.monotonic()
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # The CPU's allocator raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and not re.search("out of memory|can't allocate memory", str(error)):
            raise
        names = "per_device_train_batch_size", "max_length", "retention_rows", "transition_rows"
        values = {name: getattr(training, name, getattr(objective, name, None)) for name in names}
        raise UsageError(memory_advice(values)) from None
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        trainer.processing_class.save_pretrained(folder)
        metrics = {**facts, "seconds": round(time.monotonic() - start, 1), **result.metrics}
        rows_a_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
        metrics["rows_seen"] = trainer.state.global_step * rows_a_step
        metrics["unit"] = unit
        metrics |= {"beta": training.beta, "learning_rate": training.learning_rate, "seed": training.seed}
        metrics |= {"versions": library_versions(), "log": trainer.state.log_history}
        metrics["repo_id"] = repo.repo_id if repo else None
        name_base_model(folder, base_model)
        write_model_card(folder, base_model, licence, [data.dataset_name, *data.mix_with], metrics)
        if recipe:
            write_atomically(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        plot_training(trainer.state.log_history, folder / "training.png")
        write_json(folder / "train_metrics.json", metrics)
    # A push may take longer than processes wait for one another.
    leave_processes()
    if repo is not None and is_first:
        pushing.finish()
        logger.info(f"Pushed: {push_model(repo, folder, base_model)}")
    return folder


def leave_processes() -> None:
    """Let the processes of a launch go their own ways, once all have come here."""
    import torch

    if torch.distributed.is_initialized():
        # Left to the interpreter's end, a process group's threads now and then abort the process.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def training_identity(training: Any, model_arguments: Any) -> dict[str, Any]:
    """Return the settings of TRL that decide the trained weights: a checkpoint made under others is not gone on from."""
    names = (
        "learning_rate lr_scheduler_type warmup_steps max_steps num_train_epochs per_device_train_batch_size optim beta "
        "gradient_accumulation_steps weight_decay max_grad_norm loss_type max_length seed bf16 fp16 world_size"
    )
    adapter = (
        "dtype attn_implementation load_in_4bit use_peft lora_r lora_alpha lora_dropout lora_target_modules model_revision"
    )
    found = {name: getattr(training, name) for name in names.split()}
    found |= {name: getattr(model_arguments, name) for name in adapter.split()}
    return {
        name: value if isinstance(value, (int, float, list, type(None))) else str(value) for name, value in found.items()
    }


def main() -> None:
    """Parse, train, say where the result is."""
    if "--help" in sys.argv or "-h" in sys.argv:
        # TRL's settings take seconds to import, so --help shows this project's and names theirs.
        import argparse

        from trl import TrlParser

        TrlParser(
            [TrainingData, ObjectiveSettings],
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

    from course_correction.generation.loading import has_fast_bfloat16

    if not torch.cuda.is_available() and not any(argument.startswith("--use_cpu") for argument in sys.argv):
        logger.info("No CUDA device: training on the CPU (--use_cpu true).")
        sys.argv[1:1] = ["--use_cpu", "true"]
    classes = [TrainingData, ObjectiveSettings, DPOConfig, ModelConfig]
    parts = _, _, training, _ = parse_settings(classes)
    if training.bf16 and "bf16" not in given_names() and not has_fast_bfloat16():
        # TRL's default is autocast to bfloat16.
        logger.info("This CPU has no bfloat16 arithmetic: training in float32 (--bf16 false).")
        sys.argv[1:1] = ["--bf16", "false"]
        parts = parse_settings(classes)
    folder = train(*parts, recipe=given_settings(classes, parts))
    logger.info(f"Saved to {folder}")
    leave_processes()


if __name__ == "__main__":
    run_script(main)
