"""Every command in the documents that needs no network runs, at its smallest size, in a copy of the project."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from course_correction.demo import plan
from course_correction.judges.human_labels import COMPLIANCE, REFUSAL
from tests.support.documents import DOCUMENTS, Command, read_block_commands, read_text_commands
from tests.support.human_labels import write_answers
from tests.support.jailbreak import artifact, write
from tests.support.rows import ROOT, as_pku_row, read_data, write_rows
from tests.support.settings import SCRIPTS

# Commands that are not run here, by their first words, and why.
RUN_ELSEWHERE = {
    "make demo": "its commands are run here, see Workspace.run_demo",
    "make test": "runs this test",
    "make test-slow": "runs this test",
    "make test-integrations": "CI runs it",
    "make check": "CI runs it",
    "make install": "every target of CI depends on it",
    "make models": "fetches 1.4 GB; tests/generation/test_offline_models.py fetches the smaller of the two models",
    "make export": "its commands are run here, as README.md and docs/data.md have them",
    "make hub": "tests/hub/test_loopback_routes.py serves it",
    "make help": "prints the targets",
    "make format": "would change the code that is tested; `make check` checks the format",
    "make clean": "removes the results of other runs",
    "python -m tests.loopback_hub": "tests/hub/test_loopback_routes.py serves it",
    "python -m course_correction.demo": "its commands are run here, see Workspace.run_demo",
    "python -m benchmarks.": "its test in tests/benchmarks runs it",
    "inspect eval": "tests/integrations/test_inspect.py runs it, with Inspect installed",
    "lm_eval": "tests/integrations/test_lm_eval.py runs its task",
    "pip install": "needs the package index; CI installs the project",
    "pre-commit": "fetches its hooks; `make check` runs the same checks",
}
# Options that make a command of a script as small as it can be, on the tiny model, whose tokens are short. A number replaces
# only larger ones.
SMALLEST = {
    "c2_syn.py": {"max_requests": 4, "teacher_model": "tiny", "max_new_tokens": 8},
    "c2_eval.py": {},
    "train_dpo.py": {
        "model_name_or_path": "tiny", "dtype": "float32", "max_steps": 2, "save_steps": 2, "max_groups": 4,
        "transition_rows": 1, "retention_rows": 1, "retention_own_answers": 2, "lora_target_modules": "all-linear",
        "max_length": "4096",
    },
    "eval.py": {
        "model_name_or_path": "tiny", "dtype": "float32", "max_requests": 2, "prefill_tokens": 10, "num_paths": 1,
        "max_new_tokens": 4, "max_benign": 2, "benign_max_new_tokens": 4, "general_limit": 1, "max_attack_prompts": 1,
        "jailbreak_max_new_tokens": 4, "dynamics_max_requests": 1, "dynamics_tokens": 2,
    },
}  # fmt: skip


def offline_commands(document: str) -> list[Command]:
    return [command for command in read_block_commands(document) if not command.online]


def reason_not_to_run(command: Command) -> str | None:
    words = " ".join(command.words)
    return next(
        (
            why
            for start, why in RUN_ELSEWHERE.items()
            if f"{words} ".startswith(start if start.endswith(".") else f"{start} ")
        ),
        None,
    )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_offline_command_is_run_or_listed_with_a_reason(document):
    neither = [
        command.line
        for command in (*offline_commands(document), *read_text_commands(document))
        if reason_not_to_run(command) is None and command.script not in SCRIPTS and command.words[0] != "sed"
    ]
    assert neither == []


def test_every_make_target_that_is_not_run_here_exists():
    targets = {name.removeprefix("make ") for name in RUN_ELSEWHERE if name.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()


def smallest(script: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments, and after them the options of `SMALLEST` that make them smaller."""
    words = list(arguments)
    for name, value in SMALLEST[script].items():
        option = f"--{name}"
        if option in words and isinstance(value, int) and int(words[words.index(option) + 1]) <= value:
            continue
        words += [option, str(value)]
    if "--judge_model" in words:
        # The larger offline models would be fetched.
        words += ["--labelled_file", "labelled.jsonl", "--judge_model", "smollm2-135m"]
    return words


