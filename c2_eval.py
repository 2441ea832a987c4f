"""C²-Eval: the items that measure course-correction; export them, read them back.

python c2_eval.py --export_dir c2-eval
from c2_eval import C2Eval; C2Eval(config_name="pku500").download_and_prepare()
"""

import logging
from pathlib import Path
from typing import Any

from course_correction.base.console import run_script
from course_correction.base.settings import parse_settings
from course_correction.hub.dataset_exports import C2EvalSettings, export_c2_eval
from course_correction.hub.push import open_dataset_repo, push_dataset
from course_correction.synthesis.reference_items import PKU500

logger = logging.getLogger("course_correction")


def __getattr__(name: str) -> Any:
    """Import the builder when it is used: `datasets` takes a second, which `--help` need not wait for."""
    if name == "C2Eval":
        from course_correction.synthesis.builders import C2Eval

        return C2Eval
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Export the items, and push them if asked to."""
    (settings,) = parse_settings([C2EvalSettings], description=__doc__)
    repo = open_dataset_repo(settings) if settings.push_to_hub else None
    export_dir = Path(settings.export_dir)
    num_rows = export_c2_eval(export_dir, settings)
    logger.info(f"Exported {num_rows} items to {export_dir}")
    if settings.items == PKU500:
        logger.info("The items hold harmful text, under CC-BY-NC-4.0: keep them out of logs, cards and commits.")
    if repo:
        logger.info(f"Pushed: {push_dataset(repo, export_dir, [settings.items])}")


if __name__ == "__main__":
    run_script(main)
