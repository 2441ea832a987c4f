"""Scripts and recipes as a user meets them: --help, recipes that parse, and errors on one line."""

import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from course_correction.run_files import UsageError
from course_correction.settings import parse_settings

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("c2_syn.py", "c2_eval.py", "eval.py", "train_dpo.py")
SETTINGS = {"c2_syn": "SynthesisSettings", "c2_eval": "EvaluationSettings", "dpo": "TrainingData"}
MODULES = {"c2_syn": "c2_syn", "c2_eval": "eval", "dpo": "train_dpo"}
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")
ACCELERATE = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
# TRL's trainer checks bf16 against the machine at hand; the recipes for GPUs must parse on any.
ON_CPU = ["--use_cpu", "true", "--bf16", "false"]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def stage_of(path: Path) -> str:
    # Related methods are trained too, each under its own name.
    return next((stage for stage in ("c2_syn", "c2_eval") if path.stem.startswith(stage)), "dpo")


def settings_classes(stage: str) -> list[type]:
    classes = [getattr(importlib.import_module(MODULES[stage]), SETTINGS[stage])]
    if stage == "dpo":
        from trl import DPOConfig, ModelConfig

        from train_dpo import ObjectiveSettings

        classes += [ObjectiveSettings, DPOConfig, ModelConfig]
    return classes


def parse(stage: str, *arguments: str):
    return parse_settings(settings_classes(stage), [*arguments, *(ON_CPU if stage == "dpo" else [])])


def run(*arguments: str, timeout: int = 60, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def assert_one_line_error(done: subprocess.CompletedProcess) -> str:
    """Check exit status 2 and one `error:` line that ends stderr, without a traceback; return that line."""
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1] == errors[0]
    assert done.stdout == ""
    return errors[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_in_under_two_seconds_and_loads_no_heavy_library(script):
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = run(script, "--help")
        seconds.append(time.monotonic() - start)
        assert done.returncode == 0, done.stderr[-2000:]
        if seconds[-1] < 2:
            break
    assert min(seconds) < 2, seconds
    assert "--config" in done.stdout
    assert "Traceback" not in done.stderr
    loaded = set(re.findall(r"\| +([a-z_]\w*)", run("-X", "importtime", script, "--help").stderr))
    heavy = {"torch", "peft", "datasets", "accelerate", "transformers", "pandas", "matplotlib", "lm_eval"}
    assert "argparse" in loaded and not loaded & heavy


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_setting_of_the_script(script):
    import dataclasses

    names = {
        "c2_syn.py": ["SynthesisSettings"],
        "c2_eval.py": ["ItemSettings"],
        "eval.py": ["EvaluationSettings"],
        "train_dpo.py": ["TrainingData", "ObjectiveSettings"],
    }
    module = importlib.import_module(script.removesuffix(".py"))
    text = run(script, "--help").stdout
    for name in names[script]:
        for field in dataclasses.fields(getattr(module, name)):
            assert f"--{field.name}" in text


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
    with pytest.raises(UsageError, match=r"unknown key `sed`; did you mean `seed`\?"):
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


# Importing TRL takes seconds, so most calls of train_dpo.py are slow tests.
SLOW_SCRIPTS = (*SCRIPTS[:3], pytest.param("train_dpo.py", marks=pytest.mark.slow))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_recipe_is_one_line(script):
    assert "no/such.yaml" in assert_one_line_error(run(script, "--config", "no/such.yaml"))


@pytest.mark.parametrize("script", SLOW_SCRIPTS)
def test_a_missing_recipe_after_an_equals_sign_is_one_line(script):
    assert "no/such.yaml" in assert_one_line_error(run(script, "--config=no/such.yaml"))


@pytest.mark.parametrize("script", SLOW_SCRIPTS)
def test_config_without_a_path_is_one_line(script):
    assert "needs the path" in assert_one_line_error(run(script, "--config"))


@pytest.mark.parametrize("script", SLOW_SCRIPTS)
def test_an_unknown_argument_is_one_line(script):
    assert "--not_a_setting" in assert_one_line_error(run(script, "--not_a_setting", "1"))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "owner/no-such-model"),
        ({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, "out of reach"),
    ],
    ids=["offline", "unreachable"],
)
@pytest.mark.parametrize(
    "script", ["eval.py", *(pytest.param(name, marks=pytest.mark.slow) for name in ("c2_syn.py", "train_dpo.py"))]
)
def test_a_model_that_cannot_be_fetched_is_one_line_within_20_seconds(script, environment, said, tmp_path):
    arguments = {
        "eval.py": ["--model_name_or_path", "owner/no-such-model"],
        "c2_syn.py": ["--teacher", "transformers", "--teacher_model", "owner/no-such-model"],
        "train_dpo.py": ["--model_name_or_path", "owner/no-such-model", "--use_cpu", "true", "--bf16", "false"],
    }[script]
    start = time.monotonic()
    done = run(script, *arguments, "--output_dir", str(tmp_path / "out"), HF_HOME=str(tmp_path / "hf"), **environment)
    assert time.monotonic() - start < 20
    message = assert_one_line_error(done)
    assert "owner/no-such-model" in message and said in message


