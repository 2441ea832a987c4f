"""A run on disk: its folder, claimed by a lock, and its settings in run.json. Knows nothing of what a row means."""

import contextlib
import fcntl
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import write_json

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
