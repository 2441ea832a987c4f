"""Settings of TRL that a training parses, records and then ignores: refused by name, so that nobody believes in them."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from course_correction.base.errors import UsageError

if TYPE_CHECKING:
    from trl import DPOConfig

# What DPOConfig adds to TrainingArguments and the grouped objective uses too. It has a loss of its own, so every other
# field, and every field that a later TRL adds, does nothing there.
USED_BY_GROUPED = frozenset(
    {
        *("beta", "max_length", "precompute_ref_log_probs", "dataset_num_proc", "trust_remote_code", "disable_dropout"),
        "activation_offloading",
        # Refused or set elsewhere.
        *("model_init_kwargs", "truncation_mode"),
    }
)
# Transformers' loss terms that neither objective computes.
_UNUSED_LOSS = frozenset({"label_smoothing_factor"})
_UNUSED_LOSS_GROUPED = frozenset({"use_liger_kernel", "liger_kernel_config"})


def refuse_unused_settings(training: DPOConfig, grouped: bool) -> None:
    """Refuse settings that have no effect and differ from their default.

    Args:
        training: TRL's settings.
        grouped: Whether the objective is `grouped`, not stock TRL's.

    Raises:
        UsageError: Naming each of them with its value.
    """
    default = type(training)(output_dir=training.output_dir, use_cpu=training.use_cpu, bf16=training.bf16)
    changed = {
        one.name: getattr(training, one.name)
        for one in fields(training)
        if is_unused(one.name, type(training), grouped)
        and not _same(getattr(training, one.name), getattr(default, one.name))
    }
    if not changed:
        return
    given = ", ".join(f"{name} {value!r}" for name, value in changed.items())
    where = "with objective: grouped" if grouped else "here"
    raise UsageError(
        f"These settings have no effect {where}: {given}. Remove them; a trained model is evaluated by eval.py"
        f"{', and stock DPO is objective: pairwise' if grouped else ''}."
    )


def is_unused(name: str, config: type[DPOConfig], grouped: bool) -> bool:
    """Return whether a setting has no effect: all about evaluation by the trainer, and losses that are not computed."""
    from transformers import TrainingArguments

    inherited = {one.name for one in fields(TrainingArguments)}
    if name in inherited:
        return _is_about_evaluation(name) or name in _UNUSED_LOSS or (grouped and name in _UNUSED_LOSS_GROUPED)
    return grouped and name in {one.name for one in fields(config)} and name not in USED_BY_GROUPED


def _is_about_evaluation(name: str) -> bool:
    """Return whether the setting is about evaluation by the trainer, which has no rows to evaluate on."""
    words = name.split("_")
    return "eval" in words or "best" in words or name in ("do_predict", "greater_is_better", "include_for_metrics")


def _same(value: Any, default: Any) -> bool:
    return value == default or str(value) == str(default)
