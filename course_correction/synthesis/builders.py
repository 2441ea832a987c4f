"""`datasets` builders of C²-Syn and C²-Eval: they read finished rows, and export them. No model runs here."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl
from course_correction.synthesis.ranked_groups import (
    PAIRS_SCHEMA,
    RANKED_SCHEMA,
    check_ranked_group,
    pairs_table,
    ranked_table,
)
from course_correction.synthesis.reference_items import PKU500, fetch_pku500
from course_correction.synthesis.sources import DATA_FOLDER, SEED, read_eval_items

GROUPS_A_TABLE = 500
GROUPS_A_SHARD = 10_000  # At 15 pairs each: five shards at full size, some 100 MB each with texts of real length.
EVAL_SCHEMA = pa.schema({name: pa.string() for name in ("request_id", "request", "full_harmful_response", "source")})
SYN_SCHEMAS = {"pairs": PAIRS_SCHEMA, "ranked": RANKED_SCHEMA}


def read_groups(groups_file: Path) -> Iterator[dict[str, Any]]:
    """Yield the checked ranked groups of a finished `groups.jsonl`, leaving out those that synthesis dropped.

    Raises:
        UsageError: If there is no such file, or a group in it is not whole.
    """
    _check_groups_file(groups_file)
    for number, group in enumerate(read_jsonl(groups_file), 1):
        if "dropped" in group:
            continue
        check_ranked_group(group, f"{groups_file}: line {number}")
        yield group


def _check_groups_file(groups_file: Path) -> None:
    if not groups_file.is_file():
        raise UsageError(f"There is no {groups_file}; `python c2_syn.py --output_dir {groups_file.parent}` makes it.")


def syn_tables(groups_file: Path, config_name: str) -> Iterator[pa.Table]:
    """Yield C²-Syn as Arrow tables, a bounded number of groups at a time."""
    batch: list[dict[str, Any]] = []
    for group in read_groups(groups_file):
        batch.append(group)
        if len(batch) == GROUPS_A_TABLE:
            yield _syn_table(batch, config_name)
            batch = []
    if batch:
        yield _syn_table(batch, config_name)


def _syn_table(groups: list[dict[str, Any]], config_name: str) -> pa.Table:
    ranked = ranked_table(groups)
    return pairs_table(ranked) if config_name == "pairs" else ranked


class Shards(NamedTuple):
    """What `write_shards` wrote: rows, their bytes in memory as Arrow tables, and the files."""

    num_rows: int
    num_bytes: int
    files: list[Path]


def write_shards(tables: Iterator[pa.Table], schema: pa.Schema, folder: Path, split: str, rows_a_shard: int) -> Shards:
    """Write tables as `<split>-00000-of-0000n.parquet`.

    One row group a table, dictionary-encoded with a dictionary that holds all its texts: the six texts of a group
    are stored about once, though its pairs repeat each of them five times.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    writer, rows_here, num_rows, num_bytes = None, 0, 0, 0
    try:
        for table in tables:
            if writer is None or rows_here >= rows_a_shard:
                if writer is not None:
                    writer.close()
                shards.append(folder / f".{split}-{len(shards):05d}.parquet.part")
                writer = pyarrow.parquet.ParquetWriter(
                    shards[-1], schema, compression="zstd", dictionary_pagesize_limit=1 << 28
                )
                rows_here = 0
            writer.write_table(table)
            rows_here, num_rows = rows_here + table.num_rows, num_rows + table.num_rows
            num_bytes += table.nbytes
    except BaseException:
        if writer is not None:
            writer.close()
        for shard in shards:
            shard.unlink(missing_ok=True)
        raise
    if writer is None:
        raise UsageError(f"There is nothing to export to {folder}: no row was kept.")
    writer.close()
    for old in folder.glob(f"{split}-*.parquet"):
        old.unlink()
    files = [folder / f"{split}-{index:05d}-of-{len(shards):05d}.parquet" for index in range(len(shards))]
    for shard, file in zip(shards, files, strict=True):
        shard.rename(file)
    return Shards(num_rows, num_bytes, files)


def _digest(*parts: str | Path) -> str:
    """Digest of this module and of files, so that an edited builder or input never serves a stale cache."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) and part.is_file() else str(part).encode())
    return digest.hexdigest()[:16]


class C2Syn(datasets.ArrowBasedBuilder):
    """C²-Syn out of a finished `groups.jsonl`, as `pairs` (15 a group, for TRL) or `ranked` (6 responses a group)."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = [
        datasets.BuilderConfig("pairs", description="prompt, chosen, rejected: 15 rows a ranked group"),
        datasets.BuilderConfig("ranked", description="six ranked responses a row"),
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
        # Checked here, since `datasets` wraps whatever is raised while tables are made.
        _check_groups_file(self.groups_file)
        return [datasets.SplitGenerator("train", gen_kwargs={"groups_files": [str(self.groups_file)]})]

    def _generate_tables(self, groups_files: list[str]) -> Iterator[tuple[Any, pa.Table]]:
        for groups_file in groups_files:
            for index, table in enumerate(syn_tables(Path(groups_file), self.config.name)):
                yield f"{index}", table


class C2Eval(datasets.ArrowBasedBuilder):
    """C²-Eval: requests with full harmful responses, from the seed set (`seed`) or the reference's 500 (`pku500`)."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = [
        datasets.BuilderConfig("seed", description="the project's own mild evaluation requests"),
        datasets.BuilderConfig("pku500", description="the reference's 500 items (CC-BY-NC-4.0, harmful text)"),
    ]
    DEFAULT_CONFIG_NAME = "seed"

    def __init__(self, *, pku500_file: str | None = None, **kwargs: Any) -> None:
        """Take the 500 items from `pku500_file`, or fetch them at the pinned commit."""
        self.pku500_file = pku500_file
        kwargs.setdefault("dataset_name", "c2-eval")
        kwargs.setdefault("hash", _digest(str(pku500_file), DATA_FOLDER / "requests_eval.jsonl"))
        super().__init__(**kwargs)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="C²-Eval: items that measure course-correction.",
            features=datasets.Features.from_arrow_schema(EVAL_SCHEMA),
            license="CC0-1.0" if self.config.name == "seed" else "CC-BY-NC-4.0",
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        source = SEED if self.config.name == "seed" else str(fetch_pku500(self.pku500_file))
        return [datasets.SplitGenerator("test", gen_kwargs={"sources": [source]})]

    def _generate_tables(self, sources: list[str]) -> Iterator[tuple[Any, pa.Table]]:
        for source in sources:
            yield "0", eval_table(source)


def eval_table(source: str) -> pa.Table:
    """Return the items of `seed`, `pku500` or a file as a table in `EVAL_SCHEMA`."""
    name = SEED if source == SEED else PKU500
    items = [{**item, "source": name if source in (SEED, PKU500) else item["source"]} for item in read_eval_items(source)]
    return pa.Table.from_pylist(items, schema=EVAL_SCHEMA)
