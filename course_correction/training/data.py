"""The rows that training reads: load them, check them, drop those that are too long. Knows nothing of models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, text_digest
from course_correction.synthesis.ranked_groups import RANKED_SCHEMA, check_ranked_group
from course_correction.synthesis.sources import normalise_request, read_benign_rows, read_eval_items
from course_correction.training.settings import TrainingData

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# The config that each objective reads.
CONFIGS = {"grouped": "ranked", "pairwise": "pairs"}
PAIR_COLUMNS = ("prompt", "chosen", "rejected")


def load_rows(data: TrainingData, objective: str) -> Dataset:
    """Load and check the `pairs` or `ranked` rows of the dataset and of those mixed in, in this order.

    Raises:
        UsageError: If they cannot be loaded or mixed, a column is missing, or a row cannot be trained on.
    """
    from datasets import concatenate_datasets

    first = load_dataset_rows(data, data.dataset_name, data.dataset_revision, objective)
    parts = [first]
    for named in data.mix_with:
        name, _, revision = named.partition("@") if not Path(named).exists() else (named, "", "")
        part = load_dataset_rows(data, name, revision or None, objective)
        try:
            parts.append(part.cast(first.features))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{named} cannot be mixed with {data.dataset_name}: {str(error).splitlines()[0]}") from None
    return concatenate_datasets(parts) if data.mix_with else first


def load_dataset_rows(data: TrainingData, name: str, revision: str | None, objective: str) -> Dataset:
    """Load and check the rows of one dataset; see `load_rows`."""
    from datasets import load_dataset

    config = CONFIGS[objective]
    try:
        rows = load_dataset(name, config, split=data.dataset_split, revision=revision, cache_dir=content_cache(Path(name)))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"The config {config} of {name} cannot be loaded: {reason}") from None
    wanted = PAIR_COLUMNS if objective == "pairwise" else RANKED_SCHEMA.names
    missing = [column for column in wanted if column not in rows.column_names]
    if missing:
        raise UsageError(f"{name} lacks the columns {', '.join(missing)}; it has {', '.join(rows.column_names)}.")
    if data.max_groups is not None and "request_id" in rows.column_names:
        kept = set(list(dict.fromkeys(rows["request_id"]))[: data.max_groups])
        rows = rows.filter(lambda name: name in kept, input_columns="request_id")
    rows = rows.select_columns(list(wanted))
    for number, row in enumerate(rows, 1):
        where = f"{name}: row {number}"
        if objective == "grouped":
            check_ranked_group(row, where)
        elif not all(
            isinstance(turn.get("content"), str) and turn["content"].strip()
            for column in PAIR_COLUMNS
            for turn in (row[column] or [{}])
        ):
            raise UsageError(f"{where} has a null or empty text. Remove that row.")
    if len(rows) == 0:
        raise UsageError(f"{name} holds no row to train on.")
    check_overlap(rows, name, data.held_out)
    return rows


def rows_digest(rows: Dataset) -> str:
    """Return a digest of the rows; a training resumes only on the same ones."""
    digest = hashlib.sha256()
    for batch in rows.iter(1000):
        digest.update(json.dumps(batch, default=str).encode())
    return digest.hexdigest()[:16]


def check_overlap(rows: Dataset, name: str, held_out: list[str]) -> None:
    """Refuse to train on requests that the model will be evaluated on.

    Args:
        rows: Rows to train on.
        name: Their dataset, for the error.
        held_out: C²-Eval sources.

    Raises:
        UsageError: Naming the evaluation source and the number of its requests among the rows.
    """
    texts = rows["request"] if "request" in rows.column_names else (turns[-1]["content"] for turns in rows["prompt"])
    requests = {normalise_request(text) for text in texts}
    for source in held_out:
        shared = requests & {normalise_request(item["request"]) for item in read_eval_items(source)}
        if shared:
            raise UsageError(
                f"{name} holds {len(shared)} requests of the C²-Eval items {source}: evaluation on them would "
                "measure memorization. Make the dataset with c2_syn.py --exclude_requests_from."
            )


def content_cache(folder: Path) -> str | None:
    """Return a cache folder for the present content of a local dataset folder; None for a dataset on the Hub.

    `datasets` keys its cache by the name of a folder, so it would return the rows of another folder of the same name.
    """
    if not folder.is_dir():
        return None
    import datasets

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    state = (f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "by-content" / text_digest(*state))


def read_retention_rows(path: str | None) -> list[dict[str, Any]]:
    """Return the benign rows (`prompt`, `response`) of the retention term.

    Args:
        path: A JSONL file; the seed set's rows by default.

    Raises:
        UsageError: If the file holds none, or a row lacks a text.
    """
    if path is None:
        return read_benign_rows("train")
    if not Path(path).is_file():
        raise UsageError(f"retention_file {path} does not exist. Name a JSONL file of `prompt` and `response`.")
    rows = list(read_jsonl(Path(path)))
    for number, row in enumerate(rows, 1):
        if not all(isinstance(row.get(name), str) and row[name].strip() for name in ("prompt", "response")):
            raise UsageError(f"{path}: row {number} has no `prompt` or no `response`. Add both, or remove the row.")
    if not rows:
        raise UsageError(f"{path} holds no benign row. Name another retention_file, or set retention_weight to 0.")
    return rows


def conversations(row: dict[str, Any]) -> list[list[dict[str, str]]]:
    """Return the conversations that training renders from a `pairs` or `ranked` row."""
    if "chosen" in row:
        return [row["prompt"] + row[side] for side in ("chosen", "rejected")]
    turn = {"role": "user", "content": row["request"]}
    return [[turn, {"role": "assistant", "content": response}] for response in row["responses"]]


def check_lengths(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, drop_long_rows: bool
) -> tuple[Dataset, int]:
    """Refuse or drop rows longer than `max_length` tokens. They are never cut, because corrections stand at their ends.

    Returns:
        The remaining rows, and how many were dropped.

    Raises:
        UsageError: If a row is too long and `drop_long_rows` is off, or no row remains.
    """
    if max_length is None:
        return rows, 0

    def longest(row: dict[str, Any]) -> int:
        return max(
            len(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)) for turns in conversations(row)
        )

    lengths = [longest(row) for row in rows]
    fitting = [index for index, length in enumerate(lengths) if length <= max_length]
    num_long = len(lengths) - len(fitting)
    if num_long and not drop_long_rows:
        raise UsageError(
            f"{num_long} of {len(lengths)} rows are longer than max_length {max_length} (the longest has {max(lengths)} "
            "tokens). Cutting them would remove corrections. Raise --max_length or set --drop_long_rows true."
        )
    if not fitting:
        raise UsageError(f"Every row is longer than max_length {max_length}. Raise --max_length.")
    return rows.select(fitting), num_long
