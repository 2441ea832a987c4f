"""The settings that decide the trained weights, as run.json records them. A training resumes only under the same ones."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from course_correction.base.redaction import public_value
from course_correction.base.settings import identity_of
from course_correction.training.settings import ObjectiveSettings, TrainingData

if TYPE_CHECKING:
    from trl import DPOConfig, ModelConfig

# Fields of DPOConfig and ModelConfig that may differ when a training resumes. Every other field, including those of later
# versions of TRL, decides the weights.
EXEMPT = frozenset(
    {
        # Where checkpoints go, and when they are written.
        *("output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
        *("enable_jit_checkpoint", "resume_from_checkpoint", "restore_callback_states_from_checkpoint"),
        # Logs and trackers.
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level"),
        *("log_level_replica", "log_on_each_node", "include_num_input_tokens_seen", "disable_tqdm", "report_to", "run_name"),
        *("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug", "skip_memory_metrics"),
        # The Hub.
        *("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision"),
        # Evaluation by the trainer, which has no rows to evaluate on.
        *("do_train", "do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object", "per_device_eval_batch_size"),
        *("prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),
        # How rows are read, not which or in what order.
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
        *("dataloader_multiprocessing_context", "dataset_num_proc"),
        # Memory against time: the same values, computed again, kept elsewhere or computed beforehand.
        *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "activation_offloading", "torch_empty_cache_steps"),
        *("precompute_ref_log_probs", "precompute_ref_batch_size"),
        # The devices and the traffic among them; `world_size` records how many there are.
        *("use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "ddp_find_unused_parameters", "ddp_bucket_cap_mb"),
        *("ddp_broadcast_buffers", "ddp_static_graph", "deepspeed", "fsdp", "fsdp_config", "parallelism_config"),
        # Recorded by other names: `model`, and the fields of ModelConfig.
        *("model_name_or_path", "model_init_kwargs"),
    }
)


def training_identity(
    data: TrainingData,
    objective: ObjectiveSettings,
    training: DPOConfig,
    model_arguments: ModelConfig,
    contents: dict[str, str],
) -> dict[str, Any]:
    """Return what decides the trained weights, as JSON values by name.

    Args:
        data: Which rows; recorded by public names, because a training may resume on another machine.
        objective: The minimised terms.
        training: TRL's settings.
        model_arguments: TRL's settings of model and adapter, with `dtype` resolved.
        contents: What the names stand for: the public name of the model and digests of the rows.
    """
    identity = public_value(identity_of(data, "training")) | identity_of(objective, "training")
    for settings in (training, model_arguments):
        for one in fields(settings):
            if one.name not in EXEMPT:
                identity[one.name] = _json_value(getattr(settings, one.name))
    return json.loads(json.dumps(identity | {"world_size": training.world_size} | contents))


def _json_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return _json_value(asdict(value))
    if isinstance(value, dict):
        return {str(key): _json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(entry) for entry in value]
    return value if isinstance(value, str | int | float | type(None)) else str(value)
