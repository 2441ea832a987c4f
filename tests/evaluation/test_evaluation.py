"""C²-Eval from items to report, with a tiny model: its files, resumption, and what the console may show."""

import json
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from course_correction.base.files import read_jsonl
from course_correction.evaluation.run import evaluate
from tests.support.evaluation import (
    ENVIRONMENT,
    LENGTHS,
    NUM_ITEMS,
    SHORT_RESPONSE,
    eval_command,
    make_items,
    rows_of,
    strip_time,
)
from tests.support.resumable_rows import rows_so_far
from tests.support.rows import write_rows

# --- The rows ---------------------------------------------------------------------------------------------------------


def test_an_evaluation_writes_all_its_files(settings_for, tmp_path):
    metrics = evaluate(settings_for())
    written = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert written == {
        "run.json", "generations.jsonl", "benign_answers.jsonl", "verdicts.jsonl", "metrics.json", "report.md",
        "report.html", "corr_at_k.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))


def test_there_is_one_row_and_one_verdict_for_each_request_k_and_path(settings_for, tmp_path, items_file):
    evaluate(settings_for())
    wanted = [(item["request_id"], length, path) for item in make_items(4) for length in LENGTHS for path in range(2)]
    for name in ("generations.jsonl", "verdicts.jsonl"):
        rows = rows_of(tmp_path / "out", name)
        assert [(row["request_id"], row["prefill_tokens"], row["path"]) for row in rows] == wanted
    for row in rows_of(tmp_path / "out"):
        assert 0 <= row["num_tokens"] <= 6
        assert row["ended"] == (row["num_tokens"] < 6)


def test_the_order_of_the_prefill_lengths_in_the_recipe_changes_no_row(settings_for, tmp_path):
    evaluate(settings_for("a"))
    evaluate(settings_for("b", prefill_tokens=LENGTHS[::-1]))
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


def test_a_requests_rows_do_not_depend_on_which_other_requests_are_evaluated(settings_for, tmp_path):
    evaluate(settings_for("all"))
    evaluate(settings_for("two", max_requests=2))
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "all")[: 2 * len(LENGTHS) * 2]


def test_sharing_the_trunk_changes_no_row(settings_for, tmp_path):
    evaluate(settings_for("shared"))
    evaluate(settings_for("apart", share_prefix=False))
    assert rows_of(tmp_path / "shared") == rows_of(tmp_path / "apart")


def test_another_seed_gives_other_paths_and_greedy_paths_are_all_alike(settings_for, tmp_path):
    for name, changes in {"a": {}, "b": {"seed": 1}, "greedy": {"temperature": 0.0}}.items():
        evaluate(settings_for(name, max_new_tokens=12, top_p=1.0, temperature=1.5, **changes) if name != "greedy" else
                 settings_for(name, **changes))  # fmt: skip
    assert rows_of(tmp_path / "a") != rows_of(tmp_path / "b")
    greedy = rows_of(tmp_path / "greedy")
    assert all(one["continuation"] == two["continuation"] for one, two in zip(greedy[::2], greedy[1::2], strict=True))


def test_a_response_shorter_than_k_is_too_short_and_never_padded(settings_for, tmp_path, tiny_tokenizer):
    length = len(tiny_tokenizer(SHORT_RESPONSE, add_special_tokens=False)["input_ids"])
    assert 5 <= length < 12, "choose another short response"
    items = make_items(3)
    items[1]["full_harmful_response"] = SHORT_RESPONSE
    file = write_rows(tmp_path / "items.jsonl", items)
    metrics = evaluate(settings_for(items=str(file), prefill_tokens=[5, length, length + 1, 20]))
    assert {k: entry["too_short"] for k, entry in metrics["corr_at_k"].items()} == {
        "5": 0, str(length): 0, str(length + 1): 1, "20": 1,
    }  # fmt: skip
    assert metrics["corr_at_k"]["20"]["requests"] <= 2
    rows = [row for row in rows_of(tmp_path / "out") if row["request_id"] == items[1]["request_id"]]
    sampled = [row["prefill_tokens"] for row in rows if not row.get("too_short")]
    assert sampled == [5, 5, length, length]
    for row in rows:
        if row.get("too_short"):
            assert row["path"] is None and "continuation" not in row
    judged = [row for row in rows_of(tmp_path / "out", "verdicts.jsonl") if row["request_id"] == items[1]["request_id"]]
    assert [row["prefill_tokens"] for row in judged] == sampled


