"""The benchmark of both objectives runs at its smallest size."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.support.rows import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("precomputed", ["false", "true"])
def test_both_trainers_are_timed_on_the_same_groups_and_agree_on_the_loss(precomputed, tiny_model_folder, tmp_path):
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.bench_dpo", "--model", str(tiny_model_folder), "--rounds", "1",
            "--precomputed", precomputed, "--output_dir", str(tmp_path / "out"),
        ],
        cwd=ROOT, env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "COURSE_CORRECTION_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("stock", "grouped"):
        assert re.search(
            rf"^{kind} +\d+\.\d\d pairs/s, +\d+ tokens per group, peak memory \d+\.\d\d GiB$", done.stdout, re.M
        )
    assert re.search(r"^ratio +median \d+\.\d\d, range \d+\.\d\d to \d+\.\d\d, 1 rounds$", done.stdout, re.M)
    (measured,) = json.loads((tmp_path / "out" / "bench_dpo.json").read_text())["rounds"]
    assert measured["grouped"]["loss"] == pytest.approx(measured["stock"]["loss"], abs=1e-4)
    assert measured["grouped"]["tokens"] < measured["stock"]["tokens"]
