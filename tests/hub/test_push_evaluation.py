"""Evaluations pushed to a model's repository on a loopback Hub: merged, replaced, offered as pull requests."""

import json
import shutil

import pytest
import yaml

from tests.support.hub import Machine, assert_nothing_private
from tests.support.rows import ROOT

RESULTS = ".eval_results/c2_eval.yaml"
CARD = "---\nlicense: apache-2.0\ntags:\n- mine\n---\n\n# My model\n\nWords of mine.\n"


@pytest.fixture(scope="module")
def evaluated(machine, hub, tiny_llama, tiny_tokenizer):
    """A finished evaluation of a tiny model on somebody's own items, pushed by the script as me/model."""
    tiny_llama.save_pretrained(machine.folder / "tiny")
    tiny_tokenizer.save_pretrained(machine.folder / "tiny")
    rows = [json.loads(line) for line in (ROOT / "course_correction/data/requests_eval.jsonl").read_text().splitlines()[:3]]
    (machine.folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    machine.python(
        "from huggingface_hub import HfApi\napi = HfApi()\napi.create_repo('me/model')\n"
        f"answer = api.upload_file(repo_id='me/model', path_in_repo='README.md', path_or_fileobj={CARD.encode()!r}).oid"
    )
    machine.script(
        "eval.py", "--model_name_or_path", machine.folder / "tiny", "--items", machine.folder / "items.jsonl",
        "--num_paths", 2, "--prefill_tokens", 10, 20, "--max_new_tokens", 4, "--max_benign", 0, "--dtype", "float32",
        "--output_dir", "runs/eval", "--push_to_hub", "true", "--hub_model_id", "me/model", "--hub_dataset_id", "me/c2-eval",
    )  # fmt: skip
    return machine.folder / "runs/eval"


PUSH = """
import json, shutil, time
from pathlib import Path
from course_correction.hub import push as publishing
from course_correction.hub.push_evaluation import push_evaluation
from course_correction.base.errors import UsageError
time.sleep = lambda seconds: None
def evaluation(name, value, **settings):
    folder = Path("runs") / name
    shutil.copytree("runs/eval", folder, dirs_exist_ok=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["corr_mean"]["value"] = value
    metrics["settings"] |= settings
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder
"""


def read_card(hub, revision="main", repo_id="me/model"):
    text = hub.files("model", repo_id, revision)["README.md"].decode()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_a_pushed_evaluation_has_the_same_values_in_results_card_and_files(hub, evaluated):
    from huggingface_hub import parse_eval_result_entries

    metrics = json.loads((evaluated / "metrics.json").read_text())
    files = hub.files("model", "me/model")
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[RESULTS]))
    assert (entry.dataset_id, entry.task_id) == ("me/c2-eval", "c2_eval")
    assert entry.value == pytest.approx(metrics["corr_mean"]["value"], abs=1e-4)
    assert "judge encoder" in entry.notes and "items items.jsonl, 3 requests" in entry.notes
    header, body = read_card(hub)
    assert header["license"] == "apache-2.0" and header["tags"] == ["mine"] and "Words of mine." in body
    (index,) = header["model-index"]
    values = {m["name"]: m["value"] for result in index["results"] for m in result["metrics"]}
    expected = {f"Corr@{k}": entry["value"] for k, entry in metrics["corr_at_k"].items()}
    assert values == pytest.approx(expected | {"Corr_mean": metrics["corr_mean"]["value"]}, abs=1e-4)
    assert "| **Corr_mean** |" in body
    (pushed,) = (name for name in files if name.endswith("/metrics.json"))
    assert json.loads(files[pushed]) == metrics
    assert {pushed.replace("metrics.json", name) for name in ("report.md", "corr_at_k.png")} <= set(files)


def test_model_results_are_read_by_the_hubs_own_card_class(hub, machine, evaluated):
    code = "from huggingface_hub import ModelCard\nresults = ModelCard.load('me/model').data.eval_results\n"
    assert machine.python(code + "answer = [result.metric_name for result in results]") == [
        "Corr@10",
        "Corr@20",
        "Corr_mean",
    ]


def test_two_evaluations_are_kept_side_by_side_and_a_repeated_one_replaces_its_result(hub, machine, evaluated):
    code = (
        PUSH
        + """
repo = publishing.open_repo("me/twice", "model")
push_evaluation(repo, evaluation("a", 0.25), "me/c2-eval")
push_evaluation(repo, evaluation("b", 0.5, items="pku500"), "me/c2-eval")
push_evaluation(repo, evaluation("c", 0.75), "me/c2-eval")
answer = 0
"""
    )
    machine.python(code)
    files = hub.files("model", "me/twice")
    assert sorted(entry["value"] for entry in yaml.safe_load(files[RESULTS])) == [0.5, 0.75]
    header, body = read_card(hub, repo_id="me/twice")
    values = [
        m["value"] for result in header["model-index"][0]["results"] for m in result["metrics"] if m["name"] == "Corr_mean"
    ]
    assert sorted(values) == [0.5, 0.75]
    assert body.count("## Course-correction (C²-Eval)") == 2
    assert len([name for name in files if name.endswith("report.md")]) == 2


