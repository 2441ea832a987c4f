"""C²-Eval: the items that measure course-correction; export them, read them back.

python c2_eval.py --export_dir c2-eval
from c2_eval import C2Eval; C2Eval(config_name="pku500").download_and_prepare()
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from course_correction.base.console import run_script
from course_correction.base.files import write_atomically
from course_correction.base.settings import parse_settings
from course_correction.hub.push import open_dataset_repo, push_dataset
from course_correction.hub.settings import DatasetPushSettings
from course_correction.synthesis.reference_items import PKU500, fetch_pku500
from course_correction.synthesis.sources import SEED

logger = logging.getLogger("course_correction")

# Registers the dataset as a benchmark of the Hub; pushed at its root.
BENCHMARK_FILE = Path(__file__).resolve().parent / "integrations" / "eval.yaml"


def __getattr__(name: str) -> Any:
    """Give the builder on demand: importing `datasets` takes a second that `--help` need not wait for."""
    if name == "C2Eval":
        from course_correction.synthesis.builders import C2Eval

        return C2Eval
    raise AttributeError(name)


@dataclass
class ItemSettings(DatasetPushSettings):
    """Which items are exported, and where to."""

    items: Literal["seed", "pku500"] = field(default=SEED, metadata={"help": "seed, or the reference's 500 items"})
    pku500_file: str | None = field(default=None, metadata={"help": "the reference's test.jsonl, if it is at hand"})
    export_dir: str = field(default="runs/c2-eval", metadata={"help": "Parquet and a card, for load_dataset"})

    def __post_init__(self) -> None:
        """Refuse a push without a place."""
        self.check_push()


def export(settings: ItemSettings) -> int:
    """Write the items as Parquet with a card, so that `load_dataset(export_dir)` works. Returns the number of items."""
    from course_correction.hub.dataset_cards import write_eval_card
    from course_correction.synthesis.builders import EVAL_SCHEMA, eval_table, write_shards

    source = SEED if settings.items == SEED else str(fetch_pku500(settings.pku500_file))
    folder = Path(settings.export_dir)
    table = eval_table(source)
    exported = write_shards(iter([table]), EVAL_SCHEMA, folder / settings.items, "test", 1 << 30)
    write_eval_card(folder, exported, len(set(table["request"].to_pylist())), settings)
    benchmark = BENCHMARK_FILE.read_text(encoding="utf-8").replace("config: seed", f"config: {settings.items}")
    write_atomically(folder / BENCHMARK_FILE.name, benchmark)
    return exported.num_rows


def main() -> None:
    """Export the items, and push them if asked to."""
    (settings,) = parse_settings([ItemSettings], description=__doc__)
    repo = open_dataset_repo(settings) if settings.push_to_hub else None
    num_rows = export(settings)
    logger.info(f"Exported {num_rows} items to {settings.export_dir}")
    if settings.items == PKU500:
        logger.info("They hold harmful text, under CC-BY-NC-4.0: keep them out of logs, cards and commits.")
    if repo:
        logger.info(f"Pushed: {push_dataset(repo, Path(settings.export_dir), [settings.items])}")


if __name__ == "__main__":
    run_script(main)
