"""What the cards of datasets state about exported files and ranked groups. Shows no request and no response."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from course_correction.synthesis.ranked_groups import KINDS, RankedGroup


class GroupFacts(TypedDict):
    """What the card of C²-Syn states about its groups. Shares lie in [0, 1].

    Attributes:
        opener_share: Share of the groups with an opener.
        mid_sentence_share: Share of the corrections whose cut is inside a sentence.
        distinct_triggers: Number of different triggers.
        mean_words: Mean length of the responses, by kind.
        row: A group as JSON, with the length of each text in its place.
    """

    opener_share: float
    mid_sentence_share: float
    distinct_triggers: int
    mean_words: dict[str, float]
    row: str


def content_version(folder: Path) -> str:
    """Return a version that changes with the exported Parquet files.

    `datasets` keys its cache of a local folder by the folder's name, config and version, not by its content. Without this,
    it would serve an earlier export of the same name.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.parquet")):
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"1.0.{int(digest.hexdigest()[:8], 16)}"


def file_digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of each file by its path inside `folder`."""
    digests = {}
    for file in files:
        with open(file, "rb") as stream:
            digests[str(file.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def describe_groups(groups: Iterable[RankedGroup]) -> GroupFacts:
    """Return what a card states about ranked groups.

    Args:
        groups: Rows in `RANKED_SCHEMA`, at least one.
    """
    count, with_opener, corrections, mid_sentence = 0, 0, 0, 0
    words: Counter[str] = Counter()
    triggers: set[str] = set()
    first: RankedGroup | None = None
    for group in groups:
        count += 1
        with_opener += bool(group["opener"])
        triggers.update(group["triggers"])
        for kind, text, start in zip(group["kinds"], group["responses"], group["correction_starts"], strict=True):
            words[kind] += len(text.split())
            corrections += start >= 0
            mid_sentence += start >= 0 and text.startswith("...", start)
        first = first or group
    assert first is not None, "a dataset has at least one group"
    row = {**first, "request": _hidden(first["request"]), "opener": _hidden(first["opener"])}
    row["responses"] = [_hidden(text) for text in first["responses"]]
    return {
        "opener_share": with_opener / count,
        "mid_sentence_share": mid_sentence / corrections,
        "distinct_triggers": len(triggers),
        "mean_words": {kind: words[kind] / count for kind in KINDS},
        "row": json.dumps(row, indent=2, ensure_ascii=False),
    }


def _hidden(text: str) -> str:
    return f"<{len(text.split())} words>"
