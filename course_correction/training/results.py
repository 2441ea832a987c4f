"""The results of a training: train_metrics.json, and the files beside the weights. Knows nothing of how it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import yaml

from course_correction.base.files import write_atomically, write_json
from course_correction.base.run_folder import library_versions
from course_correction.hub.model_card import write_model_card
from course_correction.hub.push_training import name_base_model
from course_correction.report.plots import plot_training
from course_correction.training.settings import TrainingData

if TYPE_CHECKING:
    from trl import DPOTrainer

METRICS_FILE = "train_metrics.json"
# What a row of training data is, by objective.
UNITS = {"grouped": "groups", "pairwise": "pairs"}


class TrainingFacts(TypedDict):
    """What is known of a training before its first step; part of train_metrics.json.

    Attributes:
        model: Public name of the trained model.
        dataset: Public name of the dataset.
        mix_with: Public names of the datasets mixed in.
        rows_digest: Digest of the rows.
        benign_digest: Digest of the benign rows.
        objective: `ObjectiveSettings`.
        rows: How many rows are trained on.
        rows_dropped_too_long: How many were dropped for their length.
        trainable_parameters: How many weights are trained.
        adapter: Whether these are an adapter's.
    """

    model: str
    dataset: str
    mix_with: list[str]
    rows_digest: str
    benign_digest: str
    objective: dict[str, Any]
    rows: int
    rows_dropped_too_long: int
    trainable_parameters: int
    adapter: bool


class TrainMetrics(TrainingFacts, total=False):
    """The content of train_metrics.json: the facts, what the trainer measured, and what decided it."""

    seconds: float
    train_runtime: float
    train_samples_per_second: float
    train_steps_per_second: float
    total_flos: float
    train_loss: float
    epoch: float
    rows_seen: int
    unit: str
    beta: float
    learning_rate: float
    seed: int
    versions: dict[str, str]
    log: list[dict[str, Any]]
    repo_id: str | None


@dataclass(frozen=True)
class BaseModelInfo:
    """The model that is trained.

    Attributes:
        name: Its Hub id, or the name of its folder.
        licence: Its licence, if known.
    """

    name: str
    licence: str | None


def make_metrics(
    trainer: DPOTrainer,
    facts: TrainingFacts,
    measured: dict[str, Any],
    seconds: float,
    repo_id: str | None,
) -> TrainMetrics:
    """Return the content of train_metrics.json.

    Args:
        trainer: The trainer, after training.
        facts: What was known before the first step.
        measured: What the trainer measured.
        seconds: How long training and saving took.
        repo_id: Where the model is pushed, if it is.
    """
    training = trainer.args
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    decided = {"beta": training.beta, "learning_rate": training.learning_rate, "seed": training.seed}
    metrics: Any = {
        **facts,
        "seconds": seconds,
        **measured,
        "rows_seen": trainer.state.global_step * rows_per_step,
        "unit": UNITS[facts["objective"]["objective"]],
        **decided,
        "versions": library_versions(),
        "log": trainer.state.log_history,
        "repo_id": repo_id,
    }
    return metrics


def write_card(folder: Path, base: BaseModelInfo, data: TrainingData, metrics: dict[str, Any]) -> None:
    """Write the model card."""
    write_model_card(folder, base.name, base.licence, [data.dataset_name, *data.mix_with], metrics)


def save_results(
    folder: Path,
    trainer: DPOTrainer,
    metrics: TrainMetrics,
    base: BaseModelInfo,
    data: TrainingData,
    recipe: dict[str, Any] | None,
) -> None:
    """Write what stands beside the weights; train_metrics.json last, because it marks a finished training."""
    trainer.processing_class.save_pretrained(folder)
    name_base_model(folder, base.name)
    write_card(folder, base, data, dict(metrics))
    if recipe:
        write_atomically(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    plot_training(metrics["log"], folder / "training.png")
    write_json(folder / METRICS_FILE, metrics)
