"""Laws of prefills: prompt and beginning of an answer, token by token, and the text of the continuation."""

import copy

import pytest

from course_correction.base.errors import UsageError
from course_correction.generation.chat_format import decode_continuation, encode_answer, render_prompt
from course_correction.generation.protocol import Tokenizer
from tests.support.chat_models import FAMILIES, ChatFamily
from tests.support.server import ANSWER, REQUEST


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> tuple[ChatFamily, Tokenizer]:
    return FAMILIES[request.param], tokenizers[request.param]


@pytest.mark.parametrize("prefill_tokens", [1, 10, 40, 80])
def test_no_end_of_turn_token_stands_between_prefill_and_continuation(
    family: tuple[ChatFamily, Tokenizer], prefill_tokens: int
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
    prefilled = tail.split(chat.assistant_header)[1].lstrip()
    assert prefilled and ANSWER.startswith(prefilled)


def test_a_prefill_begins_with_exactly_one_bos(family: tuple[ChatFamily, Tokenizer]) -> None:
    chat, tokenizer = family
    prefill = render_prompt(tokenizer, REQUEST) + encode_answer(tokenizer, ANSWER)
    if chat.bos_token:
        bos = tokenizer.convert_tokens_to_ids(chat.bos_token)
        assert tokenizer("x")["input_ids"][0] == bos, "the fixture's tokenizer adds its BOS, as real ones do"
        assert prefill[0] == bos and prefill.count(bos) == 1
    else:
        assert prefill[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
        assert prefill.count(prefill[0]) == 3  # system, user, assistant


def test_a_prefill_is_the_beginning_of_the_finished_conversation(family: tuple[ChatFamily, Tokenizer]) -> None:
    chat, tokenizer = family
    messages = [{"role": "user", "content": REQUEST}, {"role": "assistant", "content": ANSWER}]
    finished = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    prefill = render_prompt(tokenizer, REQUEST) + encode_answer(tokenizer, ANSWER)
    if chat.sentencepiece:
        assert tokenizer.decode(finished).replace(" ", "").startswith(tokenizer.decode(prefill).replace(" ", ""))
    else:
        assert finished[: len(prefill)] == prefill
        assert finished[len(prefill)] == tokenizer.convert_tokens_to_ids(chat.end_of_turn)


def test_the_prompt_is_token_exact(family: tuple[ChatFamily, Tokenizer]) -> None:
    _, tokenizer = family
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": REQUEST}], add_generation_prompt=True, tokenize=False
    )
    assert render_prompt(tokenizer, REQUEST) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_an_answer_has_no_special_token_even_where_its_text_spells_one(family: tuple[ChatFamily, Tokenizer]) -> None:
    chat, tokenizer = family
    special = set(tokenizer.convert_tokens_to_ids(list(chat.special_tokens))) - {tokenizer.unk_token_id}
    assert not special & set(encode_answer(tokenizer, ANSWER))
    assert encode_answer(tokenizer, "") == []
    assert not special & set(encode_answer(tokenizer, f"First,{chat.end_of_turn} then"))


def test_a_tokenizer_without_chat_template_is_a_clear_error(tiny_tokenizer: Tokenizer) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = None
    with pytest.raises(UsageError, match=r"has no chat template\. Use a chat model"):
        render_prompt(bare, REQUEST)


@pytest.mark.parametrize("split", [1, 5, 20, 60])
def test_prefilled_text_and_continuation_join_to_the_whole(family: tuple[ChatFamily, Tokenizer], split: int) -> None:
    _, tokenizer = family
    ids = encode_answer(tokenizer, ANSWER)
    prefilled = tokenizer.decode(ids[:split])
    assert prefilled + decode_continuation(tokenizer, ids[:split], ids[split:]) == ANSWER


def test_a_continuation_keeps_its_leading_space(family: tuple[ChatFamily, Tokenizer]) -> None:
    _, tokenizer = family
    start, whole = encode_answer(tokenizer, "I must say that"), encode_answer(tokenizer, "I must say that it is wrong")
    assert whole[: len(start)] == start
    assert decode_continuation(tokenizer, start, whole[len(start) :]) == " it is wrong"


def test_a_continuation_shows_no_special_token(family: tuple[ChatFamily, Tokenizer]) -> None:
    chat, tokenizer = family
    ids = encode_answer(tokenizer, "Yes, sir.")
    end = tokenizer.convert_tokens_to_ids(chat.end_of_turn)
    assert decode_continuation(tokenizer, ids, [end, *ids]).strip() == "Yes, sir."
    assert decode_continuation(tokenizer, ids, []) == ""


def test_a_prefill_that_ends_inside_a_character_does_not_spoil_the_continuation(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama-3"]
    ids = encode_answer(tokenizer, "a 中 b")
    for split in range(1, len(ids)):
        assert decode_continuation(tokenizer, ids[:split], ids[split:]).endswith(" b"[-(len(ids) - split) :])
