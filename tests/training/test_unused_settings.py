"""Settings of TRL that do nothing are refused by name."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments
from trl import DPOConfig

from course_correction.base.errors import UsageError
from course_correction.training import unused_settings
from course_correction.training.unused_settings import USED_BY_GROUPED, is_unused, refuse_unused_settings
from tests.support.rows import ROOT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_type", ["ipo"]),
        ("label_smoothing", 0.1),
        ("ld_alpha", 0.5),
        ("f_divergence_type", "js_divergence"),
        ("loss_weights", [0.5]),
        ("use_weighting", True),
        ("sync_ref_model", True),
        ("ref_model_sync_steps", 8),
        ("use_liger_kernel", True),
        ("padding_free", True),
        ("pad_token", "x"),
        ("label_smoothing_factor", 0.1),
        ("per_device_eval_batch_size", 3),
        ("metric_for_best_model", "loss"),
    ],
)
def test_a_setting_that_the_grouped_objective_does_not_use_is_refused_by_name(name, value, parse):
    _, _, training, _ = parse()
    setattr(training, name, value)
    with pytest.raises(UsageError, match=rf"no effect with objective: grouped: {name} ") as caught:
        refuse_unused_settings(training, grouped=True)
    assert "\n" not in str(caught.value)


def test_evaluation_by_the_trainer_is_refused_for_both_objectives_before_the_model_is_loaded(parse):
    from course_correction.training.run import build_trainer

    for objective in ("grouped", "pairwise"):
        settings = parse(objective=objective, eval_strategy="steps", eval_steps=5, model_name_or_path="no/such-model")
        with pytest.raises(UsageError, match=r"no effect .*: eval_strategy .*eval_steps 5"):
            build_trainer(*settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", -1.0), ("beta", 0.0), ("beta", float("nan")), ("learning_rate", float("nan")), ("lora_r", 0)],
)
def test_a_number_of_trl_that_trains_the_wrong_way_or_not_at_all_is_refused(name, value, parse):
    from course_correction.training.run import build_trainer

    _, _, training, model_arguments = settings = parse(use_peft=True)
    setattr(training if hasattr(training, name) else model_arguments, name, value)
    with pytest.raises(UsageError, match=rf"{name} is {value}, but must be "):
        build_trainer(*settings)


def test_what_stock_trl_uses_is_accepted_with_it(parse):
    _, _, training, _ = parse(objective="pairwise", label_smoothing=0.1, loss_type="ipo")
    refuse_unused_settings(training, grouped=False)


def test_defaults_are_accepted(parse):
    for objective in ("grouped", "pairwise"):
        _, _, training, _ = parse(objective=objective)
        refuse_unused_settings(training, grouped=objective == "grouped")


def test_every_name_that_is_used_is_a_field_of_trl_and_a_new_field_is_unused(monkeypatch):
    own = {one.name for one in fields(DPOConfig)} - {one.name for one in fields(TrainingArguments)}
    assert own >= USED_BY_GROUPED
    # What a later TRL adds is not in the set.
    monkeypatch.setattr(unused_settings, "USED_BY_GROUPED", USED_BY_GROUPED - {"beta"})
    assert is_unused("beta", DPOConfig, grouped=True) and not is_unused("beta", DPOConfig, grouped=False)


@pytest.mark.parametrize("recipe", sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")))
def test_no_recipe_of_a_training_sets_what_does_nothing(recipe):
    from course_correction.training.command_line import parse_command_line

    if "beta:" not in (ROOT / recipe).read_text() and "objective:" not in (ROOT / recipe).read_text():
        pytest.skip("no recipe of a training")
    (_, objective, training, _), _ = parse_command_line("", ["--config", str(ROOT / recipe)])
    refuse_unused_settings(training, objective.objective == "grouped")
