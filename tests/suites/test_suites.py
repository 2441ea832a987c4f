"""Suites together: shares with their paired differences, the table of all, suites added later, and what they cannot take."""

import math
import os
import subprocess
import sys

import pytest

from course_correction.base.errors import UsageError
from course_correction.evaluation.run import evaluate
from course_correction.statistics.clustered_rates import clustered_rate, paired_rate_difference
from tests.support.rows import ROOT
from tests.support.suites import settings_for as settings_for

# --- Shares -----------------------------------------------------------------------------------------------------------


def test_a_rate_counts_scored_verdicts_and_reports_the_unscored_share():
    measured = clustered_rate([True, False, None, True], ["a", "a", "b", "c"])
    assert measured["value"] == pytest.approx(2 / 3) and measured["unscored_rate"] == 0.25
    assert (measured["count"], measured["clusters"]) == (4, 3)
    assert clustered_rate([], [])["value"] is None and clustered_rate([None], ["a"])["ci95"] is None


def test_a_rates_interval_is_wider_where_verdicts_come_in_clusters():
    verdicts = [True] * 20 + [False] * 20
    alone = clustered_rate(verdicts, [str(index) for index in range(40)])["ci95"]
    together = clustered_rate(verdicts, [str(index // 5) for index in range(40)])["ci95"]
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 40), rel=0.1)


def test_a_paired_difference_uses_what_both_runs_have_scored():
    before, after = {1: True, 2: None, 3: True, 4: False}, {1: False, 2: True, 3: False, 5: True}
    clusters = {key: str(key) for key in range(6)}
    measured = paired_rate_difference(after, before, clusters)
    assert measured["value"] == -1 and measured["count"] == 2 and measured["p_value"] == 0.5
    assert paired_rate_difference(after, {}, clusters) is None
    same = paired_rate_difference(before, before, clusters)
    assert same["value"] == 0 and same["p_value"] == 1


# --- All --------------------------------------------------------------------------------------------------------------


def test_a_suite_added_later_repeats_no_work_and_stays_in_the_metrics(settings_for, tmp_path):
    evaluate(settings_for())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.jsonl")}
    assert "dynamics" in evaluate(settings_for(suite=["dynamics"]))
    metrics = evaluate(settings_for(suite=["benign"]))
    assert {"dynamics", "benign"} <= metrics.keys()
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in before.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": ["jailbrake"]}, "suite is 'jailbrake', but takes jailbreak, general, benign, dynamics"),
        ({"suite": ["dynamics"], "dynamics_tokens": 0}, "dynamics_tokens is 0"),
    ],
)
def test_settings_that_a_suite_does_not_accept_are_refused_in_one_line(settings_for, changes, message):
    with pytest.raises(UsageError, match=message):
        settings_for(**changes)


def test_dynamics_on_a_server_are_refused_before_any_work(settings_for):
    settings = settings_for(suite=["dynamics"], backend="openai", server_url="http://127.0.0.1:9/v1")
    with pytest.raises(UsageError, match="whole distributions"):
        evaluate(settings)


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(settings_for, tmp_path, tiny_model_folder):
    evaluate(settings_for("one", suite=["benign", "dynamics"]))
    arguments = [
        "--model_name_or_path", tiny_model_folder, "--max_requests", 3, "--num_paths", 1, "--prefill_tokens", 5, 12,
        "--max_new_tokens", 4, "--max_benign", 4, "--benign_max_new_tokens", 6, "--dtype", "float32",
        "--requests_per_unit", 2, "--dynamics_tokens", 5, "--suite", "benign", "dynamics", "--output_dir", tmp_path / "two",
    ]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", ROOT / "eval.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, [*command, *arguments])], capture_output=True, env=environment, cwd=ROOT, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("benign.jsonl", "dynamics.jsonl"):
        two, one = ((tmp_path / run / name).read_text().splitlines() for run in ("two", "one"))
        assert two == one
