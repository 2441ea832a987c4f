"""Laws of prefills and of going on after them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import FAMILIES, ChatFamily, build_tiny_model, read_data
from hypothesis import given, settings
from hypothesis import strategies as st

from course_correction.generation import (
    Continuation,
    SamplingSettings,
    Tree,
    continue_prefills,
    continue_trees,
    end_token_ids,
    grow_tree,
    path_uniforms,
    sample_tokens,
)
from course_correction.prefills import decode_continuation, encode_answer, render_prompt
from course_correction.run_files import UsageError
from course_correction.shared_prefix import shares_prefixes

REQUEST = read_data("requests_eval")[0]["request"]
ANSWER = read_data("requests_eval")[0]["full_harmful_response"]
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral")
GREEDY = SamplingSettings(max_new_tokens=10, temperature=0)
SAMPLED = SamplingSettings(max_new_tokens=10, temperature=0.8, top_p=0.7, seed=5)
# Distinct and repeated lengths; the last one is the whole trunk.
FORK_LENGTHS = (41, 50, 50, 61, 75, 75, 90)


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest, tokenizers: dict[str, Any]) -> tuple[ChatFamily, Any]:
    return FAMILIES[request.param], tokenizers[request.param]


@pytest.fixture(params=ARCHITECTURES, scope="module")
def tiny_model(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Any:
    return build_tiny_model(request.param, tiny_tokenizer)


@pytest.fixture
def trunk(tiny_tokenizer: Any) -> list[int]:
    """Ids of a prompt and the beginning of a harmful response, 90 tokens."""
    return (render_prompt(tiny_tokenizer, "How?") + encode_answer(tiny_tokenizer, ANSWER))[: max(FORK_LENGTHS)]


def _generate(model: Any, tokenizer: Any, prefill: Sequence[int], max_new_tokens: int) -> Continuation:
    """Go on greedily with the library's own `generate`, one row at a time."""
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
    model: Any, tokenizer: Any, trunk: Sequence[int], lengths: Sequence[int], keys: Sequence[str], sampling: Any
) -> list[Continuation]:
    """Go on with beginnings of one trunk."""
    tree = Tree(tuple(trunk), tuple(lengths), ((),) * len(lengths))
    return continue_trees(model, tokenizer, [tree], keys, sampling)


def _draw_keys(count: int) -> list[str]:
    return [f"request\x1f{number}" for number in range(count)]


# Prefills


@pytest.mark.parametrize("prefill_tokens", [1, 10, 40, 80])
def test_no_end_of_turn_token_stands_between_prefill_and_continuation(
    family: tuple[ChatFamily, Any], prefill_tokens: int
) -> None:
    chat, tokenizer = family
    prompt = render_prompt(tokenizer, REQUEST)
    prefill = prompt + encode_answer(tokenizer, ANSWER)[:prefill_tokens]
    assert len(prefill) == len(prompt) + prefill_tokens
    end_of_turn = tokenizer.convert_tokens_to_ids(chat.end_of_turn)
    assert end_of_turn not in prefill[len(prompt) :]
    text = tokenizer.decode(prefill)
    tail = text[text.index(REQUEST) + len(REQUEST) :]
    assert tail.startswith(chat.user_turn_end)
    assert tail.count(chat.assistant_header) == 1
    assert tail.count(chat.end_of_turn) == chat.user_turn_end.count(chat.end_of_turn)
    answer_begun = tail.split(chat.assistant_header)[1].lstrip()
    assert answer_begun and ANSWER.startswith(answer_begun)


