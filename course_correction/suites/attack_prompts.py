"""Read published attack prompts for replay: files of JailbreakBench and HarmBench, plain rows. Knows nothing of models.

Nothing here searches for a prompt or makes one stronger. No text of a prompt reaches an error or the console.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import cache_folder, text_digest, write_atomically
from course_correction.suites.ciphers import CIPHERS, build_cipher_prompt
from course_correction.synthesis.reference_items import fetch_url
from course_correction.synthesis.sources import DATA_FOLDER, read_benign_rows

MILD_FILE = DATA_FOLDER / "jailbreaks_mild.jsonl"
CIPHER_ATTACK = "CipherChat"
NUM_DEMONSTRATIONS = 3
_URL = r"https://(?:raw\.githubusercontent\.com/[^/]+/[^/]+|github\.com/[^/]+/[^/]+/raw)/(?P<revision>[^/]+)/(?P<path>.+)"
_HUB = r"[\w.-]+/[\w.-]+:(?P<path>[^@]+)(?:@(?P<revision>.*))?"


@dataclass(frozen=True)
class AttackPrompt:
    """One prompt of an attack.

    Attributes:
        attack: Name of the method.
        behavior_id: A short name of the behaviour that the attack wants.
        behavior: The behaviour as a request in plain words; None where the file has only the id.
        category: Of the behaviour, if known.
        prompt: The text sent to the model; None where the attack has no prompt, which published rates count as a failure.
        cipher: The cipher that decodes the answer, if any.
    """

    attack: str
    behavior_id: str
    behavior: str | None
    category: str | None
    prompt: str | None
    cipher: str | None


@dataclass(frozen=True)
class _Source:
    """An entry of `jailbreak_files`: its place, the attack's name and checksum if given, and its path and revision there."""

    entry: str
    place: str
    name: str | None
    sha256: str | None
    path: PurePosixPath
    revision: str | None = None


def read_attack_prompts(files: Sequence[str], ciphers: Sequence[str], first: int | None = None) -> list[AttackPrompt]:
    """Read all prompts of some files, in order; a behaviour may have several.

    Args:
        files: Each a local `.json` or `.jsonl`, a file of a Hub dataset `owner/name:path@commit`, or a raw GitHub URL; with
            `NAME=` before it to name the attack and `#sha256=` behind it to check it. A `.csv` of HarmBench's behaviours
            gives the texts to the ids of the other files. Without any the project's mild imitations.
        ciphers: Those by which behaviours of rows named CipherChat are encoded, where the row names no `cipher` of its own.
        first: Keeps the first n prompts of each attack.

    Raises:
        UsageError: If a file is missing, not pinned, not the one of the checksum, or of another format. No text is named.
    """
    rows: list[AttackPrompt] = []
    texts: dict[str, str] = {}
    for entry in files or [str(MILD_FILE)]:
        source = _parse(entry)
        content = _read(source)
        if source.path.suffix == ".csv":
            texts |= _read_behaviors(source, content)
            continue
        prompts = list(_read_rows(source, content))
        if not prompts:
            raise UsageError(f"{entry} holds no prompt.")
        rows += prompts
    if not rows:
        raise UsageError("jailbreak_files names no file of prompts, but tables of behaviours only. Add one of prompts.")
    kept: list[AttackPrompt] = []
    counts: Counter[str] = Counter()
    for row in rows:
        for one in _encoded(replace(row, behavior=row.behavior or texts.get(row.behavior_id)), ciphers):
            counts[one.attack] += 1
            if first is None or counts[one.attack] <= first:
                kept.append(one)
    return kept


def index_prompts(prompts: Sequence[AttackPrompt]) -> list[tuple[str, int, AttackPrompt]]:
    """Return each prompt's request id, which no other prompt has in any run, and its number among those of its behaviour."""
    counts: Counter[tuple[str, str]] = Counter()
    indexed = []
    for one in prompts:
        key = (one.attack, one.behavior_id)
        number = counts[key]
        counts[key] += 1
        digest = text_digest(*key, str(number), one.cipher or "", one.prompt or "")
        indexed.append((f"{re.sub(r'[^A-Za-z0-9]+', '-', one.attack).lower()}-{digest}", number, one))
    return indexed


