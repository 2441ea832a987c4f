"""Laws of units shared by processes: whoever wrote them, and whoever was killed, they end in the same bytes."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
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
    UNITS,
    finish_file,
    is_complete,
    open_units,
    unit_rows,
    whole_file,
    write_units,
)
from tests.support.rows import ROOT


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=len(UNITS), max_size=len(UNITS)),
    st.lists(st.booleans(), min_size=len(UNITS), max_size=len(UNITS)),
    st.integers(0, 30),
)
def test_a_run_begun_by_some_processes_is_finished_by_others(
    tmp_path_factory: pytest.TempPathFactory, writers: list[int], is_done: list[bool], torn: int
) -> None:
    path = tmp_path_factory.mktemp("ranks") / "rows.jsonl"
    main = open_units(path)
    others = {rank: open_units(path, rank) for rank in range(1, 4)}
    done = {unit for unit in ALL if is_done[unit]}
    for unit in done:
        (main if writers[unit] == 0 else others[writers[unit]]).append(unit, unit_rows(UNITS[unit]))
    with open(path.with_name("rows.jsonl.rank2"), "ab") as file:
        file.write(whole_file()[:torn])
    found = finish_file(path)
    assert found.done == done
    assert found.quarantined_bytes == torn
    assert path.read_bytes() == whole_file()
    assert {entry.name for entry in path.parent.iterdir()} == {"rows.jsonl"} | ({found.quarantine.name} if torn else set())


def test_a_crash_while_another_ranks_units_are_taken_in_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    write_units(open_units(path), [0])
    write_units(open_units(path, 1), [2, 1])

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            open_units(path)
    assert path.with_name("rows.jsonl.rank1").exists()
    assert finish_file(path).done == {0, 1, 2}
    assert path.read_bytes() == whole_file()


def _ranks(rank: int, size: int) -> Ranks:
    """A rank whose waiting is over at once; the processes of a test run one after another."""
    ranks = Ranks.alone()
    ranks.rank, ranks.size = rank, size
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
    path.touch()
    assert _run_units(path, _ranks(1, 2)) == [1, 3]
    # As if the main process had opened the file before the other wrote to it.
    shard = path.with_name("rows.jsonl.rank1")
    held = shard.read_bytes()
    shard.unlink()
    file = open_units(path)
    shard.write_bytes(held)
    write_units(file, [0, 2])
    file.finish()
    assert path.read_bytes() == whole_file()


def test_nothing_is_made_ready_where_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole_file())

    def begin() -> Any:
        raise AssertionError("the model was loaded for nothing")

    assert run_units(path, UNITS, is_complete, begin, Ranks.alone(), "testing") == 0


@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
@pytest.mark.parametrize("fail_at", [0, 2, 3])
def test_a_failure_keeps_every_unit_that_was_finished(tmp_path: Path, at_once: int, fail_at: int) -> None:
    path = tmp_path / "rows.jsonl"
    sampler = SimpleNamespace(units_at_once=at_once, paths_sampled=3, tokens_sampled=9)
    with pytest.raises(RuntimeError, match="failed"):
        _run_units(path, Ranks.alone(), fail_at, sampler)
    done = open_units(path).done
    assert fail_at not in done and done >= set(range(fail_at)) - set(range(fail_at - at_once + 1, fail_at))
    assert _run_units(path, Ranks.alone(), None, sampler) == sorted(set(ALL) - done)
    assert path.read_bytes() == whole_file()


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import units_support as t
from course_correction.processes import Ranks
from course_correction.base.resumable_rows import run_units
def work(unit):
    time.sleep(0.01)
    return [row | {"text": row["text"] * 4000} for row in t.unit_rows(t.MANY[unit])]
sampler = t.SimpleNamespace(units_at_once=int(sys.argv[2]), paths_sampled=1, tokens_sampled=1)
run_units(Path(sys.argv[1]), t.MANY, t.is_complete, lambda: (work, sampler), Ranks.alone(), "testing")
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path, rng = tmp_path / "rows.jsonl", random.Random(0)

    def size() -> int:
        return path.stat().st_size if path.exists() else 0

    killed = 0
    for attempt in range(60):
        before = size()
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(1 + attempt % 3)], cwd=ROOT, stderr=subprocess.PIPE
        )
        # Python takes its time to begin; the kill is to fall between its first byte and its last.
        while process.poll() is None and size() == before:
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
    assert killed >= 3
