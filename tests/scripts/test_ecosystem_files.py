"""Files that GitHub and pre-commit read: they parse, and agree with what the project pins and runs."""

import re

import pytest
import yaml

from tests.support.rows import ROOT


def read_yaml(path: str):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_pre_commit_runs_the_ruff_that_constraints_pin():
    (ruff,) = (repo for repo in read_yaml(".pre-commit-config.yaml")["repos"] if repo["repo"].endswith("/ruff-pre-commit"))
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ruff["rev"] == f"v{pinned[1]}"
    assert {hook["id"] for hook in ruff["hooks"]} == {"ruff-check", "ruff-format"}


def test_the_workflow_runs_the_one_ci_entry_on_pushes_and_pull_requests():
    workflow = read_yaml(".github/workflows/ci.yml")
    # YAML 1.1 reads the key `on` as true.
    assert {"push", "pull_request"} <= set(workflow[True])
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    assert (ROOT / ".ci" / "run").is_file()


def test_every_target_that_ci_runs_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert targets and all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("bug.yml", {"command", "output", "versions"}),
        ("result.yml", {"model", "command", "metrics", "hardware", "judge"}),
    ],
)
def test_an_issue_form_asks_for_what_is_needed_to_reproduce(form, fields):
    template = read_yaml(f".github/ISSUE_TEMPLATE/{form}")
    assert template["name"] and template["description"]
    inputs = {part["id"]: part for part in template["body"] if part["type"] != "markdown"}
    assert fields <= set(inputs)
    assert all(inputs[name]["validations"]["required"] for name in fields)
    assert all(part["attributes"]["label"] for part in inputs.values())
