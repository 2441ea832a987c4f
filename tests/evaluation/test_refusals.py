"""What an evaluation refuses, in one line without any text: other settings, another model, wrong items or baselines."""

import json
import shutil

import pytest

from course_correction.base.errors import UsageError
from course_correction.evaluation.run import evaluate
from tests.support.evaluation import make_items, rows_of, save_adapter
from tests.support.rows import write_rows


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"num_paths": 3}, "num_paths: 2 there, 3 now"),
        ({"prefill_tokens": [5, 12]}, r"prefill_tokens: \[5, 12, 20\] there, \[5, 12\] now"),
        ({"temperature": 0.5}, "temperature: 0.8 there, 0.5 now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"max_requests": 3}, "num_requests: 4 there, 3 now"),
        ({"max_benign": 1}, "max_benign: 2 there, 1 now"),
        ({"judge": "openai"}, "judge: \\['encoder'\\] there, \\['openai'\\] now"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_in_the_same_folder_are_refused_with_the_difference(
    change, difference, settings_for, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    evaluate(settings_for())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UsageError, match=difference):
        evaluate(settings_for(**change))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_an_edited_items_file_in_the_same_folder_is_refused_without_its_text(settings_for, tmp_path):
    items = make_items(2)
    file = write_rows(tmp_path / "items.jsonl", items)
    evaluate(settings_for(items=str(file)))
    items[0]["full_harmful_response"] += " MARKED"
    write_rows(file, items)
    with pytest.raises(UsageError, match="items_digest") as error:
        evaluate(settings_for(items=str(file)))
    assert "MARKED" not in str(error.value) and items[0]["request"] not in str(error.value)


def test_an_adapter_changes_the_rows_and_a_retrained_one_in_the_same_folder_is_refused(
    settings_for, tiny_model_folder, tmp_path
):
    adapter = save_adapter(tiny_model_folder, tmp_path / "adapter", 0)
    settings = settings_for(adapter_name_or_path=str(adapter))
    metrics = evaluate(settings)
    assert metrics["adapter"] == adapter.name
    evaluate(settings_for("base"))
    assert rows_of(tmp_path / "out") != rows_of(tmp_path / "base")
    save_adapter(tiny_model_folder, adapter, 1)
    with pytest.raises(UsageError, match="adapter_name_or_path_weights"):
        evaluate(settings)


@pytest.mark.parametrize("file", ["adapter_config.json", "chat_template.jinja", "generation_config.json"])
def test_another_strength_template_or_generation_config_is_another_model(file, settings_for, tiny_model_folder, tmp_path):
    """The weights alone do not tell: `lora_alpha` is a line of a JSON file."""
    adapter = save_adapter(tiny_model_folder, tmp_path / "adapter", 0)
    model = shutil.copytree(tiny_model_folder, tmp_path / "model")
    settings = settings_for(model_name_or_path=str(model), adapter_name_or_path=str(adapter))
    evaluate(settings)
    path = (adapter if file.startswith("adapter") else model) / file
    if file == "chat_template.jinja":
        path.write_text((path.read_text() if path.exists() else "") + "{# another #}")
    else:
        config = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(config | {"lora_alpha": 7, "top_k": 9}))
    with pytest.raises(UsageError, match="_name_or_path_weights: "):
        evaluate(settings)


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": "all-linear", "use_dora": True},
    ],
    ids=["saved module", "embeddings", "DoRA"],
)
def test_other_kinds_of_adapters_are_applied_as_they_are(options, settings_for, tiny_model_folder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", **options)).save_pretrained(tmp_path / "adapter")
    evaluate(settings_for(adapter_name_or_path=str(tmp_path / "adapter")))


@pytest.mark.parametrize("change", ["renamed", "fewer", "more"])
def test_an_adapter_that_is_applied_in_part_is_refused_with_the_numbers(change, settings_for, tiny_model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(tiny_model_folder, tmp_path / "adapter", 0)
    weights = load_file(adapter / "adapter_model.safetensors")
    names = sorted(weights)
    if change == "renamed":
        changed = {name.replace("base_model.model.", "base_model.model._orig_mod."): weights[name] for name in names}
    elif change == "fewer":
        changed = {name: weights[name] for name in names[2:]}
    else:
        changed = weights | {names[0].replace("layers.0", "layers.7"): weights[names[0]].clone()}
    save_file(changed, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    fit = {"renamed": 0, "fewer": len(names) - 2, "more": len(names)}[change]
    message = rf"{fit} of the {len(changed)} weights of the adapter .* fit .*, and {len(names)} are expected"
    with pytest.raises(UsageError, match=message) as error:
        evaluate(settings_for(adapter_name_or_path=str(adapter)))
    assert "\n" not in str(error.value)


def test_retrained_weights_of_a_local_model_in_the_same_folder_are_refused(settings_for, tiny_model_folder, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    settings = settings_for(model_name_or_path=str(folder))
    evaluate(settings)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    model.save_pretrained(folder)
    with pytest.raises(UsageError, match="other settings"):
        evaluate(settings)


def test_an_adapter_of_another_base_model_is_one_line(settings_for, tmp_path, tiny_tokenizer):
    from tests.support.chat_models import build_tiny_model

    other = tmp_path / "other"
    build_tiny_model("llama", tiny_tokenizer, hidden_size=64).save_pretrained(other)
    adapter = save_adapter(other, tmp_path / "adapter", 0)
    with pytest.raises(UsageError, match="does not fit") as error:
        evaluate(settings_for(adapter_name_or_path=str(adapter)))
    assert "\n" not in str(error.value)


def test_a_missing_adapter_is_refused_by_name(settings_for, tmp_path):
    with pytest.raises(UsageError, match="no-adapter"):
        evaluate(settings_for(adapter_name_or_path=str(tmp_path / "no-adapter")))


def test_a_request_id_that_occurs_twice_is_refused(settings_for, tmp_path):
    items = make_items(3)
    items[2]["request_id"] = items[0]["request_id"]
    with pytest.raises(UsageError, match=f"1 request_ids occur twice, the first is {items[0]['request_id']}"):
        evaluate(settings_for(items=str(write_rows(tmp_path / "items.jsonl", items))))


@pytest.mark.parametrize("value", [None, "", "   ", 7])
@pytest.mark.parametrize("column", ["request", "full_harmful_response"])
def test_a_null_or_empty_text_is_refused_by_row_without_the_other_text(column, value, settings_for, tmp_path):
    items = make_items(3)
    items[1] |= {"request": "MARKED", "full_harmful_response": "MARKED"} | {column: value}
    with pytest.raises(UsageError, match="row 2 has a null or empty") as error:
        evaluate(settings_for(items=str(write_rows(tmp_path / "items.jsonl", items))))
    assert "MARKED" not in str(error.value)
    assert not (tmp_path / "out" / "generations.jsonl").exists()


def test_an_empty_or_missing_items_file_is_refused(settings_for, tmp_path):
    with pytest.raises(UsageError, match="holds no item"):
        evaluate(settings_for(items=str(write_rows(tmp_path / "items.jsonl", []))))
    with pytest.raises(UsageError, match="There is no file"):
        evaluate(settings_for(items=str(tmp_path / "none.jsonl")))


def test_a_line_that_is_no_json_is_refused_by_number_without_its_text(settings_for, tmp_path):
    file = write_rows(tmp_path / "items.jsonl", make_items(1))
    with open(file, "a", encoding="utf-8") as stream:
        stream.write('{"request": "MARKED\n')
    with pytest.raises(UsageError, match="line 2") as error:
        evaluate(settings_for(items=str(file)))
    assert "MARKED" not in str(error.value)


def test_a_missing_baseline_is_refused_before_anything_is_sampled(settings_for, tmp_path):
    with pytest.raises(UsageError, match="contains no finished evaluation"):
        evaluate(settings_for(baseline_dir=str(tmp_path / "none")))
    assert not (tmp_path / "out" / "generations.jsonl").exists()


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"judge": ["pattern"]}, r"judge: \['pattern'\] there, \['encoder'\] now"),
        ({"refusal_judge": "pattern"}, "refusal_judge: 'pattern' there, 'encoder' now"),
        ({"temperature": 0.1, "num_paths": 1}, "num_paths: 1 there, 2 now, temperature: 0.1 there, 0.8 now"),
        ({"max_new_tokens": 3}, "max_new_tokens: 3 there"),
    ],
)
def test_a_baseline_that_was_measured_otherwise_is_refused_before_anything_is_sampled(there, words, settings_for, tmp_path):
    evaluate(settings_for("before", **there))
    with pytest.raises(UsageError, match=rf"baseline .* was measured otherwise \({words}"):
        evaluate(settings_for("after", baseline_dir=str(tmp_path / "before")))
    assert not (tmp_path / "after").exists()


