"""Work in units, by one process or several: each unit is written once and whole, and a finished unit is not repeated.

A unit is a few requests. While a stage runs, each finished unit is a file of its own, `<name>.units/00012.jsonl`, replaced
in one step. When all are there, they are joined in order into `<name>` and the folder goes. So the final bytes do not
depend on which process wrote which unit, or when.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from course_correction.base.console import progress_bar, show_speed
from course_correction.base.files import to_json_line, write_atomically
from course_correction.base.ranks import Ranks

logger = logging.getLogger(__name__)

Rows = list[dict[str, Any]]
# Of single answers, which share nothing: fewer rows leave a CPU waiting for the weights.
PROMPTS_PER_UNIT = 60


class SamplingCounts(Protocol):
    """What the progress bar and the work in flight read of a sampler.

    Attributes:
        units_at_once: How many units are best in flight together.
        paths_sampled: Since the start.
        tokens_sampled: Since the start.
    """

    units_at_once: int
    paths_sampled: int
    tokens_sampled: int


# Makes the rows of a unit, given its index.
MakeRows = Callable[[int], Rows]


def units_folder(path: Path) -> Path:
    """Return the folder that holds the finished units of a JSONL file until it is complete."""
    return path.with_name(f"{path.name}.units")


def rows_exist(path: Path) -> bool:
    """Return whether a stage has written rows: the JSONL file, or units of it."""
    return (path.exists() and path.stat().st_size > 0) or any(units_folder(path).glob("*.jsonl"))


class UnitFiles:
    """The units of one JSONL file.

    Args:
        path: The JSONL file.
        units: The request ids of each unit, in order.
        is_complete: Whether rows, all of one request, are all the rows that the request needs.
    """

    def __init__(self, path: Path, units: Sequence[Sequence[str]], is_complete: Callable[[Rows], bool]) -> None:
        """Read nothing yet."""
        self.path, self.units, self.folder = path, units, units_folder(path)
        self.quarantine = path.with_name(f"{path.name}.quarantined")
        self._is_complete = is_complete

    def recover(self) -> int:
        """Keep the whole units and move the rest to `<name>.quarantined`. For the main process, before others read.

        A JSONL file that is no longer whole, such as a torn one, becomes units again.

        Returns:
            The number of bytes moved.
        """
        moved = 0
        if self.path.exists():
            ends = self._unit_ends(self.path, self.units)
            good_bytes = ends[-1] if ends else 0
            if len(ends) == len(self.units) and self.path.stat().st_size == good_bytes:
                return 0
            with open(self.path, "rb") as file:
                for unit, end in enumerate(ends):
                    write_atomically(self._file(unit), file.read(end - file.tell()))
            moved += self._remove(self.path, good_bytes)
        for unit in self.done():
            if self._unit_ends(self._file(unit), [self.units[unit]]) != [self._file(unit).stat().st_size]:
                moved += self._remove(self._file(unit), 0)
        return moved

    def done(self) -> set[int]:
        """Return the indexes of the finished units."""
        if self.path.exists():
            return set(range(len(self.units)))
        names = set(os.listdir(self.folder)) if self.folder.exists() else set()
        return {unit for unit in range(len(self.units)) if self._file(unit).name in names}

    def write(self, unit: int, rows: Rows) -> None:
        """Write a unit.

        Raises:
            OSError: If it could not be written, such as on a full disk; the other units stay.
        """
        write_atomically(self._file(unit), "".join(map(to_json_line, rows)))

    def join(self) -> None:
        """Join the units in order into the JSONL file. For the main process, when all are finished."""
        if not self.path.exists():
            # Written in the units' folder, where a killed process leaves nothing that stays.
            joined = self.folder / self.path.name
            write_atomically(joined, (self._file(unit).read_bytes() for unit in range(len(self.units))))
            os.replace(joined, self.path)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, unit: int) -> Path:
        return self.folder / f"{unit:05d}.jsonl"

    def _unit_ends(self, path: Path, units: Sequence[Sequence[str]]) -> list[int]:
        """Return the byte where each unit ends, of the whole units from the start of a file on."""
        ends: list[int] = []
        position = 0
        with open(path, "rb") as file:
            for unit in units:
                rows: dict[str, Rows] = {request_id: [] for request_id in unit}
                while not all(map(self._is_complete, rows.values())):
                    line = file.readline()
                    try:
                        row = json.loads(line)
                        rows[row["request_id"]].append(row)
                    except (ValueError, KeyError, TypeError):
                        return ends
                    if not line.endswith(b"\n"):
                        return ends
                    position += len(line)
                ends.append(position)
        return ends

    def _remove(self, path: Path, good_bytes: int) -> int:
        """Remove a file, with what follows its good bytes moved to quarantine. Returns the number of bytes moved."""
        with open(path, "rb") as source:
            source.seek(good_bytes)
            if rest := source.read():
                with open(self.quarantine, "ab") as target:
                    target.write(rest)
        path.unlink()
        return len(rest)


def run_units(
    path: Path,
    units: Sequence[Sequence[str]],
    is_complete: Callable[[Rows], bool],
    prepare: Callable[[], tuple[MakeRows, SamplingCounts | None]],
    ranks: Ranks,
    label: str,
) -> None:
    """Make the rows of the units that are not finished, each process its share, and join all of them in order.

    Args:
        path: The JSONL file.
        units: The request ids of each unit, in order.
        is_complete: As in `UnitFiles`.
        prepare: Loads the model, if there is one, and returns what makes the rows of a unit, and the sampler or None.
            Called only if this process has a unit to do.
        ranks: The processes.
        label: For the progress bar.
    """
    files = UnitFiles(path, units, is_complete)
    if ranks.is_main and (moved := files.recover()):
        logger.info(f"{path} was not whole: {moved} bytes moved to {files.quarantine}. Their units are made again.")
    ranks.wait()
    done = files.done()
    todo = [unit for unit in range(len(units)) if unit not in done][ranks.rank :: ranks.size]
    # All have listed the units before anybody adds one.
    ranks.wait()
    if todo:
        # Loaded before the bar is drawn, so that an error stands on a line of its own.
        make_rows, sampler = prepare()
        share = sum(len(units[unit]) for unit in todo)
        earlier = sum(map(len, units)) - share if ranks.size == 1 else 0
        with progress_bar(label, earlier + share, earlier, quiet=not ranks.is_main) as bar:
            for unit, rows in _in_flight(make_rows, todo, sampler.units_at_once if sampler else 1):
                files.write(unit, rows)
                if sampler:
                    show_speed(bar, sampler.paths_sampled, sampler.tokens_sampled)
                bar.update(len(units[unit]))
    ranks.wait()
    if ranks.is_main:
        files.join()


def _in_flight(make_rows: MakeRows, todo: Sequence[int], at_once: int) -> Iterator[tuple[int, Rows]]:
    """Yield units with their rows as they finish, `at_once` of them in flight together."""
    if at_once == 1:
        yield from ((unit, make_rows(unit)) for unit in todo)
        return
    waiting = iter(todo)
    pool = ThreadPoolExecutor(at_once)
    running: dict[Future[Rows], int] = {pool.submit(make_rows, unit): unit for unit in islice(waiting, at_once)}
    failure: Exception | None = None
    try:
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                unit = running.pop(future)
                try:
                    rows = future.result()
                except Exception as error:
                    # The other units in flight are still kept.
                    failure = failure or error
                    continue
                yield unit, rows
                following = next(waiting, None) if failure is None else None
                if following is not None:
                    running[pool.submit(make_rows, following)] = following
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure
