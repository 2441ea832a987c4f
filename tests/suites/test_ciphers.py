"""Ciphers of attack prompts: there and back, as published, forgiving, and behaviours encoded by them. All texts are mild."""

import random
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_correction.base.errors import UsageError
from course_correction.suites import attack_judges as jailbreak_judges
from course_correction.suites import attack_prompts as jailbreaks
from course_correction.suites.ciphers import (
    ALPHABETS,
    CIPHERS,
    UNKNOWN,
    build_cipher_prompt,
    decode,
    encode,
    read_cipher_answer,
)
from tests.support.jailbreak import MARK, REQUEST, plain, read, write
from tests.support.jailbreak import own_cache as own_cache
from tests.support.rows import read_data, write_rows

LINES = {
    "caesar": st.text(),
    "self_cipher": st.text(),
    "ascii": st.text(ALPHABETS["ascii"]),
    "morse": st.lists(
        st.lists(st.text(ALPHABETS["morse"].replace(" ", ""), min_size=1)).map(" ".join), min_size=1
    ).map("\n".join),
}  # fmt: skip


@given(st.data())
@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_was_encoded_is_decoded_to_itself(cipher, data):
    text = data.draw(LINES[cipher])
    assert decode(cipher, encode(cipher, text)) == text


@given(st.text())
@pytest.mark.parametrize("cipher", CIPHERS)
def test_any_text_can_be_decoded_and_written(cipher, text):
    decode(cipher, text).encode(errors="replace")
    decode(cipher, encode(cipher, text))


@pytest.mark.parametrize(
    ("cipher", "text", "code"),
    [
        ("caesar", "Cozy fox, 7 pm!", "Frcb ira, 7 sp!"),
        ("ascii", "Hi you\nA", "72 105 32 121 111 117\n65"),
        ("morse", "SOS now", "... --- ...  -. --- .--"),
        ("self_cipher", "Cozy fox!", "Cozy fox!"),
    ],
)
def test_a_cipher_encodes_as_published(cipher, text, code):
    assert encode(cipher, text) == code


@pytest.mark.parametrize(
    ("cipher", "code", "text"),
    [
        ("ascii", "72, 105,32 [33]", "Hi !"),
        ("ascii", "999999999999999999999999 72 55296 7", f"{UNKNOWN}H{UNKNOWN}{UNKNOWN}"),
        ("morse", "··· −−− ··· / -. --- .-- | .", "SOS NOW E"),
        ("morse", "...---...--- .", f"{UNKNOWN}E"),
        ("morse", "I say ... / it's - all", "S T"),
        ("caesar", "frcb ìra", "cozy ìox"),
    ],
)
def test_decoding_forgives_what_models_write(cipher, code, text):
    assert decode(cipher, code) == text


@pytest.mark.parametrize("cipher", CIPHERS)
def test_an_answer_is_read_in_the_cipher_or_in_plain_text_and_nonsense_is_neither(cipher):
    words = jailbreak_judges._everyday_words()
    texts = [row["full_harmful_response"][:200] for row in read_data("requests_eval")]
    texts += [row["safe_response"][:200] for row in read_data("requests_eval")]
    in_cipher = [read_cipher_answer(cipher, encode(cipher, text), words) for text in texts]
    assert all(text is not None and is_in_cipher for text, is_in_cipher in in_cipher)
    plain_text = [read_cipher_answer(cipher, text, words) for text in texts]
    assert plain_text == [(text, cipher == "self_cipher") for text in texts]
    rng = random.Random(cipher)
    for _ in range(50):
        nonsense = " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randrange(2, 8))) for _ in range(12))
        assert read_cipher_answer(cipher, encode(cipher, nonsense), words) == (None, False)
        assert read_cipher_answer(cipher, nonsense, words) == (None, False)
    assert read_cipher_answer(cipher, "", words) == read_cipher_answer(cipher, "? ! 7", words) == (None, False)


def test_behaviours_of_cipherchat_are_encoded_by_each_cipher_behind_benign_examples(tmp_path):
    file = write_rows(tmp_path / "x.jsonl", [plain(attack="CipherChat", prompt=None), plain()])
    caesar, own, other = read(file, ciphers=("caesar", "self_cipher"))
    assert (caesar.cipher, own.cipher, other.cipher) == ("caesar", "self_cipher", None)
    assert MARK not in caesar.prompt and encode("caesar", REQUEST) in caesar.prompt and REQUEST in own.prompt
    benign = {row["prompt"] for row in read_data("benign_train") if not row["alarming"]}
    examples = re.findall(r"^- (.+)$", own.prompt, re.MULTILINE)
    assert len(examples) == jailbreaks.NUM_DEMONSTRATIONS and set(examples) <= benign
    assert caesar.prompt == build_cipher_prompt("caesar", REQUEST, examples)


def test_a_row_that_names_its_cipher_is_replayed_as_it_stands(tmp_path):
    file = write_rows(tmp_path / "x.jsonl", [plain(attack="CipherChat", prompt="iru h", cipher="caesar")])
    assert [(row.prompt, row.cipher) for row in read(file, ciphers=("ascii", "morse"))] == [("iru h", "caesar")]


def test_a_behaviour_without_text_cannot_be_encoded(tmp_path):
    with pytest.raises(UsageError, match="no text of its behaviour to encode"):
        read(f"CipherChat={write(tmp_path / 'x.json', {'queue': ['zxq']})}")
