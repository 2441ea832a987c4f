"""Trainings pushed to a loopback Hub: what lands there, that it loads, and that an interrupted one resumes from it."""

import json

import pytest

from tests.support.hub import Machine, assert_nothing_private
from tests.support.rows import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base_model(machine, tiny_llama, tiny_tokenizer, hub):
    """The tiny model, pushed as me/tiny: adapters name their base by its Hub id."""
    folder = machine.folder / "tiny"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    machine.python(
        "from huggingface_hub import HfApi\napi = HfApi()\napi.create_repo('me/tiny')\n"
        f"answer = api.upload_folder(repo_id='me/tiny', folder_path={str(folder)!r}).oid"
    )
    return "me/tiny"


def train(machine, base_model, output_dir, *arguments, **options):
    return machine.script(
        "train_dpo.py", "--model_name_or_path", base_model, "--dataset_name", ROOT / "c2-syn", "--max_groups", 3,
        "--output_dir", output_dir, "--use_cpu", "true", "--bf16", "false", "--dtype", "float32", "--max_steps", 4,
        "--learning_rate", 0.01, "--lr_scheduler_type", "constant", "--per_device_train_batch_size", 1, "--save_steps", 2,
        "--logging_steps", 1, "--report_to", "none", "--disable_tqdm", "true", "--use_peft", "true", "--lora_r", 4,
        "--lora_target_modules", "all-linear", "--max_length", 4096, "--activation_checkpointing", "false", *arguments,
        **options,
    )  # fmt: skip


LOGITS = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("me/tiny"), {adapter!r})
tokenizer = AutoTokenizer.from_pretrained({adapter!r})
ids = tokenizer("How do I skip the queue?", return_tensors="pt")["input_ids"]
with torch.inference_mode():
    answer = model(ids).logits[0, -1].tolist()
