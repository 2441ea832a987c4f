"""Laws of work in units: nothing torn, nothing lost, nothing doubled, the same bytes; and how its progress is shown."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.base.files import to_json_line
from course_correction.base.progress import Progress
from tests.support.resumable_rows import ALL, UNIT_ENDS, UNITS, finish_file, open_units, unit_rows, whole_file, write_units
from tests.support.rows import ROOT

# One process


@pytest.mark.parametrize("stop_after", range(len(UNITS) + 1))
def test_a_resumed_run_writes_the_same_bytes_as_an_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    path = tmp_path / "rows.jsonl"
    write_units(open_units(path), range(stop_after))
    file = finish_file(path)
    assert file.done == set(range(stop_after)) and file.quarantined_bytes == 0
    assert path.read_bytes() == whole_file()
    assert not file.quarantine.exists()


@settings(max_examples=40, deadline=None)
@given(st.permutations(list(ALL)), st.integers(0, len(UNITS)))
def test_the_order_in_which_units_are_written_does_not_show(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], stop_after: int
) -> None:
    path = tmp_path_factory.mktemp("order") / "rows.jsonl"
    write_units(open_units(path), order[:stop_after])
    file = open_units(path)
    assert file.done == set(order[:stop_after])
    write_units(file, order[stop_after:])
    file.finish()
    assert path.read_bytes() == whole_file()
    assert list(path.parent.iterdir()) == [path]


def test_a_torn_last_line_is_quarantined_and_done_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    torn = whole_file()[:-7]
    path.write_bytes(torn)
    file = open_units(path)
    assert file.done == {0, 1, 2}
    assert path.read_bytes() == torn[: UNIT_ENDS[3]]
    assert file.quarantine.read_bytes() == torn[UNIT_ENDS[3] :]
    assert file.quarantined_bytes == len(torn) - UNIT_ENDS[3]
    finish_file(path)
    assert path.read_bytes() == whole_file()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(whole_file())), st.binary(max_size=12) | st.just(b"\0" * 4096), st.booleans())
def test_a_run_killed_at_any_byte_ends_in_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, kept: int, garbage: bytes, with_garbage: bool
) -> None:
    path = tmp_path_factory.mktemp("killed") / "rows.jsonl"
    left_behind = whole_file()[:kept] + (garbage if with_garbage else b"")
    path.write_bytes(left_behind)
    file = finish_file(path)
    assert path.read_bytes() == whole_file()
    quarantined = file.quarantine.read_bytes() if file.quarantine.exists() else b""
    good_bytes = len(left_behind) - len(quarantined)
    assert good_bytes in UNIT_ENDS and left_behind[:good_bytes] + quarantined == left_behind
    assert good_bytes == max(end for end in UNIT_ENDS if end <= kept)


def test_what_two_crashes_leave_behind_is_all_kept_in_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for _ in range(2):
        path.write_bytes(whole_file()[: UNIT_ENDS[1] + 5])
        file = open_units(path)
    assert file.quarantine.read_bytes() == 2 * whole_file()[UNIT_ENDS[1] : UNIT_ENDS[1] + 5]


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
    path.write_bytes(whole_file()[: UNIT_ENDS[2]] + line + whole_file()[UNIT_ENDS[2] :])
    file = finish_file(path)
    assert file.done == {0, 1} and path.read_bytes() == whole_file()
    assert file.quarantine.read_bytes() == line + whole_file()[UNIT_ENDS[2] :]


def test_a_unit_that_lacks_rows_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = whole_file().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[2:]]))
    assert open_units(path).done == set()
    finish_file(path)
    assert path.read_bytes() == whole_file()


def test_rows_beyond_the_last_unit_are_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole_file() + b'{"request_id": "f", "path": 2}\n')
    file = open_units(path)
    assert file.done == set(ALL) and path.read_bytes() == whole_file()


def test_a_finished_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    finish_file(path)
    before = path.stat()
    finish_file(path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_unit_that_cannot_be_written_leaves_the_units_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "rows.jsonl"
    file = open_units(path)
    write_units(file, range(2))

    def fail(_: int) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(type(failure)):
            file.append(2, unit_rows(UNITS[2]))
    assert path.read_bytes() == whole_file()[: UNIT_ENDS[2]]
    assert finish_file(path).quarantined_bytes == 0
    assert path.read_bytes() == whole_file()


def test_a_full_disk_while_units_are_put_in_order_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    file = open_units(path)
    write_units(file, [3, 1, 0, 2])

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            file.finish()
    assert list(tmp_path.iterdir()) == [path]
    assert finish_file(path).done == set(ALL)
    assert path.read_bytes() == whole_file()


FULL_DISK = """
import resource, sys
from pathlib import Path
from course_correction.base.files import write_atomically
from course_correction.base.resumable_rows import UnitFile
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


# Progress


def test_progress_in_a_log_file_is_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 40.0, 50.0, 80.0, 100.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress = Progress("sampling", total=12, done=2)
    for number in range(1, 5):
        progress.advance(2, paths=20 * number, tokens=400 * number)
    progress.advance(2, paths=100, tokens=2000)
    progress.close()
    assert caplog.messages == [
        "sampling: 6 of 12 requests, 1.0 paths/s, 20 tokens/s, 1:00 left",
        "sampling: 10 of 12 requests, 1.0 paths/s, 20 tokens/s, 0:20 left",
        "sampling: 12 of 12 requests, 1.0 paths/s, 20 tokens/s, done",
    ]


def test_a_process_that_is_not_the_main_one_shows_no_progress(caplog: pytest.LogCaptureFixture) -> None:
    Progress("sampling", total=1, quiet=True).advance(1)
    assert caplog.text == ""
