"""Check that the commands of the docs parse, without running what they start (`make check`).

Looks at the fenced `bash` blocks of the documents, and at `make` and `python -m` in their running text, unless something is
left out there ("…"). A `make` target must exist; a call of one of the project's scripts or modules must pass its settings
parser, recipe and all; what needs a network, a GPU or another program must stand in a block that says so: fenced as
`bash online`.
"""

import importlib
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/results.md", "CONTRIBUTING.md", "recipes/README.md", "integrations/README.md")
OWN_PACKAGES = {"benchmarks", "course_correction", "integrations"}
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)


def read_commands(document: Path) -> list[tuple[str, bool]]:
    """Return the commands of a document and whether each claims to work offline."""
    text = document.read_text()
    commands = []
    for info, block in re.findall(r"^```bash([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.split("#")[0].strip():
                commands.append((line, "online" not in info))
    running = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`((?:[A-Z_]+=\S+ )*(?:make|python -m) [^`…]+)`", running)
    return commands + [(" ".join(span.split()), True) for span in spans]


def check_command(command: str) -> None:
    """Raise ValueError (or the parser's own error) if the command would not parse."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], check=True, capture_output=True)
        return
    if words[:2] == ["python", "-m"] and words[2].split(".")[0] in OWN_PACKAGES:
        parse_module(words[2], words[3:])
        return
    script = next((word for word in words if word.endswith(".py")), None)
    if script is None:
        return
    if not (ROOT / script).is_file():
        raise ValueError(f"there is no {script}")
    if script in {"c2_syn.py", "c2_eval.py", "eval.py", "train_dpo.py"}:
        parse_script(script, words[words.index(script) + 1 :])


def parse_module(name: str, arguments: list[str]) -> None:
    """Run a module up to where it has parsed its settings."""
    from unittest.mock import patch

    from course_correction.base.settings import parse_settings

    class Parsed(Exception):
        pass

    def only_parse(settings_types: list[type], *_: object, **__: object) -> None:
        parse_settings(settings_types, arguments)
        raise Parsed

    module = importlib.import_module(name)
    with patch.object(module, "parse_settings", only_parse), patch.object(sys, "argv", [name]):
        try:
            module.main()
        except Parsed:
            return
    raise ValueError(f"{name} parses no settings")


def parse_script(script: str, arguments: list[str]) -> None:
    """Pass arguments through the script's own settings."""
    from course_correction.base.settings import parse_settings

    if script == "train_dpo.py":
        from trl import DPOConfig, ModelConfig

        from course_correction.training.data import TrainingData
        from course_correction.training.settings import ObjectiveSettings

        parse_settings([TrainingData, ObjectiveSettings, DPOConfig, ModelConfig], [*arguments, "--use_cpu", "true"])
    else:
        module = importlib.import_module(script.removesuffix(".py"))
        names = {"c2_syn": "SynthesisSettings", "c2_eval": "ItemSettings", "eval": "EvaluationSettings"}
        parse_settings([getattr(module, names[module.__name__])], arguments)


def main() -> None:
    """Check every document and exit non-zero if a command does not parse."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at its import which kernels it lacks
    failures = checked = 0
    for name in DOCUMENTS:
        for command, offline in read_commands(ROOT / name):
            try:
                check_command(command)
                checked += 1
            except Exception as error:
                failures += 1
                print(f"{name}: {'offline ' if offline else ''}command does not parse: {command.strip()}\n  {error}")
    print(f"{checked} commands of the docs parse, {failures} do not.")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