"""


@pytest.fixture(scope="module")
def pushed(machine, base_model):
    """The files of me/tiny-c2, an adapter trained as runs/pushed."""
    output = train(
        machine, base_model, "runs/pushed", "--push_to_hub", "true", "--hub_model_id", "me/tiny-c2",
        "--hub_strategy", "checkpoint", "--save_strategy", "steps",
    )  # fmt: skip
    assert "Pushed:" in output
    return machine.hub.files("model", "me/tiny-c2")


def test_a_pushed_adapter_loads_from_its_id_alone_and_gives_the_same_logits(hub, machine, pushed, tmp_path):
    files, other = pushed, Machine(hub, tmp_path)
    assert other.python(LOGITS.format(adapter="me/tiny-c2")) == machine.python(LOGITS.format(adapter="runs/pushed"))
    assert {"adapter_model.safetensors", "tokenizer.json", "recipe.yaml", "train_metrics.json", "training.png"} <= set(files)
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/adapter_model.safetensors"} <= set(files)
    assert "last-checkpoint/trainer_state.json" in files
    assert not any("training_args" in name for name in files)
    assert hub.repo("model", "me/tiny-c2")["private"]
    titles = [title for _, title in hub.commits("model", "me/tiny-c2")]
    assert titles[0] == "Trained to course-correct" and any("step 2 of 4" in title for title in titles)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/tiny"
    card = files["README.md"].decode()
    assert "base_model: me/tiny" in card and "base_model_relation: adapter" in card and 'from_pretrained("me/tiny")' in card
    assert '"me/tiny-c2")' in card and "library_name: peft" in card
    assert_nothing_private(hub)


def test_the_code_of_the_card_runs(machine, pushed):
    card = pushed["README.md"].decode()
    code = card.split("```python")[1].split("```")[0]
    assert machine.python(code + "\nanswer = 1") == 1


def test_the_pushed_recipe_trains_the_same_weights_again(machine, pushed):
    (machine.folder / "recipe.yaml").write_bytes(pushed["recipe.yaml"])
    machine.script(
        "train_dpo.py", "--config", "recipe.yaml", "--dataset_name", ROOT / "c2-syn", "--output_dir", "runs/again"
    )  # fmt: skip
    assert machine.python(LOGITS.format(adapter="runs/again")) == machine.python(LOGITS.format(adapter="runs/pushed"))


def test_a_training_resumes_from_the_checkpoint_that_another_machine_pushed(hub, machine, base_model, pushed, tmp_path):
    place = (
        "--push_to_hub",
        "true",
        "--hub_model_id",
        "me/interrupted",
        "--hub_strategy",
        "checkpoint",
        "--save_strategy",
        "steps",
    )
    # It dies when the final push is refused: the checkpoint of step 2 is on the Hub, that of step 4 perhaps not.
    hub.fail("POST /api/models/me/interrupted/commit/", status=403, after=1, times=100)
    error = train(machine, base_model, "runs/interrupted", *place, fails=True)
    assert "may not write there" in error and "training continues" in error
    hub.mend()
    files = hub.files("model", "me/interrupted")
    assert json.loads(files["last-checkpoint/trainer_state.json"])["global_step"] == 2
    other = Machine(hub, tmp_path)
    output = train(other, base_model, "runs/resumed", *place, "--resume_from_checkpoint", "last")
    assert "Fetching last-checkpoint" in output
    log = json.loads((other.folder / "runs/resumed/train_metrics.json").read_text())["log"]
    whole = json.loads((machine.folder / "runs/pushed/train_metrics.json").read_text())["log"]
    losses = [[entry["loss"] for entry in entries if "loss" in entry] for entries in (log, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    adapter = other.python(LOGITS.format(adapter="me/interrupted"))
    assert adapter == pytest.approx(machine.python(LOGITS.format(adapter="runs/pushed")), rel=1e-4, abs=1e-4)
    assert_nothing_private(hub)


def test_a_checkpoint_of_other_settings_is_refused(hub, machine, base_model, pushed, tmp_path):
    other = Machine(hub, tmp_path)
    error = train(
        other, base_model, "runs/other", "--push_to_hub", "true", "--hub_model_id", "me/tiny-c2", "--save_strategy", "no",
        "--resume_from_checkpoint", "last", "--beta", 0.5, fails=True,
    )  # fmt: skip
    assert "beta: 0.1 there, 0.5 now" in error


def test_a_finished_training_is_pushed_without_training_again(hub, machine, base_model, pushed):
    output = train(machine, base_model, "runs/pushed", "--push_to_hub", "true", "--hub_model_id", "me/second")
    assert not hub.repo("model", "me/second")["gated"]
    assert "pushed without training again" in output and "Training " not in output.replace("Training progress", "")
    assert '"me/second")' in hub.files("model", "me/second")["README.md"].decode()


def test_all_weights_are_pushed_as_a_model_that_loads(hub, machine, base_model, tmp_path):
    train(
        machine, base_model, "runs/full", "--use_peft", "false", "--push_to_hub", "true", "--hub_model_id", "team/tiny-full",
        "--save_strategy", "no", "--max_steps", 2, "--hub_private_repo", "false",
    )  # fmt: skip
    code = """
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({name!r})
with torch.inference_mode():
    answer = model(torch.tensor([[5, 6, 7]])).logits[0, -1].tolist()
"""
    other = Machine(hub, tmp_path)
    assert other.python(code.format(name="team/tiny-full")) == machine.python(code.format(name="runs/full"))
    assert not hub.repo("model", "team/tiny-full")["private"]
    assert_nothing_private(hub)


def test_a_token_that_cannot_push_is_found_before_training(hub, machine, base_model):
    place = ("--push_to_hub", "true", "--hub_model_id", "me/never")
    error = train(machine, base_model, "runs/never", *place, token="hf_loopback_reader", fails=True)
    assert "may only read" in error and not (machine.folder / "runs/never").exists()
    error = train(machine, base_model, "runs/never", *place, "--hub_token", "hf_loopback_me", fails=True)
    assert "hub_token would be written to files" in error and "hf_loopback_me" not in error
