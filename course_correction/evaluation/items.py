"""The C²-Eval items of an evaluation: read once, from one revision. Knows nothing of models."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.synthesis.sources import EvalItem, is_hub_id, last_commit, read_eval_items


@dataclass(frozen=True)
class EvaluationItems:
    """The items that are evaluated.

    Attributes:
        rows: The items, in order, with distinct request ids.
        revision: The commit that they are of, if they come from the Hub.
    """

    rows: tuple[EvalItem, ...]
    revision: str | None

    @cached_property
    def by_id(self) -> dict[str, EvalItem]:
        """The items by request id."""
        return {item["request_id"]: item for item in self.rows}

    @cached_property
    def digest(self) -> str:
        """A digest of all their texts."""
        return text_digest(*(str(text) for item in self.rows for text in item.values()))


def read_items(settings: EvaluationSettings) -> EvaluationItems:
    """Read the items that the settings name.

    Raises:
        UsageError: If there is none, a request id occurs twice, or they cannot be read.
    """
    revision = settings.items_revision
    if is_hub_id(settings.items) and revision is None:
        revision = last_commit(settings.items)
    rows = list(read_eval_items(settings.items, revision))[: settings.max_requests]
    if not rows:
        raise UsageError(f"{settings.items} holds no item.")
    repeated = [name for name, count in Counter(item["request_id"] for item in rows).items() if count > 1]
    if repeated:
        raise UsageError(f"{settings.items}: {len(repeated)} request_ids occur twice, the first is {repeated[0]}.")
    return EvaluationItems(tuple(rows), revision)
