"""Checkpoints are whole or invisible: a training that stops while it saves continues from the one before."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from course_correction.base.checkpoints import UNFINISHED, last_whole_checkpoint
from course_correction.base.errors import UsageError
from course_correction.base.run_folder import claim_folder
from tests.support.rows import ROOT
from tests.support.training import snapshot

pytestmark = pytest.mark.usefixtures("own_dataset_cache")

SAVING = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
# Runs a training and kills the process at the n-th write of a save: weights, optimizer, random numbers, state, rename.
KILLED = """
import os, sys
from pathlib import Path
import safetensors.torch, torch
from transformers import TrainerState
from course_correction.base.console import run_script
import train_dpo

left = int(sys.argv.pop(1))

def deadly(write):
    def wrapped(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            for path in Path(sys.argv[sys.argv.index("--output_dir") + 1]).rglob("*.pt"):
                path.write_bytes(path.read_bytes()[:10])
            os.kill(os.getpid(), 9)
        return write(*arguments, **options)
    return wrapped

torch.save = deadly(torch.save)
TrainerState.save_to_json = deadly(TrainerState.save_to_json)
Path.rename = deadly(Path.rename)
run_script(train_dpo.main)
"""


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("objective", ["grouped", "pairwise"])
def test_a_save_that_fails_leaves_the_checkpoint_before_it_and_costs_no_other_step(objective, parse, tmp_path, monkeypatch):
    from transformers import TrainerState

    from course_correction.training.run import build_trainer, train

    options = SAVING | {"objective": objective, "per_device_train_batch_size": 1}
    whole, _ = build_trainer(*parse(output_dir=tmp_path / "whole", **options))
    whole.train()
    save = TrainerState.save_to_json

    def full_disk(state, path):
        if state.global_step == 2:
            raise OSError(28, "No space left on device", path)
        save(state, path)

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", full_disk)
        with pytest.raises(OSError, match="No space left"):
            train(*parse(output_dir=folder, **options))
    assert checkpoints(folder) == ["checkpoint-1"] and checkpoints(folder / UNFINISHED) == ["checkpoint-2"]
    resumed, _ = build_trainer(*parse(output_dir=folder, **options))
    assert last_whole_checkpoint(folder) == folder / "checkpoint-1"
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert checkpoints(folder) == ["checkpoint-3"] and not (folder / UNFINISHED).exists()
    weights = snapshot(resumed.model)
    assert all(weights[name].allclose(value, rtol=1e-4, atol=1e-6) for name, value in snapshot(whole.model).items())


def test_a_checkpoint_that_an_older_version_left_unfinished_is_named_and_skipped(parse, tmp_path, caplog):
    from course_correction.training.run import train

    folder = train(*parse(output_dir=tmp_path / "out", **SAVING | {"save_total_limit": None}))
    assert checkpoints(folder) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    (folder / "checkpoint-3" / "trainer_state.json").write_text('{"global_st')
    (folder / "checkpoint-2" / "adapter_model.safetensors").unlink()
    (folder / "checkpoint-30").mkdir()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="course_correction"):
        assert last_whole_checkpoint(folder) == folder / "checkpoint-1"
    assert [record.message.split(" is")[0] for record in caplog.records] == ["checkpoint-30", "checkpoint-3", "checkpoint-2"]
    assert last_whole_checkpoint(tmp_path / "none") is None


def test_a_training_begun_in_the_folder_of_an_interrupted_one_is_refused_and_changes_nothing(parse, tmp_path):
    from course_correction.training.run import train

    folder = train(*parse(output_dir=tmp_path / "out", **SAVING))
    (folder / "train_metrics.json").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for changes in ({}, {"beta": 0.5}):
        with pytest.raises(UsageError, match=r"interrupted training with checkpoint-3. .*--resume_from_checkpoint last"):
            train(*parse(output_dir=folder, **SAVING | changes))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_finished_training_that_is_resumed_takes_no_further_step(parse, tmp_path):
    from course_correction.training.run import train

    folder = train(*parse(output_dir=tmp_path / "out", **SAVING))
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "train_metrics.json").unlink()
    train(*parse(output_dir=folder, resume_from_checkpoint="last", **SAVING))
    assert (folder / "adapter_model.safetensors").read_bytes() == weights
    assert json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())["global_step"] == 3
    assert checkpoints(folder) == ["checkpoint-3"]


def test_two_trainings_in_one_folder_are_refused(parse, tmp_path):
    from course_correction.training.run import train

    with (
        claim_folder(tmp_path / "out", "training"),
        pytest.raises(UsageError, match="Another process is writing to"),
    ):
        train(*parse(output_dir=tmp_path / "out"))


@pytest.mark.slow
def test_a_training_that_is_killed_in_every_save_loses_no_step(tiny_model_folder, dataset_folder, tmp_path):
    words = [
        "--model_name_or_path",
        tiny_model_folder,
        "--dataset_name",
        dataset_folder,
        "--bf16",
        "false",
        "--use_peft",
        "true",
    ]
    words += ["--lora_target_modules", "all-linear", "--per_device_train_batch_size", "1", "--max_length", "4096"]
    words += [word for name, value in SAVING.items() for word in (f"--{name}", value)]
    folder, steps = tmp_path / "out", []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for write in (1, 3, 4, 5, 2, 4, 99):
        command = [sys.executable, "-c", KILLED, write, *words, "--output_dir", folder, "--resume_from_checkpoint", "last"]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == (0 if write == 99 else -signal.SIGKILL), done.stderr[-2000:]
        whole = last_whole_checkpoint(folder)
        steps.append(int(whole.name.split("-")[1]) if whole else 0)
    assert steps == sorted(steps) and steps[-1] == 3
    command = [sys.executable, "train_dpo.py", *words, "--output_dir", tmp_path / "whole"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
    resumed, uninterrupted = (path / "adapter_model.safetensors" for path in (folder, tmp_path / "whole"))
    assert resumed.read_bytes() == uninterrupted.read_bytes()
