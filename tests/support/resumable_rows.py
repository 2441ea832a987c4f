"""Units of a few rows, a file of them, and the bytes that every run of it must end in."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from course_correction.base.files import to_json_line
from course_correction.base.resumable_rows import UnitFile

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


def open_units(path: Path, rank: int = 0) -> UnitFile:
    return UnitFile(path, UNITS, is_complete, rank)


def write_units(file: UnitFile, units: Iterable[int]) -> None:
    for unit in units:
        file.append(unit, unit_rows(UNITS[unit]))


def finish_file(path: Path) -> UnitFile:
    """Do what is left, in order, and return the file as it was found."""
    file = open_units(path)
    found = SimpleNamespace(done=file.done, quarantine=file.quarantine, quarantined_bytes=file.quarantined_bytes)
    write_units(file, [unit for unit in ALL if unit not in file.done])
    file.finish()
    return found


def whole_file() -> bytes:
    return "".join(to_json_line(row) for unit in UNITS for row in unit_rows(unit)).encode()


UNIT_ENDS = [0]
for _unit in UNITS:
    UNIT_ENDS.append(UNIT_ENDS[-1] + len("".join(map(to_json_line, unit_rows(_unit))).encode()))
