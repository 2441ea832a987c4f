"""The benchmark of sampling runs at its smallest size."""

import json
import sys

from benchmarks import bench_paths


def test_the_benchmark_runs_at_its_smallest_size(tiny_model_folder, tmp_path, monkeypatch, capsys):
    arguments = [
        "--model", str(tiny_model_folder), "--dtype", "float32", "--num_paths", "2", "--prefill_tokens", "3", "5",
        "--max_new_tokens", "2", "--plain_batch", "1", "--batch_size", "4", "--rounds", "1", "--output_dir", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["bench_paths", *arguments])
    bench_paths.main()
    result = json.loads((tmp_path / "bench_paths.json").read_text())
    assert {name: len(speeds) for name, speeds in result["paths_per_second"].items()} == {"plain": 1, "engine": 1}
    assert len(result["ratios"]) == 1 and result["ratios"][0] > 0
    assert "ratio    median" in capsys.readouterr().out
