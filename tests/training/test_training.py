"""DPO training of a tiny model: what changes and what is written."""

import json
import re
from pathlib import Path

import pytest

from course_correction.base.errors import UsageError
from tests.support.chat_models import build_tiny_model
from tests.support.rows import ROOT
from tests.support.training import NUM_GROUPS, OBJECTIVES, changed, read_rows, snapshot

pytestmark = pytest.mark.usefixtures("own_dataset_cache")


# --- What is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_lora_every_lora_weight_changes_and_no_base_weight_does(objective, parse):
    from course_correction.training.run import build_trainer

    trainer, facts = build_trainer(*parse(objective=objective))
    before = snapshot(trainer.model)
    trainer.train()
    lora = {name: flag for name, flag in changed(trainer.model, before).items() if "lora_" in name}
    base = {name: flag for name, flag in changed(trainer.model, before).items() if "lora_" not in name}
    assert len(lora) == 2 * 2 * 7  # A and B of the seven linear maps in two layers.
    assert [name for name, flag in lora.items() if not flag] == []
    assert [name for name, flag in base.items() if flag] == []
    assert facts["adapter"] is True
    assert facts["trainable_parameters"] == sum(before[name].numel() for name in lora)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_lora_every_weight_changes(objective, parse):
    from course_correction.training.run import build_trainer

    trainer, facts = build_trainer(*parse(objective=objective, use_peft=False))
    before = snapshot(trainer.model)
    trainer.train()
    assert [name for name, flag in changed(trainer.model, before).items() if not flag] == []
    assert facts["adapter"] is False
    assert facts["trainable_parameters"] == sum(weights.numel() for weights in before.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_loss_is_log_two_and_training_on_a_few_rows_lowers_it(objective, parse):
    import math

    from course_correction.training.run import build_trainer

    trainer, _ = build_trainer(*parse(objective=objective, max_steps=12, max_groups=1))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert sum(losses[-3:]) / 3 < losses[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_seed_trains_the_same_weights_and_another_seed_others(objective, parse):
    from course_correction.training.run import build_trainer

    def train_with(seed: int) -> dict:
        trainer, _ = build_trainer(*parse(objective=objective, seed=seed))
        trainer.train()
        return {name: weights for name, weights in snapshot(trainer.model).items() if "lora_" in name}

    first, second, other = train_with(1), train_with(1), train_with(2)
    assert all(first[name].equal(second[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)


# --- What is written --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=OBJECTIVES)
def trained(request, tmp_path_factory, tiny_model_folder, dataset_folder) -> Path:
    """A finished LoRA training, as the script makes it."""
    from trl import DPOConfig, ModelConfig

    from course_correction.training.run import train
    from course_correction.training.settings import ObjectiveSettings, TrainingData

    folder = tmp_path_factory.mktemp("trained") / "out"
    training = DPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, max_steps=2, learning_rate=0.01, save_strategy="no",
        report_to="none", disable_tqdm=True, per_device_train_batch_size=2, logging_steps=1, max_length=2048,
    )  # fmt: skip
    model = ModelConfig(
        model_name_or_path=str(tiny_model_folder), use_peft=True, lora_r=4, lora_target_modules="all-linear", dtype="float32"
    )
    assert train(TrainingData(dataset_name=str(dataset_folder)), ObjectiveSettings(request.param), training, model) == folder
    return folder


def logits_of(model):
    import torch

    with torch.inference_mode():
        return model(torch.arange(5, 25)[None]).logits


def test_the_adapter_reloads_on_the_base_model_and_gives_other_logits(trained, tiny_model_folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    before = logits_of(base)
    after = logits_of(PeftModel.from_pretrained(base, trained))
    assert (after - before).abs().max() > 1e-3


def test_evaluation_loads_the_adapter_by_its_folder(trained, tiny_model_folder):
    from course_correction.generation.loading import load_model

    before = logits_of(load_model(str(tiny_model_folder)))
    assert (logits_of(load_model(str(tiny_model_folder), str(trained))) - before).abs().max() > 1e-3


def test_metrics_tokenizer_and_card_lie_beside_the_adapter(trained):
    from transformers import AutoTokenizer

    metrics = json.loads((trained / "train_metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["rows"] == {"pairs": 15 * NUM_GROUPS, "groups": NUM_GROUPS}[metrics["unit"]]
    assert metrics["rows_seen"] == 2 * 2
    assert metrics["adapter"] is True and metrics["trainable_parameters"] > 0
    assert {"seconds", "train_loss", "beta", "learning_rate", "seed", "versions", "model", "dataset"} <= metrics.keys()
    assert [entry["step"] for entry in metrics["log"] if "loss" in entry] == [1, 2]
    assert AutoTokenizer.from_pretrained(trained).chat_template
    assert (trained / "adapter_model.safetensors").is_file()


def card_of(folder: Path):
    from huggingface_hub import ModelCard

    return ModelCard.load(folder / "README.md")


def test_the_card_of_an_adapter_names_peft_and_the_base_model(trained, tiny_model_folder):
    data = card_of(trained).data
    assert data.library_name == "peft"
    assert data.base_model == tiny_model_folder.name
    assert data.get("base_model_relation") == "adapter"


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json"])
def test_no_path_of_this_machine_is_in_what_is_pushed(name, trained, tiny_model_folder, dataset_folder):
    text = (trained / name).read_text(encoding="utf-8")
    for path in (trained, tiny_model_folder, dataset_folder, ROOT, Path.home()):
        assert str(path) not in text
    assert re.search(r"(?<![\w:/.])/(?:tmp|root|home|Users|work)/", text) is None


def test_the_card_holds_no_request_or_response(trained, dataset_folder):
    text = (trained / "README.md").read_text(encoding="utf-8")
    for row in read_rows(dataset_folder, "ranked"):
        assert not any(piece in text for piece in (row["request"], *(response[:40] for response in row["responses"])))


@pytest.mark.parametrize("adapter", [True, False])
def test_the_card_of_a_trained_smollm2_states_hub_id_and_licence(adapter, trained, tmp_path):
    from course_correction.generation.offline_models import base_model_id
    from course_correction.hub.model_card import write_model_card

    base_model, licence = base_model_id("smollm2-135m")
    facts = json.loads((trained / "train_metrics.json").read_text()) | {"adapter": adapter}
    write_model_card(tmp_path, base_model, licence, ["owner/c2-syn", str(trained), "owner/more@main", "owner/more"], facts)
    data = card_of(tmp_path).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.license == "apache-2.0"
    assert data.library_name == ("peft" if adapter else "transformers")
    assert data.datasets == ["owner/c2-syn", "owner/more"]
    assert data.get("base_model_relation") == ("adapter" if adapter else "finetune")


def test_a_local_dataset_or_base_model_is_not_named_by_its_path(tmp_path):
    from course_correction.generation.offline_models import base_model_id

    (tmp_path / "my-model").mkdir()
    assert base_model_id(str(tmp_path / "my-model")) == ("my-model", None)
    assert base_model_id(str(tmp_path / "my-model") + "/") == ("my-model", None)
    assert base_model_id("owner/name") == ("owner/name", None)


def test_a_finished_folder_is_refused_and_left_as_it_is(trained, parse):
    from course_correction.training.run import train

    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds a finished training"):
        train(*parse(output_dir=trained))
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_a_fully_trained_model_is_saved_whole(parse, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from course_correction.training.run import train

    folder = train(*parse(objective="pairwise", use_peft=False))
    assert not (folder / "adapter_config.json").exists()
    assert card_of(folder).data.library_name == "transformers"
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(folder).chat_template
    for name in ("README.md", "config.json"):
        assert str(tmp_path) not in (folder / name).read_text()


def test_curves_are_drawn_and_speed_is_logged(trained):
    log = json.loads((trained / "train_metrics.json").read_text())["log"]
    assert (trained / "training.png").read_bytes().startswith(b"\x89PNG")
    assert all(entry["pairs_per_second"] > 0 for entry in log if "loss" in entry)


# --- The script, as it is launched ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["-m", "accelerate.commands.launch", "--num_processes", "1"], []])
def test_the_script_trains_by_itself_and_under_accelerate(launcher, tiny_model_folder, dataset_folder, tmp_path):
    import os
    import subprocess
    import sys

    arguments = [
        "--model_name_or_path", str(tiny_model_folder), "--dataset_name", str(dataset_folder), "--max_steps", "2",
        "--use_cpu", "true", "--bf16", "false", "--use_peft", "true", "--lora_target_modules", "all-linear",
        "--max_length", "2048", "--report_to", "none", "--save_strategy", "no", "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "train_dpo.py"), *arguments],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "train_metrics.json").is_file()
    shown = done.stdout + done.stderr
    for row in read_rows(dataset_folder, "ranked"):
        assert not any(piece in shown for piece in (row["request"], *(response[:40] for response in row["responses"])))


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_qlora_trains_an_adapter_on_a_four_bit_model(objective, parse, tiny_tokenizer, tmp_path):
    from course_correction.training.run import build_trainer

    build_tiny_model("llama", tiny_tokenizer, hidden_size=64, head_dim=16, intermediate_size=64).save_pretrained(
        tmp_path / "model"
    )
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    settings = parse(
        "--load_in_4bit", "true", "--bnb_4bit_quant_type", "nf4",
        objective=objective, model_name_or_path=tmp_path / "model",
    )  # fmt: skip
    trainer, _ = build_trainer(*settings)
    kinds = {type(module).__name__ for module in trainer.model.modules()}
    assert "Linear4bit" in kinds
    before = snapshot(trainer.model)
    trainer.train()
    flags = changed(trainer.model, before)
    assert all(flag for name, flag in flags.items() if "lora_" in name)
    assert not any(flag for name, flag in flags.items() if "lora_" not in name)
    trainer.save_model()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
