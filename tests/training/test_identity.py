"""The settings that decide the trained weights: every field of TRL's does, unless it is exempt."""

import json
from dataclasses import fields

import pytest

from course_correction.training.identity import EXEMPT, training_identity


def identity(settings) -> dict:
    return training_identity(*settings, {"model": "tiny"})


def test_every_exempt_name_is_a_field_of_trl():
    from trl import DPOConfig, ModelConfig

    assert {one.name for settings in (DPOConfig, ModelConfig) for one in fields(settings)} >= EXEMPT


def test_a_field_that_a_later_version_of_trl_adds_decides_the_weights(parse):
    from dataclasses import make_dataclass

    data, objective, training, model = parse()
    later = make_dataclass("LaterConfig", [("new_setting", int, 3)], bases=(type(model),))(**vars(model))
    assert identity((data, objective, training, later))["new_setting"] == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("label_smoothing", 0.1), ("adam_epsilon", 1e-6), ("data_seed", 3), ("lora_modules_to_save", "lm_head"),
     ("max_groups", 2), ("transition_target", 0.25), ("lr_scheduler_kwargs", '{"a": 2}'), ("bnb_4bit_quant_type", "fp4")],
)  # fmt: skip
def test_a_setting_that_decides_the_weights_is_recorded_as_json(name, value, parse):
    one, other = identity(parse()), identity(parse(**{name: value}))
    assert [key for key in one | other if one.get(key) != other.get(key)] == [name]
    assert json.loads(json.dumps(other)) == other


@pytest.mark.parametrize(
    ("name", "value"),
    [("output_dir", "elsewhere"), ("resume_from_checkpoint", "last"), ("run_name", "second"), ("logging_steps", 5),
     ("save_steps", 7), ("activation_checkpointing", True), ("dataloader_num_workers", 2), ("hub_model_id", "me/model")],
)  # fmt: skip
def test_a_setting_that_only_moves_or_logs_is_not_recorded(name, value, parse):
    assert identity(parse(**{name: value})) == identity(parse())


def test_the_identity_names_no_folder_of_this_machine(parse, tmp_path, tiny_model_folder, dataset_folder):
    text = json.dumps(identity(parse("--mix_with", str(dataset_folder), retention_file=tmp_path / "benign.jsonl")))
    assert not any(str(path) in text for path in (tmp_path, tiny_model_folder.parent, dataset_folder.parent))
