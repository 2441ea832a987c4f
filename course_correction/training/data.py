"""The rows that training reads: loading, checking, dropping what is too long. Knows nothing of models."""

import hashlib
import json
from pathlib import Path
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, text_digest
from course_correction.synthesis.ranked_groups import RANKED_SCHEMA, check_ranked_group
from course_correction.synthesis.sources import normalise_request, read_benign_rows, read_eval_items
from course_correction.training.settings import TrainingData

CONFIGS = {"grouped": "ranked", "pairwise": "pairs"}
PAIR_COLUMNS = ("prompt", "chosen", "rejected")


def load_rows(data: TrainingData, objective: str) -> Any:
    """Load and check the `pairs` or `ranked` rows of all datasets named.

    Raises:
        UsageError: If they cannot be loaded, a column is missing, or a row is not fit to train on.
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


def load_dataset_rows(data: TrainingData, name: str, revision: str | None, objective: str) -> Any:
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


def rows_digest(rows: Any) -> str:
    """Return what tells these rows from any others: a checkpoint is gone on from with the same ones only."""
    digest = hashlib.sha256()
    for batch in rows.iter(1000):
        digest.update(json.dumps(batch, default=str).encode())
    return digest.hexdigest()[:16]


def check_overlap(rows: Any, name: str, held_out: list[str]) -> None:
    """Refuse to train on a request that the model will be evaluated on.

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
                "measure memory. Make it with c2_syn.py --exclude_requests_from."
            )


def content_cache(folder: Path) -> str | None:
    """Return a cache folder of its own for what a local dataset folder holds now; None for the Hub.

    `datasets` keys its cache by a folder's name, not its content, and would serve another folder of the same name.
    """
    if not folder.is_dir():
        return None
    import datasets

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    state = (f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "by-content" / text_digest(*state))


def read_retention_rows(path: str | None) -> list[dict[str, Any]]:
    """Return the benign rows (`prompt`, `response`) that the retention term keeps the model close on.

    Raises:
        UsageError: If the file holds none, or a row lacks a text.
    """
    if path is None:
        return read_benign_rows("train")
    if not Path(path).is_file():
        raise UsageError(f"There is no retention_file {path}.")
    rows = list(read_jsonl(Path(path)))
    for number, row in enumerate(rows, 1):
        if not all(isinstance(row.get(name), str) and row[name].strip() for name in ("prompt", "response")):
            raise UsageError(f"{path}: row {number} needs a `prompt` and a `response`, neither empty.")
    if not rows:
        raise UsageError(f"{path} holds no benign row. Name another retention_file, or set retention_weight to 0.")
    return rows


def conversations(row: dict[str, Any]) -> list[list[dict[str, str]]]:
    """Return every conversation that training on a `pairs` or `ranked` row renders."""
    if "chosen" in row:
        return [row["prompt"] + row[side] for side in ("chosen", "rejected")]
    turn = {"role": "user", "content": row["request"]}
    return [[turn, {"role": "assistant", "content": response}] for response in row["responses"]]


def check_lengths(rows: Any, tokenizer: Any, max_length: int | None, drop_long_rows: bool) -> tuple[Any, int]:
    """Refuse or drop rows longer than `max_length` tokens: cutting them would cut off the corrections at their ends.

    Returns:
        The rows that are left, and how many were dropped.

    Raises:
        UsageError: If a row is too long and is not to be dropped.
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
            "tokens), and cutting them would cut off the corrections. Raise --max_length or set --drop_long_rows true."
        )
    if not fitting:
        raise UsageError(f"Every row is longer than max_length {max_length}.")
    return rows.select(fitting), num_long