def _encoded(row: AttackPrompt, ciphers: Sequence[str]) -> Iterator[AttackPrompt]:
    if row.attack.lower() != CIPHER_ATTACK.lower() or row.cipher:
        yield row
        return
    if not row.behavior:
        raise UsageError(f"A row of {row.attack} has no text of its behaviour to encode. Give `behavior` in a .jsonl file.")
    plain = (one["prompt"] for one in read_benign_rows("train") if not one["alarming"])
    shortest = sorted(plain, key=lambda text: (len(text), text))[:NUM_DEMONSTRATIONS]
    for cipher in ciphers:
        yield replace(row, prompt=build_cipher_prompt(cipher, row.behavior, shortest), cipher=cipher)


def _parse(entry: str) -> _Source:
    """Parse an entry of `jailbreak_files`, and refuse one on the network that is not pinned."""
    rest, mark, sha256 = entry.partition("#sha256=")
    if mark and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{entry}: a sha256 has 64 hexadecimal digits, this one has {len(sha256)} characters.")
    named = None if Path(rest).exists() else re.fullmatch(r"([\w.+ -]+)=(.+)", rest)
    name, place = (named[1], named[2]) if named else (None, rest)
    source = _Source(entry, place, name, sha256.lower() or None, PurePosixPath(Path(place).expanduser().absolute()))
    is_url = place.startswith(("http://", "https://"))
    match = re.fullmatch(_URL if is_url else _HUB, place)
    if not is_url and (match is None or Path(place).exists()):
        return source
    if match is None:
        raise UsageError(
            f"{entry} is not a raw file on GitHub. Give https://raw.githubusercontent.com/owner/name/commit/path."
        )
    revision = match["revision"] or ""
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise UsageError(f"{entry} is not pinned (revision {revision or 'missing'}). Name a commit, 40 hexadecimal digits.")
    if is_url and not sha256:
        raise UsageError(f"{entry} has no checksum. Add #sha256=<64 hexadecimal digits> to the URL.")
    return replace(source, path=PurePosixPath(match["path"]), revision=revision)


def _read(source: _Source) -> bytes:
    """Return the bytes of a file, checked against its checksum. A file on the network is downloaded once, into the cache."""
    if source.revision is None:
        path = Path(source.path)
        if not path.is_file():
            raise UsageError(
                f"There is no file {source.place}. jailbreak_files takes local files, owner/name:path@commit and raw "
                "GitHub URLs."
            )
    else:
        path = cache_folder() / "jailbreaks" / f"{text_digest(source.place)}{source.path.suffix}"
        if not path.is_file():
            content = (fetch_url if source.place.startswith("http") else _fetch_hub)(source.place)
            _check_sum(source, content)
            write_atomically(path, content)
    content = path.read_bytes()
    _check_sum(source, content)
    return content


