"""The suite `general`: what training costs elsewhere, by tasks of lm-evaluation-harness, each a unit of its own.

The offline tasks `c2_general` lie in integrations/lm_eval_general; any other task of the harness is taken by its name.
"""

import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl, text_digest
from course_correction.base.ranks import Ranks
from course_correction.base.run_folder import RUN_FILE
from course_correction.statistics.clustered_rates import paired_rate_difference
from course_correction.statistics.corr_at_k import BOOTSTRAP_SAMPLES, interval
from course_correction.suites.lm_eval_tasks import (
    TASKS_FOLDER,
    aggregate,
    check_tasks,
    expand_tasks,
    harness_version,
    run_task,
    wrap_model,
)
from course_correction.synthesis.sources import DATA_FOLDER

ROWS_FILE = "general.jsonl"
# Where these differ the model was asked other things, and no difference is taken.
_COMPARABLE = ("general_num_fewshot", "general_chat_template", "general_data", "lm_eval")

Samples = dict[Hashable, dict[str, Any]]


@dataclass
class GeneralSettings:
    """Which tasks of lm-evaluation-harness are run, and how."""

    general_tasks: list[str] = field(
        default_factory=lambda: ["c2_general"],
        metadata={"help": "tasks or groups of lm-evaluation-harness: mmlu, hellaswag, gsm8k, ...; c2_general is offline"},
    )
    general_limit: int | None = field(default=None, metadata={"help": "the first n examples of each task only"})
    general_num_fewshot: int | None = field(
        default=None, metadata={"help": "worked examples before each; the task's own number without it"}
    )
    general_batch_size: int = field(default=8, metadata={"help": "texts computed together"})
    # True: that is where the model answers its users, and where training moved it.
    general_chat_template: bool = field(
        default=True, metadata={"help": "ask in the chat template; false to compare with leaderboards of base models"}
    )

    def check_general(self) -> None:
        """Refuse values outside their range.

        Raises:
            UsageError: Naming the value.
        """
        self.general_tasks = [self.general_tasks] if isinstance(self.general_tasks, str) else self.general_tasks
        if not self.general_tasks or len(set(self.general_tasks)) != len(self.general_tasks):
            raise UsageError(f"general_tasks is {self.general_tasks}; it needs names of tasks, each once.")
        for name, least in (("general_limit", 1), ("general_num_fewshot", 0), ("general_batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}, but must be at least {least}.")


def identity(evaluation: Any) -> dict[str, Any]:
    """Return what decides the rows, and refuse what could not be run.

    Raises:
        UsageError: If the harness is missing, a task is unknown or its data cannot be had, the model is behind a server,
            or the baseline was asked otherwise.
    """
    settings = evaluation.settings
    if settings.backend == "openai":
        raise UsageError("suite general runs the model in this process, but backend is openai. Take backend: transformers.")
    found = {"lm_eval": harness_version()}
    tasks = expand_tasks(settings.general_tasks)
    if not (evaluation.folder / ROWS_FILE).exists():
        check_tasks(tuple(tasks))
    names = "general_tasks general_limit general_num_fewshot general_batch_size general_chat_template"
    found |= {name: getattr(settings, name) for name in names.split()}
    files = [
        DATA_FOLDER / "general_questions.jsonl",
        DATA_FOLDER / "benign_eval.jsonl",
        *sorted(TASKS_FOLDER.glob("*.yaml")),
    ]
    found["general_data"] = text_digest(*(file.read_text(encoding="utf-8") for file in files))
    if rows := _baseline_rows(settings):
        file = rows.parent / RUN_FILE
        runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        known = runs.get("general", {}).get("settings", {})
        for name in _COMPARABLE:
            if known.get(name) != found[name]:
                raise UsageError(
                    f"{rows.parent} was measured with {name} {known.get(name)!r}, this run has {found[name]!r}, so they "
                    "cannot be compared. Measure it again likewise, or leave out baseline_dir."
                )
    return found


def _baseline_rows(settings: Any) -> Path | None:
    path = Path(settings.baseline_dir) / ROWS_FILE if settings.baseline_dir else None
    return path if path and path.is_file() else None


def run(evaluation: Any, ranks: Ranks) -> None:
    """Write general.jsonl: a row for each single task, with its numbers and how each example went."""
    settings = evaluation.settings
    tasks = expand_tasks(settings.general_tasks)
    names = list(tasks)

    @cache
    def model() -> Any:
        sampler = evaluation.sampler()
        return wrap_model(sampler.model, sampler.tokenizer, settings.general_batch_size)

    def work(unit: int) -> list[dict[str, Any]]:
        options = settings.general_limit, settings.general_num_fewshot, settings.general_chat_template
        name = names[unit]
        return [{"request_id": name, "groups": tasks[name]} | run_task(model(), name, *options)]

    units = [[name] for name in names]
    evaluation.run_stage(ROWS_FILE, units, lambda rows: len(rows) == 1, work, ranks, "general tasks")


def measure(evaluation: Any, judge: Any) -> dict[str, Any]:
    """Return the part `general` of metrics.json; no judge is asked.

    Returns:
        `tasks` and, for groups of tasks whose examples can be averaged, `groups`: `metric`, `value`, `stderr`, `ci95`
        (bootstrap over examples), `count`, `higher_is_better`; `difference` to a baseline that ran the same: `value`,
        `ci95`, `p_value`, `count`, by task or group; `versions`.
    """
    settings, seed = evaluation.settings, evaluation.settings.seed
    rows = _with_groups(list(read_jsonl(evaluation.folder / ROWS_FILE)))
    found: dict[str, Any] = {"tasks": {}, "groups": {}}
    for name, row in rows.items():
        found["groups" if row.get("is_group") else "tasks"][name] = _summarise(row, seed)
    if path := _baseline_rows(settings):
        before = _with_groups(list(read_jsonl(path)))
        pairs = {name: _difference(row, before[name], seed) for name, row in rows.items() if name in before}
        found["difference"] = {name: difference for name, difference in pairs.items() if difference}
    return found | {"versions": {"lm_eval": harness_version()}}


def _with_groups(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return rows by task, and a row for each group whose tasks share a mean; all its examples weigh alike."""
    found = {row["request_id"]: row for row in rows}
    for group in dict.fromkeys(group for row in rows for group in row["groups"]):
        members = [row for row in rows if group in row["groups"]]
        kinds = {(row["metric"], row["aggregation"], row["higher_is_better"]) for row in members}
        if len(kinds) == 1 and members[0]["aggregation"] == "mean":
            samples = [
                sample | {"doc_id": f"{row['request_id']}/{sample['doc_id']}"}
                for row in members
                for sample in row["samples"]
            ]
            found[group] = members[0] | {"request_id": group, "is_group": True, "samples": samples}
    return found


def _pairs(samples: list[dict[str, Any]]) -> np.ndarray:
    """Return value and weight of each sample, [n, 2]."""
    return np.array([(float(sample.get("correct", sample.get("value"))), sample.get("weight", 1.0)) for sample in samples])


def _draw(count: int, seed: int) -> np.ndarray:
    """Return how often each of `count` examples stands in each bootstrap resample, [B, count]."""
    random_source = np.random.default_rng(seed)
    return random_source.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP_SAMPLES).astype(np.float32)


def _summarise(row: dict[str, Any], seed: int) -> dict[str, Any]:
    samples, metric = row["samples"], row["metric"]
    by_harness = {} if row.get("is_group") else row["metrics"]
    value = by_harness.get(f"{metric},{row['filter']}")
    stderr, ci95 = by_harness.get(f"{metric}_stderr,{row['filter']}"), None
    if row["aggregation"]:
        pairs = _pairs(samples)
        resampled = aggregate(row["aggregation"], pairs, _draw(len(pairs), seed))
        value = float(aggregate(row["aggregation"], pairs, np.ones(len(pairs)))) if value is None else value
        stderr, ci95 = float(resampled.std()) if stderr is None else stderr, interval(resampled)
    elif stderr is not None:
        ci95 = [value - 1.96 * stderr, value + 1.96 * stderr]
    return {
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "ci95": ci95,
        "count": len(samples),
        "higher_is_better": row["higher_is_better"],
    }


def _difference(after: dict[str, Any], before: dict[str, Any], seed: int) -> dict[str, Any] | None:
    """Return `after` minus `before` on the examples that both have; None where single examples make up no metric."""
    names = ("metric", "filter", "aggregation")
    if any(after[name] != before[name] for name in names) or not after["aggregation"]:
        return None
    rows = [{sample["doc_id"]: sample for sample in row["samples"]} for row in (after, before)]
    shared = [name for name in rows[0] if name in rows[1]]
    if not shared:
        return None
    if all("correct" in row[name] for row in rows for name in shared):
        verdicts = [{name: row[name]["correct"] for name in shared} for row in rows]
        return paired_rate_difference(*verdicts, {name: str(name) for name in shared}, seed)
    pairs = [_pairs([row[name] for name in shared]) for row in rows]

    def difference(counts: np.ndarray) -> Any:
        return aggregate(after["aggregation"], pairs[0], counts) - aggregate(after["aggregation"], pairs[1], counts)

    resampled = difference(_draw(len(shared), seed))
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return {
        "value": float(difference(np.ones(len(shared)))),
        "ci95": interval(resampled),
        # Two-sided by the percentile bootstrap, never 0.
        "p_value": float(min(1.0, 2 * (tail + 1) / (len(resampled) + 1))),
        "count": len(shared),
    }
