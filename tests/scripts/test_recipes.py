"""Recipes, and the demo's commands: they parse, their values arrive, and wrong ones are refused by name before any work."""

import re
from pathlib import Path

import pytest
import yaml

from course_correction.base.errors import UsageError
from course_correction.base.settings import parse_settings
from tests.support.rows import ROOT
from tests.support.settings import settings_of
from tests.support.training import ON_CPU

SCRIPT_OF = {"c2_syn": "c2_syn.py", "c2_eval": "eval.py", "dpo": "train_dpo.py"}
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")
ACCELERATE = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def stage_of(path: Path) -> str:
    # Related methods are trained too, each under its own name.
    return next((stage for stage in ("c2_syn", "c2_eval") if path.stem.startswith(stage)), "dpo")


def settings_classes(stage: str) -> list[type]:
    classes = settings_of(SCRIPT_OF[stage])
    if stage == "dpo":
        from trl import DPOConfig, ModelConfig

        classes += [DPOConfig, ModelConfig]
    return classes


def parse(stage: str, *arguments: str):
    return parse_settings(settings_classes(stage), [*arguments, *(ON_CPU if stage == "dpo" else [])])


def test_there_are_recipes_of_every_stage():
    assert {stage_of(path) for path in RECIPES} == {"c2_syn", "c2_eval", "dpo"}


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_every_recipe_parses_and_its_values_arrive(recipe):
    settings = parse(stage_of(recipe), "--config", str(recipe))
    for key, value in yaml.safe_load(recipe.read_text()).items():
        if key in {"bf16", "report_to"}:
            continue  # Overridden above; `none` becomes an empty list.
        holders = [part for part in settings if hasattr(part, key)]
        assert holders, f"nobody reads {key}"
        arrived = getattr(holders[0], key)
        arrived = getattr(arrived, "value", arrived)  # Some are enumerations.
        assert arrived == value or arrived == [value], key


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_the_command_line_wins_over_every_recipe(recipe):
    settings = parse(stage_of(recipe), "--config", str(recipe), "--output_dir", "elsewhere", "--seed", "17")
    holder = next(part for part in settings if hasattr(part, "seed"))
    assert (holder.output_dir, holder.seed) == ("elsewhere", 17)


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_a_model_of_the_hub_is_pinned_by_revision(recipe):
    values = yaml.safe_load(recipe.read_text())
    for name, revision in (("model_name_or_path", "model_revision"), ("teacher_model", "teacher_revision")):
        if "/" in values.get(name, ""):
            assert re.fullmatch(r"[0-9a-f]{40}", values.get(revision, "")), f"{name} has no pinned {revision}"


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_no_recipe_holds_a_token_or_an_absolute_path(recipe):
    for value in yaml.safe_load(recipe.read_text()).values():
        assert not str(value).startswith(("/", "~", "hf_", "sk-"))


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_every_accelerate_config_loads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text())
    assert str(getattr(config.distributed_type, "value", config.distributed_type)) == values["distributed_type"]
    assert config.num_processes == values["num_processes"]
    assert config.mixed_precision == values["mixed_precision"]


def write_recipe(tmp_path: Path, **values) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("stage", ["c2_syn", "c2_eval", "dpo"])
def test_an_unknown_key_of_a_recipe_is_refused_by_name(stage, tmp_path):
    with pytest.raises(UsageError, match=r"unknown key `sed`. Did you mean `seed`\?"):
        parse(stage, "--config", write_recipe(tmp_path, sed=1))
    with pytest.raises(UsageError, match="unknown key `zzzz_qqqq`"):
        parse(stage, "--config", write_recipe(tmp_path, zzzz_qqqq=1))


