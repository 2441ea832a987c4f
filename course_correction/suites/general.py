"""Suite `general`: the effect of training on general ability, by tasks of lm-evaluation-harness, one unit per task.

The offline tasks `c2_general` lie in the folder lm_eval_general; any other task of the harness is used by its name.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, text_digest
from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import rows_exist
from course_correction.base.run_folder import RUN_FILE
from course_correction.base.settings import identity_of
from course_correction.generation.evaluated_model import sample_rows
from course_correction.judges.protocol import Judge
from course_correction.report.schema import General, PairedDifference, TaskScore
from course_correction.statistics.clustered_rates import paired_rate_difference
from course_correction.statistics.corr_at_k import BOOTSTRAP_SAMPLES, interval
from course_correction.suites.lm_eval_tasks import (
    TASKS_FOLDER,
    Sample,
    TaskRow,
    aggregate,
    check_tasks,
    expand_tasks,
    harness_version,
    run_task,
    wrap_model,
)
from course_correction.suites.protocol import SuiteInputs
from course_correction.suites.settings import SuiteSettings
from course_correction.synthesis.sources import DATA_FOLDER

ROWS_FILE = "general.jsonl"
# Where these differ, the model was asked other questions, and no difference is computed.
_COMPARABLE = ("general_num_fewshot", "general_chat_template", "general_data", "lm_eval")


def identity(inputs: SuiteInputs) -> dict[str, object]:
    """Return what decides the rows, and refuse what could not be run.

    Raises:
        UsageError: If the harness is missing, a task is unknown or its data cannot be loaded, the model is behind a server,
            or the baseline was measured under other settings.
    """
    settings = inputs.settings
    if settings.backend == "openai":
        raise UsageError("suite general runs the model in this process, but backend is openai. Use backend: transformers.")
    identity: dict[str, object] = {"lm_eval": harness_version()} | identity_of(settings, "general")
    tasks = expand_tasks(settings.general_tasks)
    if not rows_exist(inputs.folder / ROWS_FILE):
        check_tasks(tuple(tasks))
    files = [
        DATA_FOLDER / "general_questions.jsonl",
        DATA_FOLDER / "benign_eval.jsonl",
        *sorted(TASKS_FOLDER.glob("*.yaml")),
    ]
    identity["general_data"] = text_digest(*(file.read_text(encoding="utf-8") for file in files))
    if baseline := _baseline_with_rows(settings):
        _check_baseline(baseline, identity)
    return identity


def _check_baseline(folder: Path, identity: dict[str, object]) -> None:
    """Refuse a baseline whose model was asked other questions."""
    file = folder / RUN_FILE
    runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = runs.get("general", {}).get("settings", {})
    for name in _COMPARABLE:
        if known.get(name) != identity[name]:
            raise UsageError(
                f"{folder} was measured with {name} {known.get(name)!r}, this run has {identity[name]!r}, so they cannot be "
                "compared. Measure the baseline again under the same settings, or leave out baseline_dir."
            )


def _baseline_with_rows(settings: SuiteSettings) -> Path | None:
    """Return the folder of the baseline, if there is one that ran this suite."""
    folder = Path(settings.baseline_dir) if settings.baseline_dir else None
    return folder if folder and (folder / ROWS_FILE).is_file() else None


def sample(inputs: SuiteInputs, ranks: Ranks) -> None:
    """Write general.jsonl: a row for each single task, with its numbers and the outcome of each example."""
    settings, evaluated = inputs.settings, inputs.model
    tasks = expand_tasks(settings.general_tasks)
    names = list(tasks)

    @cache
    def wrapped_model() -> Any:
        sampler = evaluated.local_sampler()
        return wrap_model(sampler.model, sampler.tokenizer, settings.general_batch_size)

    def work(unit: int) -> list[TaskRow]:
        options = settings.general_limit, settings.general_num_fewshot, settings.general_chat_template
        name = names[unit]
        return [{"request_id": name, "groups": tasks[name], **run_task(wrapped_model(), name, *options)}]

    sample_rows(inputs.folder / ROWS_FILE, [[name] for name in names], work, evaluated, ranks, "general tasks")


def measure(inputs: SuiteInputs, judge: Judge) -> General:
    """Return the part `general` of metrics.json; no judge is asked.

    Returns:
        `tasks` and, for groups of tasks whose examples can be averaged, `groups`: `metric`, `value`, `stderr`, `ci95`
        (bootstrap over examples), `count`, `higher_is_better`; `difference` to a baseline under the same settings: `value`,
        `ci95`, `p_value`, `count`, by task or group; `versions`.
    """
    settings = inputs.settings
    rows = _with_groups(_read_rows(inputs.folder))
    metrics: General = {"tasks": {}, "groups": {}}
    for name, row in rows.items():
        part = metrics["groups"] if row.get("is_group") else metrics["tasks"]
        part[name] = _summarise(row, settings.seed)
    if baseline := _baseline_with_rows(settings):
        before = _with_groups(_read_rows(baseline))
        pairs = {name: _difference(row, before[name], settings.seed) for name, row in rows.items() if name in before}
        metrics["difference"] = {name: difference for name, difference in pairs.items() if difference}
    metrics["versions"] = {"lm_eval": harness_version()}
    return metrics


def _read_rows(folder: Path) -> list[TaskRow]:
    return cast(list[TaskRow], list(read_jsonl(folder / ROWS_FILE)))


def _with_groups(rows: Sequence[TaskRow]) -> dict[str, TaskRow]:
    """Return rows by task, and a row for each group whose tasks share a mean; all its examples weigh alike."""
    by_name = {row["request_id"]: row for row in rows}
    for group in dict.fromkeys(group for row in rows for group in row["groups"]):
        members = [row for row in rows if group in row["groups"]]
        kinds = {(row["metric"], row["aggregation"], row["higher_is_better"]) for row in members}
        if len(kinds) == 1 and members[0]["aggregation"] == "mean":
            samples: list[Sample] = [
                {**sample, "doc_id": f"{row['request_id']}/{sample['doc_id']}"}
                for row in members
                for sample in row["samples"]
            ]
            by_name[group] = {**members[0], "request_id": group, "is_group": True, "samples": samples}
    return by_name


def _pairs(samples: Sequence[Sample]) -> np.ndarray:
    """Return value and weight of each sample, [n, 2]."""
    return np.array(
        [
            (float(sample["correct"] if "correct" in sample else sample["value"]), sample.get("weight", 1.0))
            for sample in samples
        ]
    )


def _draw(count: int, seed: int) -> np.ndarray:
    """Return how often each of `count` examples stands in each bootstrap resample, [B, count]."""
    random_source = np.random.default_rng(seed)
    return random_source.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP_SAMPLES).astype(np.float32)


def _summarise(row: TaskRow, seed: int) -> TaskScore:
    samples, metric = row["samples"], row["metric"]
    by_harness = {} if row.get("is_group") else row["metrics"]
    value, stderr = (by_harness.get(f"{name},{row['filter']}") for name in (metric, f"{metric}_stderr"))
    ci95: list[float] | None = None
    if row["aggregation"]:
        pairs = _pairs(samples)
        resampled = aggregate(row["aggregation"], pairs, _draw(len(pairs), seed))
        value = float(aggregate(row["aggregation"], pairs, np.ones(len(pairs)))) if value is None else value
        stderr, ci95 = float(resampled.std()) if stderr is None else stderr, interval(resampled)
    elif value is not None and stderr is not None:
        ci95 = [value - 1.96 * stderr, value + 1.96 * stderr]
    return {
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "ci95": ci95,
        "count": len(samples),
        "higher_is_better": row["higher_is_better"],
    }


def _difference(after: TaskRow, before: TaskRow, seed: int) -> PairedDifference | None:
    """Return `after` minus `before` on the examples that both have; None where the metric is not made of single examples."""
    aggregation = after["aggregation"]
    kinds = [(row["metric"], row["filter"], row["aggregation"]) for row in (after, before)]
    if kinds[0] != kinds[1] or not aggregation:
        return None
    rows = [{sample["doc_id"]: sample for sample in row["samples"]} for row in (after, before)]
    shared = [name for name in rows[0] if name in rows[1]]
    if not shared:
        return None
    if all("correct" in row[name] for row in rows for name in shared):
        correct = [{name: row[name]["correct"] for name in shared} for row in rows]
        clusters = {name: str(name) for name in shared}
        return cast(PairedDifference | None, paired_rate_difference(correct[0], correct[1], clusters, seed))
    pairs = [_pairs([row[name] for name in shared]) for row in rows]

    def difference(counts: np.ndarray) -> Any:
        return aggregate(aggregation, pairs[0], counts) - aggregate(aggregation, pairs[1], counts)

    resampled = difference(_draw(len(shared), seed))
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return {
        "value": float(difference(np.ones(len(shared)))),
        "ci95": interval(resampled),
        # Two-sided by the percentile bootstrap, never 0.
        "p_value": float(min(1.0, 2 * (tail + 1) / (len(resampled) + 1))),
        "count": len(shared),
    }
