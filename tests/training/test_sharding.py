"""Trainings whose weights are sharded over processes: FSDP2 and DeepSpeed ZeRO-3, on CPUs."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.rows import ROOT
from tests.support.training import TERMS

pytestmark = pytest.mark.usefixtures("own_dataset_cache")

# `make test-slow` puts it there: installed beside the rest, it would be imported by everything.
DEEPSPEED = Path(sys.prefix) / "deepspeed"
NEEDS_DEEPSPEED = pytest.mark.skipif(
    not DEEPSPEED.is_dir() and find_spec("deepspeed") is None, reason="needs DeepSpeed, which `make test-slow` installs"
)


def accelerate_environment(recipe: str) -> dict[str, str]:
    """Return what `accelerate launch` sets for recipes/accelerate/`recipe`.yaml."""
    config = yaml.safe_load((ROOT / f"recipes/accelerate/{recipe}.yaml").read_text())
    if recipe == "fsdp2":
        found = {name.upper(): str(value).lower() for name, value in config["fsdp_config"].items()}
        found |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
        return found | {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}
    names = {"zero3_init_flag": "ZERO3_INIT", "zero3_save_16bit_model": "ZERO3_SAVE_16BIT_MODEL"}
    return {
        f"ACCELERATE_DEEPSPEED_{names.get(name, name.upper())}": str(value).lower()
        for name, value in config["deepspeed_config"].items()
    } | {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(DEEPSPEED)}


def train_on_two(script: Path, folder: Path, adapter: bool, environment: dict[str, str], *options: str) -> Any:
    """Train two steps on two processes, every term on; return what they printed and the weights, None without any."""
    from safetensors.torch import load_file

    terms = [word for pair in TERMS.items() for word in (f"--{pair[0]}", str(pair[1]))]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script),
            "--max_groups", "2", "--per_device_train_batch_size", "1", "--max_steps", "2",
            "--bf16", "false", "--dtype", "float32", "--use_peft", str(adapter), "--lora_target_modules", "all-linear",
            "--max_length", "2048", "--report_to", "none", "--save_strategy", "no", "--optim", "sgd",
            "--learning_rate", "0.01", "--lr_scheduler_type", "constant", "--max_grad_norm", "0", *terms, *options,
            "--output_dir", str(folder),
        ],
        env={**os.environ, **environment, "HF_HOME": str(folder.parent / "hf"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    file = folder / ("adapter_model.safetensors" if adapter else "model.safetensors")
    return done, load_file(file) if file.exists() else None


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "all weights"])
@pytest.mark.parametrize("recipe", ["fsdp2", pytest.param("zero3", marks=NEEDS_DEEPSPEED)])
def test_two_processes_that_shard_train_the_weights_of_two_that_do_not(
    recipe, adapter, tiny_model_folder, dataset_folder, tmp_path
):
    from safetensors.torch import load_file

    options = ["--model_name_or_path", str(tiny_model_folder), "--dataset_name", str(dataset_folder)]
    # accelerate takes DeepSpeed only where no CPU is asked for.
    use_cpu = ["--use_cpu", str(recipe == "fsdp2").lower()]
    done, whole = train_on_two(ROOT / "train_dpo.py", tmp_path / "whole", adapter, {}, *options, "--use_cpu", "true")
    assert done.returncode == 0, done.stderr[-3000:]
    # An adapter under ZeRO-3 takes no checkpoints: see the next test.
    checkpoints = ["--activation_checkpointing", str(not (adapter and recipe == "zero3")).lower()]
    done, sharded = train_on_two(
        ROOT / "tests/support/sharded_on_cpus.py", tmp_path / "sharded", adapter, accelerate_environment(recipe),
        *options, *use_cpu, *checkpoints,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "policy sharded" in done.stdout
    assert whole.keys() == sharded.keys()
    assert all(sharded[name].allclose(whole[name], rtol=1e-3, atol=1e-6) for name in whole)
    start = load_file(tiny_model_folder / "model.safetensors")
    moved = [tensor for name, tensor in whole.items() if adapter and "lora_B" in name]
    moved += [] if adapter else [whole[name] - start[name] for name in start]
    assert max(tensor.abs().max() for tensor in moved) > 1e-4
    metrics = [json.loads((tmp_path / name / "train_metrics.json").read_text()) for name in ("whole", "sharded")]
    assert metrics[0]["trainable_parameters"] == metrics[1]["trainable_parameters"] > 0


@pytest.mark.slow
@NEEDS_DEEPSPEED
def test_an_adapter_with_checkpoints_under_zero3_is_refused(tiny_model_folder, dataset_folder, tmp_path):
    done, _ = train_on_two(
        ROOT / "tests/support/sharded_on_cpus.py", tmp_path / "out", True, accelerate_environment("zero3"),
        "--use_cpu", "false", "--model_name_or_path", str(tiny_model_folder), "--dataset_name", str(dataset_folder),
        "--activation_checkpointing", "true",
    )  # fmt: skip
    assert done.returncode != 0
    assert "error: An adapter under ZeRO-3 takes no activation checkpoints" in done.stderr
