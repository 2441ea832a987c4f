"""Where requests and harmful responses come from, and which of them are kept. Knows nothing of cuts or models.

A source is the project's seed set, a local file, or a Hub dataset; the last two in the schema of PKU-SafeRLHF. Rows are
streamed, so that the 300K rows of PKU-SafeRLHF are never in memory together.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, text_digest
from course_correction.base.redaction import public_name
from course_correction.synthesis.cuts import count_marks
from course_correction.synthesis.reference_items import PKU500, fetch_pku500

DATA_FOLDER = Path(__file__).resolve().parents[1] / "data"
SEED = "seed"
PKU_SAFERLHF = "PKU-Alignment/PKU-SafeRLHF"
PKU_SAFERLHF_REVISION = "v0"
# Both versions of PKU-SafeRLHF have these columns (v0 has seven columns in all, main has more).
PKU_COLUMNS = ("prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe")


@dataclass(frozen=True)
class SourcePair:
    """A request and a full harmful response to it.

    `safe_response` and `correction` are the texts written for the seed set; other sources have none (`None`).
    """

    request_id: str
    request: str
    full_harmful_response: str
    source: str
    safe_response: str | None = None
    correction: str | None = None


@dataclass(frozen=True)
class SelectionRules:
    """Which rows are kept. The defaults are those of the paper's pipeline as its reference code applies them.

    Attributes:
        min_response_words: A response must have more white-space words than this.
        require_how_or_what: Whether the request must hold the word how or what.
        min_punctuation_marks: Marks that cutting needs; one more than there are cuts.
        unique_requests: Whether only the first usable row of a request is kept (D4).
    """

    min_response_words: int = 80
    require_how_or_what: bool = True
    min_punctuation_marks: int = 5
    unique_requests: bool = True


def normalise_request(request: str) -> str:
    """Return the request without case, punctuation and white space, for comparing requests."""
    return " ".join(re.findall(r"\w+", request.lower()))


def read_source_rows(source: str, revision: str | None = None, split: str = "train") -> Iterator[dict[str, Any]]:
    """Stream the raw rows of a source.

    Args:
        source: `seed`, the path of a `.jsonl` or `.parquet` file, or a dataset id of the Hub.
        revision: Revision of a Hub dataset; PKU-SafeRLHF is pinned to `v0` without it.
        split: Split of the seed set or of the Hub dataset.

    Raises:
        UsageError: If there is no such source, or its columns are not those of PKU-SafeRLHF.
    """
    if source == SEED:
        yield from read_jsonl(DATA_FOLDER / f"requests_{'eval' if split == 'test' else split}.jsonl")
        return
    path = Path(source)
    if path.suffix in {".jsonl", ".json", ".parquet"}:
        if not path.is_file():
            raise UsageError(f"There is no file {source}.")
        rows = _read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path)
    elif is_hub_id(source):
        rows = _read_hub(source, revision, split)
    else:
        raise UsageError(
            f"The source {source!r} is neither `{SEED}`, nor a .jsonl or .parquet file, nor a dataset id of the Hub."
        )
    for number, row in enumerate(rows, 1):
        missing = [column for column in PKU_COLUMNS if column not in row]
        if missing:
            raise UsageError(
                f"{source}: row {number} lacks the columns {', '.join(missing)}; it has {', '.join(sorted(row))}. "
                "Sources need the schema of PKU-SafeRLHF."
            )
        yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} is no Parquet file, or a damaged one ({type(error).__name__}).") from None


def _read_hub(dataset_id: str, revision: str | None, split: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    if revision is None and dataset_id == PKU_SAFERLHF:
        revision = PKU_SAFERLHF_REVISION
    try:
        yield from load_dataset(dataset_id, revision=revision, split=split, streaming=True)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"The Hub dataset {dataset_id} (revision {revision}, split {split}) cannot be read: "
            f"{type(error).__name__}. Check the id, the network and, for a gated dataset, `hf auth login`."
        ) from None


def select_source_pairs(
    rows: Iterable[dict[str, Any]],
    source: str,
    rules: SelectionRules,
    excluded_requests: frozenset[str],
    counts: Counter[str],
) -> Iterator[SourcePair]:
    """Keep the rows that C²-Syn can use, in their order; count in `counts` what is `kept` and dropped, by reason.

    A PKU-SafeRLHF row gives its first response that is unsafe and passes the rules.

    Args:
        rows: Raw rows of `read_source_rows`.
        source: Name of the source, written into each pair.
        rules: Thresholds.
        excluded_requests: Normalised requests to leave out: those of C²-Eval.
        counts: Is added to: `kept` and one key for every reason of dropping.

    Source: Section 4 of the paper as done by `process_data.py` at 44da12c; departs in D4 (unique requests).
    """
    seen: set[bytes] = set()
    for row in rows:
        if source == SEED:
            request, candidates = row.get("request"), [row.get("full_harmful_response")]
        else:
            request = row["prompt"]
            candidates = [row[f"response_{i}"] for i in (0, 1) if row[f"is_response_{i}_safe"] is False]
        usable, reason = _first_usable(request, candidates, rules, excluded_requests)
        if usable is None:
            counts[reason] += 1
            continue
        # Where requests may repeat, a pair may not: its id names it.
        key_text = normalise_request(request) if rules.unique_requests else f"{request}\x1f{usable}"
        key = hashlib.sha256(key_text.encode()).digest()[:12]
        if key in seen:
            counts["repeated_request"] += 1
            continue
        seen.add(key)
        counts["kept"] += 1
        yield SourcePair(
            request_id=row["request_id"] if source == SEED else f"pku-{text_digest(request, usable)}",
            request=request.strip(),
            full_harmful_response=usable.strip(),
            source=public_name(source),
            safe_response=row.get("safe_response"),
            correction=row.get("correction"),
        )


def _is_text(value: Any) -> bool:
    # A lone surrogate, which JSON can spell, cannot be written as UTF-8.
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def _first_usable(
    request: Any, candidates: list[Any], rules: SelectionRules, excluded_requests: frozenset[str]
) -> tuple[str | None, str]:
    if not _is_text(request):
        return None, "empty_text"
    if rules.require_how_or_what and not re.search(r"\b(how|what)\b", request, re.IGNORECASE):
        return None, "no_how_or_what"
    if normalise_request(request) in excluded_requests:
        return None, "in_c2_eval"
    reason = "no_unsafe_response"
    for candidate in candidates:
        if not _is_text(candidate):
            reason = "empty_text"
        elif len(candidate.split()) <= rules.min_response_words:
            reason = "response_too_short"
        elif count_marks(candidate) < rules.min_punctuation_marks:
            reason = "too_few_punctuation_marks"
        else:
            return candidate, "kept"
    return None, reason


def is_hub_id(source: str) -> bool:
    """Say whether a source reads as owner/name rather than as a file."""
    looks_like_a_file = source.startswith((".", "/", "~")) or Path(source).suffix in {".jsonl", ".json", ".parquet"}
    return source.count("/") == 1 and not looks_like_a_file and not Path(source).exists()


def last_commit(dataset_id: str) -> str:
    """Return the last commit of a dataset on the Hub, so that all that follows reads the same.

    Raises:
        UsageError: If it cannot be found out.
    """
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset_id).sha
    except Exception as error:
        raise UsageError(
            f"The Hub dataset {dataset_id} cannot be read: {type(error).__name__}. Check the id, the network and, for a "
            "gated dataset, `hf auth login`."
        ) from None


def read_eval_items(source: str, revision: str | None = None) -> Iterator[dict[str, str]]:
    """Read C²-Eval items: `request_id, request, full_harmful_response, source`.

    Args:
        source: `seed`, `pku500` (fetched from the reference repository, checksum verified), a path, or the id of a dataset
            on the Hub (its default config, split `test`): in the schema of PKU-SafeRLHF (each row gives its first unsafe
            response) or with the columns named above.
        revision: Of a dataset on the Hub.

    Raises:
        UsageError: If a row lacks a text, or the source cannot be read.
    """
    if source == PKU500:
        source = str(fetch_pku500())
    path = DATA_FOLDER / "requests_eval.jsonl" if source == SEED else Path(source)
    if path.is_file():
        rows = _read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path)
    elif is_hub_id(source):
        rows = _read_hub(source, revision, "test")
    else:
        raise UsageError(
            f"There is no file {source}; C²-Eval items come from `seed`, `pku500`, a file or a dataset of the Hub."
        )
    named = public_name(source)
    for number, row in enumerate(rows, 1):
        if "request" in row:
            request, response, name = row["request"], row.get("full_harmful_response"), row.get("source", named)
        elif all(column in row for column in PKU_COLUMNS):
            unsafe = [row[f"response_{i}"] for i in (0, 1) if row[f"is_response_{i}_safe"] is False]
            request, response, name = row["prompt"], (unsafe or [None])[0], "PKU-SafeRLHF"
        else:
            raise UsageError(f"{source}: row {number} has unknown columns: {', '.join(sorted(map(str, row)))}.")
        if not all(isinstance(text, str) and text.strip() for text in (request, response)):
            raise UsageError(f"{source}: row {number} has a null or empty request or harmful response. Remove that row.")
        request_id = row.get("request_id") or f"pku-{number:04d}-{text_digest(request, response)}"
        yield {
            "request_id": request_id,
            "request": request,
            "full_harmful_response": response,
            "source": SEED if source == SEED else name,
        }


def read_benign_rows(split: str) -> list[dict[str, Any]]:
    """Return the seed set's benign rows (`request_id, prompt, response, alarming`) of `train` or `eval`."""
    return list(read_jsonl(DATA_FOLDER / f"benign_{split}.jsonl"))


def read_contrast_pairs() -> list[dict[str, Any]]:
    """Return the seed set's held-out pairs, a harmful and a harmless twin a row.

    `pair_id, kind`, of the one `request, full_harmful_response`, of the other `alarming, prompt, response`.
    """
    return list(read_jsonl(DATA_FOLDER / "contrast_eval.jsonl"))
