"""C²-Syn: make synthetic preferences that teach course-correction, export them, read them back.

python c2_syn.py --config recipes/smollm2-135m/c2_syn.yaml
from c2_syn import C2Syn; C2Syn(config_name="ranked", groups_file=...).download_and_prepare()
"""

import logging
import os
from pathlib import Path
from typing import Any

from course_correction.base.console import run_script
from course_correction.base.settings import parse_settings
from course_correction.hub.dataset_exports import C2SynSettings, export_c2_syn
from course_correction.hub.push import open_dataset_repo, push_dataset
from course_correction.synthesis.run import synthesize

logger = logging.getLogger("course_correction")


def __getattr__(name: str) -> Any:
    """Import the builder when it is used: `datasets` takes a second, which `--help` need not wait for."""
    if name == "C2Syn":
        from course_correction.synthesis.builders import C2Syn

        return C2Syn
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Synthesize, then export and push if asked to."""
    (settings,) = parse_settings([C2SynSettings], description=__doc__)
    # A token without write access is refused here, not after hours of work.
    is_first = os.environ.get("RANK", "0") == "0"
    repo = open_dataset_repo(settings) if settings.push_to_hub and is_first else None
    groups_file = synthesize(settings)
    if groups_file is None:
        return
    logger.info(f"Ranked groups: {groups_file}")
    if settings.export_dir or repo:
        export_dir = Path(settings.export_dir or groups_file.parent / "export")
        num_rows = export_c2_syn(groups_file, export_dir, settings)
        logger.info(f"Exported {num_rows['ranked']} groups, {num_rows['pairs']} pairs to {export_dir}")
        if repo:
            logger.info(f"Pushed: {push_dataset(repo, export_dir, ['pairs', 'ranked'])}")


if __name__ == "__main__":
    run_script(main)
