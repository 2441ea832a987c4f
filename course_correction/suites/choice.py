"""The suites beside C²-Eval: which there are, and how each is carried out in an evaluation's folder.

A suite is a module with `identity` (what decides its rows), `run` (writes its rows, unit by unit, on all processes) and
`measure` (its part of metrics.json, on the main process). All use the evaluation's sampler, judge and statistics.
"""

from contextlib import ExitStack
from typing import Any

from course_correction.base.errors import UsageError
from course_correction.base.ranks import Ranks
from course_correction.base.run_folder import open_run

SUITES = ("jailbreak", "general", "benign", "dynamics")


def check_suites(names: list[str]) -> None:
    """Refuse a suite that is not there.

    Raises:
        UsageError: Naming it and those that are.
    """
    for name in names:
        if name not in SUITES:
            raise UsageError(f"suite is {name!r}, but takes {', '.join(SUITES)}.")


def _module(name: str) -> Any:
    if name == "jailbreak":
        from course_correction.suites import jailbreak as module
    elif name == "general":
        from course_correction.suites import general as module
    elif name == "benign":
        from course_correction.suites import benign as module
    else:
        from course_correction.suites import dynamics as module
    return module


def check_suite(name: str, evaluation: Any) -> None:
    """Read what a suite needs, so that what would fail in an hour fails now."""
    _module(name).identity(evaluation)


def run_suite(name: str, evaluation: Any, ranks: Ranks) -> None:
    """Write what is left of a suite's rows."""
    module = _module(name)
    with ExitStack() as claims:
        if ranks.is_main:
            identity = evaluation.model_identity() | module.identity(evaluation)
            claims.enter_context(open_run(evaluation.folder, name, identity, module.ROWS_FILE))
        module.run(evaluation, ranks)


def measure_suite(name: str, evaluation: Any, judge: Any) -> dict[str, Any]:
    """Return a suite's part of metrics.json."""
    return _module(name).measure(evaluation, judge)
