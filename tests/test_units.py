"""Laws of work in units: nothing torn, nothing lost, nothing doubled, and the same bytes whoever wrote them."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.processes import Ranks
from course_correction.progress import Progress
from course_correction.run_files import to_json_line
from course_correction.units import UnitFile, run_units

PATHS = 2
UNITS = [["a", "b"], ["c"], ["d", "é"], ["f"]]
ALL = range(len(UNITS))


def _rows(request_id: str) -> list[dict[str, Any]]:
    text = "one\ntwo é 中 \u2028 \U0001f600"
    return [{"request_id": request_id, "path": path, "text": f"{text} {request_id}"} for path in range(PATHS)]


def _unit_rows(unit: Iterable[str]) -> list[dict[str, Any]]:
    return [row for request_id in unit for row in _rows(request_id)]


def _is_complete(rows: list[dict[str, Any]]) -> bool:
    return len(rows) == PATHS


def _open(path: Path, rank: int = 0) -> UnitFile:
    return UnitFile(path, UNITS, _is_complete, rank)


def _write(file: UnitFile, units: Iterable[int]) -> None:
    for unit in units:
        file.append(unit, _unit_rows(UNITS[unit]))


def _run(path: Path) -> UnitFile:
    """Do what is left, in order, and return the file as it was found."""
    file = _open(path)
    found = SimpleNamespace(done=file.done, quarantine=file.quarantine, quarantined_bytes=file.quarantined_bytes)
    _write(file, [unit for unit in ALL if unit not in file.done])
    file.finish()
    return found


def _whole() -> bytes:
    return "".join(to_json_line(row) for unit in UNITS for row in _unit_rows(unit)).encode()


UNIT_ENDS = [0]
for _unit in UNITS:
    UNIT_ENDS.append(UNIT_ENDS[-1] + len("".join(map(to_json_line, _unit_rows(_unit))).encode()))


# One process


@pytest.mark.parametrize("stop_after", range(len(UNITS) + 1))
def test_a_resumed_run_writes_the_same_bytes_as_an_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    path = tmp_path / "rows.jsonl"
    _write(_open(path), range(stop_after))
    file = _run(path)
    assert file.done == set(range(stop_after)) and file.quarantined_bytes == 0
    assert path.read_bytes() == _whole()
    assert not file.quarantine.exists()


@settings(max_examples=40, deadline=None)
@given(st.permutations(list(ALL)), st.integers(0, len(UNITS)))
def test_the_order_in_which_units_are_written_does_not_show(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], stop_after: int
) -> None:
    path = tmp_path_factory.mktemp("order") / "rows.jsonl"
    _write(_open(path), order[:stop_after])
    file = _open(path)
    assert file.done == set(order[:stop_after])
    _write(file, order[stop_after:])
    file.finish()
    assert path.read_bytes() == _whole()
    assert list(path.parent.iterdir()) == [path]


def test_a_torn_last_line_is_quarantined_and_done_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    torn = _whole()[:-7]
    path.write_bytes(torn)
    file = _open(path)
    assert file.done == {0, 1, 2}
    assert path.read_bytes() == torn[: UNIT_ENDS[3]]
    assert file.quarantine.read_bytes() == torn[UNIT_ENDS[3] :]
    assert file.quarantined_bytes == len(torn) - UNIT_ENDS[3]
    _run(path)
    assert path.read_bytes() == _whole()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(_whole())), st.binary(max_size=12) | st.just(b"\0" * 4096), st.booleans())
def test_a_run_killed_at_any_byte_ends_in_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, kept: int, garbage: bytes, with_garbage: bool
) -> None:
    path = tmp_path_factory.mktemp("killed") / "rows.jsonl"
    left_behind = _whole()[:kept] + (garbage if with_garbage else b"")
    path.write_bytes(left_behind)
    file = _run(path)
    assert path.read_bytes() == _whole()
    quarantined = file.quarantine.read_bytes() if file.quarantine.exists() else b""
    good_bytes = len(left_behind) - len(quarantined)
    assert good_bytes in UNIT_ENDS and left_behind[:good_bytes] + quarantined == left_behind
    assert good_bytes == max(end for end in UNIT_ENDS if end <= kept)


def test_what_two_crashes_leave_behind_is_all_kept_in_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for _ in range(2):
        path.write_bytes(_whole()[: UNIT_ENDS[1] + 5])
        file = _open(path)
    assert file.quarantine.read_bytes() == 2 * _whole()[UNIT_ENDS[1] : UNIT_ENDS[1] + 5]


@pytest.mark.parametrize(
    "line",
    [
        b"[]\n",
        b'"a"\n',
        b"{}\n",
        b'{"request_id": []}\n',
        b'{"request_id": "other"}\n',
        b"\xff\n",
        b"\n",
        b'{"request_id": "a"}\n',
    ],
)
def test_a_line_that_begins_no_open_unit_is_quarantined(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(_whole()[: UNIT_ENDS[2]] + line + _whole()[UNIT_ENDS[2] :])
    file = _run(path)
    assert file.done == {0, 1} and path.read_bytes() == _whole()
    assert file.quarantine.read_bytes() == line + _whole()[UNIT_ENDS[2] :]


def test_a_unit_that_lacks_rows_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = _whole().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[2:]]))
    assert _open(path).done == set()
    _run(path)
    assert path.read_bytes() == _whole()


def test_rows_beyond_the_last_unit_are_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(_whole() + b'{"request_id": "f", "path": 2}\n')
    file = _open(path)
    assert file.done == set(ALL) and path.read_bytes() == _whole()


def test_a_finished_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    _run(path)
    before = path.stat()
    _run(path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_unit_that_cannot_be_written_leaves_the_units_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "rows.jsonl"
    file = _open(path)
    _write(file, range(2))

    def fail(_: int) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(type(failure)):
            file.append(2, _unit_rows(UNITS[2]))
    assert path.read_bytes() == _whole()[: UNIT_ENDS[2]]
    assert _run(path).quarantined_bytes == 0
    assert path.read_bytes() == _whole()


def test_a_full_disk_while_units_are_put_in_order_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    file = _open(path)
    _write(file, [3, 1, 0, 2])

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            file.finish()
    assert list(tmp_path.iterdir()) == [path]
    assert _run(path).done == set(ALL)
    assert path.read_bytes() == _whole()


FULL_DISK = """
import resource, sys
from pathlib import Path
from course_correction.run_files import write_atomically
from course_correction.units import UnitFile
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    if sys.argv[2] == "append":
        UnitFile(path, [["a"], ["b"]], lambda rows: len(rows) == 1).append(1, [{"request_id": "b", "text": "x" * 9000}])
    else:
        write_atomically(path, "x" * 9000)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("way", ["append", "write_atomically"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, way: str) -> None:
    path = tmp_path / "rows.jsonl"
    old = to_json_line({"request_id": "a", "text": "y" * 3000})
    path.write_text(old)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), way], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "File too large\n", "")
    assert path.read_text() == old
    assert list(tmp_path.iterdir()) == [path]


