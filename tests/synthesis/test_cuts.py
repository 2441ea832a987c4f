"""Laws of cuts, openers and triggers."""

import random
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from course_correction.base.seeding import random_for
from course_correction.synthesis.cuts import count_marks, cut_initial_harmful_responses, find_cut_positions
from course_correction.synthesis.ranked_groups import draft_corrections
from course_correction.synthesis.sources import SourcePair
from course_correction.synthesis.triggers import (
    OPENERS,
    TRIGGERS,
    draw_opener,
    draw_triggers,
    ends_clause,
    join_texts,
    join_trigger,
)
from tests.support.rows import ROOT

MARKS = ".,;:!?"
any_text = st.text(alphabet=st.sampled_from("ab é中.,;:!?\n\t 3\"')"), max_size=120) | st.text(max_size=80)
seeds = st.none() | st.integers(0, 2**32)
WORDS_AND_MARKS = st.lists(st.tuples(st.text("abc", min_size=1, max_size=9), st.sampled_from([*MARKS, ""])), max_size=60)


def _random_source(seed: int | None) -> random.Random | None:
    return None if seed is None else random.Random(seed)


@settings(max_examples=200, deadline=None)
@given(any_text, st.integers(1, 6), seeds)
def test_cuts_are_proper_nested_and_increasing_or_refused(text: str, num_cuts: int, seed: int | None) -> None:
    positions = find_cut_positions(text)
    assert positions == sorted(set(positions))
    num_marks = len(positions) + text.rstrip().endswith(tuple(MARKS))
    if num_marks < num_cuts + 1:
        with pytest.raises(ValueError, match="punctuation marks"):
            cut_initial_harmful_responses(text, num_cuts, _random_source(seed))
        return
    cuts = cut_initial_harmful_responses(text, num_cuts, _random_source(seed))
    assert len(cuts) == num_cuts
    for cut in cuts:
        assert text.startswith(cut)
        assert cut[-1] in MARKS
        assert cut.strip() and len(cut) < len(text.rstrip())
        assert text[len(cut) :].strip()
    for shorter, longer in pairwise(cuts):
        assert longer.startswith(shorter) and len(shorter) < len(longer)


@settings(max_examples=100, deadline=None)
@given(WORDS_AND_MARKS, seeds)
def test_any_text_with_enough_marks_is_cut(pieces: list[tuple[str, str]], seed: int | None) -> None:
    text = " ".join(word + mark for word, mark in pieces)
    assume(sum(bool(mark) for _, mark in pieces) >= 5)
    assert len(set(cut_initial_harmful_responses(text, 4, _random_source(seed)))) == 4


def test_too_few_marks_are_refused_with_both_numbers_and_without_the_text() -> None:
    with pytest.raises(ValueError, match=r"4 cuts need 5 punctuation marks, the response has 3") as caught:
        cut_initial_harmful_responses("sesame, opens, doors.", 4)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("text", ["It costs 3.5 euros", "see http://a.b/c?d", "well...done", "12:30"])
def test_a_mark_inside_a_word_is_no_cut(text: str) -> None:
    assert find_cut_positions(text) == []


def test_the_final_mark_is_no_cut() -> None:
    assert find_cut_positions("One, two. \n") == [4]


@settings(max_examples=100, deadline=None)
@given(st.integers(5, 60), st.integers(1, 30), seeds)
def test_evenly_punctuated_text_is_cut_early_and_late(num_clauses: int, clause_length: int, seed: int | None) -> None:
    text = " ".join(["a" * clause_length + "."] * num_clauses)
    cuts = cut_initial_harmful_responses(text, 4, _random_source(seed))
    assert len(cuts[0]) <= len(text) / 2
    assert len(cuts[-1]) >= len(text) / 2


def test_cuts_vary_with_the_draw() -> None:
    text = " ".join(["some words here,"] * 40)
    assert len({tuple(cut_initial_harmful_responses(text, 4, random.Random(seed))) for seed in range(20)}) > 10


def _pair(request_id: str, request: str = "How?", response: str = "One, two, three, four, five, six. " * 4) -> SourcePair:
    return SourcePair(request_id, request, response.strip(), "test")


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=20), st.integers(0, 2**31), st.text(max_size=20), st.text("xyz", min_size=1))
def test_openers_and_triggers_depend_on_the_seed_and_the_request_id_alone(
    request_id: str, seed: int, request: str, word: str
) -> None:
    opener, initial_responses, triggers = draft_corrections(_pair(request_id), seed, 0.6)
    draft_corrections(_pair("another"), seed, 0.6)
    random.seed(0)
    other_text = _pair(request_id, request, f"{word}, " * 30 + "end.")
    assert draft_corrections(other_text, seed, 0.6)[::2] == (opener, triggers)
    assert draft_corrections(_pair(request_id), seed, 0.6) == (opener, initial_responses, triggers)


