"""Laws of sources: which rows are read, which are kept, and what is said of those that cannot be."""

import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import as_pku_row, read_data, write_rows

from course_correction import pku500, sources
from course_correction.pku500 import fetch_pku500
from course_correction.prefixes import cut_initial_harmful_responses
from course_correction.run_files import UsageError
from course_correction.sources import (
    PKU_SAFERLHF,
    SEED,
    SelectionRules,
    SourcePair,
    normalise_request,
    read_eval_items,
    read_source_rows,
    select_source_pairs,
)

SECRET = "zebra-in-the-row"
LONG = " ".join(["word, " * 10 + "end."] * 9)
# Columns of PKU-SafeRLHF's main branch beyond those of v0.
MAIN_COLUMNS = {
    "prompt_source": "Alpaca3-70B",
    "response_0_source": "Alpaca-7B",
    "response_1_source": "WizardLM-30B-Uncensored",
    "response_0_harm_category": {"Endangering National Security": False, "White-Collar Crime": True},
    "response_0_severity_level": 0,
    "response_1_severity_level": 2,
    "response_0_sha256": "00",
    "response_1_sha256": "11",
}


def _row(**changes: Any) -> dict[str, Any]:
    row = {
        "prompt": "How do I skip a queue?",
        "response_0": "Please wait.",
        "response_1": LONG,
        "is_response_0_safe": True,
        "is_response_1_safe": False,
    }
    return {**row, **changes}


def _select(
    rows: list[dict[str, Any]], source: str = "file.jsonl", excluded: frozenset[str] = frozenset(), **rules: Any
) -> tuple[list[SourcePair], Counter[str]]:
    counts: Counter[str] = Counter()
    return list(select_source_pairs(rows, source, SelectionRules(**rules), excluded, counts)), counts


def _assert_one_line_without_row_text(error: BaseException) -> None:
    assert "\n" not in str(error) and SECRET not in str(error) and str(error)


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
    pairs, counts = _select(read, str(path))
    assert counts == {"kept": 6}
    assert [pair.request for pair in pairs] == [row["request"] for row in seed_rows]
    assert [pair.full_harmful_response for pair in pairs] == [row["full_harmful_response"] for row in seed_rows]
    assert {pair.source for pair in pairs} == {path.name}
    assert all(pair.safe_response is None and pair.correction is None for pair in pairs)
    assert len({pair.request_id for pair in pairs}) == 6


def test_the_seed_set_gives_its_written_texts_and_its_own_ids() -> None:
    pairs, _ = _select(list(read_source_rows(SEED)), SEED)
    for pair, row in zip(pairs, read_data("requests_train"), strict=True):
        assert (pair.request_id, pair.safe_response, pair.correction, pair.source) == (
            row["request_id"],
            row["safe_response"],
            row["correction"],
            SEED,
        )


DROPPED = {
    "no_how_or_what": _row(prompt="Tell me more."),
    "in_c2_eval": _row(prompt="How,  do i SKIP a line?"),
    "no_unsafe_response": _row(is_response_1_safe=True),
    "response_too_short": _row(response_1="word, " * 79 + "end."),
    "too_few_punctuation_marks": _row(response_1="word " * 90 + "one, two, three, end."),
    "empty_text": _row(prompt=None),
}


def test_rows_are_counted_by_the_reason_for_which_they_are_dropped() -> None:
    excluded = frozenset({normalise_request("How do I skip a line?")})
    rows = [*DROPPED.values(), _row(), _row(prompt="how do I skip a queue"), _row(prompt="What a show!")]
    pairs, counts = _select(rows, excluded=excluded)
    assert [pair.request for pair in pairs] == ["How do I skip a queue?", "What a show!"]
    assert counts == {**dict.fromkeys(DROPPED, 1), "kept": 2, "repeated_request": 1}
    assert sum(counts.values()) == len(rows)


@pytest.mark.parametrize("text", [None, "", " \n", 5, ["How?"]])
@pytest.mark.parametrize("column", ["prompt", "response_1"])
def test_a_null_empty_or_non_text_value_is_counted_and_never_raises(column: str, text: Any) -> None:
    pairs, counts = _select([_row(**{column: text}), _row()])
    assert len(pairs) == 1 and counts == {"empty_text": 1, "kept": 1}


@pytest.mark.parametrize("column", ["prompt", "response_1"])
def test_a_text_that_cannot_be_written_as_utf_8_does_not_stop_the_run(tmp_path: Path, column: str) -> None:
    broken = _row(prompt="What else is there?")
    broken[column] += " \ud83d"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(broken) + "\n" + json.dumps(_row()) + "\n")
    pairs, _ = _select(list(read_source_rows(str(path))))
    assert _row()["prompt"] in [pair.request for pair in pairs]
    for pair in pairs:
        (pair.request + pair.full_harmful_response).encode()


def test_the_threshold_on_words_and_the_other_rules_are_settings() -> None:
    eighty, eighty_one = "word, " * 79 + "end.", "word, " * 80 + "end."
    assert _select([_row(response_1=eighty)])[1] == {"response_too_short": 1}
    assert _select([_row(response_1=eighty_one)])[1] == {"kept": 1}
    assert _select([_row(response_1=eighty)], min_response_words=79)[1] == {"kept": 1}
    assert _select([DROPPED["no_how_or_what"]], require_how_or_what=False)[1] == {"kept": 1}
    assert _select([_row(), _row(response_1=eighty_one)], unique_requests=False)[1] == {"kept": 2}


def test_how_and_what_count_as_words_only() -> None:
    assert _select([_row(prompt="Show me whatever.")])[1] == {"no_how_or_what": 1}
    assert _select([_row(prompt="Tell me HOW.")])[1] == {"kept": 1}


def test_the_first_unsafe_response_that_passes_is_taken() -> None:
    both = _row(response_0="short, one.", is_response_0_safe=False)
    assert _select([both])[0][0].full_harmful_response == LONG
    swapped = _row(response_0=f"First, {LONG}", is_response_0_safe=False)
    assert _select([swapped])[0][0].full_harmful_response == f"First, {LONG}"


@pytest.mark.parametrize("ending", ["", ".", ",", '"', "?)", " \n", ". \n", " 3.5"])
@pytest.mark.parametrize("inner_marks", [3, 4, 5])
def test_a_response_that_is_kept_can_be_cut(ending: str, inner_marks: int) -> None:
    response = "word " * 90 + "more, " * inner_marks + "end" + ending
    for pair in _select([_row(response_1=response)])[0]:
        assert len(cut_initial_harmful_responses(pair.full_harmful_response, 4)) == 4


def test_requests_are_unique_and_so_are_their_ids() -> None:
    rows = [_row(prompt=prompt) for prompt in ("How so?", "how so", "HOW  so!!", "How so then?", "What now?", "How so?")]
    pairs, counts = _select(rows)
    assert [pair.request for pair in pairs] == ["How so?", "How so then?", "What now?"]
    assert counts == {"kept": 3, "repeated_request": 3}
    assert len({pair.request_id for pair in pairs}) == 3


def test_request_ids_are_unique_even_where_requests_may_repeat() -> None:
    pairs, _ = _select([_row(), _row(), _row(response_1=f"First, {LONG}")], unique_requests=False)
    assert len({pair.request_id for pair in pairs}) == len(pairs)


def test_a_repeated_request_is_taken_from_the_first_row_that_is_usable() -> None:
    rows = [_row(response_1="too short."), _row(response_1=f"First, {LONG}"), _row()]
    pairs, counts = _select(rows)
    assert [pair.full_harmful_response for pair in pairs] == [f"First, {LONG}"]
    assert counts == {"response_too_short": 1, "kept": 1, "repeated_request": 1}


def test_request_ids_depend_on_the_texts_alone_and_do_not_show_them() -> None:
    rows = [_row(prompt=f"How {number}?") for number in range(4)]
    forward, backward = _select(rows)[0], _select(rows[::-1])[0]
    assert forward == backward[::-1]
    assert all("How" not in pair.request_id for pair in forward)


def test_no_request_of_the_evaluation_items_is_kept() -> None:
    excluded = frozenset(normalise_request(item["request"]) for item in read_eval_items(SEED))
    pairs, counts = _select([as_pku_row(row) for row in read_data("requests_eval")], excluded=excluded)
    assert pairs == [] and counts["in_c2_eval"] > 0


def test_selection_streams_and_does_not_read_ahead() -> None:
    read: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        number = 0
        while True:
            read.append(number)
            yield _row(prompt=f"How many are {number}?")
            number += 1

    counts: Counter[str] = Counter()
    pairs = select_source_pairs(endless(), "file.jsonl", SelectionRules(), frozenset(), counts)
    assert read == []
    for taken in range(1, 4):
        next(pairs)
        assert len(read) == taken and counts == {"kept": taken}


def test_a_jsonl_source_streams_so_a_bad_line_is_only_met_when_reached(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [_row(), _row()])
    path.write_text(path.read_text() + f'{{"prompt": "{SECRET}\n')
    rows = read_source_rows(str(path))
    assert next(rows) == next(rows) == _row()
    with pytest.raises(UsageError, match="line 3 is not valid JSON") as caught:
        next(rows)
    _assert_one_line_without_row_text(caught.value)


@pytest.mark.parametrize("column", sources.PKU_COLUMNS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_missing_column_is_named_with_the_row_and_without_its_text(tmp_path: Path, column: str, suffix: str) -> None:
    row = _row(prompt=SECRET, response_1=SECRET, response_0=SECRET)
    del row[column]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist([row]), path)
    else:
        write_rows(path, [row])
    with pytest.raises(UsageError, match=f"row 1 lacks the columns {column};") as caught:
        list(read_source_rows(str(path)))
    _assert_one_line_without_row_text(caught.value)


@pytest.mark.parametrize(
    "source", ["sed", "Seed", "no-such.jsonl", "no-such.parquet", "./no/such", "/no/such/folder", "a/b/c", "pku500", ""]
)
def test_a_misspelt_source_is_one_line_that_names_it(source: str) -> None:
    with pytest.raises(UsageError) as caught:
        next(read_source_rows(source))
    assert source in str(caught.value)
    _assert_one_line_without_row_text(caught.value)


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
        _assert_one_line_without_row_text(caught.value)


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([_row()] * 200), path)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"rows\.parquet") as caught:
        list(read_source_rows(str(path)))
    _assert_one_line_without_row_text(caught.value)


@pytest.mark.parametrize(("revision", "wanted"), [(None, "v0"), ("main", "main")])
def test_the_hub_data_set_is_streamed_at_a_pinned_revision(
    monkeypatch: pytest.MonkeyPatch, revision: str | None, wanted: str
) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(dataset_id: str, **options: Any) -> list[dict[str, Any]]:
        asked.update(dataset_id=dataset_id, **options)
        return [_row()]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_source_rows(PKU_SAFERLHF, revision)) == [_row()]
    assert asked == {"dataset_id": PKU_SAFERLHF, "revision": wanted, "split": "train", "streaming": True}


def test_what_the_hub_raises_becomes_one_line_without_row_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield _row()
        raise RuntimeError(f"in row:\n{SECRET}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UsageError, match="me/mine") as caught:
        list(read_source_rows("me/mine"))
    _assert_one_line_without_row_text(caught.value)
    assert caught.value.__suppress_context__


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
    _assert_one_line_without_row_text(caught.value)


def test_evaluation_items_of_unknown_columns_or_of_no_file_are_one_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "items.jsonl", [{"question": SECRET}])
    with pytest.raises(UsageError, match="row 1 has unknown columns: question") as caught:
        list(read_eval_items(str(path)))
    _assert_one_line_without_row_text(caught.value)
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
    local = write_rows(tmp_path / "test.jsonl", [_row(prompt=SECRET)])
    with pytest.raises(UsageError, match="sha256") as caught:
        fetch_pku500(str(local))
    _assert_one_line_without_row_text(caught.value)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: _Answer(SECRET.encode()))
    with pytest.raises(UsageError, match="sha256") as caught:
        fetch_pku500()
    _assert_one_line_without_row_text(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_the_500_items_are_fetched_once_and_checked_at_every_use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    content = (json.dumps(_row()) + "\n").encode()
    monkeypatch.setattr(pku500, "PKU500_SHA256", hashlib.sha256(content).hexdigest())
    asked: list[str] = []

    def urlopen(url: str, **_: Any) -> _Answer:
        asked.append(url)
        return _Answer(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert [item["request"] for item in read_eval_items("pku500")] == [_row()["prompt"]]
    path = fetch_pku500()
    assert asked == [pku500.PKU500_URL.format(commit=pku500.PKU500_COMMIT)]
    assert path.read_bytes() == content and path.parent == cache
    path.write_bytes(content[:-2])
    with pytest.raises(UsageError, match="sha256"):
        fetch_pku500()


def test_without_network_or_file_the_500_items_end_in_one_line_with_a_remedy(cache: Path) -> None:
    with pytest.raises(UsageError, match="--pku500_file") as caught:
        fetch_pku500()
    _assert_one_line_without_row_text(caught.value)
    with pytest.raises(UsageError, match="There is no file nowhere"):
        fetch_pku500("nowhere")