# Several processes


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
    main = _open(path)
    others = {rank: _open(path, rank) for rank in range(1, 4)}
    done = {unit for unit in ALL if is_done[unit]}
    for unit in done:
        (main if writers[unit] == 0 else others[writers[unit]]).append(unit, _unit_rows(UNITS[unit]))
    with open(path.with_name("rows.jsonl.rank2"), "ab") as file:
        file.write(_whole()[:torn])
    found = _run(path)
    assert found.done == done
    assert found.quarantined_bytes == torn
    assert path.read_bytes() == _whole()
    assert {entry.name for entry in path.parent.iterdir()} == {"rows.jsonl"} | ({found.quarantine.name} if torn else set())


def test_a_crash_while_another_ranks_units_are_taken_in_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    _write(_open(path), [0])
    _write(_open(path, 1), [2, 1])

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            _open(path)
    assert path.with_name("rows.jsonl.rank1").exists()
    assert _run(path).done == {0, 1, 2}
    assert path.read_bytes() == _whole()


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
        return _unit_rows(UNITS[unit])

    run_units(path, UNITS, _is_complete, lambda: (work, sampler), ranks, "testing")
    return worked


def test_processes_share_the_units_and_leave_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.touch()
    assert _run_units(path, _ranks(1, 2)) == [1, 3]
    # As if the main process had opened the file before the other wrote to it.
    shard = path.with_name("rows.jsonl.rank1")
    held = shard.read_bytes()
    shard.unlink()
    file = _open(path)
    shard.write_bytes(held)
    _write(file, [0, 2])
    file.finish()
    assert path.read_bytes() == _whole()


def test_nothing_is_made_ready_where_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(_whole())

    def begin() -> Any:
        raise AssertionError("the model was loaded for nothing")

    assert run_units(path, UNITS, _is_complete, begin, Ranks.alone(), "testing") == 0


@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
@pytest.mark.parametrize("fail_at", [0, 2, 3])
def test_a_failure_keeps_every_unit_that_was_finished(tmp_path: Path, at_once: int, fail_at: int) -> None:
    path = tmp_path / "rows.jsonl"
    sampler = SimpleNamespace(units_at_once=at_once, paths_written=3, tokens_written=9)
    with pytest.raises(RuntimeError, match="failed"):
        _run_units(path, Ranks.alone(), fail_at, sampler)
    done = _open(path).done
    assert fail_at not in done and done >= set(range(fail_at)) - set(range(fail_at - at_once + 1, fail_at))
    assert _run_units(path, Ranks.alone(), None, sampler) == sorted(set(ALL) - done)
    assert path.read_bytes() == _whole()


MANY = [[f"r{number}", f"s{number}"] for number in range(24)]
KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import test_units as t
from course_correction.processes import Ranks
from course_correction.units import run_units
def work(unit):
    time.sleep(0.01)
    return [row | {"text": row["text"] * 4000} for row in t._unit_rows(t.MANY[unit])]
sampler = t.SimpleNamespace(units_at_once=int(sys.argv[2]), paths_written=1, tokens_written=1)
run_units(Path(sys.argv[1]), t.MANY, t._is_complete, lambda: (work, sampler), Ranks.alone(), "testing")
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


# Progress


def test_progress_in_a_log_file_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 40.0, 50.0, 80.0, 100.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress = Progress("sampling", total=12, done=2)
    for number in range(1, 5):
        progress.advance(2, paths=20 * number, tokens=400 * number)
    progress.advance(2, paths=100, tokens=2000)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "sampling: 6 of 12 requests, 1.0 paths/s, 20 tokens/s, 1:00 left",
        "sampling: 10 of 12 requests, 1.0 paths/s, 20 tokens/s, 0:20 left",
        "sampling: 12 of 12 requests, 1.0 paths/s, 20 tokens/s, done",
    ]


def test_a_process_that_is_not_the_main_one_shows_no_progress(capsys: pytest.CaptureFixture) -> None:
    Progress("sampling", total=1, quiet=True).advance(1)
    assert capsys.readouterr().err == ""
