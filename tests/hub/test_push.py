"""Datasets pushed by the real client to a loopback Hub over HTTP, and loaded back by fresh processes."""

import json

import pytest

from course_correction.base.redaction import public_name, public_value
from tests.support.fresh_hub import hub as hub
from tests.support.fresh_hub import machine as machine
from tests.support.fresh_hub import other_machine as other_machine
from tests.support.hub import ROOT, assert_nothing_private
from tests.support.rows import as_pku_row, read_data, write_rows


def push_seed(machine, *arguments, **options):
    return machine.script(
        "c2_syn.py", "--max_requests", 5, "--output_dir", "runs/syn", "--push_to_hub", "true",
        "--hub_dataset_id", "me/c2-syn", *arguments, **options,
    )  # fmt: skip


LOAD_BOTH = """
from datasets import load_dataset
pairs = load_dataset("me/c2-syn", split="train")
ranked = load_dataset("me/c2-syn", "ranked", split="train")
streamed = load_dataset("me/c2-syn", "ranked", split="train", streaming=True)
answer = {"pairs": pairs.to_list(), "ranked": ranked.to_list(), "streamed": list(streamed)}
"""


def test_a_pushed_c2_syn_loads_back_row_by_row_in_a_fresh_process_and_cache(hub, machine, other_machine):
    import pyarrow.parquet

    assert "Pushed:" in push_seed(machine, "--gated", "manual")
    loaded = other_machine.python(LOAD_BOTH)
    for config in ("pairs", "ranked"):
        (file,) = (machine.folder / "runs/syn/export" / config).glob("*.parquet")
        assert loaded[config] == pyarrow.parquet.read_table(file).to_pylist()
    assert loaded["streamed"] == loaded["ranked"] and len(loaded["pairs"]) == 75
    state = hub.repo("dataset", "me/c2-syn")
    assert state["private"] and state["gated"] == "manual"
    # Made, gated, then filled by one commit: nobody could load half of it, or all of it unasked.
    assert len(hub.commits("dataset", "me/c2-syn")) == 2
    lines = [line for line in hub.requests if "/settings" in line or "/commit/" in line]
    assert "/settings" in lines[0] and len(lines) == 2
    assert not hub.unknown
    assert_nothing_private(hub)


def test_without_push_to_hub_no_request_reaches_the_hub(hub, machine):
    machine.script("c2_syn.py", "--max_requests", 2, "--output_dir", "runs/syn", "--export_dir", "runs/export")
    machine.script("c2_eval.py", "--export_dir", "runs/items", "--hub_dataset_id", "me/c2-eval")
    assert hub.requests == []


def test_a_gated_dataset_without_access_is_named_in_one_line(hub, machine, other_machine):
    push_seed(machine, "--gated", "manual", "--hub_private_repo", "false")
    code = """
from course_correction.base.errors import UsageError
from course_correction.evaluation.run import evaluate
from course_correction.evaluation.settings import EvaluationSettings
from course_correction.training.data import TrainingData, load_rows
answer = []
for read in (
    lambda: load_rows(TrainingData(dataset_name="me/c2-syn"), "grouped"),
    lambda: evaluate(EvaluationSettings(items="me/c2-syn")),
):
    try:
        read()
    except UsageError as error:
        answer.append(str(error))
"""
    training, evaluation = other_machine.python(code, token="hf_loopback_other")
    assert "me/c2-syn cannot be loaded" in training and "gated" in training and "\n" not in training
    assert "The Hub dataset me/c2-syn" in evaluation and "gated dataset" in evaluation
    assert len(other_machine.python(LOAD_BOTH, token="hf_loopback_me")["ranked"]) == 5


