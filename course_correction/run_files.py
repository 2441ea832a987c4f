"""Long runs on disk: rows appended unit by unit, settings beside them. Knows nothing of models or of what a row means."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"


class UsageError(ValueError):
    """Something that the user can mend; scripts print it on one line and exit with status 2."""


def cache_folder() -> Path:
    """Return the folder for what is made once and used again; `COURSE_CORRECTION_CACHE` moves it."""
    return Path(os.environ.get("COURSE_CORRECTION_CACHE", Path.home() / ".cache" / "course-correction"))


def random_for(seed: int, *parts: object) -> random.Random:
    """Return a generator that depends on `seed` and `parts` alone, not on order, process or hash seed."""
    return random.Random("\x1f".join(map(str, (seed, *parts))))


def text_digest(*texts: str) -> str:
    """Return 16 hexadecimal digits that stand for the texts; used where an identifier must not show its text."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


def to_json_line(row: dict[str, Any]) -> str:
    """Encode a row on one line, keys in the order given, so that equal rows are equal bytes."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` in one step: whatever happens, it holds the old content or the new, never half of either."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a finished JSONL file.

    Raises:
        UsageError: If a line is no JSON object. The line's number is named, never its text.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except ValueError:
                raise UsageError(f"{path}: line {number} is not valid JSON. Mend or remove that line.") from None
            if not isinstance(row, dict):
                raise UsageError(f"{path}: line {number} is not a JSON object.")
            yield row


def library_versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the libraries that decide what a run computes."""
    from importlib.metadata import PackageNotFoundError, version

    from course_correction import __version__

    versions = {"course-correction": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@contextlib.contextmanager
def open_run(folder: Path, stage: str, settings: dict[str, Any], rows_file: str) -> Iterator[Path]:
    """Claim `folder` for one run of `stage` under `settings`, for as long as the block lasts.

    The lock belongs to the process, so it dies with it, also by kill -9.

    Args:
        folder: The output folder.
        stage: Name of the stage, its key in run.json.
        settings: All that decides the rows.
        rows_file: Name of the file that the stage writes; while it holds nothing, other settings are welcome.

    Raises:
        UsageError: If another process works in the folder, or if it was filled under other settings.
    """
    settings = json.loads(json.dumps(settings))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{stage}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"Another process is writing to {folder}. Wait for it, or give another --output_dir.") from None
        path = folder / RUN_FILE
        try:
            runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            known = runs[stage]["settings"] if stage in runs else None
        except (ValueError, TypeError, KeyError):
            raise UsageError(
                f"{path} does not hold a run's settings; give another --output_dir or remove that folder."
            ) from None
        rows = folder / rows_file
        if rows.exists() and rows.stat().st_size:
            if known is None:
                raise UsageError(f"{rows} holds rows, but {path} does not say under which settings. Move them away.")
            refuse_other_settings(folder, known, settings)
        else:
            runs[stage] = {"settings": settings, "versions": library_versions()}
            write_json(path, runs)
        yield folder


def refuse_other_settings(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to go on in a folder that was filled under other settings.

    Raises:
        UsageError: Naming each setting that differs, with both values.
    """
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        difference = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in changed)
        raise UsageError(
            f"{folder} holds a run under other settings ({difference}). Give another --output_dir, or the old settings."
        )


def chunked(items: Sequence[Any], size: int) -> list[list[Any]]:
    """Split into lists of `size`, the last one perhaps shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
