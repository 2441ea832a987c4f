"""Run a training: from its settings to a saved model with its metrics, pushed if asked for."""

from __future__ import annotations

import json
import logging
import re
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerState
from trl import get_peft_config, get_quantization_config

from course_correction.base.checkpoints import STATE_FILE, last_whole_checkpoint
from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest, write_json
from course_correction.base.redaction import public_name
from course_correction.base.run_folder import RUN_FILE, claim_folder, library_versions, refuse_other_settings
from course_correction.generation.loading import explain_loading_error, keep_freed_memory, load_tokenizer, pick_dtype
from course_correction.generation.offline_models import base_model_id, pinned_revision, resolve_model_name
from course_correction.hub.push import HubRepo
from course_correction.hub.push_training import PushCheckpoints, find_checkpoint, open_model_repo, push_model
from course_correction.training.data import check_lengths, load_rows, read_retention_rows, rows_digest
from course_correction.training.identity import training_identity
from course_correction.training.results import (
    METRICS_FILE,
    UNITS,
    BaseModelInfo,
    TrainingFacts,
    make_metrics,
    save_results,
    write_card,
)
from course_correction.training.settings import ObjectiveSettings, TrainingData
from course_correction.training.trainer import GroupedDPOTrainer
from course_correction.training.unused_settings import refuse_unused_settings
from course_correction.training.watched_trainer import WatchedDPOTrainer

if TYPE_CHECKING:
    from trl import DPOConfig, ModelConfig

logger = logging.getLogger(__name__)


def build_trainer(
    data: TrainingData, objective: ObjectiveSettings, training: DPOConfig, model_arguments: ModelConfig
) -> tuple[WatchedDPOTrainer, TrainingFacts]:
    """Load rows, tokenizer and model.

    Args:
        data: Which rows.
        objective: The minimised terms.
        training: TRL's settings; `model_init_kwargs` is set.
        model_arguments: TRL's settings of model and adapter; `dtype` is resolved.

    Returns:
        The trainer, and facts for train_metrics.json.

    Raises:
        UsageError: If a setting or a row does not fit, or the model cannot be loaded.
    """
    keep_freed_memory()
    is_grouped = objective.objective == "grouped"
    name = _check_settings(training, model_arguments, is_grouped)
    tokenizer = load_tokenizer(name, model_arguments.model_revision, training.trust_remote_code)
    rows, num_long = check_lengths(load_rows(data, objective.objective), tokenizer, training.max_length, data.drop_long_rows)
    benign_rows = read_retention_rows(data.retention_file) if objective.retention_weight else []
    model_arguments.dtype = pick_dtype(model_arguments.dtype)
    training.model_init_kwargs = {
        "revision": pinned_revision(name, model_arguments.model_revision),
        "attn_implementation": model_arguments.attn_implementation,
        "dtype": model_arguments.dtype,
        "trust_remote_code": training.trust_remote_code,
    }
    terms: dict[str, Any] = {"objective": objective, "benign_rows": benign_rows} if is_grouped else {}
    try:
        trainer = (GroupedDPOTrainer if is_grouped else WatchedDPOTrainer)(
            resolve_model_name(name),
            args=training,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_arguments),
            quantization_config=get_quantization_config(model_arguments),
            **terms,
        )
    except OSError as error:
        raise explain_loading_error(name, error) from None
    facts = TrainingFacts(
        model=public_name(name),
        dataset=public_name(data.dataset_name),
        mix_with=[public_name(name) for name in data.mix_with],
        rows_digest=rows_digest(rows),
        benign_digest=text_digest(*(f"{row['prompt']} {row['response']}" for row in benign_rows)),
        objective=asdict(objective),
        rows=len(rows),
        rows_dropped_too_long=num_long,
        trainable_parameters=_count_trainable(trainer.model),
        adapter=bool(model_arguments.use_peft),
    )
    return trainer, facts


