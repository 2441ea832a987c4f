"""C²-Syn and C²-Eval as Arrow tables and Parquet files. Reads finished rows; runs no model."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl
from course_correction.synthesis.ranked_groups import (
    PAIR_RANKS,
    PAIRS_SCHEMA,
    RANKED_SCHEMA,
    RankedGroup,
    check_ranked_group,
    pairs_table,
    ranked_table,
)
from course_correction.synthesis.reference_items import PKU500, fetch_pku500
from course_correction.synthesis.sources import SEED, read_eval_items

GROUPS_PER_TABLE = 500
GROUPS_PER_SHARD = 10_000  # 50,000 groups give five shards; with texts of real length, a shard of pairs has some 100 MB.
EVAL_SCHEMA = pa.schema({name: pa.string() for name in ("request_id", "request", "full_harmful_response", "source")})
SYN_SCHEMAS = {"pairs": PAIRS_SCHEMA, "ranked": RANKED_SCHEMA}


class Shards(NamedTuple):
    """An exported config: its number of rows, the bytes of its Arrow tables in memory, and its files."""

    num_rows: int
    num_bytes: int
    files: list[Path]


def check_groups_file(groups_file: Path) -> None:
    """Refuse a missing `groups.jsonl`.

    Raises:
        UsageError: If there is no such file.
    """
    if not groups_file.is_file():
        raise UsageError(f"There is no file {groups_file}. Run `python c2_syn.py --output_dir {groups_file.parent}` first.")


def read_groups(groups_file: Path) -> Iterator[RankedGroup]:
    """Yield the ranked groups of a finished `groups.jsonl`, without the lines that synthesis dropped.

    Raises:
        UsageError: If there is no such file, or a group is not valid.
    """
    check_groups_file(groups_file)
    for number, group in enumerate(read_jsonl(groups_file), 1):
        if "dropped" in group:
            continue
        check_ranked_group(group, f"{groups_file}: line {number}")
        yield cast(RankedGroup, group)


def syn_tables(groups_file: Path, config_name: str) -> Iterator[pa.Table]:
    """Yield the rows of a config of C²-Syn as tables of `GROUPS_PER_TABLE` groups at most."""
    batch: list[RankedGroup] = []
    for group in read_groups(groups_file):
        batch.append(group)
        if len(batch) == GROUPS_PER_TABLE:
            yield _syn_table(batch, config_name)
            batch = []
    if batch:
        yield _syn_table(batch, config_name)


def _syn_table(groups: list[RankedGroup], config_name: str) -> pa.Table:
    ranked = ranked_table(groups)
    return pairs_table(ranked) if config_name == "pairs" else ranked


def eval_table(source: str) -> pa.Table:
    """Return the items (`EvalItem`) of `seed`, `pku500` or a file as a table in `EVAL_SCHEMA`."""
    name = SEED if source == SEED else PKU500
    items = [{**item, "source": name if source in (SEED, PKU500) else item["source"]} for item in read_eval_items(source)]
    return pa.Table.from_pylist(items, schema=EVAL_SCHEMA)


def export_groups(groups_file: Path, folder: Path) -> dict[str, Shards]:
    """Write the configs `pairs` and `ranked` of C²-Syn as Parquet.

    Returns:
        The shards by config.
    """
    shards = {}
    for name, rows_per_group in (("pairs", len(PAIR_RANKS)), ("ranked", 1)):
        tables, rows_per_shard = syn_tables(groups_file, name), GROUPS_PER_SHARD * rows_per_group
        shards[name] = write_shards(tables, SYN_SCHEMAS[name], folder / name, "train", rows_per_shard)
    return shards


def export_items(items: Literal["seed", "pku500"], pku500_file: str | None, folder: Path) -> tuple[Shards, int]:
    """Write C²-Eval as Parquet.

    Args:
        items: Name of the items, and of the config.
        pku500_file: Path of the reference's items; None to download them.
        folder: Of the export.

    Returns:
        The shards of the config, and the number of distinct requests.
    """
    table = eval_table(SEED if items == SEED else str(fetch_pku500(pku500_file)))
    shards = write_shards([table], EVAL_SCHEMA, folder / items, "test", rows_per_shard=table.num_rows)
    return shards, len(set(table["request"].to_pylist()))


def write_shards(tables: Iterable[pa.Table], schema: pa.Schema, folder: Path, split: str, rows_per_shard: int) -> Shards:
    """Write tables as `<split>-00000-of-0000n.parquet`; files of an earlier export are replaced.

    Each table is one row group whose dictionary holds all its texts: the six texts of a group are stored about once,
    although its 15 pairs repeat each text five times.

    Raises:
        UsageError: If there is no row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    writer, rows_here, num_rows, num_bytes = None, 0, 0, 0
    try:
        for table in tables:
            if writer is None or rows_here >= rows_per_shard:
                if writer is not None:
                    writer.close()
                parts.append(folder / f".{split}-{len(parts):05d}.parquet.part")
                # 256 MiB hold all texts of a table; above the limit, texts are stored as often as they occur.
                writer = pyarrow.parquet.ParquetWriter(
                    parts[-1], schema, compression="zstd", dictionary_pagesize_limit=1 << 28
                )
                rows_here = 0
            writer.write_table(table)
            rows_here, num_rows = rows_here + table.num_rows, num_rows + table.num_rows
            num_bytes += table.nbytes
        if writer is None:
            raise UsageError(f"Export to {folder} aborted: there is no row. Loosen the selection or use another teacher.")
        writer.close()
    except BaseException:
        if writer is not None:
            writer.close()
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    for old in folder.glob(f"{split}-*.parquet"):
        old.unlink()
    files = [folder / f"{split}-{index:05d}-of-{len(parts):05d}.parquet" for index in range(len(parts))]
    for part, file in zip(parts, files, strict=True):
        part.rename(file)
    return Shards(num_rows, num_bytes, files)
