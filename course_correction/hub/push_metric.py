"""Push metrics/corr_at_k as a Space, so that `evaluate.load("you/corr_at_k")` works anywhere.

python -m course_correction.hub.push_metric --hub_metric_id you/corr_at_k
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.settings import parse_settings, setting
from course_correction.hub.push import open_repo, push

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parent / "corr_at_k"


@dataclass
class MetricSettings:
    """Where the metric is pushed."""

    hub_metric_id: str | None = setting(None, "owner/name of the Space", group="Hub", identity=(), common=True)
    hub_private_repo: bool = setting(False, "make a new Space private", group="Hub", identity=())

    def __post_init__(self) -> None:
        """Refuse a push without a Space."""
        if not self.hub_metric_id:
            raise UsageError("Name the Space with --hub_metric_id owner/name.")


def main() -> None:
    """Push every file of the module in one commit."""
    (settings,) = parse_settings([MetricSettings], description=__doc__)
    repo = open_repo(settings.hub_metric_id, "space", settings.hub_private_repo, space_sdk="gradio")
    files = {path.name: path for path in sorted(FOLDER.iterdir()) if path.is_file()}
    logger.info(f"Pushed: {push(repo, files, 'Corr@k')}")


if __name__ == "__main__":
    run_script(main)
