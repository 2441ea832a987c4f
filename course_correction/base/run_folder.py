"""A run on disk: its folder, claimed by a lock, and its settings in run.json. Knows nothing of the meaning of a row."""

import contextlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.resumable_rows import rows_exist

RUN_FILE = "run.json"


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

    Args:
        folder: The output folder.
        stage: Name of the stage, its key in run.json.
        settings: All that decides the rows.
        rows_file: Name of the file that the stage writes. While there are no rows, other settings are accepted.

    Raises:
        UsageError: If another process writes to the folder, or if it was filled under other settings.
    """
    settings = json.loads(json.dumps(settings))
    with claim_folder(folder, stage):
        _check_settings(folder, stage, settings, folder / rows_file)
        yield folder


@contextlib.contextmanager
def claim_folder(folder: Path, stage: str) -> Iterator[None]:
    """Keep other processes of the same stage out of `folder` while the block lasts.

    The lock belongs to the process, so it ends with the process, also by kill -9.

    Raises:
        UsageError: If another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The soft fallback of filelock would outlive a process that is killed.
    lock = FileLock(folder / f".{stage}.lock", blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"Another process is writing to {folder}. Wait for it, or set another --output_dir.") from None
    try:
        yield
    finally:
        lock.release()


def _check_settings(folder: Path, stage: str, settings: dict[str, Any], rows: Path) -> None:
    """Refuse settings other than those of the rows, or record the settings where there are no rows."""
    path = folder / RUN_FILE
    try:
        runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known = runs[stage]["settings"] if stage in runs else None
    except (ValueError, TypeError, KeyError):
        raise UsageError(
            f"{path} does not contain the settings of a run. Set another --output_dir or remove the folder."
        ) from None
    if not rows_exist(rows):
        runs[stage] = {"settings": settings, "versions": library_versions()}
        write_json(path, runs)
    elif known is None:
        raise UsageError(
            f"{rows} or {rows.name}.units contains rows, but {path} has no settings for them. Move the rows away."
        )
    else:
        refuse_other_settings(folder, known, settings)


def refuse_other_settings(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to resume in a folder that was filled under other settings.

    Raises:
        UsageError: Naming each setting that differs, with both values.
    """
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        difference = ", ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in changed)
        raise UsageError(
            f"{folder} contains a run under other settings ({difference}). Set another --output_dir, or the old settings."
        )
