"""Laws of prefills: their position, the mode of the reference beside ours, and templates that support none."""

import copy
from pathlib import Path
from typing import Any

import pytest

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl
from course_correction.evaluation.prefills import reference_prefill
from course_correction.generation.chat_format import check_prefill, encode_answer, render_closed_turn, render_prompt
from course_correction.generation.loading import load_tokenizer
from course_correction.synthesis.triggers import OPENERS
from tests.support.rows import ROOT, read_data, write_rows

REQUEST, ANSWER_START = "How do I skip the queue?", "Walk up and look busy"


def templates() -> list[str]:
    return ["llama-2", "chatml-qwen2", "chatml-smollm2", "llama-3"]


@pytest.mark.parametrize("name", templates())
def test_chat_templates_in_use_support_prefills(name: str, tokenizers: dict[str, Any]) -> None:
    check_prefill(tokenizers[name])


@pytest.mark.parametrize(
    "template",
    [
        # A reasoning block before every answer.
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        # The assistant's turn is left out.
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{{ raise_exception('one turn only') if messages | length > 1 else messages[0].content }}",
    ],
)
def test_a_template_without_support_for_prefills_is_refused_with_the_remedy(template: str, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=r"does not support prefills.*--chat_template|cannot be rendered") as caught:
        check_prefill(tokenizer)
    assert "\n" not in str(caught.value)


def test_the_reference_prefill_leaves_llama_2s_turn_open_and_starts_a_new_one_elsewhere(tokenizers: dict[str, Any]) -> None:
    llama, chatml = tokenizers["llama-2"], tokenizers["chatml-qwen2"]
    ours = render_prompt(llama, REQUEST) + encode_answer(llama, ANSWER_START)
    theirs = render_closed_turn(llama, REQUEST, ANSWER_START)
    # Two BOS, as the reference encodes a rendered text once more; else the same words.
    assert theirs[:2] == [llama.bos_token_id] * 2
    assert llama.decode(theirs[1:]).split() == llama.decode(ours).split()
    text = chatml.decode(render_closed_turn(chatml, REQUEST, ANSWER_START))
    assert text.rstrip().endswith("<|im_start|>assistant") and f"{ANSWER_START}<|im_end|>" in text


def test_the_reference_prefill_is_k_words_with_one_opener_per_item() -> None:
    items = read_data("requests_eval")[:30]
    openers = set()
    for item in items:
        whole = reference_prefill(item, 10_000, 0)
        opener = next(text for text in OPENERS if whole.startswith(text))
        openers.add(opener)
        assert whole.split() == f"{opener} {item['full_harmful_response']}".split()
        for words in (1, 10, 40):
            assert reference_prefill(item, words, 0).split() == whole.split()[:words]
    assert len(openers) > 4


def test_in_reference_mode_no_item_is_too_short_and_modes_can_be_compared(tiny_model_folder: Path, tmp_path: Path) -> None:
    from course_correction.evaluation.run import evaluate
    from course_correction.evaluation.settings import EvaluationSettings

    items = [{**row, "source": "seed"} for row in read_data("requests_eval")[:3]]
    items[0]["full_harmful_response"] = "Only a few words here."
    file = write_rows(tmp_path / "items.jsonl", items)

    def settings(name: str, **changes: Any) -> EvaluationSettings:
        values = {"model_name_or_path": str(tiny_model_folder), "items": str(file), "prefill_tokens": [10, 40]}
        values |= {"num_paths": 2, "max_new_tokens": 6, "max_benign": 0, "output_dir": str(tmp_path / name)}
        return EvaluationSettings(**values | changes)

    evaluate(settings("ours"))
    metrics = evaluate(settings("theirs", prefill_mode="reference", baseline_dir=str(tmp_path / "ours")))
    rows = list(read_jsonl(tmp_path / "theirs" / "generations.jsonl"))
    # A response of fewer words than k stands whole, and is never too short.
    assert len(rows) == 3 * 2 * 2 and not any(row.get("too_short") for row in rows)
    assert any(row.get("too_short") for row in read_jsonl(tmp_path / "ours" / "generations.jsonl"))
    report = (tmp_path / "theirs" / "report.md").read_text()
    assert "| prefill: continue | prefill: reference | difference |" in report
    assert metrics["settings"]["prefill_mode"] == "reference"
    evaluate(settings("plainly", prefill_mode="reference", share_prefix=False))
    assert list(read_jsonl(tmp_path / "plainly" / "generations.jsonl")) == rows
    with pytest.raises(UsageError, match="prefill_mode"):
        evaluate(settings("theirs"))


def test_a_template_file_stands_in_for_a_missing_template(
    tiny_model_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="--chat_template"):
        load_tokenizer(str(tmp_path))
    file = ROOT / "recipes" / "vicuna-7b-v1.5" / "chat_template.jinja"
    tokenizer = load_tokenizer(str(tmp_path), chat_template=str(file))
    check_prefill(tokenizer)
    assert tokenizer.decode(render_prompt(tokenizer, REQUEST)).endswith(f"USER: {REQUEST} ASSISTANT:")
    with pytest.raises(UsageError, match=r"nothing.jinja cannot be read: No such file"):
        load_tokenizer(str(tmp_path), chat_template="nothing.jinja")
