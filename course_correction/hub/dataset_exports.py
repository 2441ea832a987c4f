"""Exports of C²-Syn and C²-Eval: Parquet files with a card, as `load_dataset` reads them and the Hub takes them."""

import json
from dataclasses import dataclass
from pathlib import Path

from course_correction.base.errors import UsageError
from course_correction.base.files import write_atomically
from course_correction.hub.dataset_cards import write_eval_card, write_syn_card
from course_correction.hub.dataset_facts import describe_groups
from course_correction.hub.settings import DatasetPushSettings
from course_correction.synthesis.settings import ItemSettings, SynthesisSettings

# Registers C²-Eval as a benchmark of the Hub, which reads it at the root of the dataset.
_BENCHMARK_FILE = Path(__file__).resolve().parent / "templates" / "eval.yaml"


@dataclass
class C2SynSettings(SynthesisSettings, DatasetPushSettings):
    """The settings of c2_syn.py: how C²-Syn is made, and where it is pushed."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, and a push without a repository."""
        super().__post_init__()
        self.check_push()
        if self.export_dir:
            check_export_folder(Path(self.export_dir))


@dataclass
class C2EvalSettings(ItemSettings, DatasetPushSettings):
    """The settings of c2_eval.py: which items are exported, and where they are pushed."""

    def __post_init__(self) -> None:
        """Refuse a push without a repository."""
        self.check_push()
        check_export_folder(Path(self.export_dir))


def check_export_folder(folder: Path) -> None:
    """Refuse the folder of another dataset: an export writes its card over README.md and replaces Parquet files.

    Without a card the folder is new, or an export was stopped before it wrote one.

    Raises:
        UsageError: If a card without this project's tag is there.
    """
    card = folder / "README.md"
    if card.is_file() and "course-correction" not in card.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(
            f"{card} was not written by this project, and an export would replace it. Set another --export_dir."
        )


def export_c2_syn(groups_file: Path, folder: Path, settings: C2SynSettings) -> dict[str, int]:
    """Write the configs `pairs` and `ranked` as Parquet with a card, so that `load_dataset(folder)` works.

    Args:
        groups_file: Of `synthesize`, with selection.json beside it.
        folder: Of the export.
        settings: With which the groups were made.

    Returns:
        The number of rows per config.
    """
    from course_correction.synthesis.export import export_groups, read_groups

    exported = export_groups(groups_file, folder)
    selection = json.loads(groups_file.with_name("selection.json").read_text(encoding="utf-8"))
    write_syn_card(folder, dict(exported), selection, settings, describe_groups(read_groups(groups_file)))
    return {name: shards.num_rows for name, shards in exported.items()}


def export_c2_eval(folder: Path, settings: C2EvalSettings) -> int:
    """Write the items as Parquet with a card and the benchmark file, so that `load_dataset(folder)` works.

    Returns:
        The number of items.
    """
    from course_correction.synthesis.export import export_items

    exported, num_requests = export_items(settings.items, settings.pku500_file, folder)
    write_eval_card(folder, exported, num_requests, settings)
    benchmark = _BENCHMARK_FILE.read_text(encoding="utf-8").replace("config: seed", f"config: {settings.items}")
    write_atomically(folder / _BENCHMARK_FILE.name, benchmark)
    return exported.num_rows
