"""Laws of selection: which rows are kept, for which reasons rows are dropped, and that ids are unique."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from course_correction.synthesis.cuts import cut_initial_harmful_responses
from course_correction.synthesis.sources import (
    SEED,
    SelectionRules,
    normalise_request,
    read_eval_items,
    read_source_rows,
    select_source_pairs,
)
from tests.support.rows import as_pku_row, read_data
from tests.support.sources import LONG, select, source_row

DROPPED = {
    "no_how_or_what": source_row(prompt="Tell me more."),
    "in_c2_eval": source_row(prompt="How,  do i SKIP a line?"),
    "no_unsafe_response": source_row(is_response_1_safe=True),
    "response_too_short": source_row(response_1="word, " * 79 + "end."),
    "too_few_punctuation_marks": source_row(response_1="word " * 90 + "one, two, three, end."),
    "empty_text": source_row(prompt=None),
}


def test_rows_are_counted_by_the_reason_for_which_they_are_dropped() -> None:
    excluded = frozenset({normalise_request("How do I skip a line?")})
    rows = [*DROPPED.values(), source_row(), source_row(prompt="how do I skip a queue"), source_row(prompt="What a show!")]
    pairs, counts = select(rows, excluded=excluded)
    assert [pair.request for pair in pairs] == ["How do I skip a queue?", "What a show!"]
    assert counts == {**dict.fromkeys(DROPPED, 1), "kept": 2, "repeated_request": 1}
    assert sum(counts.values()) == len(rows)


@pytest.mark.parametrize("text", [None, "", " \n", 5, ["How?"]])
@pytest.mark.parametrize("column", ["prompt", "response_1"])
def test_a_null_empty_or_non_text_value_is_counted_and_never_raises(column: str, text: Any) -> None:
    pairs, counts = select([source_row(**{column: text}), source_row()])
    assert len(pairs) == 1 and counts == {"empty_text": 1, "kept": 1}


@pytest.mark.parametrize("column", ["prompt", "response_1"])
def test_a_text_that_cannot_be_written_as_utf_8_does_not_stop_the_run(tmp_path: Path, column: str) -> None:
    broken = source_row(prompt="What else is there?")
    broken[column] += " \ud83d"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(broken) + "\n" + json.dumps(source_row()) + "\n")
    pairs, _ = select(list(read_source_rows(str(path))))
    assert source_row()["prompt"] in [pair.request for pair in pairs]
    for pair in pairs:
        (pair.request + pair.full_harmful_response).encode()


def test_the_threshold_on_words_and_the_other_rules_are_settings() -> None:
    eighty, eighty_one = "word, " * 79 + "end.", "word, " * 80 + "end."
    assert select([source_row(response_1=eighty)])[1] == {"response_too_short": 1}
    assert select([source_row(response_1=eighty_one)])[1] == {"kept": 1}
    assert select([source_row(response_1=eighty)], min_response_words=79)[1] == {"kept": 1}
    assert select([DROPPED["no_how_or_what"]], require_how_or_what=False)[1] == {"kept": 1}
    assert select([source_row(), source_row(response_1=eighty_one)], unique_requests=False)[1] == {"kept": 2}


def test_how_and_what_count_as_words_only() -> None:
    assert select([source_row(prompt="Show me whatever.")])[1] == {"no_how_or_what": 1}
    assert select([source_row(prompt="Tell me HOW.")])[1] == {"kept": 1}


def test_the_first_unsafe_response_that_passes_is_taken() -> None:
    both = source_row(response_0="short, one.", is_response_0_safe=False)
    assert select([both])[0][0].full_harmful_response == LONG
    swapped = source_row(response_0=f"First, {LONG}", is_response_0_safe=False)
    assert select([swapped])[0][0].full_harmful_response == f"First, {LONG}"


@pytest.mark.parametrize("ending", ["", ".", ",", '"', "?)", " \n", ". \n", " 3.5"])
@pytest.mark.parametrize("inner_marks", [3, 4, 5])
def test_a_response_that_is_kept_can_be_cut(ending: str, inner_marks: int) -> None:
    response = "word " * 90 + "more, " * inner_marks + "end" + ending
    for pair in select([source_row(response_1=response)])[0]:
        assert len(cut_initial_harmful_responses(pair.full_harmful_response, 4)) == 4


def test_requests_are_unique_and_so_are_their_ids() -> None:
    rows = [
        source_row(prompt=prompt) for prompt in ("How so?", "how so", "HOW  so!!", "How so then?", "What now?", "How so?")
    ]
    pairs, counts = select(rows)
    assert [pair.request for pair in pairs] == ["How so?", "How so then?", "What now?"]
    assert counts == {"kept": 3, "repeated_request": 3}
    assert len({pair.request_id for pair in pairs}) == 3


def test_request_ids_are_unique_even_where_requests_may_repeat() -> None:
    pairs, _ = select([source_row(), source_row(), source_row(response_1=f"First, {LONG}")], unique_requests=False)
    assert len({pair.request_id for pair in pairs}) == len(pairs)


def test_a_repeated_request_is_taken_from_the_first_row_that_is_usable() -> None:
    rows = [source_row(response_1="too short."), source_row(response_1=f"First, {LONG}"), source_row()]
    pairs, counts = select(rows)
    assert [pair.full_harmful_response for pair in pairs] == [f"First, {LONG}"]
    assert counts == {"response_too_short": 1, "kept": 1, "repeated_request": 1}


def test_request_ids_depend_on_the_texts_alone_and_do_not_show_them() -> None:
    rows = [source_row(prompt=f"How {number}?") for number in range(4)]
    forward, backward = select(rows)[0], select(rows[::-1])[0]
    assert forward == backward[::-1]
    assert all("How" not in pair.request_id for pair in forward)


def test_no_request_of_the_evaluation_items_is_kept() -> None:
    excluded = frozenset(normalise_request(item["request"]) for item in read_eval_items(SEED))
    pairs, counts = select([as_pku_row(row) for row in read_data("requests_eval")], excluded=excluded)
    assert pairs == [] and counts["in_c2_eval"] > 0


def test_selection_streams_and_does_not_read_ahead() -> None:
    read: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        number = 0
        while True:
            read.append(number)
            yield source_row(prompt=f"How many are {number}?")
            number += 1

    counts: Counter[str] = Counter()
    pairs = select_source_pairs(endless(), "file.jsonl", SelectionRules(), frozenset(), counts)
    assert read == []
    for taken in range(1, 4):
        next(pairs)
        assert len(read) == taken and counts == {"kept": taken}
