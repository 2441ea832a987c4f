"""`datasets` builders of C²-Syn and C²-Eval. They read finished rows; no model runs here."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from course_correction.synthesis import export, ranked_groups, sources
from course_correction.synthesis.export import EVAL_SCHEMA, SYN_SCHEMAS, check_groups_file, eval_table, syn_tables
from course_correction.synthesis.reference_items import PKU500, fetch_pku500
from course_correction.synthesis.sources import DATA_FOLDER, SEED


def _digest(*inputs: str | Path) -> str:
    """Return a digest of the code that makes the rows and of its inputs, so that a change of either misses the cache."""
    digest = hashlib.sha256()
    code = [Path(str(name)) for name in (__file__, export.__file__, ranked_groups.__file__, sources.__file__)]
    for part in (*code, *inputs):
        digest.update(part.read_bytes() if isinstance(part, Path) and part.is_file() else str(part).encode())
    return digest.hexdigest()[:16]


class C2Syn(datasets.ArrowBasedBuilder):
    """C²-Syn from a finished `groups.jsonl`, as `pairs` (15 per group, for TRL) or `ranked` (6 responses per group)."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = [
        datasets.BuilderConfig("pairs", description="prompt, chosen, rejected: 15 rows per ranked group"),
        datasets.BuilderConfig("ranked", description="six ranked responses per row"),
    ]
    DEFAULT_CONFIG_NAME = "pairs"

    def __init__(self, *, groups_file: str | Path = "runs/c2-syn/groups.jsonl", **kwargs: Any) -> None:
        """Read `groups_file`, which `python c2_syn.py` writes."""
        self.groups_file = Path(groups_file)
        kwargs.setdefault("dataset_name", "c2-syn")
        kwargs.setdefault("hash", _digest(self.groups_file))
        super().__init__(**kwargs)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="C²-Syn: synthetic preferences that teach course-correction.",
            features=datasets.Features.from_arrow_schema(SYN_SCHEMAS[self.config.name]),
            license="see the dataset card",
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        # Checked here, because `datasets` wraps errors that are raised while tables are made.
        check_groups_file(self.groups_file)
        return [datasets.SplitGenerator("train", gen_kwargs={"groups_files": [str(self.groups_file)]})]

    def _generate_tables(self, groups_files: list[str]) -> Iterator[tuple[str, pa.Table]]:
        for groups_file in groups_files:
            for index, table in enumerate(syn_tables(Path(groups_file), self.config.name)):
                yield f"{index}", table


class C2Eval(datasets.ArrowBasedBuilder):
    """C²-Eval: requests with full harmful responses, from the seed set (`seed`) or the reference's 500 (`pku500`)."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = [
        datasets.BuilderConfig(SEED, description="the project's own mild evaluation requests"),
        datasets.BuilderConfig(PKU500, description="the reference's 500 items (CC-BY-NC-4.0, harmful text)"),
    ]
    DEFAULT_CONFIG_NAME = SEED

    def __init__(self, *, pku500_file: str | None = None, **kwargs: Any) -> None:
        """Take the 500 items from `pku500_file`, or download them at the pinned commit."""
        self.pku500_file = pku500_file
        kwargs.setdefault("dataset_name", "c2-eval")
        kwargs.setdefault("hash", _digest(str(pku500_file), DATA_FOLDER / "requests_eval.jsonl"))
        super().__init__(**kwargs)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="C²-Eval: items that measure course-correction.",
            features=datasets.Features.from_arrow_schema(EVAL_SCHEMA),
            license="CC0-1.0" if self.config.name == SEED else "CC-BY-NC-4.0",
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        source = SEED if self.config.name == SEED else str(fetch_pku500(self.pku500_file))
        return [datasets.SplitGenerator("test", gen_kwargs={"sources": [source]})]

    def _generate_tables(self, sources: list[str]) -> Iterator[tuple[str, pa.Table]]:
        for source in sources:
            yield "0", eval_table(source)
