"""Read requests with harmful responses from their sources, and select those that C²-Syn can use. Knows nothing of models.

A source is the project's seed set, a local file or a Hub dataset. Files and Hub datasets have the schema of PKU-SafeRLHF.
Rows are streamed: the 300K rows of PKU-SafeRLHF are never in memory together.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

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


class EvalItem(TypedDict):
    """A row of C²-Eval."""

    request_id: str
    request: str
    full_harmful_response: str
    source: str


@dataclass(frozen=True)
class SourcePair:
    """A request and a full harmful response to it.

    `safe_response` and `correction` are None unless the source is the seed set.
    """

    request_id: str
    request: str
    full_harmful_response: str
    source: str
    safe_response: str | None = None
    correction: str | None = None


@dataclass(frozen=True)
class SelectionRules:
    """Which rows are kept. The defaults are those of the reference code.

    Attributes:
        min_response_words: A response must have more words (split at white space) than this.
        require_how_or_what: Whether the request must contain the word how or what.
        min_punctuation_marks: Number of marks that cutting needs, one more than there are cuts.
        unique_requests: Whether only the first usable row of a request is kept (D4).
    """

    min_response_words: int = 80
    require_how_or_what: bool = True
    min_punctuation_marks: int = 5
    unique_requests: bool = True


def normalise_request(request: str) -> str:
    """Return the request in lower case without punctuation, to compare requests."""
    return " ".join(re.findall(r"\w+", request.lower()))


def read_source_rows(source: str, revision: str | None = None, split: str = "train") -> Iterator[dict[str, Any]]:
    """Stream the raw rows of a source.

    Args:
        source: `seed`, the path of a `.jsonl` or `.parquet` file, or a dataset id of the Hub.
        revision: Revision of a Hub dataset; the default for PKU-SafeRLHF is `v0`.
        split: Split of the seed set or of the Hub dataset.

    Raises:
        UsageError: If the source does not exist, or lacks columns of PKU-SafeRLHF.
    """
    if source == SEED:
        yield from read_jsonl(DATA_FOLDER / f"requests_{'eval' if split == 'test' else split}.jsonl")
        return
    path = Path(source)
    if path.suffix in {".jsonl", ".json", ".parquet"}:
        if not path.is_file():
            raise UsageError(f"The source file {source} does not exist. Check the path.")
        rows = _read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path)
    elif is_hub_id(source):
        rows = _read_hub(source, revision, split)
    else:
        raise UsageError(
            f"The source is {source!r}, but must be `{SEED}`, a .jsonl or .parquet file, or a dataset id on the Hub."
        )
    for number, row in enumerate(rows, 1):
        missing = [column for column in PKU_COLUMNS if column not in row]
        if missing:
            raise UsageError(
                f"{source}: row {number} lacks the columns {', '.join(missing)}; it has {', '.join(sorted(row))}. "
                "A source needs the schema of PKU-SafeRLHF."
            )
        yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a valid Parquet file ({type(error).__name__}). Replace it.") from None


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
    """Yield the rows that C²-Syn can use, in their order, and count kept and dropped rows in `counts`.

    Of a PKU-SafeRLHF row, the first response that is unsafe and passes the rules is used.

    Args:
        rows: Raw rows of `read_source_rows`.
        source: Name of the source, written into each pair.
        rules: Thresholds.
        excluded_requests: Normalised requests to exclude: those of C²-Eval.
        counts: Is updated: `kept`, and one key per reason for dropping.

    Source: Section 4 of the paper, as implemented in `process_data.py` at 44da12c; departs in D4 (unique requests).
    """
    seen: set[bytes] = set()
    for row in rows:
        request: Any = row.get("request") if source == SEED else row["prompt"]
        if source == SEED:
            candidates = [row.get("full_harmful_response")]
        else:
            candidates = [row[f"response_{i}"] for i in (0, 1) if row[f"is_response_{i}_safe"] is False]
        usable, reason = _first_usable(request, candidates, rules, excluded_requests)
        if usable is None:
            counts[reason] += 1
            continue
        # Requests may repeat, but not pairs: the request id is derived from the pair.
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
    # JSON can hold a lone surrogate, which cannot be encoded as UTF-8.
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
    """Return whether a source has the form owner/name and is not a file."""
    looks_like_a_file = source.startswith((".", "/", "~")) or Path(source).suffix in {".jsonl", ".json", ".parquet"}
    return source.count("/") == 1 and not looks_like_a_file and not Path(source).exists()


def last_commit(dataset_id: str) -> str:
    """Return the last commit of a dataset on the Hub, to pin all later reads.

    Raises:
        UsageError: If the Hub does not answer, or the dataset cannot be read.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(dataset_id).sha
    except Exception as error:
        raise UsageError(
            f"The Hub dataset {dataset_id} cannot be read: {type(error).__name__}. Check the id, the network and, for a "
            "gated dataset, `hf auth login`."
        ) from None
    if commit is None:
        raise UsageError(f"The Hub names no commit of the dataset {dataset_id}. Try again, or give its revision.")
    return commit


def read_eval_items(source: str, revision: str | None = None) -> Iterator[EvalItem]:
    """Read C²-Eval items.

    Args:
        source: `seed`, `pku500` (downloaded from the reference repository, checksum verified), a path, or a dataset id on
            the Hub (default config, split `test`). Files and Hub datasets have the columns of `EvalItem`, or the schema of
            PKU-SafeRLHF, of which the first unsafe response of each row is used.
        revision: Revision of a Hub dataset.

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
            f"There is no file {source}. C²-Eval items come from `{SEED}`, `{PKU500}`, a file or a dataset id on the Hub."
        )
    named = public_name(source)
    for number, row in enumerate(rows, 1):
        response: Any
        if "request" in row:
            request, response, name = row["request"], row.get("full_harmful_response"), row.get("source", named)
        elif all(column in row for column in PKU_COLUMNS):
            unsafe = [row[f"response_{i}"] for i in (0, 1) if row[f"is_response_{i}_safe"] is False]
            request, response, name = row["prompt"], (unsafe or [None])[0], "PKU-SafeRLHF"
        else:
            raise UsageError(
                f"{source}: row {number} has unknown columns: {', '.join(sorted(map(str, row)))}. It needs request and "
                f"full_harmful_response, or {', '.join(PKU_COLUMNS)}."
            )
        if not all(isinstance(text, str) and text.strip() for text in (request, response)):
            raise UsageError(f"{source}: row {number} has a null or empty request or harmful response. Remove the row.")
        request_id = row.get("request_id") or f"pku-{number:04d}-{text_digest(request, response)}"
        yield {
            "request_id": request_id,
            "request": request,
            "full_harmful_response": response,
            "source": SEED if source == SEED else name,
        }


def read_benign_rows(split: str) -> list[dict[str, Any]]:
    """Return the benign rows of the seed set, of the split `train` or `eval`.

    Columns: `request_id, alarming, prompt, response`; `alarming` if the prompt sounds harmful.
    """
    return list(read_jsonl(DATA_FOLDER / f"benign_{split}.jsonl"))


def read_twin_pairs() -> list[dict[str, Any]]:
    """Return the held-out twin pairs of the seed set.

    Columns: `pair_id, kind`; of the harmful twin `request, full_harmful_response`; of the harmless twin `alarming, prompt,
    response`.
    """
    return list(read_jsonl(DATA_FOLDER / "contrast_eval.jsonl"))