@pytest.mark.parametrize("stage", ["c2_syn", "c2_eval", "dpo"])
def test_an_unknown_or_abbreviated_argument_is_refused(stage):
    with pytest.raises(UsageError, match="not_a_setting"):
        parse(stage, "--not_a_setting", "1")
    with pytest.raises(UsageError, match="output_di"):
        parse(stage, "--output_di", "x")


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        ("c2_syn", {"opener_rate": "often"}),
        ("c2_syn", {"batch_size": 2.5}),
        ("c2_syn", {"require_how_or_what": "perhaps"}),
        ("c2_syn", {"teacher": "parrot"}),
        ("c2_syn", {"max_requests": "all"}),
        ("c2_syn", {"exclude_requests_from": "seed"}),
        ("c2_syn", {"output_dir": None}),
        ("c2_eval", {"prefill_tokens": "10, 20"}),
        ("c2_eval", {"prefill_tokens": [10, "x"]}),
        ("c2_eval", {"prefill_tokens": 10}),
        ("c2_eval", {"num_paths": "four"}),
        ("c2_eval", {"num_paths": True}),
        ("c2_eval", {"temperature": "warm"}),
        ("c2_eval", {"judge": "coin"}),
        ("dpo", {"max_groups": "all"}),
        ("dpo", {"objective": "triplets"}),
        ("dpo", {"retention_rows": 1.5}),
        ("dpo", {"correction_nll_weight": "some"}),
        ("dpo", {"drop_long_rows": "perhaps"}),
        ("dpo", {"beta": "high"}),
        ("dpo", {"max_length": "long"}),
        ("dpo", {"lora_r": "sixteen"}),
        ("dpo", {"learning_rate": "fast"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_value_of_the_wrong_type_in_a_recipe_is_refused_by_name(stage, values, tmp_path):
    (name,) = values
    with pytest.raises(UsageError, match=name):
        parse(stage, "--config", write_recipe(tmp_path, **values))


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [
        ("c2_syn", ["--opener_rate", "often"]),
        ("c2_syn", ["--teacher", "parrot"]),
        ("c2_eval", ["--num_paths", "four"]),
        ("c2_eval", ["--judge", "coin"]),
        ("c2_eval", ["--share_prefix", "perhaps"]),
        ("dpo", ["--beta", "high"]),
        ("dpo", ["--drop_long_rows", "perhaps"]),
    ],
)
def test_a_value_of_the_wrong_type_on_the_command_line_is_refused(stage, arguments):
    with pytest.raises(UsageError):
        parse(stage, *arguments)


@pytest.mark.parametrize(
    "values",
    [
        {"prefill_tokens": []},
        {"prefill_tokens": [0, 10]},
        {"prefill_tokens": [10, 10]},
        {"num_paths": 0},
        {"max_benign": -1},
        {"max_new_tokens": 0},
        {"temperature": -0.5},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_requests": -1},
        {"max_requests": 0},
        {"benign_max_new_tokens": 0},
        {"dtype": "float31"},
    ],
    ids=str,
)
def test_an_evaluation_refuses_a_value_outside_its_range_before_any_work(values, tmp_path):
    with pytest.raises(UsageError, match=next(iter(values))):
        parse("c2_eval", "--config", write_recipe(tmp_path, **values))


@pytest.mark.parametrize(
    "values",
    [
        {"opener_rate": 1.5},
        {"batch_size": 0},
        {"requests_per_unit": 0},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"max_requests": 0},
        {"max_requests": -3},
    ],
    ids=str,
)
def test_synthesis_refuses_a_value_outside_its_range_before_any_work(values, tmp_path):
    with pytest.raises(UsageError, match=next(iter(values))):
        parse("c2_syn", "--config", write_recipe(tmp_path, **values))


def test_a_whole_number_is_a_float_but_not_the_other_way_round(tmp_path):
    (settings,) = parse("c2_eval", "--config", write_recipe(tmp_path, temperature=0, top_p=1))
    assert (settings.temperature, settings.top_p) == (0, 1)


@pytest.mark.parametrize("content", ["- a\n- b\n", "just words\n", "", "a: [1\n", "a: b: c\n"])
def test_a_recipe_that_is_no_mapping_is_refused_by_path(content, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        parse("c2_eval", "--config", str(path))


# --- The demo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [False, True])
def test_the_commands_of_the_demo_parse_and_the_small_demo_evaluates_and_trains_less(small):
    from course_correction.demo import plan

    commands = plan(small)
    before, after = (parse("c2_eval", *commands[name][1:])[0] for name in ("evaluate", "evaluate trained"))
    _, objective, training, model = parse("dpo", *commands["train"][1:])
    assert after.adapter_name_or_path == training.output_dir and after.baseline_dir == before.output_dir
    assert before.suite == after.suite == ["jailbreak", "general", "benign", "dynamics"]
    full = parse("c2_eval", "--config", "recipes/smollm2-135m/c2_eval.yaml")[0]
    assert (before.max_requests < full.max_requests) == (before.num_paths < full.num_paths) == small
    assert after.max_requests == before.max_requests and after.max_benign == before.max_benign
    _, full_objective, full_training, _ = parse("dpo", "--config", "recipes/smollm2-135m/dpo_lora.yaml")
    assert (training.max_steps < full_training.max_steps) == small
    assert (objective.retention_rows < full_objective.retention_rows) == small
    assert re.fullmatch(model.lora_target_modules, "model.layers.25.mlp.up_proj")


@pytest.mark.parametrize(("fast", "small"), [(True, False), (False, True)])
def test_a_cpu_without_native_bfloat16_runs_the_small_demo_unless_asked_otherwise(fast, small, monkeypatch):
    from course_correction.demo import DemoSettings
    from course_correction.generation import loading

    monkeypatch.setattr(loading, "has_fast_bfloat16", lambda: fast)
    assert DemoSettings().is_small() == small
    assert DemoSettings("small").is_small() and not DemoSettings("full").is_small()
    with pytest.raises(UsageError, match="huge"):
        parse_settings([DemoSettings], ["--size", "huge"])
