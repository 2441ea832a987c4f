"""What a suite is, and what it is given. Knows nothing of any one suite."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from course_correction.base.ranks import Ranks
from course_correction.generation.evaluated_model import EvaluatedModel
from course_correction.judges.protocol import Judge
from course_correction.suites.settings import SuiteSettings
from course_correction.synthesis.sources import EvalItem


@dataclass(frozen=True)
class SuiteInputs:
    """What a suite is given.

    Attributes:
        folder: The run folder, where the suite's rows are written beside those of the evaluation.
        settings: Those of the evaluation that suites read.
        items: The C²-Eval items, in order.
        model: The model under evaluation.
    """

    folder: Path
    settings: SuiteSettings
    items: Sequence[EvalItem]
    model: EvaluatedModel


class Suite(Protocol):
    """A module that measures one more thing about the model, in three stages.

    Attributes:
        ROWS_FILE: The file that `sample` writes in the run folder.
    """

    ROWS_FILE: str

    def identity(self, inputs: SuiteInputs) -> dict[str, object]:
        """Return what decides the rows, beside the model.

        Raises:
            UsageError: If the suite could not run, so that it fails before any work.
        """
        ...

    def sample(self, inputs: SuiteInputs, ranks: Ranks) -> None:
        """Write the rows, unit by unit, on all processes."""
        ...

    def measure(self, inputs: SuiteInputs, judge: Judge) -> Mapping[str, object]:
        """Return the suite's part of metrics.json from finished rows. Runs on the main process."""
        ...