def test_a_baseline_in_another_prefill_mode_is_compared(settings_for, tmp_path):
    evaluate(settings_for("before"))
    metrics = evaluate(settings_for("after", baseline_dir=str(tmp_path / "before"), prefill_mode="reference"))
    assert metrics["difference_to_baseline"]["corr_mean"]


def test_a_baseline_without_verdicts_or_a_bad_calibration_is_refused_before_anything_is_sampled(settings_for, tmp_path):
    evaluate(settings_for("before"))
    (tmp_path / "before" / "verdicts.jsonl").unlink()
    with pytest.raises(UsageError, match=r"before contains no verdicts\.jsonl"):
        evaluate(settings_for("after", baseline_dir=str(tmp_path / "before")))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match=r"is not a judge_calibration\.json"):
        evaluate(settings_for("after", judge_calibration=str(tmp_path / "bad.json")))
    assert not (tmp_path / "after").exists()


def test_a_baseline_with_torn_settings_is_one_line(settings_for, tmp_path):
    evaluate(settings_for("before"))
    (tmp_path / "before" / "run.json").write_text('{"sampling": ')
    with pytest.raises(UsageError, match=r"run\.json is not valid JSON"):
        evaluate(settings_for("after", baseline_dir=str(tmp_path / "before")))


def test_a_baseline_on_other_requests_is_refused(settings_for, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", [{**item, "request_id": f"x-{n}"} for n, item in enumerate(make_items(2))])
    evaluate(settings_for("before", items=str(other)))
    with pytest.raises(UsageError, match="share no request"):
        evaluate(settings_for("after", baseline_dir=str(tmp_path / "before")))


def test_a_second_process_in_the_same_folder_is_refused(settings_for, tmp_path):
    from course_correction.base.run_folder import open_run

    with open_run(tmp_path / "out", "sampling", {}, "generations.jsonl"), pytest.raises(UsageError, match="Another process"):
        evaluate(settings_for())
