"""A full disk leaves the files of a stage whole."""

import subprocess
import sys
from pathlib import Path

import pytest

from course_correction.base.files import to_json_line
from course_correction.base.resumable_rows import UnitFiles
from tests.support.resumable_rows import is_complete, unit_file
from tests.support.rows import ROOT

FULL_DISK = """
import resource, sys
from pathlib import Path
from course_correction.base.files import write_atomically
from course_correction.base.resumable_rows import UnitFiles
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    if sys.argv[2] == "join":
        UnitFiles(path, [["a"], ["b"]], lambda rows: len(rows) == 1).join()
    elif sys.argv[2] == "write":
        UnitFiles(path, [["a"], ["b"]], lambda rows: len(rows) == 1).write(1, [{"request_id": "b", "text": "x" * 9000}])
    else:
        write_atomically(path, "x" * 9000)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("way", ["write", "join", "write_atomically"])
def test_a_full_disk_leaves_the_old_files_whole(tmp_path: Path, way: str) -> None:
    path = tmp_path / "rows.jsonl"
    old = to_json_line({"request_id": "a", "text": "y" * 3000})
    files = UnitFiles(path, [["a"], ["b"]], is_complete)
    before = {path: old}
    if way != "write_atomically":
        before = {unit_file(path, unit): old for unit in ((0,) if way == "write" else (0, 1))}
        files.folder.mkdir()
    for name, content in before.items():
        name.write_text(content)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), way], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "File too large\n", "")
    assert {name: name.read_text() for name in tmp_path.rglob("*") if name.is_file()} == before
