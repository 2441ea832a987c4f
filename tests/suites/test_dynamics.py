"""Suite `dynamics`: masses and KL along harmful answers are those of whole distributions, however they are read."""

import copy
import json

import numpy as np
import pytest
import torch

from course_correction.base.files import read_jsonl
from course_correction.evaluation.run import evaluate
from course_correction.suites.dynamics import SAFETY_WORDS, safety_tokens
from tests.support.evaluation import save_adapter
from tests.support.rows import read_data, write_rows
from tests.support.suites import settings_for as settings_for


def test_masses_and_kl_are_those_of_whole_distributions(settings_for, tmp_path, tiny_model_folder, tiny_tokenizer):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from course_correction.generation.chat_format import encode_answer, render_prompt

    adapter = save_adapter(tiny_model_folder, tmp_path / "adapter", 0)
    metrics = evaluate(settings_for(suite=["dynamics"], adapter_name_or_path=str(adapter)))
    rows = [one for row in read_jsonl(tmp_path / "out" / "dynamics.jsonl") for one in row["read"]]
    assert [row["prefill_tokens"] for row in rows] == [5, 12] * 3
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    trained = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32), adapter
    )
    item = read_data("requests_eval")[0]
    prefill = render_prompt(tiny_tokenizer, item["request"])
    prefill += encode_answer(tiny_tokenizer, item["full_harmful_response"])[:5]
    ids = torch.tensor([prefill])
    tokens = safety_tokens(tiny_tokenizer)
    with torch.no_grad():
        for position in range(len(rows[0]["mass"])):
            before, after = (model(ids).logits[0, -1].log_softmax(-1) for model in (base, trained))
            assert rows[0]["mass"][position] == pytest.approx(after.exp()[tokens].sum().item(), abs=2e-5)
            assert rows[0]["reference_mass"][position] == pytest.approx(before.exp()[tokens].sum().item(), abs=2e-5)
            assert rows[0]["kl"][position] == pytest.approx((before.exp() * (before - after)).sum().item(), abs=1e-4)
            ids = torch.cat([ids, before.argmax().reshape(1, 1)], 1)
    measured = metrics["dynamics"]
    assert measured["prefill_tokens"] == [5, 12] and measured["requests"] == 3
    column = [row["mass"][0] for row in rows if row["prefill_tokens"] == 12]
    assert measured["mass"][1][0] == pytest.approx(np.mean(column), abs=1e-5)
    assert measured["mean_kl"]["value"] > 0 and measured["mean_mass"]["ci95"][0] <= measured["mean_mass"]["value"]


def test_a_model_without_a_reference_has_masses_and_no_kl(settings_for, tmp_path):
    metrics = evaluate(settings_for(suite=["dynamics"]))
    assert metrics["dynamics"]["kl"] is None and metrics["dynamics"]["reference_mass"] is None
    json.dumps(metrics, allow_nan=False)


def test_an_item_shorter_than_every_k_is_left_out_and_its_unit_is_whole(settings_for, tmp_path):
    names = ("request_id", "request", "full_harmful_response")
    rows = [{name: row[name] for name in names} for row in read_data("requests_eval")[:2]]
    rows[0]["full_harmful_response"] = "Sure."
    items = write_rows(tmp_path / "items.jsonl", rows)
    settings = settings_for(suite=["dynamics"], items=str(items), prefill_tokens=[9])
    assert evaluate(settings)["dynamics"]["requests"] == 1
    first = (tmp_path / "out" / "dynamics.jsonl").read_bytes()
    evaluate(settings)
    assert (tmp_path / "out" / "dynamics.jsonl").read_bytes() == first


def test_dynamics_are_the_same_without_shared_trunks(settings_for, tmp_path, tiny_model_folder):
    adapter = save_adapter(tiny_model_folder, tmp_path / "adapter", 0)
    options = {"suite": ["dynamics"], "adapter_name_or_path": str(adapter), "max_benign": 0}
    for share in (True, False):
        evaluate(settings_for(f"{share}", share_prefix=share, **options))
    shared, alone = (
        [one for row in read_jsonl(tmp_path / name / "dynamics.jsonl") for one in row["read"]] for name in ("True", "False")
    )
    assert len(shared) == len(alone) == 6
    for one, other in zip(shared, alone, strict=True):
        assert all(one[name] == pytest.approx(other[name], abs=2e-5) for name in ("mass", "reference_mass", "kl"))


def test_a_reference_that_ends_at_once_gives_no_positions(tiny_llama):
    from course_correction.suites.dynamics import _read

    assert _read(tiny_llama, None, [5, 6, 7], [([8], [])], [1]) == [{"mass": []}]
    assert _read(tiny_llama, tiny_llama, [5, 6, 7], [([8], [])], [1]) == [{"mass": [], "reference_mass": [], "kl": []}]
    one, none = _read(tiny_llama, None, [5, 6, 7], [([8], [3, 4]), ([8, 9], [])], [1])
    assert len(one["mass"]) == 2 and none["mass"] == []


def test_answers_read_together_are_read_as_each_by_itself(tiny_llama):
    from course_correction.suites.dynamics import _read

    other = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(-3)
    texts = [([8, 9], [10, 3]), ([8, 9, 10, 11], [20, 21, 22]), ([8, 9, 10, 11, 12], [12])]
    together = _read(tiny_llama, other, [5, 6, 7], texts, [1, 10, 21])
    for read, text in zip(together, texts, strict=True):
        (alone,) = _read(tiny_llama, other, [5, 6, 7], [text], [1, 10, 21])
        assert read.keys() == alone.keys() and all(read[name] == pytest.approx(alone[name], abs=2e-5) for name in alone)
        assert len(read["kl"]) == len(text[1]) and max(read["kl"]) > 1e-3


def test_items_that_are_all_too_short_give_no_dynamics_and_no_error(settings_for, tmp_path):
    metrics = evaluate(settings_for(suite=["dynamics"], prefill_tokens=[5000], max_benign=0))
    assert metrics["dynamics"]["requests"] == 0 and metrics["dynamics"]["mass"] is None


def test_a_suite_may_be_named_without_a_list(settings_for):
    assert settings_for(suite="benign", benign_files="x.csv").benign_files == ["x.csv"]


def test_safety_tokens_spell_safety_words_and_no_others(tokenizers):
    for name, tokenizer in tokenizers.items():
        tokens = safety_tokens(tokenizer)
        assert tokens == sorted(set(tokens)), name
        for token in tokens:
            text = tokenizer.decode([token]).strip().lower()
            assert any(word.startswith(text) for word in SAFETY_WORDS), (name, text)
            assert text in SAFETY_WORDS or len(text) >= 4, (name, text)
