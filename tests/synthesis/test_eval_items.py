"""Laws of evaluation items: two schemas are read; the 500 pinned items are fetched once and checked at each use."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from course_correction.base.errors import UsageError
from course_correction.synthesis import reference_items as pku500
from course_correction.synthesis.reference_items import fetch_pku500
from course_correction.synthesis.sources import SEED, read_eval_items
from tests.support.rows import as_pku_row, read_data, write_rows
from tests.support.sources import LONG, SECRET, assert_one_line_without_row_text, source_row


def test_evaluation_items_are_read_from_either_schema(tmp_path: Path) -> None:
    items = list(read_eval_items(SEED))[:4]
    assert list(read_eval_items(str(write_rows(tmp_path / "items.jsonl", items)))) == items
    pyarrow.parquet.write_table(pa.Table.from_pylist(items), tmp_path / "items.parquet")
    assert list(read_eval_items(str(tmp_path / "items.parquet"))) == items
    pku_rows = [as_pku_row(row) for row in read_data("requests_eval")[:4]]
    read = list(read_eval_items(str(write_rows(tmp_path / "pku.jsonl", pku_rows))))
    for name in ("request", "full_harmful_response"):
        assert [item[name] for item in read] == [item[name] for item in items]
    assert len({item["request_id"] for item in read}) == 4


@pytest.mark.parametrize("column", ["request", "full_harmful_response"])
@pytest.mark.parametrize("text", [None, "", 5])
def test_a_null_text_in_an_evaluation_item_is_one_line_that_names_the_row(tmp_path: Path, column: str, text: Any) -> None:
    good = {"request_id": "a", "request": "How?", "full_harmful_response": SECRET, "source": "s"}
    path = write_rows(tmp_path / "items.jsonl", [good, {**good, "request": SECRET, column: text}])
    with pytest.raises(UsageError, match="row 2 has a null or empty") as caught:
        list(read_eval_items(str(path)))
    assert_one_line_without_row_text(caught.value)


def test_evaluation_items_of_unknown_columns_or_of_no_file_are_one_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "items.jsonl", [{"question": SECRET}])
    with pytest.raises(UsageError, match="row 1 has unknown columns: question") as caught:
        list(read_eval_items(str(path)))
    assert_one_line_without_row_text(caught.value)
    with pytest.raises(UsageError, match="There is no file sede"):
        list(read_eval_items("sede"))


def test_the_ids_of_evaluation_items_are_unique(tmp_path: Path) -> None:
    item = {"request": "How?", "full_harmful_response": LONG}
    read = list(read_eval_items(str(write_rows(tmp_path / "items.jsonl", [item, item]))))
    assert len({row["request_id"] for row in read}) == 2


class _Answer:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self) -> bytes:
        return self.content

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and a network that fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("COURSE_CORRECTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "cache"


def test_the_500_items_are_refused_where_their_checksum_is_another(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_rows(tmp_path / "test.jsonl", [source_row(prompt=SECRET)])
    with pytest.raises(UsageError, match="sha256") as caught:
        fetch_pku500(str(local))
    assert_one_line_without_row_text(caught.value)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: _Answer(SECRET.encode()))
    with pytest.raises(UsageError, match="sha256") as caught:
        fetch_pku500()
    assert_one_line_without_row_text(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_the_500_items_are_fetched_once_and_checked_at_every_use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    content = (json.dumps(source_row()) + "\n").encode()
    monkeypatch.setattr(pku500, "PKU500_SHA256", hashlib.sha256(content).hexdigest())
    asked: list[str] = []

    def urlopen(url: str, **_: Any) -> _Answer:
        asked.append(url)
        return _Answer(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert [item["request"] for item in read_eval_items("pku500")] == [source_row()["prompt"]]
    path = fetch_pku500()
    assert asked == [pku500.PKU500_URL.format(commit=pku500.PKU500_COMMIT)]
    assert path.read_bytes() == content and path.parent == cache
    path.write_bytes(content[:-2])
    with pytest.raises(UsageError, match="sha256"):
        fetch_pku500()


def test_without_network_or_file_the_500_items_end_in_one_line_with_a_remedy(cache: Path) -> None:
    with pytest.raises(UsageError, match="--pku500_file") as caught:
        fetch_pku500()
    assert_one_line_without_row_text(caught.value)
    with pytest.raises(UsageError, match="There is no file nowhere"):
        fetch_pku500("nowhere")
