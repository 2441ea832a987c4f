"""Single tasks of lm-evaluation-harness, called as a library. Knows nothing of evaluations, folders or baselines.

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
from typing import Any

import numpy as np

from course_correction.base.errors import UsageError

TASKS_FOLDER = Path(__file__).resolve().parent / "lm_eval_general"
# Of the ratio of summed values to summed weights; each weight is 1 but where words or bytes are counted.
_AGGREGATIONS = {
    "mean": lambda ratio: ratio,
    "perplexity": lambda ratio: np.exp(-ratio),
    "bits": lambda ratio: -ratio / math.log(2),
}


def harness_version() -> str:
    """Return the installed version of lm-evaluation-harness.

    Raises:
        UsageError: If there is none.
    """
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise UsageError("suite general needs lm-evaluation-harness: pip install -e '.[lm-eval]'.") from None


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Silence the harness's log, warnings and bars; whoever calls it shows the progress."""
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
    """Return the index of tasks; the harness's own thousands take long to read, so only if they are asked for."""
    with quiet_harness():
        own = _task_manager(False)
        return own if all(name in own.task_index for name in names) else _task_manager(True)


def expand_tasks(names: list[str]) -> dict[str, list[str]]:
    """Return the single tasks behind names of tasks, groups and tags, each with the groups among `names` that it is in.

    Raises:
        UsageError: Naming what the harness does not know.
    """
    index = _manager_for(names).task_index
    found: dict[str, list[str]] = {}
    for name in names:
        if name not in index:
            close = difflib.get_close_matches(name, index, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UsageError(
                f"general_tasks: {name} is no task of lm-evaluation-harness {harness_version()}; {hint}"
                "`lm_eval ls tasks` lists them."
            )
        for task in _expand(name, index):
            groups = found.setdefault(task, [])
            if name not in (task, *groups):
                groups.append(name)
    return found


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
    """Return the harness's object for a single task, with its data, which may have to be fetched.

    Raises:
        UsageError: If that fails, or if the task executes what the model writes.
    """
    manager = _manager_for([task])
    try:
        with quiet_harness():
            loaded = manager.load([task])["tasks"][task]
    except Exception as error:  # Fetching raises what it likes.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UsageError(f"general_tasks: {task} cannot be loaded ({reason}). Check the network, or leave it out.") from None
    if getattr(loaded, "UNSAFE_CODE", False):
        raise UsageError(f"general_tasks: {task} executes code that the model writes. Run it by lm_eval, in a sandbox.")
    return loaded


@cache
def check_tasks(tasks: tuple[str, ...]) -> None:
    """Load all tasks once, so that data that cannot be had is missed before any work.

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
        # Log-probabilities in bfloat16 have three digits, and their sum no more.
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=torch.float32)


def run_task(model: Any, task: str, limit: int | None, num_fewshot: int | None, chat_template: bool) -> dict[str, Any]:
    """Run a single task and return what it says, without any text of its examples.

    Args:
        model: Of `wrap_model`.
        task: Its name.
        limit: The first n examples only.
        num_fewshot: Worked examples; the task's own number without.
        chat_template: Ask in the chat template; a task whose metadata say `apply_chat_template` decides for itself.

    Returns:
        `metrics`: all numbers of the harness; `metric`: the first of them, which counts; `aggregation`: how the samples make
        it up, None where that is not known; `samples`: `doc_id` with `correct`, or with `value` and perhaps `weight`.
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
    metric, counting = names[0].split(",")
    samples = [sample for sample in results["samples"][task] if sample["filter"] == counting]
    aggregation, pairs = _recognise(numbers[f"{metric},{counting}"], [sample.get(metric) for sample in samples])
    shown = _show(aggregation, pairs) if aggregation else [{}] * len(samples)
    return {
        "metric": metric,
        "filter": counting,
        "higher_is_better": results["higher_is_better"][task].get(metric),
        "aggregation": aggregation,
        "metrics": numbers,
        "samples": [{"doc_id": sample["doc_id"]} | one for sample, one in zip(samples, shown, strict=True)],
    }


@contextmanager
def _by_itself() -> Iterator[None]:
    """Keep the harness to this process.

    It gives results to local rank 0 only, but here each process has tasks of its own; and it bootstraps in forks, which a
    process that holds a model on a GPU must not make.
    """
    known = {name: os.environ.pop(name, None) for name in ("LOCAL_RANK", "DISABLE_MULTIPROC")}
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        del os.environ["DISABLE_MULTIPROC"]
        os.environ.update({name: value for name, value in known.items() if value is not None})


def _recognise(value: float, samples: list[Any]) -> tuple[str | None, list[tuple[float, float]]]:
    """Find the aggregation that makes `value` of the samples; the harness has functions of many kinds for it."""
    weighted = any(isinstance(one, list | tuple) for one in samples)
    try:
        pairs = [(float(one[0]), float(one[1])) if weighted else (float(one), 1.0) for one in samples]
    except (TypeError, ValueError, IndexError):
        return None, []
    if min(weight for _, weight in pairs) <= 0:
        return None, []
    # Pairs of a label and a guess, as for F1, are no values with weights, whatever their ratio may be by chance.
    for name in ("perplexity", "bits") if weighted else ("mean", "perplexity"):
        if math.isclose(aggregate(name, np.array(pairs), np.ones(len(pairs))), value, rel_tol=1e-6, abs_tol=1e-12):
            return name, pairs
    return None, []


def _show(aggregation: str, pairs: list[tuple[float, float]]) -> list[dict[str, Any]]:
    if aggregation == "mean" and all(value in (0.0, 1.0) for value, _ in pairs):
        return [{"correct": bool(value)} for value, _ in pairs]
    return [{"value": value} | ({"weight": weight} if weight != 1.0 else {}) for value, weight in pairs]


def aggregate(name: str, pairs: np.ndarray, counts: np.ndarray) -> Any:
    """Return the metric of samples (value, weight), [n, 2], each of which stands `counts` times, [..., n]."""
    sums = counts @ pairs
    return _AGGREGATIONS[name](sums[..., 0] / sums[..., 1])
