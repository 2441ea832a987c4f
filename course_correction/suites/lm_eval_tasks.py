"""Run single tasks of lm-evaluation-harness as a library. Knows nothing of evaluations, folders or baselines.

Source: https://github.com/EleutherAI/lm-evaluation-harness 0.4.13, `lm_eval.simple_evaluate`.
"""

import difflib
import io
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from course_correction.base.errors import UsageError

TASKS_FOLDER = Path(__file__).resolve().parent / "lm_eval_general"
# Functions of the ratio of summed values to summed weights. Each weight is 1, except where words or bytes are counted.
_AGGREGATIONS = {
    "mean": lambda ratio: ratio,
    "perplexity": lambda ratio: np.exp(-ratio),
    "bits": lambda ratio: -ratio / math.log(2),
}


class Sample(TypedDict):
    """One example of a task: `correct`, or a `value` and its `weight` (1 without)."""

    doc_id: int | str
    correct: NotRequired[bool]
    value: NotRequired[float]
    weight: NotRequired[float]


class TaskResult(TypedDict):
    """The result of a task, without any text of its examples.

    `metrics`: all numbers of the harness, by "metric,filter". `metric`: the first of them, which counts. `aggregation`: how
    the samples make it up, None where that is unknown.
    """

    metric: str
    filter: str
    higher_is_better: bool | None
    aggregation: str | None
    metrics: dict[str, float]
    samples: list[Sample]


class TaskRow(TaskResult):
    """A row of general.jsonl, or one made for a group of tasks."""

    request_id: str
    groups: list[str]
    is_group: NotRequired[bool]


def harness_version() -> str:
    """Return the installed version of lm-evaluation-harness.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise UsageError("suite general needs lm-evaluation-harness: pip install -e '.[lm-eval]'.") from None


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Silence the harness's log, warnings and bars: the caller shows the progress."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@cache
def _task_manager(with_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS_FOLDER), include_defaults=with_defaults)


def _manager_for(names: list[str]) -> Any:
    """Return the index of tasks, with the harness's own thousands, which are slow to read, only if one is asked for."""
    with quiet_harness():
        own = _task_manager(False)
        return own if all(name in own.task_index for name in names) else _task_manager(True)


def expand_tasks(names: list[str]) -> dict[str, list[str]]:
    """Return the single tasks behind names of tasks, groups and tags, each with those of the `names` that contain it.

    Raises:
        UsageError: If the harness does not know a name.
    """
    index = _manager_for(names).task_index
    tasks: dict[str, list[str]] = {}
    for name in names:
        if name not in index:
            close = difflib.get_close_matches(name, index, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UsageError(
                f"general_tasks: {name} is no task of lm-evaluation-harness {harness_version()}; {hint}"
                "`lm_eval ls tasks` lists them."
            )
        for task in _expand(name, index):
            groups = tasks.setdefault(task, [])
            if name not in (task, *groups):
                groups.append(name)
    return tasks


def _expand(name: str, index: dict[str, Any]) -> Iterator[str]:
    entry = index[name]
    if entry.kind.name == "TAG":
        children = sorted(entry.tags)
    elif entry.kind.name == "GROUP":
        children = [entry.cfg["task"]] if isinstance(entry.cfg["task"], str) else entry.cfg["task"]
    else:
        yield name
        return
    for child in children:
        if not isinstance(child, str) or child not in index:
            raise UsageError(f"general_tasks: the group {name} describes tasks within itself. Name single tasks instead.")
        yield from _expand(child, index)


def load_task(task: str) -> Any:
    """Return the harness's object for a single task, with its data, which may have to be downloaded.

    Raises:
        UsageError: If that fails, or if the task executes code that the model writes.
    """
    manager = _manager_for([task])
    try:
        with quiet_harness():
            loaded = manager.load([task])["tasks"][task]
    except Exception as error:  # Downloads raise exceptions of any type.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UsageError(f"general_tasks: {task} cannot be loaded ({reason}). Check the network, or leave it out.") from None
    if getattr(loaded, "UNSAFE_CODE", False):
        raise UsageError(f"general_tasks: {task} executes code that the model writes. Run it with lm_eval, in a sandbox.")
    return loaded


@cache
def check_tasks(tasks: tuple[str, ...]) -> None:
    """Load all tasks once, so that missing data is noticed before any work.

    Raises:
        UsageError: Naming the task.
    """
    for task in tasks:
        load_task(task)


def wrap_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return the harness's wrapper of a loaded model."""
    import torch
    from lm_eval.models.huggingface import HFLM

    with quiet_harness():
        # Log-probabilities in bfloat16 have only three digits, as does their sum.
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=torch.float32)