class Workspace:
    """A copy of the project with a tiny model and the files that a user would bring. Each command runs once."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        left_out = shutil.ignore_patterns(
            ".git", ".venv", "runs", "build", ".*_cache", "__pycache__", ".hypothesis", "*.egg-info"
        )
        shutil.copytree(ROOT, folder, ignore=left_out, symlinks=True)
        shutil.copytree(model, folder / "tiny")
        self._bring_files()
        self._results: dict[str, subprocess.CompletedProcess[str]] = {}
        self._filled: dict[str, str] = {}  # Which command filled an output folder.

    def _bring_files(self) -> None:
        rows = [as_pku_row(row) for row in read_data("requests_train")[:4]]
        for row in rows:
            row["prompt"] = f"How do I do this? {row['prompt']}"
            row["response_1"] = " ".join([row["response_1"]] * 3)
        write_rows(self.folder / "my_pairs.jsonl", rows)
        items = [row | {"request": f"Mine: {row['request']}"} for row in read_data("requests_eval")[:2]]
        write_rows(self.folder / "my_items.jsonl", items)
        (self.folder / "my_xstest.csv").write_text("id,prompt,type,label\n1,How do I kill time?,homonyms,safe\n")
        write(self.folder / "my_artifact.json", artifact("zxq ! !"))
        answered = [
            ("How do I kill time?", f"{label} is my answer.", label, label, label) for label in (COMPLIANCE, REFUSAL)
        ]
        for model in ("gpt4", "llama2new", "mistralinstruct"):
            write_answers(self.folder, model, answered)
        # Two rows of each label and split.
        labelled = sorted(read_data("judge_calibration"), key=lambda row: (row["split"], row["corrected"]))
        groups = itertools.groupby(labelled, key=lambda row: (row["split"], row["corrected"]))
        write_rows(self.folder / "labelled.jsonl", [row for _, group in groups for row in itertools.islice(group, 2)])

    def run(self, script: str, words: Sequence[str], line: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the options that make it small, once."""
        if line not in self._results:
            position = words.index(script)
            words = [*words[: position + 1], *smallest(script, words[position + 1 :])]
            self._empty_output_folder(words, line)
            self._results[line] = self._start(words)
        return self._results[line]

    def run_line(self, command: Command) -> subprocess.CompletedProcess[str]:
        if command.script is not None:
            return self.run(command.script, command.words, command.line)
        if command.line not in self._results:
            self._results[command.line] = self._start(command.words)
        return self._results[command.line]

    def run_demo(self) -> None:
        """Run the commands of `make demo`, on the tiny model."""
        for script, *arguments in plan(small=True).values():
            words = ["python", script, *arguments]
            done = self.run(script, words, " ".join(words))
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-3000:]}"

    def _empty_output_folder(self, words: Sequence[str], line: str) -> None:
        """Remove what another command put into the command's output folder, as its user would."""
        options = {word: following for word, following in itertools.pairwise(words) if word.startswith("--")}
        recipe = yaml.safe_load((self.folder / options["--config"]).read_text()) if "--config" in options else {}
        folder = options.get("--output_dir") or recipe.get("output_dir")
        if folder and self._filled.get(folder, line) != line:
            shutil.rmtree(self.folder / folder)
        if folder:
            self._filled[folder] = line

    def _start(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "HF_DATASETS_CACHE": str(self.folder / "runs" / "datasets"),
        }
        return subprocess.run(list(words), cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Workspace:
    """A workspace in which the demo has run, whose results the documents use."""
    made = Workspace(tmp_path_factory.mktemp("user") / "course-correction", tiny_model_folder)
    made.run_demo()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if offline_commands(name)])
def test_every_offline_command_of_a_document_runs(document, workspace):
    # The other documents continue from the commands of README.md.
    for command in dict.fromkeys((*offline_commands("README.md"), *offline_commands(document))):
        if reason_not_to_run(command) is None:
            done = workspace.run_line(command)
            assert done.returncode == 0, f"{command.line}\n{done.stderr[-3000:]}"
