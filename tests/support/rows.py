"""Rows that tests read and write."""

import json
from pathlib import Path
from typing import Any

from course_correction.synthesis.sources import DATA_FOLDER

ROOT = Path(__file__).resolve().parents[2]


def read_data(name: str) -> list[dict[str, Any]]:
    """Return the rows of `course_correction/data/<name>.jsonl`."""
    return [json.loads(line) for line in (DATA_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def as_pku_row(row: dict[str, Any], unsafe_first: bool = False, **extra: Any) -> dict[str, Any]:
    """Return a row of the seed set in the seven columns of PKU-SafeRLHF v0."""
    responses = [row["safe_response"], row["full_harmful_response"]]
    unsafe = 0 if unsafe_first else 1
    return {
        "prompt": row["request"],
        "response_0": responses[1 - unsafe],
        "response_1": responses[unsafe],
        "is_response_0_safe": unsafe != 0,
        "is_response_1_safe": unsafe != 1,
        "better_response_id": 1 - unsafe,
        "safer_response_id": 1 - unsafe,
        **extra,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL and return the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_parquet(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder's Parquet files, in the files' order."""
    import pyarrow.parquet as parquet

    return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
