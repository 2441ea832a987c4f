"""Laws of work in units: nothing torn, nothing lost, nothing doubled, the same bytes."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.base.resumable_rows import UnitFiles, rows_exist
from tests.support.resumable_rows import (
    ALL,
    UNIT_ENDS,
    UNITS,
    Recovered,
    finish_file,
    is_complete,
    open_units,
    unit_file,
    unit_rows,
    whole_file,
    write_units,
)

# A run that was stopped


@pytest.mark.parametrize("stop_after", range(len(UNITS) + 1))
def test_a_resumed_run_writes_the_same_bytes_as_an_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    path = tmp_path / "rows.jsonl"
    write_units(open_units(path), range(stop_after))
    assert finish_file(path) == Recovered(set(range(stop_after)), 0, b"")
    assert path.read_bytes() == whole_file()
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=40, deadline=None)
@given(st.permutations(list(ALL)), st.integers(0, len(UNITS)))
def test_the_order_in_which_units_are_written_does_not_show(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], stop_after: int
) -> None:
    path = tmp_path_factory.mktemp("order") / "rows.jsonl"
    write_units(open_units(path), order[:stop_after])
    files = open_units(path)
    assert files.recover() == 0 and files.done() == set(order[:stop_after])
    write_units(files, order[stop_after:])
    files.join()
    assert path.read_bytes() == whole_file()
    assert list(path.parent.iterdir()) == [path]


def test_finished_units_can_be_read_while_others_are_made(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_units(open_units(path), [0, 2])
    assert unit_file(path, 2).read_bytes() == whole_file()[UNIT_ENDS[2] : UNIT_ENDS[3]]
    assert rows_exist(path) and not path.exists()


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(ALL)), st.sampled_from(ALL), st.integers(0, 400), st.binary(max_size=12))
def test_a_unit_torn_at_any_byte_is_quarantined_and_made_again(
    tmp_path_factory: pytest.TempPathFactory, done: set[int], torn: int, kept: int, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("torn") / "rows.jsonl"
    write_units(open_units(path), done | {torn})
    whole = unit_file(path, torn).read_bytes()
    left_behind = whole[:kept] + garbage
    unit_file(path, torn).write_bytes(left_behind)
    recovered = finish_file(path)
    assert recovered.done == (done | {torn} if left_behind == whole else done - {torn})
    assert recovered.quarantine == (b"" if left_behind == whole else left_behind)
    assert path.read_bytes() == whole_file()


def test_a_unit_file_with_the_rows_of_another_unit_is_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_units(open_units(path), [1])
    unit_file(path, 1).rename(unit_file(path, 2))
    assert finish_file(path).done == set()
    assert path.read_bytes() == whole_file()


# A joined file that is no longer whole


def test_a_torn_last_line_is_quarantined_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    torn = whole_file()[:-7]
    path.write_bytes(torn)
    assert finish_file(path) == Recovered({0, 1, 2}, len(torn) - UNIT_ENDS[3], torn[UNIT_ENDS[3] :])
    assert path.read_bytes() == whole_file()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(whole_file())), st.binary(max_size=12) | st.just(b"\0" * 4096), st.booleans())
def test_a_file_torn_at_any_byte_ends_in_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, kept: int, garbage: bytes, with_garbage: bool
) -> None:
    path = tmp_path_factory.mktemp("torn") / "rows.jsonl"
    left_behind = whole_file()[:kept] + (garbage if with_garbage else b"")
    path.write_bytes(left_behind)
    recovered = finish_file(path)
    assert path.read_bytes() == whole_file()
    good_bytes = len(left_behind) - len(recovered.quarantine)
    assert good_bytes in UNIT_ENDS and left_behind[:good_bytes] + recovered.quarantine == left_behind
    assert good_bytes == max(end for end in UNIT_ENDS if end <= kept)


def test_what_two_crashes_leave_behind_is_all_kept_in_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for _ in range(2):
        path.write_bytes(whole_file()[: UNIT_ENDS[1] + 5])
        files = open_units(path)
        files.recover()
    assert files.quarantine.read_bytes() == 2 * whole_file()[UNIT_ENDS[1] : UNIT_ENDS[1] + 5]


@pytest.mark.parametrize("call", range(4))
def test_a_crash_while_a_torn_file_is_split_into_units_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole_file()[:-7])
    calls = iter(range(9))

    def die(*_: Any, **__: Any) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            open_units(path).recover()
    recovered = finish_file(path)
    assert recovered.done == {0, 1, 2} and path.read_bytes() == whole_file()


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
def test_a_line_of_no_open_unit_is_quarantined(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole_file()[: UNIT_ENDS[2]] + line + whole_file()[UNIT_ENDS[2] :])
    recovered = finish_file(path)
    assert recovered.done == {0, 1} and path.read_bytes() == whole_file()
    assert recovered.quarantine == line + whole_file()[UNIT_ENDS[2] :]


def test_a_unit_that_lacks_rows_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = whole_file().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[2:]]))
    assert finish_file(path).done == set()
    assert path.read_bytes() == whole_file()


def test_rows_beyond_the_last_unit_are_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    beyond = b'{"request_id": "f", "path": 2}\n'
    path.write_bytes(whole_file() + beyond)
    assert finish_file(path) == Recovered(set(ALL), len(beyond), beyond)
    assert path.read_bytes() == whole_file()


def test_a_finished_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    finish_file(path)
    before = path.stat()
    finish_file(path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_stage_without_a_unit_leaves_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for _ in range(2):
        files = UnitFiles(path, [], is_complete)
        assert files.recover() == 0 and files.done() == set()
        files.join()
        assert path.read_bytes() == b"" and not rows_exist(path)


# A full disk


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_unit_that_cannot_be_written_leaves_the_units_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "rows.jsonl"
    files = open_units(path)
    write_units(files, range(2))

    def fail(_: int) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(type(failure)):
            files.write(2, unit_rows(UNITS[2]))
    assert sorted(files.folder.iterdir()) == [unit_file(path, 0), unit_file(path, 1)]
    assert finish_file(path) == Recovered({0, 1}, 0, b"")
    assert path.read_bytes() == whole_file()


def test_a_full_disk_while_units_are_joined_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    files = open_units(path)
    write_units(files, [3, 1, 0, 2])

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            files.join()
    assert list(tmp_path.iterdir()) == [files.folder]
    assert finish_file(path).done == set(ALL)
    assert path.read_bytes() == whole_file()


def test_a_crash_while_units_are_joined_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    files = open_units(path)
    write_units(files, ALL)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # As kill -9 would, before anything is tidied up.
        patch.setattr(os, "replace", die)
        patch.setattr(os, "unlink", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            files.join()
    assert list(tmp_path.iterdir()) == [files.folder]
    assert finish_file(path) == Recovered(set(ALL), 0, b"")
    assert path.read_bytes() == whole_file() and list(tmp_path.iterdir()) == [path]


def test_a_crash_between_the_joined_file_and_the_removal_of_the_units_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    files = open_units(path)
    write_units(files, ALL)
    with monkeypatch.context() as patch:
        patch.setattr("course_correction.base.resumable_rows.shutil.rmtree", lambda *_, **__: None)
        files.join()
    assert files.folder.exists()
    assert finish_file(path).done == set(ALL)
    assert path.read_bytes() == whole_file() and list(tmp_path.iterdir()) == [path]
