"""Laws of units shared by processes: whichever wrote them, and whichever was killed, the bytes are the same."""

import json
import logging
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import run_units
from tests.support.resumable_rows import (
    ALL,
    MANY,
    PATHS,
    UNIT_ENDS,
    UNITS,
    Recovered,
    finish_file,
    is_complete,
    open_units,
    unit_rows,
    whole_file,
)
from tests.support.rows import ROOT


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=len(UNITS), max_size=len(UNITS)),
    st.lists(st.booleans(), min_size=len(UNITS), max_size=len(UNITS)),
    st.integers(1, 30),
)
def test_a_run_that_some_processes_start_is_finished_by_others(
    tmp_path_factory: pytest.TempPathFactory, writers: list[int], is_done: list[bool], torn: int
) -> None:
    path = tmp_path_factory.mktemp("ranks") / "rows.jsonl"
    files = [open_units(path) for _ in range(4)]
    done = {unit for unit in ALL if is_done[unit]}
    for unit in done:
        files[writers[unit]].write(unit, unit_rows(UNITS[unit]))
    # A write that a crash interrupts is a hidden file, which is no unit.
    path.with_name("rows.jsonl.units").mkdir(exist_ok=True)
    (path.with_name("rows.jsonl.units") / ".00003.jsonl.abc").write_bytes(whole_file()[:torn])
    assert finish_file(path) == Recovered(done, 0, b"")
    assert path.read_bytes() == whole_file()
    assert list(path.parent.iterdir()) == [path]


def _ranks(rank: int, size: int, meeting: Barrier) -> Ranks:
    """A rank that is a thread, where the others wait too."""
    ranks = Ranks.alone()
    ranks.rank, ranks.size, ranks.wait = rank, size, lambda: meeting.wait(20)
    return ranks


def _run_units(path: Path, ranks: Ranks, fail_at: int | None = None, sampler: Any = None) -> list[int]:
    worked = []

    def work(unit: int) -> list[dict[str, Any]]:
        if unit == fail_at:
            raise RuntimeError("failed")
        worked.append(unit)
        return unit_rows(UNITS[unit])

    run_units(path, UNITS, is_complete, lambda: (work, sampler), ranks, "testing")
    return worked


def test_processes_share_the_units_and_leave_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with ThreadPoolExecutor(3) as pool:
        meeting = Barrier(3)
        worked = list(pool.map(lambda rank: _run_units(path, _ranks(rank, 3, meeting)), range(3)))
    assert worked == [[0, 3], [1], [2]]
    assert path.read_bytes() == whole_file() and list(tmp_path.iterdir()) == [path]


def test_another_number_of_processes_finishes_the_run(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole_file()[: UNIT_ENDS[1] + 3])
    with ThreadPoolExecutor(2) as pool:
        meeting = Barrier(2)
        worked = list(pool.map(lambda rank: _run_units(path, _ranks(rank, 2, meeting)), range(2)))
    assert worked == [[1, 3], [2]]
    assert path.read_bytes() == whole_file()


def test_no_model_is_loaded_where_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole_file())

    def prepare() -> Any:
        raise AssertionError("the model was loaded for nothing")

    run_units(path, UNITS, is_complete, prepare, Ranks.alone(), "testing")
    assert path.read_bytes() == whole_file()


def test_rows_moved_to_quarantine_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole_file()[: UNIT_ENDS[1] + 3])
    _run_units(path, Ranks.alone())
    assert f"{path} was not whole: 3 bytes moved to {path}.quarantined." in caplog.text


@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
@pytest.mark.parametrize("fail_at", [0, 2, 3])
def test_a_failure_keeps_every_unit_that_was_finished(tmp_path: Path, at_once: int, fail_at: int) -> None:
    path = tmp_path / "rows.jsonl"
    sampler = SimpleNamespace(units_at_once=at_once, paths_sampled=3, tokens_sampled=9)
    with pytest.raises(RuntimeError, match="failed"):
        _run_units(path, Ranks.alone(), fail_at, sampler)
    done = open_units(path).done()
    assert fail_at not in done and done >= set(range(fail_at)) - set(range(fail_at - at_once + 1, fail_at))
    assert _run_units(path, Ranks.alone(), None, sampler) == sorted(set(ALL) - done)
    assert path.read_bytes() == whole_file()


KILLED = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import run_units
from tests.support.resumable_rows import MANY, is_complete, unit_rows
def make_rows(unit):
    time.sleep(0.01)
    return [row | {"text": row["text"] * 4000} for row in unit_rows(MANY[unit])]
sampler = SimpleNamespace(units_at_once=int(sys.argv[2]), paths_sampled=1, tokens_sampled=1)
run_units(Path(sys.argv[1]), MANY, is_complete, lambda: (make_rows, sampler), Ranks.alone(), "testing")
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path, rng = tmp_path / "rows.jsonl", random.Random(0)
    folder = path.with_name("rows.jsonl.units")

    def entries() -> int:
        # A file that is being written counts too, so that the kill may fall into it.
        return len(list(folder.iterdir())) if folder.exists() else 0

    killed = 0
    for attempt in range(60):
        before = entries()
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(1 + attempt % 3)], cwd=ROOT, stderr=subprocess.PIPE
        )
        # Python takes its time to start. The kill is to fall between the first unit and the last.
        while process.poll() is None and entries() == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        _, err = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err.decode()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    wanted = [(name, path) for unit in MANY for name in unit for path in range(PATHS)]
    assert [(row["request_id"], row["path"]) for row in rows] == wanted
    assert killed >= 3 and list(tmp_path.iterdir()) == [path]
