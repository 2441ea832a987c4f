"""Laws of long runs on disk: nothing torn, nothing lost, nothing mixed."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.base import files
from course_correction.base.errors import UsageError
from course_correction.base.files import chunked, read_jsonl, text_digest, to_json_line, write_atomically, write_json
from course_correction.base.run_folder import open_run
from course_correction.base.seeding import random_for
from tests.support.rows import ROOT


def test_an_atomic_write_replaces_the_whole_file_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_atomically(path, "é one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    for name in ("fsync", "chmod", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(KeyboardInterrupt):
                write_atomically(path, "three")
        assert path.read_bytes() == b"two"
        assert list(path.parent.iterdir()) == [path]


HOLD = """
import sys
from pathlib import Path
from course_correction.base.run_folder import open_run
with open_run(Path(sys.argv[1]), "stage", {"seed": 0}, "rows.jsonl"):
    print("held", flush=True)
    sys.stdin.read()
"""


def _claim(folder: Path, settings: dict[str, Any], stage: str = "stage") -> Any:
    return open_run(folder, stage, settings, f"{stage}.jsonl")


def _fill(folder: Path, settings: dict[str, Any], stage: str = "stage") -> None:
    """Leave behind a run with one row."""
    with _claim(folder, settings, stage):
        (folder / f"{stage}.jsonl").write_text('{"request_id": "a"}\n')


def test_another_process_is_refused_until_the_first_ends_also_by_kill_9(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="Another process is writing to") as caught, _claim(tmp_path, {"seed": 0}):
            pass
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with _claim(tmp_path, {"seed": 0}):
        pass


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), _claim(tmp_path, {}):
        raise RuntimeError
    with _claim(tmp_path, {}):
        pass


def test_other_settings_are_refused_with_the_difference_and_nothing_is_changed(tmp_path: Path) -> None:
    old = {"seed": 0, "source": "seed", "max_requests": None}
    _fill(tmp_path, old)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UsageError) as caught, _claim(tmp_path, {**old, "seed": 1, "max_requests": 9}):
        pass
    message = str(caught.value)
    assert "seed: 0 there, 1 now" in message and "max_requests: None there, 9 now" in message
    assert "source" not in message.replace(str(tmp_path), "") and "\n" not in message
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize("change", [{"extra": 1}, {"seed": 1.5}, {"seed": "0"}, {"seed": [0]}])
def test_any_other_value_counts_as_other_settings(tmp_path: Path, change: dict[str, Any]) -> None:
    _fill(tmp_path, {"seed": 0})
    with pytest.raises(UsageError), _claim(tmp_path, {"seed": 0, **change}):
        pass


@pytest.mark.parametrize("content", [None, ""])
def test_other_settings_are_accepted_while_no_row_is_written(tmp_path: Path, content: str | None) -> None:
    with _claim(tmp_path, {"seed": 0}):
        pass
    if content is not None:
        (tmp_path / "stage.jsonl").write_text(content)
    with _claim(tmp_path, {"seed": 1}):
        (tmp_path / "stage.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="seed: 1 there, 0 now"), _claim(tmp_path, {"seed": 0}):
        pass


def test_finished_units_are_rows_and_a_unit_that_was_being_written_is_none(tmp_path: Path) -> None:
    units = tmp_path / "stage.jsonl.units"
    with _claim(tmp_path, {"seed": 0}):
        units.mkdir()
        (units / ".00000.jsonl.abc").write_text("{}\n")
    with _claim(tmp_path, {"seed": 1}):
        (units / "00000.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="seed: 1 there, 0 now"), _claim(tmp_path, {"seed": 0}):
        pass
    (tmp_path / "run.json").unlink()
    with pytest.raises(UsageError, match=r"stage\.jsonl\.units"), _claim(tmp_path, {"seed": 1}):
        pass


def test_a_run_without_known_settings_is_not_resumed(tmp_path: Path) -> None:
    _fill(tmp_path, {"seed": 0})
    (tmp_path / "run.json").unlink()
    with pytest.raises(UsageError), _claim(tmp_path, {"seed": 1}):
        pass
    assert (tmp_path / "stage.jsonl").read_text() == '{"request_id": "a"}\n'


def test_a_run_is_opened_again_under_equal_settings_and_stages_do_not_mix(tmp_path: Path) -> None:
    settings = {"seed": 0, "sizes": (10, 20), "name": "é"}
    _fill(tmp_path, settings)
    before = (tmp_path / "run.json").read_bytes()
    with _claim(tmp_path, settings) as folder:
        assert folder == tmp_path
        assert (tmp_path / "run.json").read_bytes() == before
    _fill(tmp_path, {"seed": 5}, "other")
    runs = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert {name: run["settings"]["seed"] for name, run in runs.items()} == {"stage": 0, "other": 5}
    assert {"course-correction", "python", "torch", "transformers"} <= runs["stage"]["versions"].keys()


@pytest.mark.parametrize("content", ["{", "", "[]", '{"stage": null}'])
def test_a_damaged_run_file_is_one_line(tmp_path: Path, content: str) -> None:
    _fill(tmp_path, {"seed": 0})
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json") as caught, _claim(tmp_path, {"seed": 0}):
        pass
    assert "\n" not in str(caught.value)


def test_a_full_disk_at_the_start_of_a_run_leaves_no_half_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"), _claim(tmp_path, {"seed": 0}):
            pass
    assert not (tmp_path / "run.json").exists()
    with _claim(tmp_path, {"seed": 1}):
        pass


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=4))
def test_a_row_is_one_line_and_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]) -> None:
    line = to_json_line(row)
    assert line.endswith("\n") and line.count("\n") == 1
    path = tmp_path_factory.mktemp("row") / "rows.jsonl"
    write_atomically(path, line * 2)
    assert list(read_jsonl(path)) == [row, row]


@pytest.mark.parametrize("line", [b"zebra\n", b'"zebra"\n', b'{"zebra": 1\n', b'{"a": "zebra \xe9"}\n'])
def test_a_bad_line_is_named_by_file_and_number_and_never_shown(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line)
    rows = read_jsonl(path)
    with pytest.raises(UsageError, match=r"rows\.jsonl: line 3") as caught:
        list(rows)
    assert "zebra" not in str(caught.value) and "\n" not in str(caught.value)


def test_random_numbers_depend_on_seed_and_parts_alone() -> None:
    draws = {random_for(*parts).random() for parts in [(0,), (1,), (0, "a"), (0, "a", "b"), (0, "ab"), (0, "b", "a")]}
    assert len(draws) == 6
    assert random_for(0, "a", 1).random() == random_for(0, "a", "1").random()
    assert text_digest("a", "b") != text_digest("ab") != text_digest("a b")


def test_json_is_indented_and_not_escaped(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"é": [1]})
    assert (tmp_path / "value.json").read_text(encoding="utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 7))
def test_chunks_hold_all_items_in_order(items: list[int], size: int) -> None:
    chunks = chunked(items, size)
    assert [item for chunk in chunks for item in chunk] == items
    assert all(len(chunk) == size for chunk in chunks[:-1]) and all(chunks)


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COURSE_CORRECTION_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
