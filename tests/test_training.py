"""DPO training of a tiny model: what changes, what is written, and what is refused."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, build_tiny_model, write_rows

from course_correction.run_files import UsageError

NUM_GROUPS = 3
OBJECTIVES = ["pairwise", "grouped"]


@pytest.fixture(autouse=True)
def own_dataset_cache(tmp_path_factory, monkeypatch):
    """Keep what `datasets` caches out of the user's home."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory) -> Path:
    """C²-Syn of three requests of the seed set."""
    from c2_syn import SynthesisSettings, export, synthesize

    folder = tmp_path_factory.mktemp("c2-syn")
    settings = SynthesisSettings(max_requests=NUM_GROUPS, output_dir=str(folder / "run"))
    export(synthesize(settings), folder / "export", settings)
    return folder / "export"


def write_dataset(folder: Path, pairs: list[dict] | None = None, ranked: list[dict] | None = None) -> Path:
    """Write rows as a dataset folder with the configs that training reads."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = ""
    for name, rows in (("pairs", pairs), ("ranked", ranked)):
        if rows is not None:
            write_rows(folder / f"{name}.jsonl", rows)
            configs += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


def read_rows(dataset_folder: Path, config: str) -> list[dict]:
    import pyarrow.parquet as parquet

    files = sorted((dataset_folder / config).glob("*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


@pytest.fixture
def parse(tiny_model_folder, dataset_folder, tmp_path):
    """Make the settings of a short training into tmp_path/out, as the script makes them."""

    def make(*arguments: str, **changes):
        from trl import DPOConfig, ModelConfig

        from course_correction.settings import parse_settings
        from course_correction.training_data import TrainingData
        from train_dpo import ObjectiveSettings

        values = {
            "model_name_or_path": tiny_model_folder, "dataset_name": dataset_folder, "output_dir": tmp_path / "out",
            "use_cpu": True, "bf16": False, "dtype": "float32", "max_steps": 2, "learning_rate": 0.01,
            "lr_scheduler_type": "constant", "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no",
            "report_to": "none", "disable_tqdm": True, "use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear",
            "max_length": 2048, "activation_checkpointing": False,
        } | changes  # fmt: skip
        words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return parse_settings([TrainingData, ObjectiveSettings, DPOConfig, ModelConfig], [*words, *arguments])

    return make


def snapshot(model) -> dict:
    return {name: weights.detach().clone() for name, weights in model.named_parameters()}


def changed(model, before: dict) -> dict[str, bool]:
    return {name: not weights.detach().equal(before[name]) for name, weights in model.named_parameters()}


# --- What is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_lora_every_lora_weight_changes_and_no_base_weight_does(objective, parse):
    from train_dpo import build_trainer

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
    from train_dpo import build_trainer

    trainer, facts = build_trainer(*parse(objective=objective, use_peft=False))
    before = snapshot(trainer.model)
    trainer.train()
    assert [name for name, flag in changed(trainer.model, before).items() if not flag] == []
    assert facts["adapter"] is False
    assert facts["trainable_parameters"] == sum(weights.numel() for weights in before.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_loss_is_log_two_and_training_on_a_few_rows_lowers_it(objective, parse):
    import math

    from train_dpo import build_trainer

    trainer, _ = build_trainer(*parse(objective=objective, max_steps=12, max_groups=1))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert sum(losses[-3:]) / 3 < losses[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_seed_trains_the_same_weights_and_another_seed_others(objective, parse):
    from train_dpo import build_trainer

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

    from course_correction.training_data import TrainingData
    from train_dpo import ObjectiveSettings, train

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
    from course_correction.loading import load_model

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
    from course_correction.cards import write_model_card
    from train_dpo import base_model_id

    base_model, licence = base_model_id("smollm2-135m")
    facts = json.loads((trained / "train_metrics.json").read_text()) | {"adapter": adapter}
    write_model_card(tmp_path, base_model, licence, "owner/c2-syn", facts)
    data = card_of(tmp_path).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.license == "apache-2.0"
    assert data.library_name == ("peft" if adapter else "transformers")
    assert data.datasets == ["owner/c2-syn"]
    assert data.get("base_model_relation") == ("adapter" if adapter else "finetune")


def test_a_local_dataset_or_base_model_is_not_named_by_its_path(tmp_path):
    from train_dpo import base_model_id

    (tmp_path / "my-model").mkdir()
    assert base_model_id(str(tmp_path / "my-model")) == ("my-model", None)
    assert base_model_id(str(tmp_path / "my-model") + "/") == ("my-model", None)
    assert base_model_id("owner/name") == ("owner/name", None)


def test_a_finished_folder_is_refused_and_left_as_it_is(trained, parse):
    from train_dpo import train

    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds a finished training"):
        train(*parse(output_dir=trained))
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_a_fully_trained_model_is_saved_whole(parse, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train_dpo import train

    folder = train(*parse(objective="pairwise", use_peft=False))
    assert not (folder / "adapter_config.json").exists()
    assert card_of(folder).data.library_name == "transformers"
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(folder).chat_template
    for name in ("README.md", "config.json"):
        assert str(tmp_path) not in (folder / name).read_text()


# --- Rows -------------------------------------------------------------------------------------------------------------


def token_lengths(dataset_folder: Path, tokenizer) -> list[int]:
    """Return the longest side of every pair, in tokens."""
    return [
        max(
            len(tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=True, return_dict=False))
            for side in ("chosen", "rejected")
        )
        for row in read_rows(dataset_folder, "pairs")
    ]


def test_rows_longer_than_max_length_are_refused_with_their_number(parse, dataset_folder, tiny_tokenizer):
    from train_dpo import build_trainer

    lengths = token_lengths(dataset_folder, tiny_tokenizer)
    limit = sorted(lengths)[20]
    count = sum(length > limit for length in lengths)
    message = f"{count} of {len(lengths)} .* longer than max_length {limit} .*{max(lengths)} tokens"
    with pytest.raises(UsageError, match=message):
        build_trainer(*parse(objective="pairwise", max_length=limit))


def test_rows_longer_than_max_length_are_dropped_on_demand_and_counted(parse, dataset_folder, tiny_tokenizer):
    from train_dpo import build_trainer

    lengths = token_lengths(dataset_folder, tiny_tokenizer)
    limit = sorted(lengths)[20]
    count = sum(length > limit for length in lengths)
    trainer, facts = build_trainer(*parse("--drop_long_rows", "true", objective="pairwise", max_length=limit))
    assert facts["rows_dropped_too_long"] == count
    assert facts["rows"] == len(trainer.train_dataset) == len(lengths) - count
    longest = max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in trainer.train_dataset
    )
    assert longest <= limit  # What the trainer tokenizes is what was counted, so it cuts nothing.


def test_a_group_with_one_response_that_is_too_long_is_dropped_whole(parse, dataset_folder, tiny_tokenizer):
    from train_dpo import build_trainer

    lengths = token_lengths(dataset_folder, tiny_tokenizer)
    by_group = sorted(max(lengths[start : start + 15]) for start in range(0, len(lengths), 15))
    assert by_group[0] < by_group[1], "choose other requests"
    trainer, facts = build_trainer(*parse("--drop_long_rows", "true", objective="grouped", max_length=by_group[0]))
    assert (facts["rows"], facts["rows_dropped_too_long"]) == (1, NUM_GROUPS - 1)
    (group,) = list(trainer.train_dataset)
    assert max(len(group["prompt_ids"]) + len(ids) for ids in group["completion_ids"]) == by_group[0]
    with pytest.raises(UsageError, match=f"{NUM_GROUPS - 1} of {NUM_GROUPS}"):
        build_trainer(*parse(objective="grouped", max_length=by_group[0]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_where_every_row_is_too_long_dropping_is_refused(objective, parse):
    from train_dpo import build_trainer

    with pytest.raises(UsageError, match="longer than max_length 8"):
        build_trainer(*parse("--drop_long_rows", "true", objective=objective, max_length=8))


def test_max_groups_keeps_all_rows_of_the_first_requests(parse, dataset_folder):
    from course_correction.training_data import TrainingData, load_rows

    data = TrainingData(dataset_name=str(dataset_folder), max_groups=2)
    assert len(load_rows(data, "pairwise")) == 30
    assert load_rows(data, "grouped").to_list() == read_rows(dataset_folder, "ranked")[:2]


@pytest.mark.parametrize("value", [0, -1])
def test_max_groups_below_one_is_refused(value, parse):
    from train_dpo import build_trainer

    with pytest.raises(UsageError, match="max_groups"):
        build_trainer(*parse(max_groups=value))


@pytest.mark.parametrize(("objective", "column"), [("pairwise", "rejected"), ("grouped", "responses")])
def test_a_missing_column_is_refused_by_name(objective, column, dataset_folder, tmp_path):
    from course_correction.training_data import CONFIGS, TrainingData, load_rows

    config = CONFIGS[objective]
    rows = [{name: value for name, value in row.items() if name != column} for row in read_rows(dataset_folder, config)]
    folder = write_dataset(tmp_path / "data", **{config: rows})
    with pytest.raises(UsageError, match=f"lacks the columns {column}"):
        load_rows(TrainingData(dataset_name=str(folder)), objective)


@pytest.mark.parametrize("content", ["", "  \n", None])
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_an_empty_text_in_a_pair_is_refused_by_row_without_the_others(column, content, dataset_folder, tmp_path):
    from course_correction.training_data import TrainingData, load_rows

    rows = read_rows(dataset_folder, "pairs")[:4]
    for name in ("prompt", "chosen", "rejected"):
        rows[2][name][0]["content"] = content if name == column else "MARKED"
    folder = write_dataset(tmp_path / "data", pairs=rows)
    with pytest.raises(UsageError, match="row 3 has a null or empty text") as error:
        load_rows(TrainingData(dataset_name=str(folder)), "pairwise")
    assert "MARKED" not in str(error.value)


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("value", [None, []], ids=["null", "no turn"])
def test_a_pair_without_a_turn_is_refused_by_row(column, value, dataset_folder, tmp_path):
    from course_correction.training_data import TrainingData, load_rows

    rows = read_rows(dataset_folder, "pairs")[:4]
    rows[2][column] = value
    folder = write_dataset(tmp_path / "data", pairs=rows)
    with pytest.raises(UsageError, match="row 3"):
        load_rows(TrainingData(dataset_name=str(folder)), "pairwise")


def test_an_empty_response_in_a_group_is_refused_by_row_without_the_others(dataset_folder, tmp_path):
    from course_correction.training_data import TrainingData, load_rows

    rows = read_rows(dataset_folder, "ranked")
    rows[1]["responses"] = ["MARKED", "MARKED 1", "", "MARKED 3", "MARKED 4", "MARKED 5"]
    folder = write_dataset(tmp_path / "data", ranked=rows)
    with pytest.raises(UsageError, match="row 2") as error:
        load_rows(TrainingData(dataset_name=str(folder)), "grouped")
    assert "MARKED" not in str(error.value)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_dataset_that_is_not_there_is_refused_on_one_line(objective, tmp_path):
    from course_correction.training_data import TrainingData, load_rows

    with pytest.raises(UsageError, match="cannot be loaded") as error:
        load_rows(TrainingData(dataset_name=str(tmp_path / "none")), objective)
    assert "\n" not in str(error.value)


def test_a_model_without_a_name_or_a_chat_template_is_refused(parse, tmp_path, tiny_llama, tiny_tokenizer):
    import copy

    from train_dpo import build_trainer

    settings = parse()
    settings[-1].model_name_or_path = None
    with pytest.raises(UsageError, match="model_name_or_path"):
        build_trainer(*settings)
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    tiny_llama.save_pretrained(tmp_path / "plain")
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(UsageError, match="no chat template"):
        build_trainer(*parse(model_name_or_path=tmp_path / "plain"))


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
    from train_dpo import build_trainer

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


# --- Robustness -------------------------------------------------------------------------------------------------------

TERMS = {"correction_nll_weight": 1.0, "transition_weight": 0.5, "transition_rows": 2, "retention_weight": 1.0}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_training_has_the_losses_and_weights_of_an_uninterrupted_one(objective, parse, tmp_path):
    from train_dpo import build_trainer

    options = {"objective": objective, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "lora_dropout": 0.1}
    options |= TERMS if objective == "grouped" else {}
    results = []
    for folder, checkpoint in (("whole", None), ("resumed", tmp_path / "whole" / "checkpoint-3")):
        trainer, _ = build_trainer(*parse(output_dir=tmp_path / folder, per_device_train_batch_size=1, **options))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        results.append((trainer.state.log_history, snapshot(trainer.model)))
    (whole_log, whole), (resumed_log, resumed) = results
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (whole_log, resumed_log)]
    assert len(losses[0]) == len(losses[1]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert all(resumed[name].allclose(whole[name], rtol=1e-4, atol=1e-6) for name in whole)


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(parse):
    from train_dpo import train

    options = {"objective": "grouped", "save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": "last"}
    folder = train(*parse(**options))
    (folder / "train_metrics.json").unlink()
    with pytest.raises(UsageError, match=r"other settings \(beta: 0.1 there, 0.3 now\)"):
        train(*parse(**options, beta=0.3))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_that_is_no_number_stops_training_and_keeps_the_checkpoints(objective, parse, tmp_path, monkeypatch):
    import torch

    from train_dpo import train

    settings = parse(objective=objective, max_steps=4, save_strategy="steps", save_steps=1)
    from trl import DPOTrainer

    from course_correction.grouped_trainer import GroupedDPOTrainer

    trainer_class = GroupedDPOTrainer if objective == "grouped" else DPOTrainer
    compute = trainer_class._compute_loss

    def broken(self, *arguments, **options):
        loss = compute(self, *arguments, **options)
        return loss * (float("nan") if self.state.global_step == 2 else 1.0)

    monkeypatch.setattr(trainer_class, "_compute_loss", broken)
    with pytest.raises(UsageError, match="The loss of step 3 is nan") as failure:
        train(*settings)
    assert "\n" not in str(failure.value)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert not (tmp_path / "out" / "train_metrics.json").exists()


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate", "DefaultCPUAllocator: can't allocate memory"])
def test_running_out_of_memory_names_the_settings_to_lower(message, parse, monkeypatch):
    from course_correction.grouped_trainer import GroupedDPOTrainer
    from train_dpo import train

    def fail(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(GroupedDPOTrainer, "_compute_loss", fail)
    with pytest.raises(UsageError, match=r"Out of memory with per_device_train_batch_size 2.*retention_rows") as failure:
        train(*parse(objective="grouped"))
    assert "\n" not in str(failure.value)


def test_precomputed_reference_log_probabilities_change_nothing_and_are_kept(parse, tmp_path, monkeypatch):
    from course_correction.grouped_trainer import GroupedDPOTrainer
    from train_dpo import build_trainer

    monkeypatch.setenv("COURSE_CORRECTION_CACHE", str(tmp_path / "cache"))
    results = []
    for precompute in (False, True, True):
        if len(results) == 2:
            # Now they must come from the disk.
            monkeypatch.setattr(GroupedDPOTrainer, "_reference", lambda self: pytest.fail("the reference ran again"))
        trainer, _ = build_trainer(*parse(objective="grouped", precompute_ref_log_probs=precompute))
        trainer.train()
        results.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(list((tmp_path / "cache" / "reference_logps").glob("*.json"))) == 1
    # Groups run one by one, not padded to each other's length: another last bit.
    assert results[1] == pytest.approx(results[0], rel=1e-4)
    assert results[2] == results[1]


def test_the_references_own_answers_join_the_benign_rows_and_are_kept(parse, tmp_path, monkeypatch):
    from course_correction import grouped_trainer
    from train_dpo import build_trainer

    monkeypatch.setenv("COURSE_CORRECTION_CACHE", str(tmp_path / "cache"))
    terms = {"objective": "grouped", "retention_weight": 1.0}
    written = build_trainer(*parse(**terms))[0].data_collator.benign
    own_terms = terms | {"retention_own_answers": 5, "retention_own_tokens": 7}
    trainer, _ = build_trainer(*parse(**own_terms))
    own = trainer.data_collator.benign[len(written) :]
    assert trainer.data_collator.benign[: len(written)] == written
    assert 1 <= len(own) <= 5 and all(1 <= len(ids) - start <= 7 for ids, start in own)
    prompts = {tuple(ids[:start]) for ids, start in written}
    assert {tuple(ids[:start]) for ids, start in own} <= prompts
    # The untrained adapter changes nothing, so these are the base model's greedy words.
    ids, start = own[0]
    import torch

    with torch.no_grad():
        assert trainer.model(torch.tensor([ids[:start]])).logits[0, -1].argmax() == ids[start]
    monkeypatch.setattr(grouped_trainer, "continue_prefills", lambda *_: pytest.fail("answered again"))
    assert build_trainer(*parse(**own_terms))[0].data_collator.benign == written + own


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_on_a_request_of_the_evaluation_is_refused(objective, parse, dataset_folder, tmp_path):
    from train_dpo import build_trainer

    row = read_rows(dataset_folder, "ranked")[0]
    item = {"request_id": "x", "request": row["request"].upper(), "full_harmful_response": "text", "source": "mine"}
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    with pytest.raises(UsageError, match="holds 1 requests of the C²-Eval items"):
        build_trainer(*parse(objective=objective, held_out=tmp_path / "items.jsonl"))


def test_curves_are_drawn_and_speed_is_logged(trained):
    log = json.loads((trained / "train_metrics.json").read_text())["log"]
    assert (trained / "training.png").read_bytes().startswith(b"\x89PNG")
    assert all(entry["pairs_per_second"] > 0 for entry in log if "loss" in entry)


def test_a_scheduled_weight_moves_in_a_line_and_goes_on_so_after_a_resume(parse, tmp_path):
    from train_dpo import build_trainer

    options = TERMS | {"retention_weight_end": 3.0, "correction_nll_weight_end": 0.0, "max_steps": 5}
    trainer, _ = build_trainer(*parse(objective="grouped", **options))
    seen = []
    for step in range(5):
        trainer.state.global_step, trainer.state.max_steps = step, 5
        seen.append([trainer._weight(name) for name in ("retention_weight", "correction_nll_weight", "transition_weight")])
    assert seen == [[1.0, 1.0, 0.5], [1.5, 0.75, 0.5], [2.0, 0.5, 0.5], [2.5, 0.25, 0.5], [3.0, 0.0, 0.5]]
    trainer.state.global_step = 0
    trainer.train()
    first, *_, last = [entry for entry in trainer.state.log_history if "loss" in entry]
    retention = (last["loss/retention_kl"] + last["loss/retention_reverse_kl"]) / 2
    assert last["loss"] == pytest.approx(last["loss/dpo"] + 0.5 * last["loss/transition"] + 3 * retention, rel=1e-3)
    assert first["loss"] > first["loss/dpo"]


@pytest.mark.parametrize("change", [{"retention_weight_end": 1.0}, {"retention_weight": 1.0, "retention_weight_end": -1.0}])
def test_a_schedule_of_a_term_that_is_off_or_below_zero_is_refused(change):
    from train_dpo import ObjectiveSettings

    with pytest.raises(UsageError, match="retention_weight_end is"):
        ObjectiveSettings(**change)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tiny_model_folder, dataset_folder, tmp_path):
    import os
    import subprocess
    import sys

    from safetensors.torch import load_file

    weights = []
    for processes in (1, 2):
        folder = tmp_path / f"of{processes}"
        done = subprocess.run(
            [
                # What `accelerate launch` starts on GPUs; on CPUs it would start processes that know nothing of each other.
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
                str(ROOT / "train_dpo.py"),
                "--model_name_or_path", str(tiny_model_folder), "--dataset_name", str(dataset_folder),
                # Two groups, so that a step is both of them: a third would be filled up on two processes.
                "--max_groups", "2", "--per_device_train_batch_size", str(2 // processes), "--max_steps", "2",
                "--use_cpu", "true",
                "--bf16", "false", "--dtype", "float32", "--use_peft", "true", "--lora_target_modules", "all-linear",
                "--lora_dropout", "0", "--correction_nll_weight", "1", "--max_length", "2048", "--report_to", "none",
                "--save_strategy", "no", "--optim", "sgd", "--learning_rate", "0.01", "--lr_scheduler_type", "constant",
                "--max_grad_norm", "0", "--output_dir", str(folder),
            ],
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        weights.append(load_file(folder / "adapter_model.safetensors"))
    # SGD moves the weights by their gradients: B matrices start at zero, so after two steps both kinds have moved.
    one, two = weights
    assert max(tensor.abs().max() for name, tensor in one.items() if "lora_B" in name) > 1e-4
    assert all(two[name].allclose(one[name], rtol=1e-3, atol=1e-6) for name in one)
