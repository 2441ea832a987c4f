"""The ablation benchmark's bookkeeping: what is done again, what is shared, what is refused. One slow test trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ablation
from course_correction.base.errors import UsageError
from tests.support.chat_models import build_tiny_model
from tests.support.rows import ROOT

METRICS = {"corr_mean": {"value": 0.5}, "over_refusal": {"value": 0.1}, "benign_kl": {"kl": 0.02}}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the benchmark with trainings that take no time; returns the folders trained in."""
    trained = []

    def train(command, **_):
        options = json.loads(command[-1])
        trained.append(Path(options["folder"]).name)
        assert list(Path(options["folder"]).iterdir()) == []
        (Path(options["folder"]) / "trained.json").write_text('{"steps": 3, "groups": 3, "seconds": 1.0}')
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(ablation.subprocess, "run", train)
    monkeypatch.setattr(ablation, "measure", lambda settings, adapter, folder: METRICS)

    def start(*options: str) -> list[str]:
        trained.clear()
        monkeypatch.setattr(
            sys, "argv", ["ablation", "--groups", "0", "--seeds", "0", "--output_dir", str(tmp_path), *options]
        )
        ablation.main()
        return list(trained)

    return start


def test_what_is_finished_is_not_done_again_and_both_comparisons_share_it(run, tmp_path, capsys):
    assert run("--compare", "terms") == [
        "time-pairwise_dpo-0", "time-dpo_lora-0-terms-0", "time-dpo_lora-1-terms-0", "time-dpo_lora-2-terms-0",
        "time-dpo_lora-0",
    ]  # fmt: skip
    assert run("--compare", "terms") == []
    assert run("--compare", "methods") == ["time-sft_safe-0", "time-recovery-0", "time-derta-0"]
    assert "| this project's recipe | equal time (1 s) | 3.0 | 50.0 (50.0–50.0)" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.md")} == {"terms.md", "methods.md"}


def test_what_a_stopped_run_left_is_removed_and_the_run_done_again(run, tmp_path):
    run("--compare", "methods")
    (tmp_path / "time-derta-0" / "result.json").unlink()
    (tmp_path / "time-derta-0" / "eval").mkdir()
    assert run("--compare", "methods") == ["time-derta-0"]


def test_a_run_of_another_length_or_recipe_is_refused(run, tmp_path, monkeypatch):
    run("--compare", "methods")
    with pytest.raises(UsageError, match=r"seconds: 120\.0 there, 7\.0 now"):
        run("--compare", "methods", "--seconds", "7")
    monkeypatch.setattr(ablation, "text_digest", lambda text: "another")
    with pytest.raises(UsageError, match="recipe: "):
        run("--compare", "methods")


def test_an_unknown_variant_is_refused_by_name(run):
    with pytest.raises(UsageError, match=r"variants is \['grouped'\], but takes 'SFT on safe responses', "):
        run("--compare", "methods", "--variants", "grouped")


@pytest.mark.slow
def test_two_methods_are_trained_and_measured_at_the_smallest_size(tiny_tokenizer, tmp_path):
    # The recipes adapt layers 10 to 29.
    build_tiny_model("llama", tiny_tokenizer, num_hidden_layers=12).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.ablation", "--compare", "methods", "--model", str(tmp_path / "model"),
            "--variants", "SFT on safe responses", "pairwise DPO (the paper's)", "--seconds", "0", "--groups", "1",
            "--seeds", "0", "--max_requests", "2", "--num_paths", "1", "--max_benign", "2",
            "--output_dir", str(tmp_path / "out"),
        ],
        cwd=ROOT, env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "COURSE_CORRECTION_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line for line in done.stdout.splitlines() if "equal groups" in line]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| SFT on safe responses", "equal groups", "1.0"], ["| pairwise DPO (the paper's)", "equal groups", "1.1"],
    ]  # fmt: skip
