"""Laws of continuing prefills: greedily as the library's `generate`, sampled by a row's own random numbers alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.generation.chat_format import encode_answer, render_prompt
from course_correction.generation.decoding import (
    Continuation,
    Tree,
    continue_prefills,
    continue_trees,
    end_token_ids,
    grow_tree,
    path_uniforms,
)
from course_correction.generation.protocol import Model, SamplingSettings, Tokenizer
from course_correction.generation.shared_prefix import shares_prefixes
from tests.support.chat_models import build_tiny_model
from tests.support.server import ANSWER

ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral")
GREEDY = SamplingSettings(max_new_tokens=10, temperature=0)
SAMPLED = SamplingSettings(max_new_tokens=10, temperature=0.8, top_p=0.7, seed=5)
# Distinct and repeated lengths; the last one is the whole trunk.
FORK_LENGTHS = (41, 50, 50, 61, 75, 75, 90)


@pytest.fixture(params=ARCHITECTURES, scope="module")
def tiny_model(request: pytest.FixtureRequest, tiny_tokenizer: Tokenizer) -> Any:
    return build_tiny_model(request.param, tiny_tokenizer)


@pytest.fixture
def trunk(tiny_tokenizer: Tokenizer) -> list[int]:
    """Ids of a prompt and the beginning of a harmful response, 90 tokens."""
    return (render_prompt(tiny_tokenizer, "How?") + encode_answer(tiny_tokenizer, ANSWER))[: max(FORK_LENGTHS)]


def _generate(model: Model, tokenizer: Tokenizer, prefill: Sequence[int], max_new_tokens: int) -> Continuation:
    """Continue greedily with the library's own `generate`, one row at a time."""
    ends = end_token_ids(model, tokenizer)
    ids = torch.tensor([list(prefill)])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )[0, len(prefill) :].tolist()
    ended = output[-1] in ends
    return Continuation(tuple(output[:-1] if ended else output), ended)


def continue_forks(
    model: Model,
    tokenizer: Tokenizer,
    trunk: Sequence[int],
    lengths: Sequence[int],
    keys: Sequence[str],
    sampling: SamplingSettings,
) -> list[Continuation]:
    """Continue beginnings of one trunk."""
    tree = Tree(tuple(trunk), tuple(lengths), ((),) * len(lengths))
    return continue_trees(model, tokenizer, [tree], keys, sampling)


def _draw_keys(count: int) -> list[str]:
    return [f"request\x1f{number}" for number in range(count)]


def test_every_end_token_of_tokenizer_and_model_counts(tiny_llama: Model, tiny_tokenizer: Tokenizer) -> None:
    class Model:
        generation_config: Any = None

    model = Model()
    for configured, wanted in ((None, set()), (7, {7}), ([7, 8], {7, 8})):
        model.generation_config = type("Config", (), {"eos_token_id": configured})()
        assert end_token_ids(model, tiny_tokenizer) == {tiny_tokenizer.eos_token_id, *wanted}


# Greedy: the same as the library's own generate


def test_greedy_continuations_equal_generate_token_for_token(
    tiny_model: Model, tiny_tokenizer: Tokenizer, trunk: list[int]
) -> None:
    prefills = [trunk[:length] for length in FORK_LENGTHS]
    wanted = [_generate(tiny_model, tiny_tokenizer, prefill, GREEDY.max_new_tokens) for prefill in prefills]
    keys = _draw_keys(len(prefills))
    assert len({row.token_ids for row in wanted}) > 2
    assert continue_prefills(tiny_model, tiny_tokenizer, prefills, keys, GREEDY) == wanted
    assert shares_prefixes(tiny_model)
    assert continue_forks(tiny_model, tiny_tokenizer, trunk, FORK_LENGTHS, keys, GREEDY) == wanted


