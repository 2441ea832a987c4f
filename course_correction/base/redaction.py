"""What may be published of a run: names without paths, settings without hosts. Knows nothing of the Hub."""

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
# Shorter private strings are not searched for: any vocabulary contains them.
_MIN_CHARACTERS = 8


def public_name(value: str) -> str:
    """Return a name of a model, dataset or file that reveals nothing of this machine.

    Hub ids and the project's own names stay. A local path is reduced to its last part. The address of a server is removed.
    """
    if re.match(r"https://(raw\.githubusercontent\.com|github\.com|huggingface\.co)/", value):
        # The source of published files. A query may contain a token.
        return re.sub(r"\?[^#]*", "", value)
    if re.match(r"https?://", value):
        return SERVER
    if named := re.match(r"([\w-]+=)(.+)", value):
        # NAME=file, the form of attack prompts.
        return named[1] + public_name(named[2])
    value, _, checksum = value.partition("#sha256=")
    if checksum:
        return f"{public_name(value)}#sha256={checksum}"
    try:
        path = Path(value).expanduser()
        looks_local = path.is_absolute() or value.startswith((".", "~")) or path.suffix in {".jsonl", ".json", ".parquet"}
        is_local = looks_local or (value.strip() and path.exists())
    except (OSError, RuntimeError, ValueError):
        # Too long for a path, or the home of an unknown user: not the name of a file.
        return value
    if path == Path.home():
        return "~"
    return path.name if is_local and path.name else value


def public_value(value: Any) -> Any:
    """Return settings or metrics with `public_name` applied to every string in them."""
    if isinstance(value, str):
        # A text, such as a template or a help line, is not a name.
        return value if "\n" in value or len(value) > 500 else public_name(value)
    if isinstance(value, Mapping):
        return {key: public_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [public_value(entry) for entry in value]
    return value


def private_strings() -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what must not be pushed: tokens, this machine's folders and its name."""
    from huggingface_hub import get_token

    for kind, secret in [("a Hub token", get_token()), *(("an API key", os.environ.get(k)) for k in ("OPENAI_API_KEY",))]:
        if secret:
            yield kind, secret
    folders = {Path.cwd(), Path.home(), cache_folder(), Path(__file__).resolve().parents[2]}
    for text in sorted({text for folder in folders for text in _path_texts(folder)}):
        yield "a local path", text
    # Any vocabulary contains a plain word, such as localhost.
    if len(socket.gethostname()) >= _MIN_CHARACTERS and not socket.gethostname().isalpha():
        yield "this machine's name", socket.gethostname()


def _path_texts(folder: Path) -> Iterator[str]:
    """Yield what a path into a folder looks like: the folder, or what it holds where its own name is one word.

    `/workspace`, `/content` and the like are words of vocabularies, in a tokenizer's file.
    """
    if len(folder.parts) > 2:
        texts = [str(folder)]
    else:
        try:
            texts = [f"{folder}/{name}" for name in os.listdir(folder)] if folder.name else []
        except OSError:
            texts = []
    yield from (text for text in texts if len(text) >= _MIN_CHARACTERS)


def check_nothing_private(files: Mapping[str, Path | bytes]) -> None:
    """Scan the files of a push for tokens and local paths. Compressed data, as in Parquet, is not scanned.

    Args:
        files: The path or the content of each file, by its name in the repository.

    Raises:
        UsageError: Naming the first file that contains something private, and its kind, never the text itself.
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
            raise UsageError(f"Push aborted: {name} contains {kind}. Remove it and push again.")


def _find(content: bytes | mmap.mmap, searched: list[tuple[str, bytes]]) -> str | None:
    return next((kind for kind, text in searched if content.find(text) >= 0), None)


def public_json(content: bytes) -> bytes:
    """Return the content of a JSON file with `public_value` applied to it."""
    return (json.dumps(public_value(json.loads(content)), indent=2, ensure_ascii=False) + "\n").encode()