def _check_settings(training: DPOConfig, model_arguments: ModelConfig, grouped: bool) -> str:
    """Refuse settings of TRL that have no effect here, and return the model's name."""
    if not model_arguments.model_name_or_path:
        raise UsageError("model_name_or_path is not set. Name a chat model.")
    if training.truncation_mode != "keep_start":
        raise UsageError("truncation_mode has no effect here: rows are refused or dropped, never cut.")
    # TRL takes any number. A model is pushed away from what it should prefer by a beta below 0.
    if not training.beta > 0:
        raise UsageError(f"beta is {training.beta}, but must be above 0.")
    if training.learning_rate != training.learning_rate or training.learning_rate < 0:
        raise UsageError(f"learning_rate is {training.learning_rate}, but must be at least 0.")
    if model_arguments.use_peft and (model_arguments.lora_r or 0) < 1:
        raise UsageError(f"lora_r is {model_arguments.lora_r}, but must be at least 1.")
    refuse_unused_settings(training, grouped)
    if training.model_init_kwargs:
        raise UsageError("model_init_kwargs has no effect here. Set model_revision, dtype or attn_implementation.")
    return model_arguments.model_name_or_path


def _count_trainable(model: torch.nn.Module) -> int:
    # Under ZeRO-3 a parameter that is not gathered is empty.
    trained = (weights for weights in model.parameters() if weights.requires_grad)
    return sum(getattr(weights, "ds_numel", weights.numel()) for weights in trained)


def train(
    data: TrainingData,
    objective: ObjectiveSettings,
    training: DPOConfig,
    model_arguments: ModelConfig,
    recipe: dict[str, Any] | None = None,
) -> Path:
    """Train, then save the adapter or model, the tokenizer and train_metrics.json; push if the settings say so.

    A finished training in the folder is pushed without training again. Without a push it is refused.

    Args:
        data: Which rows.
        objective: The minimised terms.
        training: TRL's settings.
        model_arguments: TRL's settings of model and adapter.
        recipe: The settings that were given, for recipe.yaml.

    Returns:
        The output folder.

    Raises:
        UsageError: As for `build_trainer`; or if the folder holds another training, a loss is not finite, memory runs out,
            or the Hub refuses.
    """
    folder, is_main = Path(training.output_dir), training.process_index == 0
    # A token that may not push is found before a folder is made.
    repo = _open_repo(training, is_main)
    with claim_folder(folder, "training") if is_main else nullcontext():
        return _train(folder, repo, is_main, data, objective, training, model_arguments, recipe)


def _train(
    folder: Path,
    repo: HubRepo | None,
    is_main: bool,
    data: TrainingData,
    objective: ObjectiveSettings,
    training: DPOConfig,
    model_arguments: ModelConfig,
    recipe: dict[str, Any] | None,
) -> Path:
    base = BaseModelInfo(*base_model_id(model_arguments.model_name_or_path or ""))
    if (folder / METRICS_FILE).exists():
        _push_finished(folder, repo, base, data, is_main)
        return folder
    if not training.resume_from_checkpoint and (interrupted := last_whole_checkpoint(folder)):
        raise UsageError(
            f"{folder} holds an interrupted training with {interrupted.name}. Continue it with --resume_from_checkpoint "
            "last, set another --output_dir, or remove that folder."
        )
    trainer, facts = build_trainer(data, objective, training, model_arguments)
    checkpoint = find_checkpoint(training.resume_from_checkpoint, folder, repo, trainer.accelerator)
    pushing = PushCheckpoints(repo, training.hub_strategy, base.name) if repo else None
    if pushing:
        trainer.add_callback(pushing)
    if is_main:
        contents = {name: facts[name] for name in ("model", "rows_digest", "benign_digest")}
        identity = training_identity(data, objective, training, model_arguments, contents)
        _record_settings(folder, identity, resumes=checkpoint is not None)
    logger.info(f"Training {facts['trainable_parameters']:,} parameters on {facts['rows']:,} {UNITS[objective.objective]}")
    start = time.monotonic()
    measured = _run_trainer(trainer, checkpoint, objective)
    trainer.save_model()
    if is_main:
        seconds = round(time.monotonic() - start, 1)
        metrics = make_metrics(trainer, facts, measured, seconds, repo.repo_id if repo else None)
        save_results(folder, trainer, metrics, base, data, recipe)
    # A push may take longer than processes wait for one another.
    leave_processes()
    if repo and pushing and is_main:
        pushing.finish()
        logger.info(f"Pushed: {push_model(repo, folder, base.name)}")
    return folder


