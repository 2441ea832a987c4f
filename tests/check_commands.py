"""Check that the commands of the documents parse, without running what they start (`make check`).

Checks the fenced `bash` blocks, and `make` and `python -m` in the running text. A `make` target must exist. A call of a
script or module of the project must pass its settings parser, recipe included. tests/scripts/test_documented_commands.py
runs the commands that need no network.
"""

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OWN_PACKAGES = {"benchmarks", "course_correction", "integrations"}
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)


def check_command(words: list[str], script: str | None, arguments: list[str]) -> None:
    """Raise ValueError (or the parser's own error) if the command would not parse."""
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], check=True, capture_output=True)
    elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in OWN_PACKAGES:
        parse_module(words[2], words[3:])
    elif script is not None:
        if not (ROOT / script).is_file():
            raise ValueError(f"there is no {script}")
        parse_script(script, arguments)


def parse_module(name: str, arguments: list[str]) -> None:
    """Run a module until it has parsed its settings."""
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
    """Pass arguments through the settings of one of the four scripts."""
    from course_correction.base.settings import parse_settings
    from tests.support.settings import SCRIPTS, settings_of

    if script not in SCRIPTS:
        return
    classes = settings_of(script)
    if script == "train_dpo.py":
        from trl import DPOConfig, ModelConfig

        classes, arguments = [*classes, DPOConfig, ModelConfig], [*arguments, "--use_cpu", "true"]
    parse_settings(classes, arguments)


def main() -> None:
    """Check every document, and exit with 1 if a command does not parse."""
    from tests.support.documents import DOCUMENTS, read_block_commands, read_text_commands

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # It logs at import which kernels it lacks.
    commands = [command for name in DOCUMENTS for command in (*read_block_commands(name), *read_text_commands(name))]
    failures = 0
    for command in commands:
        try:
            check_command(command.words, command.script, command.arguments)
        except Exception as error:
            failures += 1
            print(f"{command.document}: command does not parse: {command.line}\n  {error}")
    print(f"Commands of the documents: {len(commands) - failures} parse, {failures} do not.")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
