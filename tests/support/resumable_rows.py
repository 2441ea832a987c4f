"""Units of a few rows, a file of them, and the bytes that every run of it must end in."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_correction.base.files import to_json_line
from course_correction.base.resumable_rows import UnitFiles

PATHS = 2
UNITS = [["a", "b"], ["c"], ["d", "é"], ["f"]]
ALL = range(len(UNITS))
MANY = [[f"r{number}", f"s{number}"] for number in range(24)]


def _rows(request_id: str) -> list[dict[str, Any]]:
    text = "one\ntwo é 中 \u2028 \U0001f600"
    return [{"request_id": request_id, "path": path, "text": f"{text} {request_id}"} for path in range(PATHS)]


def unit_rows(unit: Iterable[str]) -> list[dict[str, Any]]:
    return [row for request_id in unit for row in _rows(request_id)]


def is_complete(rows: list[dict[str, Any]]) -> bool:
    return len(rows) == PATHS


def open_units(path: Path) -> UnitFiles:
    return UnitFiles(path, UNITS, is_complete)


def write_units(files: UnitFiles, units: Iterable[int]) -> None:
    for unit in units:
        files.write(unit, unit_rows(UNITS[unit]))


def unit_file(path: Path, unit: int) -> Path:
    return path.with_name(f"{path.name}.units") / f"{unit:05d}.jsonl"


def rows_so_far(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a stage that may be running: of its file, or of its finished units."""
    texts = []
    for file in (path, *sorted(path.with_name(f"{path.name}.units").glob("*.jsonl"))):
        with suppress(FileNotFoundError):
            texts.append(file.read_text(encoding="utf-8"))
    return [json.loads(line) for line in "".join(texts).split("\n")[:-1]]


@dataclass(frozen=True)
class Recovered:
    """What a run left behind, as the next run reads it."""

    done: set[int]
    quarantined_bytes: int
    quarantine: bytes


def finish_file(path: Path) -> Recovered:
    """Recover, do what is left, in order, and join."""
    files = open_units(path)
    quarantined_bytes = files.recover()
    done = files.done()
    write_units(files, [unit for unit in ALL if unit not in done])
    files.join()
    return Recovered(done, quarantined_bytes, files.quarantine.read_bytes() if files.quarantine.exists() else b"")


def whole_file() -> bytes:
    return "".join(to_json_line(row) for unit in UNITS for row in unit_rows(unit)).encode()


UNIT_ENDS = [0]
for _unit in UNITS:
    UNIT_ENDS.append(UNIT_ENDS[-1] + len("".join(map(to_json_line, unit_rows(_unit))).encode()))
