"""The check of absolute paths: what it reports, what it lets pass, and that hooks and CI run it."""

import subprocess
import sys

import pytest
import yaml

from tests.scripts.check_paths import machine_paths
from tests.support.rows import ROOT

SLASH = "/"  # Put together here, so that the check finds no path in this file.


@pytest.mark.parametrize("path", ["home/me/model", "Users/me/x", "tmp/run", "root/.cache/x", "mnt/disk/data"])
def test_a_path_of_a_machine_is_reported_by_file_and_line_but_not_shown(path, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"seed: 0\noutput_dir: {SLASH}{path}\n")
    check = [sys.executable, "tests/scripts/check_paths.py", str(file)]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{file}:2: an absolute path" in done.stdout and path not in done.stdout.replace(str(file), "")


@pytest.mark.parametrize(
    "text",
    [
        "runs/tmp/x",
        "https://example.org/home/me",
        "./home/me",
        f"{SLASH}usr/bin/env bash",
        f"a {SLASH}home page",
        "~/.cache",
    ],
)
def test_other_text_passes(text, tmp_path):
    (tmp_path / "x.md").write_text(text)
    assert list(machine_paths([tmp_path / "x.md"])) == []


def test_a_file_that_is_no_text_passes(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"\xff" + f"{SLASH}home/me/x".encode())
    assert list(machine_paths([tmp_path / "x.parquet"])) == []


def test_make_check_and_pre_commit_run_the_check():
    command = "tests/scripts/check_paths.py"
    assert command in (ROOT / "Makefile").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert any(command in hook.get("entry", "") for repo in hooks for hook in repo["hooks"])
