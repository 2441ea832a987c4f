"""The command line of a training: its settings, and what the machine at hand decides. Imports nothing heavy for `--help`."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from course_correction.base.settings import given_names, given_settings, parse_settings
from course_correction.training.settings import ObjectiveSettings, TrainingData

if TYPE_CHECKING:
    from trl import DPOConfig, ModelConfig

logger = logging.getLogger(__name__)

_SETTINGS_OF_TRL = """
The settings of TRL apply too: every field of trl.DPOConfig (output_dir, beta, learning_rate, max_length, max_steps, ...) and
of trl.ModelConfig (model_name_or_path, use_peft, lora_r, load_in_4bit, ...).
"""

Settings = tuple[TrainingData, ObjectiveSettings, "DPOConfig", "ModelConfig"]


def parse_command_line(description: str, arguments: Sequence[str] | None = None) -> tuple[Settings, dict[str, Any]]:
    """Read the settings of a training; without CUDA it runs on the CPU, in float32 where that has no bfloat16.

    Args:
        description: The script's, for `--help`.
        arguments: The command line; that of the process by default.

    Returns:
        The settings, and those of them that were given, as a recipe.

    Raises:
        UsageError: As for `parse_settings`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words:
        # TRL's settings take seconds to import, so --help lists those of this project and names TRL's.
        parse_settings([TrainingData, ObjectiveSettings], ["--help"], description + _SETTINGS_OF_TRL)
    _silence_libraries()
    import torch
    from trl import DPOConfig, ModelConfig

    from course_correction.generation.loading import has_fast_bfloat16

    classes = [TrainingData, ObjectiveSettings, DPOConfig, ModelConfig]
    if not torch.cuda.is_available() and not any(word.startswith("--use_cpu") for word in words):
        logger.info("No CUDA device: training on the CPU (--use_cpu true).")
        words = ["--use_cpu", "true", *words]
    data, objective, training, model_arguments = parse_settings(classes, words)
    if training.bf16 and "bf16" not in given_names(words) and not has_fast_bfloat16():
        # TRL's default is autocast to bfloat16.
        logger.info("This CPU has no bfloat16 arithmetic: training in float32 (--bf16 false).")
        words = ["--bf16", "false", *words]
        data, objective, training, model_arguments = parse_settings(classes, words)
    settings = (data, objective, training, model_arguments)
    return settings, given_settings(settings, words)


def _silence_libraries() -> None:
    """Hide warnings about defaults of the libraries, which no user of this project can change."""
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