@pytest.mark.slow
def test_a_training_set_that_cannot_be_loaded_is_one_line(tmp_path, tiny_model_folder):
    done = run(
        "train_dpo.py", "--model_name_or_path", str(tiny_model_folder), "--dataset_name", str(tmp_path / "none"),
        "--output_dir", str(tmp_path / "out"), *ON_CPU, HF_HOME=str(tmp_path / "hf"),
    )  # fmt: skip
    assert "cannot be loaded" in assert_one_line_error(done)


def gated_error(name: str) -> Exception:
    """Return what transformers raises for a gated model: an OSError caused by the Hub's GatedRepoError."""
    from huggingface_hub import errors

    response = object.__new__(errors.Response)
    response.headers, response._request = {}, None
    cause = errors.GatedRepoError.__new__(errors.GatedRepoError)
    cause.args, cause.response = ("401 Client Error.",), response
    error = OSError(f"You are trying to access a gated repo.\n{name}")
    error.__cause__ = cause
    return error


def test_a_gated_model_names_the_terms_and_the_login():
    from course_correction.loading import explain_loading_error

    message = str(explain_loading_error("meta-llama/Llama-2-7b-chat-hf", gated_error("meta-llama/Llama-2-7b-chat-hf")))
    assert "gated" in message and "HF_TOKEN" in message and "\n" not in message


def test_the_data_scripts_run_from_another_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "c2_eval.py"), "--export_dir", "here"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "here" / "README.md").is_file()


def test_importing_a_script_loads_no_heavy_library():
    code = (
        "import sys; import c2_syn, c2_eval, eval, train_dpo\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'trl', 'peft') if name in sys.modules])"
    )
    done = run("-c", code)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


def test_modules_import_only_what_stands_above_them_in_the_order_that_the_package_states():
    import course_correction

    order = re.findall(r"`(\w+)`", course_correction.__doc__)
    paths = {path.stem: path for path in Path(course_correction.__file__).parent.glob("*.py") if path.stem != "__init__"}
    assert sorted(order) == sorted(paths)
    backwards = [
        f"{name} imports {imported}"
        for number, name in enumerate(order)
        for imported in re.findall(r"^from course_correction\.(\w+) import", paths[name].read_text(), re.MULTILINE)
        if imported not in order[:number]
    ]
    assert backwards == []


# --- The demo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [False, True])
def test_the_commands_of_the_demo_parse_and_the_small_one_measures_and_trains_less(small):
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
def test_a_cpu_without_bfloat16_arithmetic_gets_the_small_demo_unless_asked_otherwise(fast, small, monkeypatch):
    from course_correction import loading
    from course_correction.demo import DemoSettings

    monkeypatch.setattr(loading, "has_fast_bfloat16", lambda: fast)
    assert DemoSettings().is_small() == small
    assert DemoSettings("small").is_small() and not DemoSettings("full").is_small()
    with pytest.raises(UsageError, match="size is 'huge', but takes auto, full or small"):
        DemoSettings("huge").is_small()
