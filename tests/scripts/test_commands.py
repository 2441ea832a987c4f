"""Scripts as a user meets them: --help, errors on one line, and imports that are light and in order."""

import dataclasses
import os
import re
import subprocess
import sys
import time

import pytest

from tests.support.rows import ROOT
from tests.support.settings import SCRIPTS, settings_of
from tests.support.training import ON_CPU


def run(*arguments: str, timeout: int = 60, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def assert_one_line_error(done: subprocess.CompletedProcess) -> str:
    """Check exit status 2 and one `error:` line that ends stderr, without a traceback; return that line."""
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1] == errors[0]
    assert done.stdout == ""
    return errors[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_has_at_most_60_lines(script):
    assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_setting_of_the_script_and_loads_no_heavy_library(script):
    done = run("-X", "importtime", script, "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    names = {"config", *(field.name for cls in settings_of(script) for field in dataclasses.fields(cls))}
    assert {name for name in names if not re.search(rf"--{name}\b", done.stdout)} == set()
    assert "Traceback" not in done.stderr
    loaded = set(re.findall(r"\| +([a-z_]\w*)", done.stderr))
    heavy = {"torch", "peft", "datasets", "accelerate", "transformers", "pandas", "matplotlib", "lm_eval"}
    assert "argparse" in loaded and not loaded & heavy


# Importing TRL takes seconds, so most calls of train_dpo.py are slow tests.
SLOW_SCRIPTS = ("c2_syn.py", "c2_eval.py", "eval.py", pytest.param("train_dpo.py", marks=pytest.mark.slow))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_recipe_is_one_line(script):
    assert "no/such.yaml" in assert_one_line_error(run(script, "--config", "no/such.yaml"))


@pytest.mark.parametrize("script", SLOW_SCRIPTS)
def test_a_missing_recipe_after_an_equals_sign_is_one_line(script):
    assert "no/such.yaml" in assert_one_line_error(run(script, "--config=no/such.yaml"))


@pytest.mark.parametrize("script", SLOW_SCRIPTS)
def test_config_without_a_path_is_one_line(script):
    assert "needs the path" in assert_one_line_error(run(script, "--config"))


@pytest.mark.parametrize("script", SLOW_SCRIPTS)
def test_an_unknown_argument_is_one_line(script):
    assert "--not_a_setting" in assert_one_line_error(run(script, "--not_a_setting", "1"))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "owner/no-such-model"),
        ({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, "no connection to the Hub"),
    ],
    ids=["offline", "unreachable"],
)
@pytest.mark.parametrize(
    "script", ["eval.py", *(pytest.param(name, marks=pytest.mark.slow) for name in ("c2_syn.py", "train_dpo.py"))]
)
def test_a_model_that_cannot_be_fetched_is_one_line_within_20_seconds(script, environment, reason, tmp_path):
    arguments = {
        "eval.py": ["--model_name_or_path", "owner/no-such-model"],
        "c2_syn.py": ["--teacher", "transformers", "--teacher_model", "owner/no-such-model"],
        "train_dpo.py": ["--model_name_or_path", "owner/no-such-model", "--use_cpu", "true", "--bf16", "false"],
    }[script]
    start = time.monotonic()
    done = run(script, *arguments, "--output_dir", str(tmp_path / "out"), HF_HOME=str(tmp_path / "hf"), **environment)
    assert time.monotonic() - start < 20
    message = assert_one_line_error(done)
    assert "owner/no-such-model" in message and reason in message


@pytest.mark.slow
def test_a_training_set_that_cannot_be_loaded_is_one_line(tmp_path, tiny_model_folder):
    done = run(
        "train_dpo.py", "--model_name_or_path", str(tiny_model_folder), "--dataset_name", str(tmp_path / "none"),
        "--output_dir", str(tmp_path / "out"), *ON_CPU, HF_HOME=str(tmp_path / "hf"),
    )  # fmt: skip
    assert "cannot be loaded" in assert_one_line_error(done)


def gated_error(name: str) -> Exception:
    """Return what transformers raises for a gated model: an OSError caused by the Hub's GatedRepoError."""
    from huggingface_hub import errors

    response = object.__new__(errors.Response)
    response.headers, response._request = {}, None
    cause = errors.GatedRepoError.__new__(errors.GatedRepoError)
    cause.args, cause.response = ("401 Client Error.",), response
    error = OSError(f"You are trying to access a gated repo.\n{name}")
    error.__cause__ = cause
    return error


def test_a_gated_model_names_the_terms_and_the_login():
    from course_correction.generation.loading import explain_loading_error

    message = str(explain_loading_error("meta-llama/Llama-2-7b-chat-hf", gated_error("meta-llama/Llama-2-7b-chat-hf")))
    assert "gated" in message and "HF_TOKEN" in message and "\n" not in message


def test_the_data_scripts_run_from_another_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "c2_eval.py"), "--export_dir", "here"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "here" / "README.md").is_file()


def test_importing_a_script_loads_no_heavy_library():
    code = (
        "import sys; import c2_syn, c2_eval, eval, train_dpo\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'trl', 'peft') if name in sys.modules])"
    )
    done = run("-c", code)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]