def _open_repo(training: DPOConfig, is_main: bool) -> HubRepo | None:
    """Return where to push, after a check that the token may write there; None without a push."""
    if not training.push_to_hub:
        return None
    # The trainer's own pushes stay off; hub/push_training.py says why.
    training.push_to_hub = False
    return open_model_repo(training) if is_main else HubRepo(training.hub_model_id, "model")


def _push_finished(folder: Path, repo: HubRepo | None, base: BaseModelInfo, data: TrainingData, is_main: bool) -> None:
    if repo is None:
        raise UsageError(f"{folder} holds a finished training. Give another --output_dir, or remove that folder.")
    logger.info(f"{folder} holds a finished training, which is pushed without training again.")
    leave_processes()
    if is_main:
        metrics = json.loads((folder / METRICS_FILE).read_text()) | {"repo_id": repo.repo_id}
        write_card(folder, base, data, metrics)
        logger.info(f"Pushed: {push_model(repo, folder, base.name)}")


def _record_settings(folder: Path, identity: dict[str, Any], resumes: bool) -> None:
    """Write run.json, after a check that a resumed training has the settings that it holds."""
    path = folder / RUN_FILE
    if resumes and path.exists():
        refuse_other_settings(folder, json.loads(path.read_text())["training"]["settings"], identity)
    write_json(path, {"training": {"settings": identity, "versions": library_versions()}})


def _run_trainer(trainer: WatchedDPOTrainer, checkpoint: str | None, objective: ObjectiveSettings) -> dict[str, Any]:
    """Train, and return what the trainer measured. From a checkpoint of the last step, only its weights are loaded."""
    if checkpoint and (finished := _finished_state(trainer, checkpoint)):
        return finished
    try:
        return trainer.train(resume_from_checkpoint=checkpoint).metrics
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # The CPU's allocator raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and not re.search("out of memory|can't allocate memory", str(error)):
            raise
        names = "per_device_train_batch_size", "max_length", "retention_rows", "transition_rows"
        values = {name: getattr(trainer.args, name, getattr(objective, name, None)) for name in names}
        raise UsageError(_memory_advice(values)) from None


def _finished_state(trainer: WatchedDPOTrainer, checkpoint: str) -> dict[str, Any] | None:
    """Load the weights of a checkpoint of the last step and return its measures; None if steps are left.

    The trainer's own loop would take one step more. It alone can load sharded weights, so those take that step.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE))
    if state.global_step < state.max_steps or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return None
    logger.info(f"{Path(checkpoint).name} is of the last step: no step is left.")
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = state
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return {
        "train_runtime": 0.0,
        "train_samples_per_second": 0.0,
        "train_steps_per_second": 0.0,
        "total_flos": float(state.total_flos),
        "train_loss": sum(losses) / len(losses) if losses else float("nan"),
        "epoch": float(state.epoch or 0),
    }


def _memory_advice(settings: dict[str, int | None]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in settings.items() if value)
    return (
        f"Out of memory with {values}. Lower per_device_train_batch_size (and raise gradient_accumulation_steps), then "
        "retention_rows, retention_tokens and transition_rows; set activation_checkpointing true, or load_in_4bit true."
    )


def leave_processes() -> None:
    """Part from the other processes of the launch, once all have come here."""
    if torch.distributed.is_initialized():
        # A process group that is left to the interpreter's exit sometimes aborts the process by its threads.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
