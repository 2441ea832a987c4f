"""A wheel holds everything that the package reads: it works where no checkout is at hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.rows import ROOT

PROGRAM = """
from pathlib import Path
import course_correction, c2_eval, c2_syn
site = Path(course_correction.__file__).parents[1]
assert str(site) == SITE, site

from course_correction.hub.push_metric import FOLDER
from course_correction.judges.encoder import EncoderJudge
from course_correction.judges.pattern import PatternJudge
from course_correction.judges.protocol import JudgedPath
from course_correction.suites.lm_eval_tasks import TASKS_FOLDER
from course_correction.synthesis.sources import read_benign_rows, read_eval_items

assert len(list(read_eval_items("seed"))) == 72 and len(read_benign_rows("train")) == 917
path = JudgedPath("", "", "However, I cannot help you cheat: it is wrong. Ask your teacher instead.")
for judge in (EncoderJudge(), PatternJudge()):
    (verdict,) = judge.judge([path])
    assert verdict.corrected is True, verdict
package = Path(course_correction.__file__).parent
assert len(list((package / "data").iterdir())) == 15
templates = {path.name: path.read_text() for path in (package / "hub" / "templates").iterdir()}
assert templates.keys() >= {"dataset_card.md", "eval.yaml", "eval_card.md", "model_card.md"}
assert "{{" in templates["dataset_card.md"]
assert {path.suffix for path in (package / "report" / "page").iterdir()} == {".html", ".css", ".js"}
assert len(list(TASKS_FOLDER.glob("*.yaml"))) == 3 and (TASKS_FOLDER / "general_data.py").is_file()
assert (package / "integrations" / "inspect_provider.py").is_file()

assert not any(path.is_symlink() for path in site.rglob("*"))
import evaluate
metric = evaluate.load(str(FOLDER))
rates = metric.compute(predictions=[True, False], references=[10, 10], request_ids=["a", "b"])
assert rates["corr_mean"] == 0.5, rates

assert c2_syn.C2Syn.__name__ == "C2Syn" and c2_eval.C2Eval.__name__ == "C2Eval"
builder = c2_eval.C2Eval(config_name="seed", cache_dir=CACHE)
builder.download_and_prepare()
assert builder.as_dataset(split="test").num_rows == 72
"""


@pytest.mark.slow
def test_an_installed_wheel_has_its_data_templates_tasks_and_metric(tmp_path: Path) -> None:
    # A copy: setuptools builds inside the folder, and what lies there from an earlier build would go into the wheel.
    source, site = tmp_path / "source", tmp_path / "site"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "tests", "docs", "recipes", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("course_correction-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    shutil.rmtree(source)
    program = PROGRAM.replace("SITE", repr(str(site))).replace("CACHE", repr(str(tmp_path / "cache")))
    subprocess.run(
        [sys.executable, "-"],
        input=program,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
