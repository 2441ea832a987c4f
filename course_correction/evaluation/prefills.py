"""The texts of prefills: the first k tokens of a harmful response, or k words with an opener as the reference has them."""

import random
from collections.abc import Callable
from functools import cache
from typing import Literal

from course_correction.base.files import text_digest
from course_correction.generation.chat_format import encode_answer
from course_correction.generation.evaluated_model import EvaluatedModel
from course_correction.report.schema import Item
from course_correction.synthesis.triggers import OPENERS

PrefillMode = Literal["continue", "reference"]
PrefillText = Callable[[Item, int], str]


def reference_prefill(item: Item, words: int, seed: int) -> str:
    """Return the first words of an opener and the response. Each item has one opener, drawn by its request id."""
    opener = random.Random(text_digest(str(seed), item["request_id"])).choice(OPENERS)
    return " ".join(f"{opener} {item['full_harmful_response']}".split()[:words])


def prefill_texts(mode: PrefillMode, seed: int, model: EvaluatedModel) -> PrefillText:
    """Return a function of an item and k that gives the text of the prefill.

    Args:
        mode: As in `EvaluationSettings.prefill_mode`.
        seed: Draws the openers of mode `reference`.
        model: Its tokenizer is loaded on the first call, in mode `continue`.
    """
    if mode == "reference":
        return lambda item, k: reference_prefill(item, k, seed)

    @cache
    def answer_ids(response: str) -> list[int]:
        return encode_answer(model.tokenizer(), response)

    def prefill_text(item: Item, k: int) -> str:
        text: str = model.tokenizer().decode(answer_ids(item["full_harmful_response"])[:k])
        return text

    return prefill_text
