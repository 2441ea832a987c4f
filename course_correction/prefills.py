"""Prefills: from texts to token ids and back, token-exactly. Knows nothing of models.

Source: contract 5 of the design: the prompt with its generation prompt, then the answer begun, in one open turn. Departs
in D1 from the reference, which closes the turn.
"""

from collections.abc import Sequence
from typing import Any

from course_correction.run_files import UsageError


def tokenize_benign(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], int]:
    """Return the ids of a benign prompt with its answer, and where the answer begins."""
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    return list(whole), len(prompt)


def render_prompt(tokenizer: Any, request: str) -> list[int]:
    """Return the ids of the chat prompt up to where the assistant's answer begins (contract 5).

    Raises:
        UsageError: If the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UsageError(f"The tokenizer {tokenizer.name_or_path} has no chat template; use a chat model.")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def encode_answer(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of (the beginning of) an assistant's answer, with no special token added."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def decode_continuation(tokenizer: Any, answer_ids: Sequence[int], continuation_ids: Sequence[int]) -> str:
    """Return the text that the continuation adds to the answer begun, its leading space included.

    SentencePiece tokenizers drop the leading space of a text decoded alone, so both are decoded together.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    begun = tokenizer.decode(list(answer_ids), **options)
    whole = tokenizer.decode([*answer_ids, *continuation_ids], **options)
    if whole.startswith(begun):
        return whole[len(begun) :]
    # The prefill ended inside a character of several tokens.
    return tokenizer.decode(list(continuation_ids), **options)
