"""The `evaluate` module computes what the project computes."""

import doctest
import importlib.util
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from course_correction.statistics.corr_at_k import PathVerdict, request_rates, summarise
from tests.support.rows import ROOT


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import evaluate

    monkeypatch.chdir(ROOT)
    for name in ("HF_EVALUATE_CACHE", "HF_MODULES_CACHE", "HF_METRICS_CACHE"):
        if hasattr(evaluate.config, name):
            monkeypatch.setattr(evaluate.config, name, tmp_path / name)
    return evaluate.load("./metrics/corr_at_k", cache_dir=str(tmp_path / "cache"))


def _paths(count: int) -> tuple[list[bool | None], list[int], list[str]]:
    rng = random.Random(0)
    rows = [(rng.choice([True, False, None]), rng.choice([10, 40]), rng.choice("abcdef")) for _ in range(count)]
    return tuple(map(list, zip(*rows, strict=True)))


def test_it_computes_what_the_project_computes(metric: Any) -> None:
    verdicts, lengths, requests = _paths(120)
    wanted = summarise(request_rates([PathVerdict(r, r, k, v) for v, k, r in zip(verdicts, lengths, requests, strict=True)]))
    result = metric.compute(predictions=verdicts, references=lengths, request_ids=requests)
    assert result["corr_mean"] == wanted["corr_mean"]["value"] and result["corr_mean_ci95"] == wanted["corr_mean"]["ci95"]
    for length in ("10", "40"):
        for key in ("value", "ci95", "requests", "unscored_rate"):
            assert result["corr_at_k"][length][key] == wanted["corr_at_k"][length][key]


def test_batches_add_up_to_the_whole(metric: Any) -> None:
    verdicts, lengths, requests = _paths(60)
    whole = metric.compute(predictions=verdicts, references=lengths, request_ids=requests)
    for start in range(0, 60, 20):
        part = slice(start, start + 20)
        metric.add_batch(predictions=verdicts[part], references=lengths[part], request_ids=requests[part])
    assert metric.compute() == whole


def test_unscored_paths_are_in_no_rate_and_none_scored_is_no_number(metric: Any) -> None:
    result = metric.compute(predictions=[None, None], references=[10, 10], request_ids=["a", "b"])
    assert result["corr_mean"] is None and result["corr_at_k"]["10"]["unscored_rate"] == 1
    assert not any(isinstance(value, float) and math.isnan(value) for value in result.values())


def test_bad_references_and_clusters_are_refused(metric: Any) -> None:
    with pytest.raises(ValueError, match="A reference is 0"):
        metric.compute(predictions=[True], references=[0], request_ids=["a"])
    with pytest.raises(ValueError, match="2 clusters for 1 paths"):
        metric.compute(predictions=[True], references=[1], request_ids=["a"], clusters=["x", "y"])


def test_the_examples_of_its_documentation_hold(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    examples = doctest.DocTestParser().get_doctest(type(metric)._info(metric).inputs_description, {}, "corr_at_k", None, 0)
    assert len(examples.examples) >= 4
    monkeypatch.setattr(evaluate, "load", lambda name: metric)
    runner = doctest.DocTestRunner()
    runner.run(examples)
    assert runner.failures == 0


def test_the_space_holds_the_projects_own_code_and_can_be_imported_as_a_package() -> None:
    folder = ROOT / "metrics" / "corr_at_k"
    assert (folder / "rates.py").read_bytes() == (ROOT / "course_correction" / "statistics" / "corr_at_k.py").read_bytes()
    spec = importlib.util.spec_from_file_location(
        "corr_at_k", folder / "corr_at_k.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["corr_at_k"] = module
    try:
        spec.loader.exec_module(module)
        assert module.CorrAtK.__doc__
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "corr_at_k"]:
            del sys.modules[name]
