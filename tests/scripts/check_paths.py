"""Check that no file of the repository contains an absolute path of a machine (`make check`, and a hook of pre-commit).

python tests/scripts/check_paths.py                 # every file that git tracks, or every file where there is no git
python tests/scripts/check_paths.py README.md ...   # these files
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A folder in which users, containers or temporary files live, with something in it, at the start of a word.
MACHINE_PATH = re.compile(r"(?<![\w:/.$}>)\]])/(?:home|root|Users|tmp|work|workspace|mnt|media)/[\w.~-]|\b[A-Z]:\\+Users\\")
LEFT_OUT = {".git", ".venv", "runs", "build", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"}


def repository_files() -> Iterator[Path]:
    """Yield the files to check: those that git tracks or would track, or all of them where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        yield from (path for path in ROOT.rglob("*") if not LEFT_OUT & set(path.relative_to(ROOT).parts))
    else:
        yield from (ROOT / name for name in listed if name)


def machine_paths(files: Iterable[Path]) -> Iterator[str]:
    """Yield `file:line` of each absolute path in text files. The path itself is not shown."""
    for file in files:
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # Not a text.
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                yield f"{file}:{number}"


def main() -> None:
    """Print where the paths are, and exit with 1 if there are any."""
    lines = list(machine_paths(map(Path, sys.argv[1:]) if sys.argv[1:] else repository_files()))
    for line in lines:
        print(f"{line}: an absolute path of a machine. Write it relative to the repository.")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