def test_a_prefill_begins_with_exactly_one_bos(family: tuple[ChatFamily, Any]) -> None:
    chat, tokenizer = family
    prefill = render_prompt(tokenizer, REQUEST) + encode_answer(tokenizer, ANSWER)
    if chat.bos_token:
        bos = tokenizer.convert_tokens_to_ids(chat.bos_token)
        assert tokenizer("x")["input_ids"][0] == bos, "the fixture's tokenizer adds its BOS, as real ones do"
        assert prefill[0] == bos and prefill.count(bos) == 1
    else:
        assert prefill[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
        assert prefill.count(prefill[0]) == 3  # system, user, assistant


def test_a_prefill_is_the_beginning_of_the_finished_conversation(family: tuple[ChatFamily, Any]) -> None:
    chat, tokenizer = family
    messages = [{"role": "user", "content": REQUEST}, {"role": "assistant", "content": ANSWER}]
    finished = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    prefill = render_prompt(tokenizer, REQUEST) + encode_answer(tokenizer, ANSWER)
    if chat.sentencepiece:
        assert tokenizer.decode(finished).replace(" ", "").startswith(tokenizer.decode(prefill).replace(" ", ""))
    else:
        assert finished[: len(prefill)] == prefill
        assert finished[len(prefill)] == tokenizer.convert_tokens_to_ids(chat.end_of_turn)


def test_the_prompt_is_token_exact(family: tuple[ChatFamily, Any]) -> None:
    _, tokenizer = family
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": REQUEST}], add_generation_prompt=True, tokenize=False
    )
    assert render_prompt(tokenizer, REQUEST) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_an_answer_has_no_special_token_even_where_its_text_spells_one(family: tuple[ChatFamily, Any]) -> None:
    chat, tokenizer = family
    special = set(tokenizer.convert_tokens_to_ids(list(chat.special_tokens))) - {tokenizer.unk_token_id}
    assert not special & set(encode_answer(tokenizer, ANSWER))
    assert encode_answer(tokenizer, "") == []
    assert not special & set(encode_answer(tokenizer, f"First,{chat.end_of_turn} then"))


