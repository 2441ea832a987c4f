"""Fixtures and helpers of the tests of C²-Eval: its items, settings of a small evaluation, an adapter."""

import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, read_data, write_rows

from course_correction.run_files import read_jsonl
from eval import EvaluationSettings

NUM_ITEMS = 16
SHORT_RESPONSE = "Just take it."
LENGTHS = [5, 12, 20]


def make_items(count: int) -> list[dict]:
    rows = read_data("requests_eval")[:count]
    return [{name: row[name] for name in ("request_id", "request", "full_harmful_response")} for row in rows]


@pytest.fixture(scope="module")
def items_file(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("items") / "items.jsonl", make_items(NUM_ITEMS))


@pytest.fixture
def settings_for(tmp_path, items_file, tiny_model_folder):
    """Make settings of a small evaluation into tmp_path/<name>."""

    def make(name: str = "out", **changes) -> EvaluationSettings:
        values = {
            "model_name_or_path": str(tiny_model_folder),
            "items": str(items_file),
            "max_requests": 4,
            "prefill_tokens": LENGTHS,
            "num_paths": 2,
            "max_new_tokens": 6,
            "max_benign": 2,
            "benign_max_new_tokens": 4,
            "output_dir": str(tmp_path / name),
        }
        return EvaluationSettings(**(values | changes))

    return make


def rows_of(folder, name: str = "generations.jsonl") -> list[dict]:
    return list(read_jsonl(Path(folder) / name))


def strip_time(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name != "seconds"}


def eval_command(tiny_model_folder: Path, items: Path, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "eval.py"), "--model_name_or_path", str(tiny_model_folder), "--items", str(items),
        "--prefill_tokens", *map(str, LENGTHS), "--num_paths", "4", "--max_new_tokens", "24", "--max_benign", "0",
        "--output_dir", str(folder), *more,
    ]  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}


def save_adapter(tiny_model_folder: Path, folder: Path, seed: int) -> Path:
    """Save a LoRA adapter with random weights on the tiny model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)
    return folder