def test_an_item_too_short_for_every_k_is_resumed_past_like_any_other(settings_for, tmp_path):
    items = make_items(3)
    items[0]["full_harmful_response"] = items[2]["full_harmful_response"] = SHORT_RESPONSE
    file = write_rows(tmp_path / "items.jsonl", items)
    settings = settings_for(items=str(file), prefill_tokens=[12, 20])
    first = evaluate(settings)
    before = (tmp_path / "out" / "generations.jsonl").read_bytes()
    assert strip_time(evaluate(settings)) == strip_time(first)
    assert (tmp_path / "out" / "generations.jsonl").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.quarantined"))


def test_where_every_response_is_too_short_the_metrics_are_null(settings_for, tmp_path):
    items = make_items(2)
    for item in items:
        item["full_harmful_response"] = SHORT_RESPONSE
    file = write_rows(tmp_path / "items.jsonl", items)
    metrics = evaluate(settings_for(items=str(file), prefill_tokens=[40]))
    assert metrics["corr_at_k"]["40"]["value"] is None
    assert metrics["corr_at_k"]["40"]["too_short"] == 2
    assert metrics["corr_mean"]["value"] is None


# --- Resumption -------------------------------------------------------------------------------------------------------


def test_a_finished_evaluation_is_measured_again_without_loading_the_model(settings_for, monkeypatch):
    from course_correction.generation import loading

    first = evaluate(settings_for())
    monkeypatch.setattr(loading, "load_model", lambda *arguments: pytest.fail("the model was loaded"))
    assert strip_time(evaluate(settings_for())) == strip_time(first)


@pytest.mark.parametrize("name", ["generations.jsonl", "verdicts.jsonl"])
def test_a_file_torn_at_any_byte_is_completed_to_the_same_bytes(name, settings_for, tmp_path):
    first = evaluate(settings_for())
    path = tmp_path / "out" / name
    whole = path.read_bytes()
    random_source = random.Random(name)
    for size in (0, 1, len(whole) - 1, *(random_source.randrange(len(whole)) for _ in range(4))):
        with open(path, "r+b") as file:
            file.truncate(size)
        assert strip_time(evaluate(settings_for())) == strip_time(first)
        assert path.read_bytes() == whole


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory, tiny_model_folder, items_file) -> tuple[Path, subprocess.CompletedProcess]:
    """An evaluation by the script, uninterrupted."""
    folder = tmp_path_factory.mktemp("one-go") / "out"
    done = subprocess.run(
        eval_command(tiny_model_folder, items_file, folder), env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def test_a_run_killed_at_random_moments_writes_the_same_bytes_as_one_in_one_go(
    in_one_go, tiny_model_folder, items_file, tmp_path
):
    wanted = {name: (in_one_go[0] / name).read_bytes() for name in ("generations.jsonl", "verdicts.jsonl")}
    folder = tmp_path / "out"
    random_source = random.Random()
    num_rows = NUM_ITEMS * len(LENGTHS) * 4
    moments = sorted(random_source.randrange(1, num_rows * 3 // 4) for _ in range(3))
    reached = []
    for moment in moments:
        process = subprocess.Popen(
            eval_command(tiny_model_folder, items_file, folder),
            env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(rows_so_far(folder / "generations.jsonl")) >= moment:
                break
            time.sleep(0.002)
        time.sleep(random_source.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(len(rows_so_far(folder / "generations.jsonl")))
    last = subprocess.run(
        eval_command(tiny_model_folder, items_file, folder), env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert last.returncode == 0, last.stderr[-3000:]
    assert reached[0] < num_rows, "the first kill came too late to interrupt anything"
    for name, content in wanted.items():
        assert (folder / name).read_bytes() == content, f"{name} differs; killed after {reached} rows"


# --- The console ------------------------------------------------------------------------------------------------------


def test_no_request_response_or_continuation_reaches_console_report_or_metrics(in_one_go, items_file):
    folder, done = in_one_go
    texts = [row["continuation"].strip() for row in rows_of(folder)]
    for item in read_jsonl(items_file):
        texts += [item["request"], item["full_harmful_response"], item["full_harmful_response"][:40]]
    shown = [done.stdout, done.stderr]
    shown += [(folder / name).read_text(encoding="utf-8") for name in ("report.md", "metrics.json", "run.json")]
    for text in texts:
        if len(text) >= 12:
            assert not any(text in place for place in shown)


def test_the_console_shows_the_table_and_where_the_report_is(in_one_go):
    folder, done = in_one_go
    assert "| **Corr_mean** |" in done.stdout
    assert f"{folder}/report.html, report.md" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_a_tokenizer_without_a_chat_template_is_one_line_and_exit_status_two(tiny_model_folder, items_file, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    done = subprocess.run(
        eval_command(folder, items_file, tmp_path / "out"), env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1, done.stderr[-2000:]
    assert re.match(r"error: .*has no chat template", errors[0])
