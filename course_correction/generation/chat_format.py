"""Chat prompts and prefills: from texts to token ids and back, token-exactly. Knows nothing of models.

A prefill is the prompt with its generation prompt, then the beginning of the answer, in one open turn. Departs in D1 from
the reference, which closes the turn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from course_correction.base.errors import UsageError
from course_correction.generation.protocol import Tokenizer


def read_template(path: str, setting: str) -> str:
    """Return the text of a template file.

    Args:
        path: The file.
        setting: The setting that names it, for the error.

    Raises:
        UsageError: If it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise UsageError(f"{setting} {path} cannot be read: {reason}.") from None


def read_chat_template(path: str | None) -> str | None:
    """Return the text of a .jinja file; None without one.

    Raises:
        UsageError: If it cannot be read.
    """
    return read_template(path, "chat_template") if path else None


def render_prompt(tokenizer: Tokenizer, request: str) -> list[int]:
    """Return the ids of the chat prompt up to where the assistant's answer begins.

    Raises:
        UsageError: If the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UsageError(f"The tokenizer {tokenizer.name_or_path} has no chat template. Use a chat model.")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def encode_answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of (the beginning of) an assistant's answer, with no special token added."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def decode_continuation(tokenizer: Tokenizer, answer_ids: Sequence[int], continuation_ids: Sequence[int]) -> str:
    """Return the text that the continuation adds to the prefilled answer, its leading space included.

    SentencePiece tokenizers drop the leading space of a text decoded alone, so both are decoded together.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    prefilled = tokenizer.decode(list(answer_ids), **options)
    whole = tokenizer.decode([*answer_ids, *continuation_ids], **options)
    if whole.startswith(prefilled):
        return whole[len(prefilled) :]
    # The prefill ended inside a character of several tokens.
    return tokenizer.decode(list(continuation_ids), **options)


def check_prefill(tokenizer: Tokenizer) -> None:
    """Check that the template puts the assistant's own words right after the prompt, where a prefill stands.

    Raises:
        UsageError: If the template cannot be rendered, or puts more than white space between the two, such as a
            reasoning block.
    """
    answer = "Certainly, here is how."
    turns = [{"role": "user", "content": "How do I boil an egg?"}, {"role": "assistant", "content": answer}]
    name = tokenizer.name_or_path
    try:
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # Templates raise exceptions of any type.
        raise UsageError(f"The chat template of {name} cannot be rendered: {' '.join(str(error).split())[:160]}") from None
    between, rendered, _ = whole.removeprefix(prompt.rstrip()).partition(answer)
    if not whole.startswith(prompt.rstrip()) or not rendered or between.strip():
        raise UsageError(
            f"The chat template of {name} does not support prefills: it does not put an answer right after the generation "
            "prompt. Pass another template with --chat_template, a .jinja file."
        )


def render_closed_turn(tokenizer: Tokenizer, request: str, answer_start: str) -> list[int]:
    """Return the ids of a prefill as the reference renders it: a finished turn, then a new generation prompt.

    Every `</s>` is removed, which reopens Llama-2's turn but no other model's: those start a new turn. The text is
    encoded with special tokens added, so that Llama-2 reads two BOS.

    Source: eval/eval_data.py of the reference at 44da12c; D1 of docs/architecture.md.
    """
    turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer_start}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text.replace("</s>", ""))["input_ids"])


def tokenize_benign(tokenizer: Tokenizer, row: Mapping[str, str]) -> tuple[list[int], int]:
    """Return the ids of a benign prompt with its answer, and the position where the answer begins."""
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    return list(whole), len(prompt)
