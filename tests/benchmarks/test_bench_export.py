"""The benchmark of the export runs at its smallest size."""

import json
import subprocess
import sys
from pathlib import Path

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