def test_requests_draw_independently_even_with_equal_responses() -> None:
    drafts = [draft_corrections(_pair(f"r{number}"), 0, 0.6) for number in range(60)]
    assert len({tuple(len(initial) - len(opener) for initial in initials) for opener, initials, _ in drafts}) > 20
    assert len({tuple(triggers) for _, _, triggers in drafts}) > 50
    assert len({opener for opener, _, _ in drafts}) > 8


def test_draws_do_not_depend_on_the_process_or_its_hash_seed() -> None:
    code = (
        "from course_correction.synthesis.triggers import draw_opener, draw_triggers\n"
        "from course_correction.base.seeding import random_for\n"
        "draws = [(draw_opener(random_for(3, i, 'opener'), 0.6), draw_triggers(random_for(3, i, 'triggers')))"
        " for i in range(9)]\n"
        "print(draws)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, check=True
        ).stdout
        for hash_seed in ("1", "2")
    }
    here = [(draw_opener(random_for(3, i, "opener"), 0.6), draw_triggers(random_for(3, i, "triggers"))) for i in range(9)]
    assert outputs == {f"{here}\n".encode()}


def test_the_opener_rate_is_the_share_of_requests_with_an_opener() -> None:
    draws = [draw_opener(random_for(0, number, "opener"), 0.6) for number in range(2000)]
    assert set(draws) == {*OPENERS, ""}
    assert abs(sum(map(bool, draws)) / len(draws) - 0.6) < 0.05
    assert not any(draw_opener(random_for(0, number), 0.0) for number in range(200))
    assert all(draw_opener(random_for(0, number), 1.0) for number in range(200))


def test_the_triggers_of_a_request_differ() -> None:
    for number in range(200):
        triggers = draw_triggers(random_for(0, number))
        assert len(set(triggers)) == 4 and set(triggers) <= set(TRIGGERS)


def test_the_initial_responses_of_a_request_are_nested_with_the_opener_in_front() -> None:
    for number in range(50):
        pair = _pair(f"r{number}")
        opener, initial_responses, _ = draft_corrections(pair, 0, 0.6)
        whole = join_texts(opener, pair.full_harmful_response)
        assert all(whole.startswith(initial) and initial.startswith(opener) for initial in initial_responses)
        assert sorted(initial_responses, key=len) == initial_responses and len(set(initial_responses)) == 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab \n"), max_size=4))
def test_joining_leaves_out_empty_texts_and_keeps_the_inner_text(texts: list[str]) -> None:
    assert join_texts(*texts) == " ".join(text.strip() for text in texts if text.strip())
    assert join_texts("", " a  b ") == "a  b"


@given(st.lists(st.tuples(st.text("abc", min_size=1, max_size=9), st.sampled_from([*MARKS, "", ""])), min_size=20), seeds)
@settings(max_examples=150, deadline=None)
def test_cuts_inside_sentences_are_proper_nested_and_end_words(pairs, seed):
    text = " ".join(word + mark for word, mark in pairs)
    assume(count_marks(text) >= 5 and len(find_cut_positions(text)) >= 4)
    cuts = cut_initial_harmful_responses(text, 4, _random_source(seed), mid_sentence_rate=1.0)
    assert all(text.startswith(cut) and cut != text for cut in cuts)
    assert [len(cut) for cut in cuts] == sorted({len(cut) for cut in cuts})
    assert all(text[len(cut)].isspace() for cut in cuts)


def test_a_rate_of_cuts_falls_inside_sentences():
    text = "First you wait for a quiet day, then you walk in slowly; " * 4 + "after that you leave."
    cuts = [
        cut
        for seed in range(200)
        for cut in cut_initial_harmful_responses(text, 4, random.Random(seed), mid_sentence_rate=0.5)
    ]
    assert 0.4 < sum(not ends_clause(cut) for cut in cuts) / len(cuts) < 0.6


@pytest.mark.parametrize(
    ("initial", "text", "start"),
    [
        ("Take two,", "Take two, But I can't:", 10),
        ("Take two", "Take two... But I can't:", 8),
        ("", "But I can't:", 0),
    ],
)
def test_a_trigger_breaks_off_what_ends_inside_a_sentence(initial, text, start):
    assert join_trigger(initial, "But I can't:") == (text, start)
