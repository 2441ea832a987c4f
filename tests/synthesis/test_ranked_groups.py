"""Laws of ranked groups and of their fifteen pairs."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.base.errors import UsageError
from course_correction.synthesis.ranked_groups import (
    CORRECTING,
    EARLIER,
    KINDS,
    PAIR_RANKS,
    PAIRS_SCHEMA,
    RANKED_SCHEMA,
    build_ranked_group,
    check_ranked_group,
    draft_corrections,
    pairs_table,
    ranked_table,
)
from course_correction.synthesis.sources import SourcePair
from tests.support.rows import read_data

SECRET = "zebra-in-the-row"


def _pair(number: int) -> SourcePair:
    row = read_data("requests_train")[number]
    return SourcePair(row["request_id"], row["request"], row["full_harmful_response"], "seed", row["safe_response"])


def _group(number: int = 0, continuation: str = " that is wrong.") -> dict[str, Any]:
    pair = _pair(number)
    draft = draft_corrections(pair, 0, 0.6)
    return build_ranked_group(pair, *draft, pair.safe_response, [continuation] * 4, "written")


def _plain_pairs(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for group in groups:
        for better in range(6):
            for worse in range(better + 1, 6):
                rows.append(
                    {
                        "request_id": group["request_id"],
                        "prompt": [{"role": "user", "content": group["request"]}],
                        "chosen": [{"role": "assistant", "content": group["responses"][better]}],
                        "rejected": [{"role": "assistant", "content": group["responses"][worse]}],
                        "chosen_rank": better,
                        "rejected_rank": worse,
                        "principle": CORRECTING if worse == 5 else EARLIER,
                    }
                )
    return rows


texts = st.text(max_size=12)
arbitrary_groups = st.lists(
    st.fixed_dictionaries(
        {
            "request_id": texts,
            "request": texts,
            "responses": st.lists(texts, min_size=6, max_size=6),
            "kinds": st.just(list(KINDS)),
            "correction_starts": st.lists(st.integers(-1, 9), min_size=6, max_size=6),
            "opener": texts,
            "triggers": st.lists(texts, min_size=4, max_size=4),
            "teacher": texts,
            "source": texts,
        }
    ),
    max_size=5,
)


def test_six_responses_give_fifteen_pairs_each_better_over_worse_in_rank_order() -> None:
    assert len(PAIR_RANKS) == 15 == len(set(PAIR_RANKS))
    assert list(PAIR_RANKS) == sorted(PAIR_RANKS)
    assert all(0 <= better < worse <= 5 for better, worse in PAIR_RANKS)
    group = _group()
    rows = pairs_table(ranked_table([group])).to_pylist()
    assert [(row["chosen_rank"], row["rejected_rank"]) for row in rows] == list(PAIR_RANKS)
    for row in rows:
        assert row["chosen"][0]["content"] == group["responses"][row["chosen_rank"]]
        assert row["rejected"][0]["content"] == group["responses"][row["rejected_rank"]]


def test_correcting_beats_not_correcting_in_five_pairs_and_earlier_beats_later_in_ten() -> None:
    rows = pairs_table(ranked_table([_group()])).to_pylist()
    assert [row["principle"] for row in rows].count(CORRECTING) == 5
    assert [row["principle"] for row in rows].count(EARLIER) == 10
    assert {row["principle"] for row in rows} == {CORRECTING, EARLIER}
    assert all((row["principle"] == CORRECTING) == (row["rejected_rank"] == 5) for row in rows)


@settings(max_examples=60, deadline=None)
@given(arbitrary_groups)
def test_the_vectorised_table_equals_a_plain_loop(groups: list[dict[str, Any]]) -> None:
    ranked = ranked_table(groups)
    assert ranked.schema == RANKED_SCHEMA
    pairs = pairs_table(ranked)
    assert pairs.schema == PAIRS_SCHEMA
    assert pairs.to_pylist() == _plain_pairs(groups)


def test_the_vectorised_table_reads_slices_and_chunks_as_a_plain_loop_does() -> None:
    groups = [_group(number) for number in range(6)]
    sliced = ranked_table(groups).slice(2, 3)
    assert pairs_table(sliced).to_pylist() == _plain_pairs(groups[2:5])
    chunked = pa.concat_tables([ranked_table(groups[:1]), ranked_table(groups[1:]).slice(1, 2)])
    assert pairs_table(chunked).to_pylist() == _plain_pairs([groups[0], *groups[2:4]])


@pytest.mark.parametrize("number", range(0, 198, 11))
def test_correction_starts_point_at_the_trigger(number: int) -> None:
    group = _group(number)
    assert group["kinds"] == list(KINDS)
    assert group["correction_starts"][0] == group["correction_starts"][5] == -1
    harmful = group["responses"][5]
    starts = group["correction_starts"][1:5]
    for response, start, trigger in zip(group["responses"][1:5], starts, group["triggers"], strict=True):
        assert response[start:] == f"{trigger} that is wrong."
        assert response[start - 1] == " "
        assert harmful.startswith(response[: start - 1])
    assert starts == sorted(set(starts))
    check_ranked_group(group, "here")


def test_a_correction_starts_after_the_prefix_even_if_the_prefix_contains_the_trigger() -> None:
    trigger = "But let me be clear:"
    pair = SourcePair("r", "How?", f"{trigger} one, two, three, four, five.", "test")
    initial = [
        f"{trigger} one,",
        f"{trigger} one, two,",
        f"{trigger} one, two, three,",
        f"{trigger} one, two, three, four,",
    ]
    group = build_ranked_group(pair, "", initial, [trigger] * 4, "No.", [" stop."] * 4, "t")
    assert group["correction_starts"] == [-1, *(len(text) + 1 for text in initial), -1]


def test_a_group_without_opener_begins_with_the_harmful_response() -> None:
    pair = _pair(0)
    _, initial_responses, triggers = draft_corrections(pair, 0, 0.0)
    group = build_ranked_group(pair, "", initial_responses, triggers, "No.", [" stop."] * 4, "t")
    assert group["responses"][5] == pair.full_harmful_response
    check_ranked_group(group, "here")


def _broken(**changes: Any) -> dict[str, Any]:
    group = _group()
    group["responses"] = [f"{SECRET} {text}" for text in group["responses"]]
    return {**group, **{key: change(group[key]) for key, change in changes.items()}}


REFUSED = {
    "five responses": {"responses": lambda old: old[:5]},
    "seven responses": {"responses": lambda old: [*old, "more"]},
    "identical responses": {"responses": lambda old: [*old[:4], old[3], old[5]]},
    "an empty response": {"responses": lambda old: [" \n", *old[1:]]},
    "a null response": {"responses": lambda old: [None, *old[1:]]},
    "an empty request": {"request": lambda old: ""},
    "a null request": {"request": lambda old: None},
    "kinds in another order": {"kinds": lambda old: old[::-1]},
    "too few starts": {"correction_starts": lambda old: old[:5]},
    "a start beyond the text": {"correction_starts": lambda old: [-1, 10**6, *old[2:]]},
    "a corrected response without start": {"correction_starts": lambda old: [-1, -1, *old[2:]]},
    "a start in the safe response": {"correction_starts": lambda old: [0, *old[1:]]},
    "a start in the harmful response": {"correction_starts": lambda old: [*old[:5], 3]},
    "null responses": {"responses": lambda old: None},
    "null starts": {"correction_starts": lambda old: None},
    "a null start": {"correction_starts": lambda old: [-1, None, *old[2:]]},
    "null kinds": {"kinds": lambda old: None},
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_group_that_cannot_be_trained_on_is_refused_in_one_line_without_its_text(case: str) -> None:
    group = _broken(**REFUSED[case])
    with pytest.raises(UsageError) as caught:
        check_ranked_group(group, "groups.jsonl: line 7")
    message = str(caught.value)
    assert message.startswith("groups.jsonl: line 7") and "\n" not in message
    assert SECRET not in message and group["request_id"] in message


@pytest.mark.parametrize("column", RANKED_SCHEMA.names)
def test_a_group_that_lacks_a_column_is_refused_by_its_name(column: str) -> None:
    group = _group()
    del group[column]
    with pytest.raises(UsageError, match=f"lacks {column}"):
        check_ranked_group(group, "here")


def test_no_two_responses_of_a_group_are_identical() -> None:
    for number in range(198):
        group = _group(number)
        assert len(set(group["responses"])) == 6