def test_a_concurrent_commit_of_somebody_else_is_merged(hub, machine, evaluated):
    code = (
        PUSH
        + """
from huggingface_hub import HfApi
import course_correction.hub.push_evaluation as published
repo = publishing.open_repo("me/raced", "model")
real, rounds = published.push, []
def push_late(*arguments, **options):
    rounds.append(1)
    if len(rounds) == 1:
        theirs = b"---\\ntags: [theirs]\\n---\\n\\nTheirs.\\n"
        HfApi().upload_file(repo_id="me/raced", path_in_repo="README.md", path_or_fileobj=theirs)
    return real(*arguments, **options)
published.push = push_late
push_evaluation(repo, evaluation("a", 0.25))
answer = len(rounds)
"""
    )
    assert machine.python(code) == 2
    header, body = read_card(hub, repo_id="me/raced")
    assert header["tags"] == ["theirs"] and "Theirs." in body and "| **Corr_mean** |" in body
    assert RESULTS not in hub.files("model", "me/raced")


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": True}])
def test_an_unreadable_card_is_not_treated_as_a_missing_one(hub, tmp_path, evaluated, fault):
    other = Machine(hub, tmp_path)  # Without a copy of the card.
    shutil.copytree(evaluated, other.folder / "runs" / "eval")
    hub.fail("HEAD .*README.md", times=1000, **fault)
    code = (
        PUSH
        + """
repo = publishing.open_repo("me/model", "model")
try:
    answer = push_evaluation(repo, evaluation("a", 0.25), "me/c2-eval")
except UsageError as error:
    answer = str(error)
"""
    )
    before = hub.files("model", "me/model")["README.md"]
    message = other.python(code)
    hub.mend()
    assert hub.files("model", "me/model")["README.md"] == before and "\n" not in message
    assert "Run the same command again" in message or "refused" in message


def test_a_repeated_push_of_the_training_keeps_its_evaluations(hub, machine, evaluated):
    code = (
        PUSH
        + """
from course_correction.hub.push_training import push_model
folder = Path("runs/model"); folder.mkdir()
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\n\\n# Trained\\n")
(folder / "adapter_model.safetensors").write_bytes(b"weights")
repo = publishing.open_repo("me/kept", "model")
push_model(repo, folder, "me/base")
push_evaluation(repo, evaluation("a", 0.25))
(folder / "README.md").write_text("---\\nlicense: apache-2.0\\n---\\n\\n# Trained again\\n")
push_model(repo, folder, "me/base")
push_model(repo, folder, "me/base")
answer = 0
"""
    )
    machine.python(code)
    header, body = read_card(hub, repo_id="me/kept")
    assert header["license"] == "apache-2.0" and "Trained again" in body
    assert body.count("## Course-correction (C²-Eval)") == 1
    assert [m["value"] for m in header["model-index"][0]["results"][0]["metrics"]][-1] == 0.25


def test_a_push_to_somebody_elses_model_opens_a_pull_request_and_a_repeated_one_extends_it(hub, machine, evaluated):
    machine.python(
        "from huggingface_hub import HfApi\nanswer = str(HfApi().create_repo('other/model'))", token="hf_loopback_other"
    )
    code = (
        PUSH
        + """
answer = []
try:
    publishing.open_repo("other/model", "model")
except UsageError as error:
    answer.append(str(error))
repo = publishing.open_repo("other/model", "model", create_pr=True)
answer.append(push_evaluation(repo, evaluation("a", 0.25), "me/c2-eval"))
answer.append(push_evaluation(repo, evaluation("b", 0.5, items="pku500"), "me/c2-eval"))
"""
    )
    refused, first, second = machine.python(code)
    assert "--create_pr true" in refused
    assert first == second and first.endswith("/other/model/discussions/1")
    (request,) = hub.repo("model", "other/model")["discussions"]
    assert request["status"] == "open" and request["author"] == "me"
    assert RESULTS not in hub.files("model", "other/model")
    entries = yaml.safe_load(hub.files("model", "other/model", "refs/pr/1")[RESULTS])
    assert sorted(entry["value"] for entry in entries) == [0.25, 0.5]


def test_a_pull_request_to_a_missing_model_is_refused_before_any_work(hub, machine):
    error = machine.script(
        "eval.py", "--push_to_hub", "true", "--hub_model_id", "other/none", "--create_pr", "true", fails=True
    )  # fmt: skip
    assert "There is no model other/none" in error and error.count("\n") == 1


def test_nothing_private_was_pushed(hub, machine, evaluated):
    assert_nothing_private(hub)
    assert not hub.unknown


def test_every_setting_that_tells_evaluations_apart_decides_their_rows():
    import dataclasses

    from course_correction.hub.push_evaluation import IDENTITY
    from tests.support.settings import settings_classes

    fields = {
        field.name: field.metadata.get("identity", ())
        for field in dataclasses.fields(settings_classes()["EvaluationSettings"])
    }
    assert set(IDENTITY) <= set(fields)
    # These choose the items, whose digest decides the rows.
    assert {name for name in IDENTITY if not fields[name]} == {"items_revision", "max_requests"}
