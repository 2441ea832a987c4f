"""Every benchmark has a test that runs it."""

import re

import pytest

from tests.support.rows import ROOT

BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in path.read_text())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_test_that_runs_its_main(name):
    calls = re.compile(rf"\b{name}\.main\(|[\"']benchmarks\.{name}[\"']")
    assert any(calls.search(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")), f"no test runs {name}"