def test_the_card_states_how_the_data_was_made_and_contains_none_of_its_texts(hub, machine):
    rows = [as_pku_row(row) for row in read_data("requests_train")[:6]]
    for row in rows:
        for side in (0, 1):
            row[f"response_{side}"] += " Xylophonically speaking, that is all there is to it."
        row["prompt"] = "Xylophonically, how " + row["prompt"]
    source = write_rows(machine.folder / "pairs.jsonl", rows)
    groups = machine.folder / "runs/mine"
    code = f"""
from course_correction.hub.dataset_exports import C2SynSettings, export_c2_syn
from course_correction.synthesis.ranked_groups import build_ranked_group, draft_corrections
from course_correction.base.files import to_json_line, write_json
from course_correction.synthesis.sources import *
from pathlib import Path
from collections import Counter
folder = Path("runs/mine"); folder.mkdir(parents=True)
source, teacher = {str(source)!r}, "meta-llama/Llama-2-7b-chat-hf"
settings = C2SynSettings(source=source, teacher="transformers", teacher_model=teacher)
pairs = list(select_source_pairs(read_source_rows(source), source, SelectionRules(40), frozenset(), Counter()))
with open(folder / "groups.jsonl", "w") as file:
    for pair in pairs:
        draft = draft_corrections(pair, 0, .6, .5)
        texts = [" Xylophonically put, no." + str(n) for n in range(4)]
        file.write(to_json_line(build_ranked_group(pair, *draft, "Xylophonically safe.", texts, teacher)))
write_json(folder / "selection.json", {{"kept": len(pairs), "dropped": {{"response_too_short": 2}}}})
export_c2_syn(folder / "groups.jsonl", folder / "export", settings)
answer = len(pairs)
"""
    count = machine.python(code)
    card = (groups / "export" / "README.md").read_text()
    assert "xylophonically" not in card.lower()
    # Not so in the data, whose source and teacher columns say nothing of the machine either.
    import pyarrow.parquet

    (file,) = (groups / "export/ranked").glob("*.parquet")
    table = pyarrow.parquet.read_table(file)
    assert set(table["source"].to_pylist()) == {"pairs.jsonl"} and "xylophonically" in str(table["request"]).lower()
    for words in (
        "cc-by-nc-4.0", "not-for-all-audiences", "2 (response_too_short)", "Llama 2 Community License",
        "--source pairs.jsonl", f"{count} requests kept", "dataset_info:", f"num_examples: {15 * count}", '"kinds"',
    ):  # fmt: skip
        assert words in card, words
    assert str(machine.folder) not in card


def test_checksums_of_the_card_are_those_of_the_files(machine, hub):
    import hashlib

    push_seed(machine)
    files = hub.files("dataset", "me/c2-syn")
    card = files.pop("README.md").decode()
    shards = {name: content for name, content in files.items() if name.endswith(".parquet")}
    assert len(shards) == 2
    for name, content in shards.items():
        assert f"{hashlib.sha256(content).hexdigest()}  {name}" in card
    assert 'load_dataset("me/c2-syn", split="train")' in card and "--max_requests 5" in card


@pytest.mark.parametrize(
    ("token", "place", "message"),
    [
        (None, "me/c2-syn", "needs a Hub token"),
        ("hf_loopback_expired", "me/c2-syn", "invalid or expired"),
        ("hf_loopback_reader", "me/c2-syn", "may only read"),
        ("hf_loopback_me", "other/c2-syn", "may not write there"),
        ("hf_loopback_me", "c2-syn", "give owner/name"),
        ("hf_loopback_me", "me/c2..syn", "no repository on the Hub"),
    ],
)
def test_a_token_that_cannot_push_is_refused_before_any_work(hub, machine, token, place, message):
    arguments = ("--output_dir", "runs/syn", "--push_to_hub", "true", "--hub_dataset_id", place)
    error = machine.script("c2_syn.py", *arguments, token=token, fails=True)
    assert message in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (machine.folder / "runs").exists()
    assert "hf_loopback" not in error


def test_c2_eval_pushed_and_read_by_its_id_gives_the_same_items(hub, machine, other_machine):
    machine.script("c2_eval.py", "--push_to_hub", "true", "--hub_dataset_id", "me/c2-eval")
    code = "from course_correction.synthesis.sources import read_eval_items\nanswer = list(read_eval_items({!r}))"
    assert other_machine.python(code.format("me/c2-eval")) == machine.python(code.format("seed"))
    assert "eval.yaml" in hub.files("dataset", "me/c2-eval")
    # An evaluation is of one commit, whatever is pushed while it runs.
    code = "from course_correction.evaluation.items import read_items\n"
    code += "from course_correction.evaluation.settings import EvaluationSettings\n"
    commit = other_machine.python(code + "answer = read_items(EvaluationSettings(items='me/c2-eval')).revision")
    assert commit == hub.commits("dataset", "me/c2-eval")[0][0]
    assert_nothing_private(hub)


def test_datasets_of_the_hub_are_mixed_at_the_given_revision(hub, machine, other_machine):
    push_seed(machine)
    first = hub.commits("dataset", "me/c2-syn")[0][0]
    machine.script(
        "c2_syn.py", "--max_requests", 7, "--output_dir", "runs/more", "--push_to_hub", "true",
        "--hub_dataset_id", "me/c2-syn",
    )  # fmt: skip
    assert hub.commits("dataset", "me/c2-syn")[0][0] != first
    code = """
from course_correction.base.errors import UsageError
from course_correction.training.data import TrainingData, load_rows
def count(*mixed):
    try:
        return len(load_rows(TrainingData(dataset_name="me/c2-syn", mix_with=list(mixed)), "grouped"))
    except UsageError as error:
        return str(error)
answer = [count(), count("me/c2-syn@FIRST"), count("me/c2-syn", "me/c2-syn@FIRST"), count("me/c2-syn@nothing")]
"""
    *counts, missing = other_machine.python(code.replace("FIRST", first))
    assert counts == [7, 12, 19]
    assert "me/c2-syn cannot be loaded" in missing and "nothing" in missing


