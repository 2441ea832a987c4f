"""The benchmark of the export runs at its smallest size, and fails with one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench_export import run_apart
from course_correction.base.errors import UsageError
from course_correction.synthesis.reference_items import fetch_pku500
from tests.support.rows import ROOT


def test_one_group_is_exported_and_read_back_with_all_measures(tmp_path: Path) -> None:
    arguments = ["--smallest", "true", "--output_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_export", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bench_export.json").read_text())
    assert result["settings"]["groups"] == 1
    rows = {name: step["value"] for name, step in result["steps"].items() if "value" in step}
    assert rows == {
        "export": 15, "ranked read back": 1, "ranked read back, streaming": 1, "pairs read back": 15,
        "pairs read back, streaming": 15,
    }  # fmt: skip
    assert all(step["seconds"] >= 0 and step["peak_gib"] > 0 for step in result["steps"].values())
    assert result["bytes"].keys() == {"ranked", "pairs"} and result["text_bytes"] > 0


def test_an_error_in_the_process_of_a_step_is_raised_as_one_line() -> None:
    with pytest.raises(UsageError, match="There is no file nowhere"):
        run_apart(fetch_pku500, "nowhere")