@pytest.mark.parametrize("step", [0, 1, 4, 9])
def test_rows_that_end_early_do_not_change_the_others(
    tiny_model: Model, tiny_tokenizer: Tokenizer, trunk: list[int], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefills = [trunk[:length] for length in FORK_LENGTHS]
    keys = _draw_keys(len(prefills))
    unended = continue_prefills(tiny_model, tiny_tokenizer, prefills, keys, GREEDY)
    # Most rows end at this step, so that the batch is made smaller there.
    ends = {row.token_ids[step] for row in unended[:5] if len(row.token_ids) > step}
    monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", [tiny_tokenizer.eos_token_id, *ends])
    wanted = [_generate(tiny_model, tiny_tokenizer, prefill, GREEDY.max_new_tokens) for prefill in prefills]
    assert any(row.ended for row in wanted)
    assert continue_prefills(tiny_model, tiny_tokenizer, prefills, keys, GREEDY) == wanted
    assert continue_forks(tiny_model, tiny_tokenizer, trunk, FORK_LENGTHS, keys, GREEDY) == wanted


def test_one_row_of_one_token_equals_generate(tiny_llama: Model, tiny_tokenizer: Tokenizer) -> None:
    one = SamplingSettings(max_new_tokens=1, temperature=0)
    wanted = [_generate(tiny_llama, tiny_tokenizer, [7], 1)]
    assert continue_prefills(tiny_llama, tiny_tokenizer, [[7]], ["a"], one) == wanted
    assert continue_forks(tiny_llama, tiny_tokenizer, [7], [1], ["a"], one) == wanted


def test_under_a_sliding_window_no_prefix_is_shared_and_continuations_equal_generate(
    tiny_tokenizer: Tokenizer, trunk: list[int]
) -> None:
    model = build_tiny_model("mistral", tiny_tokenizer, sliding_window=16)
    assert not shares_prefixes(model)
    prefills = [trunk[:length] for length in (5, 20, 41, 90)]
    wanted = [_generate(model, tiny_tokenizer, prefill, GREEDY.max_new_tokens) for prefill in prefills]
    assert continue_prefills(model, tiny_tokenizer, prefills, _draw_keys(4), GREEDY) == wanted


def test_prefixes_are_not_shared_in_qwen2_with_a_window_or_in_another_architecture(tiny_tokenizer: Tokenizer) -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    assert not shares_prefixes(build_tiny_model("qwen2", tiny_tokenizer, **windowed))
    assert not shares_prefixes(build_tiny_model("gemma", tiny_tokenizer))


def test_sharing_prefixes_leaves_the_model_unchanged(tiny_llama: Model, tiny_tokenizer: Tokenizer, trunk: list[int]) -> None:
    before = tiny_llama.config._attn_implementation
    continue_forks(tiny_llama, tiny_tokenizer, trunk, FORK_LENGTHS, _draw_keys(7), GREEDY)
    assert tiny_llama.config._attn_implementation == before
    with pytest.raises(IndexError):
        continue_forks(tiny_llama, tiny_tokenizer, [10**6], [1], ["a"], GREEDY)
    assert tiny_llama.config._attn_implementation == before


def test_rows_that_leave_several_trunks_with_their_own_tokens_equal_generate(
    tiny_model: Model, tiny_tokenizer: Tokenizer, trunk: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = (render_prompt(tiny_tokenizer, "What then?") + encode_answer(tiny_tokenizer, ANSWER[60:]))[:70]
    trigger = encode_answer(tiny_tokenizer, "... However, I can't go on.")
    # A trunk of its own, nested beginnings with a trigger each, none, a repeated one, and a bare prompt's beginning.
    prefills = [
        [trunk[:30], trunk[:50] + trigger, trunk[:70] + trigger[:3], trunk, trunk[:50] + trigger],
        [other[:1], other + trigger],
        [[7, 8, 9]],
    ]
    flat = [prefill for group in prefills for prefill in group]
    keys = _draw_keys(len(flat))
    trees = [grow_tree(group) for group in prefills]
    ends = {row.token_ids[4] for row in continue_prefills(tiny_model, tiny_tokenizer, flat, keys, GREEDY)[1:4]}
    for end_ids in ([tiny_tokenizer.eos_token_id], [tiny_tokenizer.eos_token_id, *ends]):
        monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", end_ids)
        wanted = [_generate(tiny_model, tiny_tokenizer, prefill, GREEDY.max_new_tokens) for prefill in flat]
        assert continue_trees(tiny_model, tiny_tokenizer, trees, keys, GREEDY) == wanted
    assert any(row.ended for row in wanted)
    sampled = [continue_prefills(tiny_model, tiny_tokenizer, [p], [k], SAMPLED)[0] for p, k in zip(flat, keys, strict=True)]
    assert continue_trees(tiny_model, tiny_tokenizer, trees, keys, SAMPLED) == sampled


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_tree_holds_every_prefill(tails: list[list[int]]) -> None:
    prefills = [[9, *tail] for tail in tails]
    tree = grow_tree(prefills)
    rows = zip(tree.trunk_tokens, tree.own_ids, strict=True)
    assert [[*tree.trunk[:length], *own] for length, own in rows] == prefills
    assert min(tree.trunk_tokens) >= 1


# Sampling: a row depends on its own numbers alone


def test_a_sampled_row_does_not_depend_on_its_batch(tiny_model: Model, tiny_tokenizer: Tokenizer, trunk: list[int]) -> None:
    rows = {f"key-{number}": trunk[:length] for number, length in enumerate(FORK_LENGTHS)}

    def sample(keys: Sequence[str]) -> dict[str, Continuation]:
        prefills = [rows[key] for key in keys]
        return dict(zip(keys, continue_prefills(tiny_model, tiny_tokenizer, prefills, keys, SAMPLED), strict=True))

    def fork(keys: Sequence[str]) -> dict[str, Continuation]:
        lengths = [len(rows[key]) for key in keys]
        written = continue_forks(tiny_model, tiny_tokenizer, trunk, lengths, keys, SAMPLED)
        return dict(zip(keys, written, strict=True))

    keys = list(rows)
    together = sample(keys)
    assert len(set(together.values())) == len(keys)
    assert sample(keys[::-1]) == together
    assert {**sample(keys[:3]), **sample(keys[3:])} == together
    assert {key: sample([key])[key] for key in keys} == together
    assert fork(keys) == fork(keys[::-1]) == {**fork(keys[4:]), **fork(keys[:4])} == together


def test_a_sampled_row_keeps_its_numbers_when_others_end_early(
    tiny_llama: Model, tiny_tokenizer: Tokenizer, trunk: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = _draw_keys(16)
    lengths = [FORK_LENGTHS[number % len(FORK_LENGTHS)] for number in range(16)]
    prefills = [trunk[:length] for length in lengths]
    hot = SamplingSettings(max_new_tokens=12, temperature=1.5, top_p=0.95, seed=2)
    # A quarter of the vocabulary ends a row, so that the batch shrinks more than once.
    monkeypatch.setattr(tiny_llama.generation_config, "eos_token_id", list(range(0, len(tiny_tokenizer), 4)))
    alone = [
        continue_prefills(tiny_llama, tiny_tokenizer, [prefill], [key], hot)[0]
        for prefill, key in zip(prefills, keys, strict=True)
    ]
    assert len({len(row.token_ids) for row in alone}) > 3
    assert continue_prefills(tiny_llama, tiny_tokenizer, prefills, keys, hot) == alone
    assert continue_forks(tiny_llama, tiny_tokenizer, trunk, lengths, keys, hot) == alone


def test_paths_of_one_prefill_differ_by_their_draw_key_and_by_the_seed(
    tiny_llama: Model, tiny_tokenizer: Tokenizer, trunk: list[int]
) -> None:
    hot = SamplingSettings(max_new_tokens=10, temperature=2.0, top_p=1.0, seed=5)
    keys = _draw_keys(12)
    paths = continue_forks(tiny_llama, tiny_tokenizer, trunk, [90] * 12, keys, hot)
    assert len(set(paths)) > 6
    again = continue_forks(tiny_llama, tiny_tokenizer, trunk, [90] * 12, keys, hot)
    other = continue_forks(tiny_llama, tiny_tokenizer, trunk, [90] * 12, keys, SamplingSettings(10, 2.0, 1.0, 6))
    assert again == paths != other


def test_a_longer_run_of_a_path_begins_with_the_shorter_one(
    tiny_llama: Model, tiny_tokenizer: Tokenizer, trunk: list[int]
) -> None:
    short, long = (
        continue_prefills(tiny_llama, tiny_tokenizer, [trunk], ["a"], SamplingSettings(count, 1.0, 1.0, 1))[0]
        for count in (4, 9)
    )
    assert long.token_ids[: len(short.token_ids)] == short.token_ids


def test_the_numbers_of_a_path_depend_on_seed_and_key_alone() -> None:
    numbers = path_uniforms(0, "a", 1000)
    assert np.array_equal(numbers, path_uniforms(0, "a", 1000))
    assert np.array_equal(numbers[:10], path_uniforms(0, "a", 10))
    assert numbers.min() >= 0 and numbers.max() < 1
    assert scipy.stats.kstest(numbers, "uniform").pvalue > 0.001
    for other in (path_uniforms(1, "a", 1000), path_uniforms(0, "b", 1000)):
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.15
