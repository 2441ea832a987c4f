"""Laws of sources: which rows are read, from which files and revisions, and which errors name unreadable ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from course_correction.base.errors import UsageError
from course_correction.synthesis import sources
from course_correction.synthesis.sources import PKU_SAFERLHF, SEED, read_eval_items, read_source_rows
from tests.support.rows import as_pku_row, read_data, write_rows
from tests.support.sources import MAIN_COLUMNS, SECRET, assert_one_line_without_row_text, select, source_row


@pytest.mark.parametrize("extra", [{}, MAIN_COLUMNS], ids=["v0", "main"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_both_schemas_of_pku_saferlhf_are_read_from_both_kinds_of_file(
    tmp_path: Path, suffix: str, extra: dict[str, Any]
) -> None:
    seed_rows = read_data("requests_train")[:6]
    rows = [as_pku_row(row, unsafe_first=bool(number % 2), **extra) for number, row in enumerate(seed_rows)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_rows(path, rows)
    read = list(read_source_rows(str(path)))
    assert read == rows
    pairs, counts = select(read, str(path))
    assert counts == {"kept": 6}
    assert [pair.request for pair in pairs] == [row["request"] for row in seed_rows]
    assert [pair.full_harmful_response for pair in pairs] == [row["full_harmful_response"] for row in seed_rows]
    assert {pair.source for pair in pairs} == {path.name}
    assert all(pair.safe_response is None and pair.correction is None for pair in pairs)
    assert len({pair.request_id for pair in pairs}) == 6


def test_the_seed_set_gives_its_written_texts_and_its_own_ids() -> None:
    pairs, _ = select(list(read_source_rows(SEED)), SEED)
    for pair, row in zip(pairs, read_data("requests_train"), strict=True):
        assert (pair.request_id, pair.safe_response, pair.correction, pair.source) == (
            row["request_id"],
            row["safe_response"],
            row["correction"],
            SEED,
        )


def test_a_jsonl_source_streams_so_a_bad_line_is_only_met_when_reached(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [source_row(), source_row()])
    path.write_text(path.read_text() + f'{{"prompt": "{SECRET}\n')
    rows = read_source_rows(str(path))
    assert next(rows) == next(rows) == source_row()
    with pytest.raises(UsageError, match="line 3 is not valid JSON") as caught:
        next(rows)
    assert_one_line_without_row_text(caught.value)


@pytest.mark.parametrize("column", sources.PKU_COLUMNS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_missing_column_is_named_with_the_row_and_without_its_text(tmp_path: Path, column: str, suffix: str) -> None:
    row = source_row(prompt=SECRET, response_1=SECRET, response_0=SECRET)
    del row[column]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist([row]), path)
    else:
        write_rows(path, [row])
    with pytest.raises(UsageError, match=f"row 1 lacks the columns {column};") as caught:
        list(read_source_rows(str(path)))
    assert_one_line_without_row_text(caught.value)


@pytest.mark.parametrize(
    "source", ["sed", "Seed", "no-such.jsonl", "no-such.parquet", "./no/such", "/no/such/folder", "a/b/c", "pku500", ""]
)
def test_a_misspelt_source_is_one_line_that_names_it(source: str) -> None:
    with pytest.raises(UsageError) as caught:
        next(read_source_rows(source))
    assert source in str(caught.value)
    assert_one_line_without_row_text(caught.value)


def test_a_misspelt_split_of_the_seed_set_is_one_line_that_names_it() -> None:
    with pytest.raises((UsageError, OSError), match="trian") as caught:
        next(read_source_rows(SEED, split="trian"))
    assert isinstance(caught.value, UsageError | OSError)


BAD_FILES = {
    "a list.jsonl": b'["zebra-in-the-row"]\n',
    "no json.jsonl": b"zebra-in-the-row\n",
    "latin-1.jsonl": '{"prompt": "zebra-in-the-row é"}\n'.encode("latin-1"),
    "no parquet.parquet": b"zebra-in-the-row",
    "empty.parquet": b"",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_of_another_format_is_one_line_without_its_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD_FILES[name])
    for read in (read_source_rows, read_eval_items):
        with pytest.raises(UsageError, match=name) as caught:
            list(read(str(tmp_path / name)))
        assert_one_line_without_row_text(caught.value)


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([source_row()] * 200), path)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"rows\.parquet") as caught:
        list(read_source_rows(str(path)))
    assert_one_line_without_row_text(caught.value)


@pytest.mark.parametrize(("revision", "wanted"), [(None, "v0"), ("main", "main")])
def test_the_hub_data_set_is_streamed_at_a_pinned_revision(
    monkeypatch: pytest.MonkeyPatch, revision: str | None, wanted: str
) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(dataset_id: str, **options: Any) -> list[dict[str, Any]]:
        asked.update(dataset_id=dataset_id, **options)
        return [source_row()]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_source_rows(PKU_SAFERLHF, revision)) == [source_row()]
    assert asked == {"dataset_id": PKU_SAFERLHF, "revision": wanted, "split": "train", "streaming": True}


def test_what_the_hub_raises_becomes_one_line_without_row_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield source_row()
        raise RuntimeError(f"in row:\n{SECRET}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UsageError, match="me/mine") as caught:
        list(read_source_rows("me/mine"))
    assert_one_line_without_row_text(caught.value)
    assert caught.value.__suppress_context__
