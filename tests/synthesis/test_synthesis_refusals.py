"""Laws of refusals by synthesis: wrong settings and commands are errors of one line."""

import subprocess
import sys
from typing import Any

import pytest

from course_correction.base.errors import UsageError
from course_correction.synthesis.settings import SynthesisSettings
from tests.support.rows import ROOT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"opener_rate": 1.5}, "opener_rate is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"requests_per_unit": 0}, "requests_per_unit is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_requests": 0}, "max_requests is 0"),
        ({"source": "rows.jsonl"}, "Use --teacher transformers"),
    ],
)
def test_settings_outside_their_range_are_refused_with_the_value(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SynthesisSettings(**change)


COMMANDS: dict[str, tuple[str | None, list[str], str]] = {
    # name: recipe (None: not written), further arguments, words of the message
    "a misspelt recipe key": ("max_requets: 3\n", [], "unknown key `max_requets`; did you mean `max_requests`?"),
    "a wrong type in the recipe": ("batch_size: twenty\n", [], "batch_size"),
    "a list for a number": ("seed: [1, 2]\n", [], "seed"),
    "a wrong type on the command line": ("seed: 1\n", ["--batch_size", "twenty"], "batch_size"),
    "an unknown teacher": ("teacher: nobody\n", [], "teacher"),
    "a missing recipe": (None, [], "recipe.yaml cannot be read"),
    "a recipe that is no YAML": ("a: [1\n", [], "not valid YAML"),
    "a recipe that holds no settings": ("- seed\n", [], "key: value"),
    "an empty recipe": ("", [], "key: value"),
    "a misspelt argument": ("seed: 1\n", ["--max_requets", "3"], "--max_requets"),
    "a misspelt source": ("source: sed\n", ["--teacher", "transformers"], "'sed'"),
    "a value outside its range": ("opener_rate: 7\n", [], "opener_rate is 7"),
}


@pytest.fixture(scope="module")
def command_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit status, stdout and stderr of every command, run side by side."""
    running = {}
    for name, (recipe, arguments, _) in COMMANDS.items():
        folder = tmp_path_factory.mktemp("command")
        path = folder / "recipe.yaml"
        if recipe is not None:
            path.write_text(recipe)
        command = [sys.executable, "c2_syn.py", "--config", str(path), "--output_dir", str(folder / "run"), *arguments]
        running[name] = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
    results = {}
    for name, process in running.items():
        out, err = process.communicate(timeout=60)
        results[name] = (process.returncode, out, err)
    return results


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_command_is_one_line_on_stderr_and_exit_status_2(
    command_results: dict[str, tuple[int, str, str]], name: str
) -> None:
    status, out, err = command_results[name]
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert COMMANDS[name][2] in err
