"""Many processes, one output: the rows of one process, however many start and however many finish."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from course_correction.base.files import read_jsonl
from course_correction.base.ranks import Ranks
from tests.support.rows import ROOT

pytestmark = pytest.mark.slow
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def _evaluate(model: Path, folder: Path) -> list[str]:
    return [
        str(ROOT / "eval.py"), "--model_name_or_path", str(model), "--max_requests", "14", "--prefill_tokens", "5", "12",
        "--num_paths", "2", "--max_new_tokens", "16", "--max_benign", "25", "--benign_max_new_tokens", "8",
        "--requests_per_unit", "2", "--output_dir", str(folder),
    ]  # fmt: skip


def _synthesize(model: Path, folder: Path) -> list[str]:
    return [
        str(ROOT / "c2_syn.py"), "--teacher", "transformers", "--teacher_model", str(model), "--max_requests", "14",
        "--max_new_tokens", "16", "--temperature", "0.9", "--requests_per_unit", "2", "--output_dir", str(folder),
    ]  # fmt: skip


SCRIPTS = {"eval": (_evaluate, "generations.jsonl"), "c2_syn": (_synthesize, "groups.jsonl")}


def _start(arguments: list[str], processes: int) -> subprocess.Popen:
    launch = [*LAUNCH, str(processes)] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launch, *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def _finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_processes_write_the_bytes_of_one(script: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    command, name = SCRIPTS[script]
    for processes in (1, 2):
        _finish(_start(command(tiny_model_folder, tmp_path / f"of{processes}"), processes))
    for file in (name, "benign_answers.jsonl", "verdicts.jsonl", "selection.json"):
        one, two = (tmp_path / f"of{processes}" / file for processes in (1, 2))
        assert one.exists() == two.exists()
        assert not one.exists() or one.read_bytes() == two.read_bytes()
    assert not list((tmp_path / "of2").glob("*.units"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_that_kill_9_stops_is_finished_by_another_number_of_processes(
    script: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    command, name = SCRIPTS[script]
    _finish(_start(command(tiny_model_folder, tmp_path / "whole"), 1))
    rng, folder, killed = random.Random(3), tmp_path / "killed", 0
    for processes in (2, 3, 1, 2):
        process = _start(command(tiny_model_folder, folder), processes)

        def files() -> int:
            return len(list(folder.glob(f"{name}*/*")))

        before, deadline = files(), time.monotonic() + 120
        while process.poll() is None and files() == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is None:
            # The launcher and all that it started.
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
    _finish(_start(command(tiny_model_folder, folder), 2))
    assert killed >= 1
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [(row["request_id"], row.get("prefill_tokens"), row.get("path")) for row in read_jsonl(folder / name)]
    assert len(rows) == len(set(rows))


def test_a_single_process_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for ranks in (Ranks(), Ranks.alone()):
        assert (ranks.rank, ranks.size, ranks.is_main) == (0, 1, True)
        ranks.wait()
        ranks.leave()
