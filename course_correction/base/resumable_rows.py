"""Work in units, by one process or several: every unit is written once and whole, and what is there is not done again."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from course_correction.base.files import to_json_line
from course_correction.base.progress import Progress
from course_correction.base.ranks import Ranks

Rows = list[dict[str, Any]]
# Of single answers, which share nothing: fewer rows leave a CPU waiting for the weights.
PROMPTS_A_UNIT = 60
# What every evaluation answers, for over-refusal; the suite `benign` reads it too.
BENIGN_ANSWERS_FILE = "benign_answers.jsonl"


@dataclass(frozen=True)
class _Place:
    """Where a finished unit stands in a file, in bytes."""

    start: int
    end: int


class UnitFile:
    """A JSONL file written one unit of work at a time, that goes on where earlier processes stopped.

    A unit is appended by one write. So a file that a crash left behind is whole units, then perhaps a torn one, which is
    moved to `<name>.quarantined` and done again. While work goes on units may stand in any order; `finish` puts them
    into the order given, so that the file's bytes do not depend on who wrote what when. The main process writes the
    file itself, process r of several writes `<name>.rank<r>`, which the next main process takes in.

    Args:
        path: The JSONL file.
        units: The request ids of each unit, in order.
        is_complete: Says whether rows (all of one request) are all the rows that the request needs.
        rank: Of this process; one that is not main may open the file only after the main one did.

    Attributes:
        done: The units that are finished, by index.
        quarantined_bytes: What was found torn.
    """

    def __init__(
        self,
        path: Path,
        units: Sequence[Sequence[str]],
        is_complete: Callable[[Rows], bool],
        rank: int = 0,
    ) -> None:
        """Read what is there; the main process mends it and takes in what the others left."""
        self.path, self.units, self.rank = path, units, rank
        self.quarantine = path.with_name(path.name + ".quarantined")
        self.quarantined_bytes = 0
        self._is_complete = is_complete
        self._unit_of = {name: number for number, unit in enumerate(units) for name in unit}
        self._places, good_bytes = self._scan(path)
        if rank == 0:
            self._cut_off(path, good_bytes)
            self._take_in_others()
        self._own_path = path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")

    @property
    def done(self) -> set[int]:
        """Indexes of the finished units."""
        return set(self._places)

    def _scan(self, path: Path) -> tuple[dict[int, _Place], int]:
        """Find the whole units from the start of a file, and the byte where the last one ends."""
        places: dict[int, _Place] = {}
        good_bytes = position = 0
        rows: dict[str, Rows] = {}
        unit = -1
        if not path.exists():
            return places, 0
        with open(path, "rb") as file:
            for line in file:
                position += len(line)
                try:
                    row = json.loads(line)
                    number = self._unit_of[row["request_id"]]
                except (ValueError, KeyError, TypeError):
                    break
                unit = number if not rows else unit
                if not line.endswith(b"\n") or number != unit or unit in places:
                    break
                rows.setdefault(row["request_id"], []).append(row)
                if all(self._is_complete(rows.get(name, [])) for name in self.units[unit]):
                    places[unit] = _Place(good_bytes, position)
                    good_bytes, rows = position, {}
        return places, good_bytes

    def _cut_off(self, path: Path, good_bytes: int) -> None:
        torn = (path.stat().st_size if path.exists() else 0) - good_bytes
        if torn:
            with open(path, "rb") as source, open(self.quarantine, "ab") as target:
                source.seek(good_bytes)
                target.write(source.read())
            os.truncate(path, good_bytes)
            self.quarantined_bytes += torn

    def _take_in_others(self) -> None:
        for other in sorted(self.path.parent.glob(f"{self.path.name}.rank*")):
            places, good_bytes = self._scan(other)
            with open(other, "rb") as source:
                for unit, place in places.items():
                    # A crash between this write and the removal below leaves units that are here already.
                    if unit not in self._places:
                        source.seek(place.start)
                        self._places[unit] = self._write(self.path, source.read(place.end - place.start))
            self._cut_off(other, good_bytes)
            other.unlink()

    def append(self, unit: int, rows: Iterable[dict[str, Any]]) -> None:
        """Append a unit; on a full disk the file is put back to the unit before.

        Raises:
            OSError: If the rows could not be written; the file then holds whole units only.
        """
        self._places[unit] = self._write(self._own_path, "".join(map(to_json_line, rows)).encode())

    @staticmethod
    def _write(path: Path, data: bytes) -> _Place:
        with open(path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
                os.fsync(file.fileno())
            except BaseException:
                os.ftruncate(file.fileno(), size)
                raise
        return _Place(size, size + len(data))

    def finish(self) -> None:
        """Take in what the other processes wrote, and put the units in order. For the main process, when all are done."""
        self._take_in_others()
        starts = [self._places[unit].start for unit in sorted(self._places)]
        if starts == sorted(starts):
            return
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with open(self.path, "rb") as source, os.fdopen(handle, "wb") as target:
                for unit in sorted(self._places):
                    place = self._places[unit]
                    source.seek(place.start)
                    shutil.copyfileobj(_Limited(source, place.end - place.start), target)
                target.flush()
                os.fsync(target.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        self._places, _ = self._scan(self.path)


class _Limited:
    """A file that ends after so many bytes from here."""

    def __init__(self, file: Any, left: int) -> None:
        self.file, self.left = file, left

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        return data


def run_units(
    path: Path,
    units: Sequence[Sequence[str]],
    is_complete: Callable[[Rows], bool],
    begin: Callable[[], tuple[Callable[[int], Rows], Any]],
    ranks: Ranks,
    label: str,
) -> int:
    """Do the units that are not done yet, each process its share, and put all of them in order.

    Args:
        path: The JSONL file.
        units: The request ids of each unit, in order.
        is_complete: As in `UnitFile`.
        begin: Makes ready (loads the model) and returns what writes a unit's rows by its index, and the sampler or None.
            Called only if this process has something to do.
        ranks: The processes.
        label: For the progress bar.

    Returns:
        The bytes that were found torn and set aside, in `<name>.quarantined`.
    """
    if not ranks.is_main:
        ranks.wait()
    file = UnitFile(path, units, is_complete, ranks.rank)
    if ranks.is_main:
        ranks.wait()
    todo = [unit for unit in range(len(units)) if unit not in file.done][ranks.rank :: ranks.size]
    # All have read the file before anybody adds to it.
    ranks.wait()
    if todo:
        # Made ready before the bar is drawn, so that an error stands on a line of its own.
        work, sampler = begin()
        share = sum(len(units[unit]) for unit in todo)
        done = sum(map(len, units)) - share if ranks.size == 1 else 0
        progress = Progress(label, done + share, done, quiet=not ranks.is_main)
        try:
            for unit, rows in _in_flight(work, todo, getattr(sampler, "units_at_once", 1)):
                file.append(unit, rows)
                written = (sampler.paths_sampled, sampler.tokens_sampled) if sampler else (0, 0)
                progress.advance(len(units[unit]), *written)
        finally:
            progress.close()
    ranks.wait()
    if ranks.is_main:
        file.finish()
    return file.quarantined_bytes


def _in_flight(work: Callable[[int], Rows], todo: Sequence[int], at_once: int) -> Iterable[tuple[int, Rows]]:
    """Yield units with their rows as they are finished, `at_once` of them in flight together."""
    if at_once == 1:
        yield from ((unit, work(unit)) for unit in todo)
        return
    waiting = iter(todo)
    pool = ThreadPoolExecutor(at_once)
    running: dict[Future[Rows], int] = {pool.submit(work, unit): unit for unit in islice(waiting, at_once)}
    failure: Exception | None = None
    try:
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                unit = running.pop(future)
                try:
                    rows = future.result()
                except Exception as error:
                    # What else is in flight is still kept.
                    failure = failure or error
                    continue
                yield unit, rows
                following = next(waiting, None) if failure is None else None
                if following is not None:
                    running[pool.submit(work, following)] = following
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure
