"""Prefills: from texts to token ids and back, token-exactly. Knows nothing of models.

The prompt with its generation prompt, then the answer begun, in one open turn. Departs in D1 from the reference, which
closes the turn.
"""

from collections.abc import Sequence
from typing import Any

from course_correction.base.errors import UsageError


def tokenize_benign(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], int]:
    """Return the ids of a benign prompt with its answer, and where the answer begins."""
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    return list(whole), len(prompt)


def render_prompt(tokenizer: Any, request: str) -> list[int]:
    """Return the ids of the chat prompt up to where the assistant's answer begins.

    Raises:
        UsageError: If the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UsageError(f"The tokenizer {tokenizer.name_or_path} has no chat template; use a chat model.")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def check_prefill(tokenizer: Any) -> None:
    """Make sure that a prefill stands where the template puts the assistant's own words: right after the prompt.

    Raises:
        UsageError: If the template cannot be rendered, or puts anything but white space between the two, as those do that
            open with a reasoning block.
    """
    answer = "Certainly, here is how."
    turns = [{"role": "user", "content": "How do I boil an egg?"}, {"role": "assistant", "content": answer}]
    name = tokenizer.name_or_path
    try:
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # Templates raise what they like.
        raise UsageError(f"The chat template of {name} cannot be rendered: {' '.join(str(error).split())[:160]}") from None
    between, found, _ = whole.removeprefix(prompt.rstrip()).partition(answer)
    if not whole.startswith(prompt.rstrip()) or not found or between.strip():
        raise UsageError(
            f"The chat template of {name} takes no prefill: a finished answer does not stand right after its generation "
            "prompt. Give another one by --chat_template, a .jinja file."
        )


def render_closed_turn(tokenizer: Any, request: str, begun: str) -> list[int]:
    """Return the ids of an answer begun as the reference renders it: a finished turn, then a new generation prompt.

    Every `</s>` is taken out again, which leaves Llama-2's turn open and no other model's: those start a new turn. The
    text is encoded with special tokens added, so that Llama-2 reads two BOS.

    Source: eval/eval_data.py of the reference at 44da12c; D1 of the README says what this measures.
    """
    turns = [{"role": "user", "content": request}, {"role": "assistant", "content": begun}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text.replace("</s>", ""))["input_ids"])


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
