"""What of a run may be shown to others: names without paths, settings without hosts. Knows nothing of the Hub."""

import json
import mmap
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import cache_folder

SERVER = "(a server)"
_LEAST = 8  # Characters that a private string needs to be searched for: a shorter one stands in any vocabulary.


def public_name(value: str) -> str:
    """Return a model, dataset or file by a name that says nothing of this machine.

    Hub ids and the project's own names stay; of a path that exists here only its last part does; a server's address does
    not.
    """
    if re.match(r"https://(raw\.githubusercontent\.com|github\.com|huggingface\.co)/", value):
        # Where published files come from; what stands behind a question mark may be a token.
        return re.sub(r"\?[^#]*", "", value)
    if re.match(r"https?://", value):
        return SERVER
    if named := re.match(r"([\w-]+=)(.+)", value):
        # NAME=file, as attack prompts are given.
        return named[1] + public_name(named[2])
    value, _, checksum = value.partition("#sha256=")
    if checksum:
        return f"{public_name(value)}#sha256={checksum}"
    try:
        path = Path(value).expanduser()
        looks_local = path.is_absolute() or value.startswith((".", "~")) or path.suffix in {".jsonl", ".json", ".parquet"}
        is_local = looks_local or (value.strip() and path.exists())
    except (OSError, RuntimeError, ValueError):
        # Too long for a path, or somebody's home that is not here: no name of a file.
        return value
    if path == Path.home():
        return "~"
    return path.name if is_local and path.name else value


def public_value(value: Any) -> Any:
    """Return settings or metrics with every string in them as `public_name` gives it."""
    if isinstance(value, str):
        # A text, such as a template or a help line, is no name of anything.
        return value if "\n" in value or len(value) > 500 else public_name(value)
    if isinstance(value, Mapping):
        return {key: public_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [public_value(entry) for entry in value]
    return value


def private_strings() -> Iterator[tuple[str, str]]:
    """Yield what must never be pushed, each with a word for it: tokens, this machine's folders and its name."""
    from huggingface_hub import get_token

    for kind, secret in [("a Hub token", get_token()), *(("an API key", os.environ.get(k)) for k in ("OPENAI_API_KEY",))]:
        if secret:
            yield kind, secret
    folders = {Path.cwd(), Path.home(), cache_folder(), Path(__file__).resolve().parents[2]}
    for folder in folders:
        if len(str(folder)) >= _LEAST:
            yield "a path of this machine", str(folder)
    # A plain word, such as localhost, stands in every vocabulary.
    if len(socket.gethostname()) >= _LEAST and not socket.gethostname().isalpha():
        yield "this machine's name", socket.gethostname()


def check_nothing_private(files: Mapping[str, Path | bytes]) -> None:
    """Look through every byte of what is about to be pushed (compressed files, such as Parquet, as they lie there).

    Args:
        files: A path or the content of each file by its name in the repository.

    Raises:
        UsageError: Naming the first file that holds something private, and of what kind; never the thing itself.
    """
    searched = [(kind, text.encode()) for kind, text in private_strings()]
    for name, content in files.items():
        if isinstance(content, bytes):
            kind = _find(content, searched)
        elif content.stat().st_size == 0:
            continue
        else:
            with open(content, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                kind = _find(view, searched)
        if kind:
            raise UsageError(f"{name} holds {kind} and was not pushed, nor anything else. Remove it from there first.")


def _find(content: Any, searched: list[tuple[str, bytes]]) -> str | None:
    return next((kind for kind, text in searched if content.find(text) >= 0), None)


def public_json(content: bytes) -> bytes:
    """Return a JSON file with every string in it as `public_value` gives it."""
    return (json.dumps(public_value(json.loads(content)), indent=2, ensure_ascii=False) + "\n").encode()
