"""Files: atomic writes, JSON and JSONL, digests. Knows nothing of the meaning of a row."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from course_correction.base.errors import UsageError

Item = TypeVar("Item")


def cache_folder() -> Path:
    """Return the folder for files that are made once and used again; the variable `COURSE_CORRECTION_CACHE` moves it."""
    return Path(os.environ.get("COURSE_CORRECTION_CACHE", Path.home() / ".cache" / "course-correction"))


def text_digest(*texts: str) -> str:
    """Return 16 hexadecimal digits that identify the texts without showing them."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


def to_json_line(row: dict[str, Any]) -> str:
    """Encode a row on one line, keys in the order given, so that equal rows are equal bytes."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_atomically(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Replace `path` in one step: whatever happens, it holds the old content or the new, never half of either.

    Args:
        path: The file; its folder is made.
        content: Text, bytes, or parts that are too large to hold together.
    """
    content = content.encode() if isinstance(content, str) else content
    parts = [content] if isinstance(content, bytes) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: object) -> None:
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
                raise UsageError(f"{path}: line {number} is not valid JSON. Correct or remove that line.") from None
            if not isinstance(row, dict):
                raise UsageError(f"{path}: line {number} is not a JSON object. Correct or remove that line.")
            yield row


def chunked(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Split into lists of `size`. The last one may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
