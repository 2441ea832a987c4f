"""Fixtures and helpers of the tests of C²-Eval: items, settings and paths of a small one, verdicts by hand, an adapter."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from course_correction.base.files import read_jsonl
from course_correction.evaluation.run import evaluate
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.statistics.corr_at_k import PathVerdict
from tests.support.rows import ROOT, read_data, write_rows

NUM_ITEMS = 16
SHORT_RESPONSE = "Just take it."
LENGTHS = [5, 12, 20]
PREFILL_TOKENS = [5, 12]
Paths = dict[tuple[str, int, int], str]


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


def run_eval_py(folder: Path, model: Any, **changes: Any) -> tuple[Paths, dict[str, Any]]:
    """Return eval.py's continuations by request_id, k and path, and its metrics."""
    values = {"prefill_tokens": PREFILL_TOKENS, "max_benign": 0, "max_unscored": 1.0, "output_dir": str(folder)}
    metrics = evaluate(EvaluationSettings(model_name_or_path=str(model), **values | changes))
    rows = [row for row in read_jsonl(folder / "generations.jsonl") if not row.get("too_short")]
    return {(row["request_id"], row["prefill_tokens"], row["path"]): row["continuation"] for row in rows}, metrics


def strip_time(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name != "seconds"}


def eval_command(tiny_model_folder: Path, items: Path, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "eval.py"), "--model_name_or_path", str(tiny_model_folder), "--items", str(items),
        "--prefill_tokens", *map(str, LENGTHS), "--num_paths", "4", "--max_new_tokens", "24", "--max_benign", "0",
        "--output_dir", str(folder), *more,
    ]  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}


def verdicts_of(table: dict[tuple[str, int], list[bool | None]], clusters: dict[str, str] | None = None):
    """Return one verdict for each value of a {(request_id, k): [corrected, ...]} table."""
    return [
        PathVerdict((clusters or {}).get(request_id, request_id), request_id, length, corrected)
        for (request_id, length), values in table.items()
        for corrected in values
    ]


# Worked by hand. k=10: a 1/2, b 1/4, c 1 -> 7/12. k=20: a 0, b 1 (one unscored), c 0/0 -> 1/2. Mean: 13/24.
BY_HAND = {
    ("a", 10): [True, False],
    ("b", 10): [True, False, False, False],
    ("c", 10): [True],
    ("a", 20): [False, False],
    ("b", 20): [True, None],
    ("c", 20): [None, None],
}


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