def run_task(model: Any, task: str, limit: int | None, num_fewshot: int | None, chat_template: bool) -> TaskResult:
    """Run a single task.

    Args:
        model: Of `wrap_model`.
        task: Its name.
        limit: Use only the first n examples.
        num_fewshot: Worked examples; the task's own number without.
        chat_template: Use the chat template; a task whose metadata have `apply_chat_template` decides for itself.

    Raises:
        UsageError: If the harness returns no number.
    """
    from lm_eval import simple_evaluate

    loaded = load_task(task)
    chat_template = (loaded.get_config("metadata") or {}).get("apply_chat_template", chat_template)
    with quiet_harness(), _by_itself():
        results = simple_evaluate(
            model=model, tasks=[loaded], task_manager=_manager_for([task]), num_fewshot=num_fewshot, limit=limit,
            apply_chat_template=chat_template, bootstrap_iters=1000,
        )  # fmt: skip
    numbers = {
        name: float(value)
        for name, value in results["results"][task].items()
        if "," in name and isinstance(value, int | float) and math.isfinite(value)
    }
    names = [name for name in numbers if "_stderr," not in name]
    if not names:
        raise UsageError(f"general_tasks: {task} gave no number. Leave it out, or raise general_limit.")
    metric, filter_name = names[0].split(",")
    samples = [sample for sample in results["samples"][task] if sample["filter"] == filter_name]
    aggregation, pairs = _recognise(numbers[names[0]], [sample.get(metric) for sample in samples])
    ids = [sample["doc_id"] for sample in samples]
    return {
        "metric": metric,
        "filter": filter_name,
        "higher_is_better": results["higher_is_better"][task].get(metric),
        "aggregation": aggregation,
        "metrics": numbers,
        "samples": _to_samples(ids, aggregation, pairs) if aggregation else [{"doc_id": doc_id} for doc_id in ids],
    }


@contextmanager
def _by_itself() -> Iterator[None]:
    """Make the harness work for this process alone.

    It returns results on local rank 0 only, but here each process has tasks of its own. It also forks for the bootstrap,
    which a process with a model on a GPU must not do.
    """
    known = {name: os.environ.pop(name, None) for name in ("LOCAL_RANK", "DISABLE_MULTIPROC")}
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        del os.environ["DISABLE_MULTIPROC"]
        os.environ.update({name: value for name, value in known.items() if value is not None})


def _recognise(value: float, samples: list[Any]) -> tuple[str | None, list[tuple[float, float]]]:
    """Return the aggregation that gives `value` for the samples, None if unknown, and their values and weights."""
    weighted = any(isinstance(one, list | tuple) for one in samples)
    try:
        pairs = [(float(one[0]), float(one[1])) if weighted else (float(one), 1.0) for one in samples]
    except (TypeError, ValueError, IndexError):
        return None, []
    if min(weight for _, weight in pairs) <= 0:
        return None, []
    # Pairs of a label and a guess, as for F1, are not values with weights, even if their ratio fits by chance.
    for name in ("perplexity", "bits") if weighted else ("mean", "perplexity"):
        if math.isclose(aggregate(name, np.array(pairs), np.ones(len(pairs))), value, rel_tol=1e-6, abs_tol=1e-12):
            return name, pairs
    return None, []


def _to_samples(ids: list[int], aggregation: str, pairs: list[tuple[float, float]]) -> list[Sample]:
    is_binary = aggregation == "mean" and all(value in (0.0, 1.0) for value, _ in pairs)
    samples: list[Sample] = []
    for doc_id, (value, weight) in zip(ids, pairs, strict=True):
        if is_binary:
            samples.append({"doc_id": doc_id, "correct": bool(value)})
        elif weight == 1.0:
            samples.append({"doc_id": doc_id, "value": value})
        else:
            samples.append({"doc_id": doc_id, "value": value, "weight": weight})
    return samples


def aggregate(name: str, pairs: np.ndarray, counts: np.ndarray) -> Any:
    """Return the metric of samples (value, weight), [n, 2], each counted `counts` times, [..., n]."""
    sums = counts @ pairs
    return _AGGREGATIONS[name](sums[..., 0] / sums[..., 1])
