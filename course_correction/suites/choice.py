"""The suites beside C²-Eval: which exist, and how their stages run in the folder of an evaluation.

To add a suite, write a module of the form `protocol.Suite`, add its settings to `settings.py` and its name here.
"""

from collections.abc import Mapping
from contextlib import ExitStack

from course_correction.base.errors import UsageError
from course_correction.base.ranks import Ranks
from course_correction.base.run_folder import open_run
from course_correction.judges.protocol import Judge
from course_correction.suites.protocol import Suite, SuiteInputs

SUITES = ("jailbreak", "general", "benign", "dynamics")


def check_suites(names: list[str]) -> None:
    """Refuse an unknown suite.

    Raises:
        UsageError: Naming it and the known ones.
    """
    for name in names:
        if name not in SUITES:
            raise UsageError(f"suite is {name!r}, but takes {', '.join(SUITES)}.")


def _load_suite(name: str) -> Suite:
    # Imported on use: some suites need packages that others do not.
    from course_correction.suites import benign, dynamics, general, jailbreak

    suites: dict[str, Suite] = {"jailbreak": jailbreak, "general": general, "benign": benign, "dynamics": dynamics}
    return suites[name]


def check_suite(name: str, inputs: SuiteInputs) -> None:
    """Read what a suite needs, so that it fails before any work if it cannot run."""
    _load_suite(name).identity(inputs)


def sample_suite(name: str, inputs: SuiteInputs, ranks: Ranks) -> None:
    """Write the rows of a suite that are not there yet."""
    suite = _load_suite(name)
    with ExitStack() as claims:
        if ranks.is_main:
            identity = inputs.model.identity() | suite.identity(inputs)
            claims.enter_context(open_run(inputs.folder, name, identity, suite.ROWS_FILE))
        suite.sample(inputs, ranks)


def measure_suite(name: str, inputs: SuiteInputs, judge: Judge) -> Mapping[str, object]:
    """Return a suite's part of metrics.json."""
    return _load_suite(name).measure(inputs, judge)
