"""The benchmark of synthesis runs at its smallest size."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.rows import ROOT


def test_one_request_is_continued_in_all_three_ways(tmp_path: Path, tiny_model_folder: Path) -> None:
    arguments = ["--smallest", "true", "--model", str(tiny_model_folder), "--dtype", "float32"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_synthesis", *arguments, "--output_dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bench_synthesis.json").read_text())
    assert result["rows_per_second"].keys() == {"reference", "sorted", "engine"}
    assert all(len(speeds) == 1 and speeds[0] > 0 for speeds in result["rows_per_second"].values())
    assert result["ratios"].keys() == {"reference", "sorted"}
