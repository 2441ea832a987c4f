"""Fixtures and helpers of the tests that train: a small dataset, and settings of a short training."""

from pathlib import Path

import pytest

from tests.support.rows import write_rows

NUM_GROUPS = 3
OBJECTIVES = ["pairwise", "grouped"]
# Every term of the grouped objective.
TERMS = {"correction_nll_weight": 1.0, "transition_weight": 0.5, "transition_rows": 2, "retention_weight": 1.0}
# TRL's trainer checks bf16 against the machine at hand; the recipes for GPUs must parse on any.
ON_CPU = ["--use_cpu", "true", "--bf16", "false"]


@pytest.fixture
def own_dataset_cache(tmp_path_factory, monkeypatch):
    """Keep what `datasets` caches out of the user's home."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory) -> Path:
    """C²-Syn of three requests of the seed set."""
    from course_correction.hub.dataset_exports import C2SynSettings, export_c2_syn
    from course_correction.synthesis.run import synthesize

    folder = tmp_path_factory.mktemp("c2-syn")
    settings = C2SynSettings(max_requests=NUM_GROUPS, output_dir=str(folder / "run"))
    export_c2_syn(synthesize(settings), folder / "export", settings)
    return folder / "export"


def write_dataset(folder: Path, pairs: list[dict] | None = None, ranked: list[dict] | None = None) -> Path:
    """Write rows as a dataset folder with the configs that training reads."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = ""
    for name, rows in (("pairs", pairs), ("ranked", ranked)):
        if rows is not None:
            write_rows(folder / f"{name}.jsonl", rows)
            configs += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


def read_rows(dataset_folder: Path, config: str) -> list[dict]:
    import pyarrow.parquet as parquet

    files = sorted((dataset_folder / config).glob("*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


@pytest.fixture
def parse(tiny_model_folder, dataset_folder, tmp_path):
    """Make the settings of a short training into tmp_path/out, as the script makes them."""

    def make(*arguments: str, **changes):
        from trl import DPOConfig, ModelConfig

        from course_correction.base.settings import parse_settings
        from course_correction.training.settings import ObjectiveSettings, TrainingData

        values = {
            "model_name_or_path": tiny_model_folder, "dataset_name": dataset_folder, "output_dir": tmp_path / "out",
            "use_cpu": True, "bf16": False, "dtype": "float32", "max_steps": 2, "learning_rate": 0.01,
            "lr_scheduler_type": "constant", "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no",
            "report_to": "none", "disable_tqdm": True, "use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear",
            "max_length": 2048, "activation_checkpointing": False,
        } | changes  # fmt: skip
        words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return parse_settings([TrainingData, ObjectiveSettings, DPOConfig, ModelConfig], [*words, *arguments])

    return make


def snapshot(model) -> dict:
    return {name: weights.detach().clone() for name, weights in model.named_parameters()}


def changed(model, before: dict) -> dict[str, bool]:
    return {name: not weights.detach().equal(before[name]) for name, weights in model.named_parameters()}