def test_the_metric_loads_from_its_space(hub, machine, other_machine):
    machine.script("course_correction.hub.push_metric", "--hub_metric_id", "me/corr_at_k")
    code = """
import evaluate
metric = evaluate.load("me/corr_at_k")
answer = metric.compute(predictions=[True, False, True], references=[10, 10, 20], request_ids=["a", "b", "a"])
"""
    local = code.replace("me/corr_at_k", str(ROOT / "metrics" / "corr_at_k"))
    assert other_machine.python(code) == machine.python(local)
    assert_nothing_private(hub)


def test_public_names_lose_their_folders_and_hosts(tmp_path):
    file = tmp_path / "items.jsonl"
    file.touch()
    assert public_name(str(file)) == "items.jsonl" and public_name(str(tmp_path)) == tmp_path.name
    assert public_name("~/secret/model") == "model" and public_name("../runs/adapter") == "adapter"
    assert public_name("http://10.0.0.7:8000/v1") == "(a server)"
    assert public_name(f"GCG={file}#sha256=ab12") == "GCG=items.jsonl#sha256=ab12"
    for name in ("seed", "pku500", "meta-llama/Llama-2-7b-chat-hf", "pattern", ""):
        assert public_name(name) == name
    url = "https://raw.githubusercontent.com/a/b/file.json"
    assert public_name(f"GCG={url}?token=abc#sha256=ab12") == f"GCG={url}#sha256=ab12"
    for text in ("x" * 400, "~~", "/", "."):
        assert public_name(text) == text
    nested = {"a": [str(file), 3], "b": {"c": None, "d": f"a text with {file} in it\nand more"}}
    assert public_value(nested) == {"a": ["items.jsonl", 3], "b": nested["b"]}
    assert json.dumps(public_value(nested))


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("c2_syn.py", ["--push_to_hub", "true"], "--hub_dataset_id"),
        ("c2_syn.py", ["--gated", "auto"], "--push_to_hub"),
        ("c2_eval.py", ["--push_to_hub", "true"], "--hub_dataset_id"),
        ("eval.py", ["--push_to_hub", "true"], "--hub_model_id"),
        ("eval.py", ["--create_pr", "true"], "--push_to_hub"),
    ],
)
def test_a_push_without_a_repository_is_refused(machine, hub, script, arguments, message):
    error = machine.script(script, *arguments, fails=True)
    assert message in error and error.count("\n") == 1
    assert not hub.requests


@pytest.mark.slow
def test_750_000_pairs_go_up_in_shards_with_bounded_memory_and_load_back(hub, machine, other_machine):
    code = """
import re
from pathlib import Path
from benchmarks.bench_export import write_groups
from course_correction.hub.dataset_exports import C2SynSettings, export_c2_syn
from course_correction.hub.push import push_dataset, open_dataset_repo
from course_correction.base.files import write_json
folder = Path("runs/large"); folder.mkdir(parents=True)
write_groups(folder / "groups.jsonl", 50_000)
write_json(folder / "selection.json", {"kept": 50_000, "dropped": {}})
settings = C2SynSettings(push_to_hub=True, hub_dataset_id="me/large")
repo = open_dataset_repo(settings)
rows = export_c2_syn(folder / "groups.jsonl", folder / "export", settings)
push_dataset(repo, folder / "export", ["pairs", "ranked"])
# The peak of getrusage includes the memory of the process that this one was forked from.
answer = [rows, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20]
"""
    rows, peak_gib = machine.python(code)
    assert rows == {"pairs": 750_000, "ranked": 50_000} and peak_gib < 2
    shards = [name for name in hub.files("dataset", "me/large") if name.startswith("pairs/")]
    assert len(shards) == 5
    code = """
from datasets import load_dataset
rows = load_dataset("me/large", split="train", streaming=True)
first, count = None, 0
for batch in rows.iter(10_000):
    first = first or batch["request_id"][0]
    count += len(batch["request_id"])
answer = [first, count, load_dataset("me/large", "ranked", split="train").num_rows]
"""
    first, count, groups = other_machine.python(code)
    assert (count, groups) == (750_000, 50_000) and first.endswith("-0")
    assert_nothing_private(hub)