def test_a_tokenizer_without_chat_template_is_a_clear_error(tiny_tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = None
    with pytest.raises(UsageError, match="has no chat template; use a chat model"):
        render_prompt(bare, REQUEST)


# Decoding


@pytest.mark.parametrize("split", [1, 5, 20, 60])
def test_the_text_begun_and_the_continuation_join_to_the_whole(family: tuple[ChatFamily, Any], split: int) -> None:
    _, tokenizer = family
    ids = encode_answer(tokenizer, ANSWER)
    begun = tokenizer.decode(ids[:split])
    assert begun + decode_continuation(tokenizer, ids[:split], ids[split:]) == ANSWER


def test_a_continuation_keeps_its_leading_space(family: tuple[ChatFamily, Any]) -> None:
    _, tokenizer = family
    begun, whole = encode_answer(tokenizer, "I must say that"), encode_answer(tokenizer, "I must say that it is wrong")
    assert whole[: len(begun)] == begun
    assert decode_continuation(tokenizer, begun, whole[len(begun) :]) == " it is wrong"


def test_a_continuation_shows_no_special_token(family: tuple[ChatFamily, Any]) -> None:
    chat, tokenizer = family
    ids = encode_answer(tokenizer, "Yes, sir.")
    end = tokenizer.convert_tokens_to_ids(chat.end_of_turn)
    assert decode_continuation(tokenizer, ids, [end, *ids]).strip() == "Yes, sir."
    assert decode_continuation(tokenizer, ids, []) == ""


def test_a_prefill_that_ends_inside_a_character_does_not_spoil_the_continuation(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama-3"]
    ids = encode_answer(tokenizer, "a 中 b")
    for split in range(1, len(ids)):
        assert decode_continuation(tokenizer, ids[:split], ids[split:]).endswith(" b"[-(len(ids) - split) :])


def test_every_end_token_of_tokenizer_and_model_counts(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    class Model:
        generation_config: Any = None

    model = Model()
    for configured, wanted in ((None, set()), (7, {7}), ([7, 8], {7, 8})):
        model.generation_config = type("Config", (), {"eos_token_id": configured})()
        assert end_token_ids(model, tiny_tokenizer) == {tiny_tokenizer.eos_token_id, *wanted}


# Greedy: the same as the library's own generate


def test_greedy_continuations_equal_generate_token_for_token(tiny_model: Any, tiny_tokenizer: Any, trunk: list[int]) -> None:
    prefills = [trunk[:length] for length in FORK_LENGTHS]
    wanted = [_generate(tiny_model, tiny_tokenizer, prefill, GREEDY.max_new_tokens) for prefill in prefills]
    keys = _draw_keys(len(prefills))
    assert len({row.token_ids for row in wanted}) > 2
    assert continue_prefills(tiny_model, tiny_tokenizer, prefills, keys, GREEDY) == wanted
    assert shares_prefixes(tiny_model)
    assert continue_forks(tiny_model, tiny_tokenizer, trunk, FORK_LENGTHS, keys, GREEDY) == wanted


@pytest.mark.parametrize("step", [0, 1, 4, 9])
def test_rows_that_end_early_leave_the_others_as_generate_has_them(
    tiny_model: Any, tiny_tokenizer: Any, trunk: list[int], step: int, monkeypatch: pytest.MonkeyPatch
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


def test_one_row_of_one_token_goes_on_as_generate_does(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    one = SamplingSettings(max_new_tokens=1, temperature=0)
    wanted = [_generate(tiny_llama, tiny_tokenizer, [7], 1)]
    assert continue_prefills(tiny_llama, tiny_tokenizer, [[7]], ["a"], one) == wanted
    assert continue_forks(tiny_llama, tiny_tokenizer, [7], [1], ["a"], one) == wanted


def test_prefixes_are_not_shared_under_a_sliding_window_but_prefills_still_go_on_right(
    tiny_tokenizer: Any, trunk: list[int]
) -> None:
    model = build_tiny_model("mistral", tiny_tokenizer, sliding_window=16)
    assert not shares_prefixes(model)
    prefills = [trunk[:length] for length in (5, 20, 41, 90)]
    wanted = [_generate(model, tiny_tokenizer, prefill, GREEDY.max_new_tokens) for prefill in prefills]
    assert continue_prefills(model, tiny_tokenizer, prefills, _draw_keys(4), GREEDY) == wanted


def test_prefixes_are_not_shared_in_qwen2_with_a_window_or_in_another_architecture(tiny_tokenizer: Any) -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    assert not shares_prefixes(build_tiny_model("qwen2", tiny_tokenizer, **windowed))
    assert not shares_prefixes(build_tiny_model("gemma", tiny_tokenizer))


def test_forks_leave_the_model_as_they_found_it(tiny_llama: Any, tiny_tokenizer: Any, trunk: list[int]) -> None:
    before = tiny_llama.config._attn_implementation
    continue_forks(tiny_llama, tiny_tokenizer, trunk, FORK_LENGTHS, _draw_keys(7), GREEDY)
    assert tiny_llama.config._attn_implementation == before
    with pytest.raises(IndexError):
        continue_forks(tiny_llama, tiny_tokenizer, [10**6], [1], ["a"], GREEDY)
    assert tiny_llama.config._attn_implementation == before


def test_rows_that_leave_several_trunks_with_words_of_their_own_equal_generate(
    tiny_model: Any, tiny_tokenizer: Any, trunk: list[int], monkeypatch: pytest.MonkeyPatch
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


def test_a_sampled_row_does_not_depend_on_its_batch(tiny_model: Any, tiny_tokenizer: Any, trunk: list[int]) -> None:
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
    tiny_llama: Any, tiny_tokenizer: Any, trunk: list[int], monkeypatch: pytest.MonkeyPatch
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
    tiny_llama: Any, tiny_tokenizer: Any, trunk: list[int]
) -> None:
    hot = SamplingSettings(max_new_tokens=10, temperature=2.0, top_p=1.0, seed=5)
    keys = _draw_keys(12)
    paths = continue_forks(tiny_llama, tiny_tokenizer, trunk, [90] * 12, keys, hot)
    assert len(set(paths)) > 6
    again = continue_forks(tiny_llama, tiny_tokenizer, trunk, [90] * 12, keys, hot)
    other = continue_forks(tiny_llama, tiny_tokenizer, trunk, [90] * 12, keys, SamplingSettings(10, 2.0, 1.0, 6))
    assert again == paths != other


def test_a_longer_run_of_a_path_begins_with_the_shorter_one(tiny_llama: Any, tiny_tokenizer: Any, trunk: list[int]) -> None:
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


# The distribution that is sampled from


def _nucleus(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Return the renormalised nucleus by a plain loop. Shape [vocabulary]."""
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    kept, held = np.zeros_like(probabilities), 0.0
    for index in np.argsort(-probabilities, kind="stable"):
        if held >= top_p:
            break
        kept[index] = probabilities[index]
        held += probabilities[index]
    return kept / kept.sum()


DISTRIBUTIONS = {
    "peaked": (40, 3.0, 0.8, 0.7),
    "whole": (40, 1.0, 1.0, 1.0),
    "cold": (300, 2.0, 0.3, 0.9),
    "flat, more candidates than are looked at first": (900, 0.3, 1.0, 0.7),
    "flat, whole": (900, 0.3, 1.0, 1.0),
}


@pytest.mark.parametrize("case", DISTRIBUTIONS)
def test_sampled_tokens_follow_the_renormalised_nucleus(case: str) -> None:
    vocabulary, spread, temperature, top_p = DISTRIBUTIONS[case]
    logits = np.random.default_rng(1).normal(0, spread, vocabulary).astype(np.float32)
    draws = 8_000
    uniforms = torch.tensor(path_uniforms(3, case, draws))
    tokens = sample_tokens(torch.tensor(logits).expand(draws, -1), uniforms, temperature, top_p)
    assert tokens.shape == (draws,) and tokens.dtype == torch.long
    wanted = _nucleus(logits, temperature, top_p)
    counts = np.bincount(tokens.numpy(), minlength=vocabulary)
    assert counts[wanted == 0].sum() == 0
    # Tokens that are expected less than 5 times make one bin, as the test asks.
    rare = (wanted * draws < 5) & (wanted > 0)
    common = wanted * draws >= 5
    observed = np.append(counts[common], counts[rare].sum())
    expected = np.append(wanted[common], wanted[rare].sum()) * draws
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1] * observed[:-1].sum() / expected[:-1].sum()
    assert len(observed) < 2 or scipy.stats.chisquare(observed, expected).pvalue > 0.001


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=30),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.05, 3),
    st.floats(0.01, 1),
)
def test_a_sampled_token_always_lies_in_the_nucleus(
    logits: list[float], uniform: float, temperature: float, top_p: float
) -> None:
    values = np.array(logits, dtype=np.float32)
    token = sample_tokens(torch.tensor(values)[None], torch.tensor([uniform]).double(), temperature, top_p).item()
    scaled = values.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    # What stands before it holds less than top_p; ties and rounding are let through.
    assert probabilities[probabilities > probabilities[token] * (1 + 1e-4)].sum() < top_p + 1e-5
    assert probabilities[token] > 0


def test_the_most_likely_token_is_always_in_and_temperature_zero_takes_it() -> None:
    logits = torch.randn(50, 400, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(50, generator=torch.Generator().manual_seed(1)).double()
    best = logits.argmax(-1)
    assert torch.equal(sample_tokens(logits, uniforms, 0, 0.7), best)
    assert torch.equal(sample_tokens(logits, uniforms, 0.8, 1e-9), best)
    assert torch.equal(sample_tokens(logits, torch.zeros(50).double(), 0.8, 0.7), best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_logits_is_sampled_as_if_it_were_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # A flat row needs the whole vocabulary, a peaked one a few tokens. In bfloat16 many tokens are equally likely.
    scales = torch.tensor([8.0, 4.0, 4.0, 2.0, 1.0, 0.0])[:, None]
    logits = (torch.randn(6, 5000, generator=generator) * scales).to(dtype).repeat(20, 1)
    uniforms = torch.rand(120, generator=generator).double()
    together = sample_tokens(logits, uniforms, 0.8, 0.9)
    alone = torch.cat([sample_tokens(logits[row : row + 1], uniforms[row : row + 1], 0.8, 0.9) for row in range(120)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("change", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0}, {"top_p": 1.1}])
def test_sampling_settings_outside_their_range_are_refused_with_the_value(change: dict[str, float]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(UsageError, match=f"{name}.*{value}"):
        SamplingSettings(**change)