def _check_sum(source: _Source, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if source.sha256 and digest != source.sha256:
        raise UsageError(f"{source.entry} does not have that checksum: its sha256 is {digest}. Check the file.")


def _fetch_hub(place: str) -> bytes:
    from huggingface_hub import hf_hub_download

    repository, _, rest = place.partition(":")
    path, _, revision = rest.partition("@")
    try:
        return Path(hf_hub_download(repository, path, repo_type="dataset", revision=revision)).read_bytes()
    except Exception as error:
        raise UsageError(
            f"{place} cannot be downloaded from the Hub: {type(error).__name__}. Check id, path and commit, the network "
            "and, for a gated dataset, `hf auth login`."
        ) from None


def _name_of(source: _Source) -> str:
    """Return the attack's name by the path: JailbreakBench's and HarmBench's folders, else the file's own name."""
    path, parts = source.path, source.path.parts
    if "attack-artifacts" in parts[:-2]:
        return parts[parts.index("attack-artifacts") + 1]
    if path.stem.startswith("test_cases"):
        # HarmBench has results/<method>/<experiment>/test_cases/test_cases.json.
        up = 2 if path.parent.name == "test_cases" else 0
        name = path.parents[up].name if len(path.parents) > up else ""
        if not name:
            raise UsageError(f"{source.entry} does not contain the attack's name. Give NAME={source.place}.")
        return name
    return path.stem


def _read_rows(source: _Source, content: bytes) -> Iterator[AttackPrompt]:
    if source.path.suffix == ".jsonl":
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                yield _plain_row(source, number, _load(source, line, f"line {number}"))
        return
    value = _load(source, content, "the file")
    if isinstance(value.get("jailbreaks"), list):
        method = value["parameters"].get("method") if isinstance(value.get("parameters"), dict) else None
        name = source.name or (method if isinstance(method, str) and method.strip() else _name_of(source))
        for number, row in enumerate(value["jailbreaks"], 1):
            if not isinstance(row, dict):
                raise UsageError(f"{source.entry}: row {number} is {_kind(row)}, not an object. Remove it.")
            goal = _text(source, number, row, "goal")
            behavior_id, category = _optional(row, "behavior") or _id_of(goal), _optional(row, "category")
            yield AttackPrompt(name, behavior_id, goal, category, _prompt(source, number, row), None)
    elif value and all(isinstance(entry, list) for entry in value.values()):
        name = source.name or _name_of(source)
        for number, (behavior_id, prompts) in enumerate(value.items(), 1):
            named = _text(source, number, {"behaviour id": behavior_id}, "behaviour id")
            # A behaviour without prompts counts as one null prompt.
            for prompt in prompts or [None]:
                text = _prompt(source, number, {"prompt": prompt})
                yield AttackPrompt(name, named, None, None, text, None)
    else:
        raise UsageError(
            f"{source.entry} has an unknown format (keys: {_keys(value)}). It needs `parameters` and `jailbreaks` of "
            "JailbreakBench, lists of prompts by behaviour of HarmBench, or .jsonl rows of attack, behavior, prompt."
        )


def _plain_row(source: _Source, number: int, row: dict[str, Any]) -> AttackPrompt:
    if "behavior" not in row or "prompt" not in row or not (source.name or "attack" in row):
        raise UsageError(f"{source.entry}: row {number} has the keys {_keys(row)}; it needs attack, behavior and prompt.")
    attack, behavior = source.name or _text(source, number, row, "attack"), _text(source, number, row, "behavior")
    cipher = row.get("cipher")
    if cipher is not None and cipher not in CIPHERS:
        raise UsageError(f"{source.entry}: row {number} has an unknown cipher. Use {', '.join(CIPHERS)}.")
    behavior_id, category = _optional(row, "behavior_id") or _id_of(behavior), _optional(row, "category")
    return AttackPrompt(attack, behavior_id, behavior, category, _prompt(source, number, row), cipher)


def _optional(row: Mapping[str, object], key: str) -> str | None:
    value = row.get(key)
    return value.encode(errors="replace").decode() if isinstance(value, str) and value.strip() else None


def _id_of(behavior: str) -> str:
    return f"behavior-{text_digest(behavior)}"


def _read_behaviors(source: _Source, content: bytes) -> dict[str, str]:
    """Return the texts of behaviours by their ids, as HarmBench's tables have them."""
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig", errors="replace"))))
    if not rows or not {"Behavior", "BehaviorID"} <= rows[0].keys():
        raise UsageError(f"{source.entry} needs rows with the columns Behavior and BehaviorID.")
    return {row["BehaviorID"]: row["Behavior"] for row in rows}


def _load(source: _Source, content: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(content.decode())
    except ValueError:
        raise UsageError(f"{source.entry}: {what} is not valid JSON. Correct or remove it.") from None
    if not isinstance(value, dict):
        raise UsageError(f"{source.entry}: {what} is {_kind(value)}, not an object.")
    return value


def _text(source: _Source, number: int, row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip() or re.search("[\ud800-\udfff]", value):
        raise UsageError(f"{source.entry}: row {number} has a null or empty {key}. Remove that row.")
    return value


def _prompt(source: _Source, number: int, row: Mapping[str, object]) -> str | None:
    """Return the prompt of a row. None stays None; any other value that is not a text is refused."""
    return None if row.get("prompt") is None else _text(source, number, row, "prompt")


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _keys(row: Mapping[str, object]) -> str:
    """Return the keys that look like names. A key may be a harmful text, so others are only counted."""
    names = [key for key in row if re.fullmatch(r"[A-Za-z_]{1,24}", key)]
    others = len(row) - len(names)
    return ", ".join([*names[:8], *([f"{others} others"] if others else [])]) or "none"
