"""The schema of metrics.json against what is measured, what the page's JavaScript reads, and what reaches the page."""

import re
from pathlib import Path

import pytest

from course_correction.report import html
from course_correction.report.html import SCRIPTS, write_html_report
from course_correction.report.page_schema import IndexRow, PageItem, PageRun, PageSummary, SummaryRow
from course_correction.report.run_data import RunData
from course_correction.report.schema import (
    ConfusionCounts,
    CorrectionPositions,
    Dynamics,
    FamilyAgreement,
    JudgeAgreement,
    Metrics,
    PageMetrics,
    PairedDifference,
    Rate,
    RefusalAgreement,
    RequestsNeeded,
    TaskScore,
)
from tests.support.browser import Page
from tests.support.browser import browser as browser
from tests.support.report import CORRECTION, full_metrics, some_items, some_metrics, some_prefill, write_run
from tests.support.schema import mismatches, unknown_key

PAGE = Path(html.__file__).parent / "page"
# The names by which the page's modules call what they read.
ROOTS = {
    "summary": PageSummary,
    "run": PageRun,
    "summaryRow": SummaryRow,
    "allMetrics": list[PageMetrics],
    "metrics": PageMetrics,
    "last": PageMetrics,
    "entry": Rate | PairedDifference | TaskScore,
    "difference": PairedDifference,
    "first": CorrectionPositions,
    "dynamics": Dynamics,
    "agreement": JudgeAgreement,
    "confusion": ConfusionCounts,
    "onLabels": FamilyAgreement,
    "refusals": RefusalAgreement,
    "needed": RequestsNeeded,
    "texts": PageItem,
}
READ = re.compile(rf"(?<![\w.$\"])({'|'.join(ROOTS)})((?:\??\.\w+|(?:\?\.)?\[[^\][]*\])+)")
STEP = re.compile(r"\.(\w+)|\[([^\]]*)\]")
# Records which keys of a block are read, each as a list that begins with the kind of the block.
RECORDER = """
(() => {
  const parse = JSON.parse;
  const reads = new Set();
  window.readKeys = () => [...reads].map((one) => parse(one));
  const watch = (value, path) => {
    if (value === null || typeof value !== "object") return value;
    return new Proxy(value, {
      get(target, key) {
        if (typeof key === "symbol" || (Array.isArray(target) && !/^\\d+$/.test(key))) return target[key];
        reads.add(JSON.stringify([...path, key]));
        return watch(target[key], [...path, key]);
      },
    });
  };
  JSON.parse = (text) => {
    const value = parse(text);
    return watch(value, [Array.isArray(value) ? "index" : "runs" in value ? "summary" : "item"]);
  };
})();
"""


def reads_of(module: str) -> list[tuple[str, list[str | None]]]:
    """Return what a module reads, as a root and the keys that follow; None stands for a computed key."""
    text = re.sub(r"^\s*//.*$|^import .*$", "", (PAGE / f"{module}.js").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(root, [name or None for name, _ in STEP.findall(keys)]) for root, keys in READ.findall(text)]


def test_metrics_with_every_part_fit_the_schema():
    assert mismatches(full_metrics(), Metrics) == []
    assert mismatches(some_metrics(), Metrics) == []


def test_metrics_with_a_wrong_part_do_not_fit_the_schema():
    assert mismatches({**some_metrics(), "added": 1}, Metrics) == [".added: unknown"]
    assert mismatches(some_metrics(corr_mean={"value": "high", "ci95": None}), Metrics) == [
        ".corr_mean.value: str instead of <class 'float'>"
    ]
    assert len(mismatches({}, Metrics)) == len(Metrics.__required_keys__)


def test_every_key_that_the_page_reads_is_in_the_schema():
    reads = [(module, root, path) for module in SCRIPTS for root, path in reads_of(module)]
    assert {root for _, root, _ in reads} == set(ROOTS), "a root that is never read: its name has changed"
    unknown = [(module, root, path) for module, root, path in reads if unknown_key(path, ROOTS[root])]
    assert unknown == []


def test_a_key_that_is_not_in_the_schema_is_recognised():
    assert unknown_key(["benign", "turned_back"], PageMetrics) == "turned_back"
    assert unknown_key(["runs", "0", "metrics", "corr_at_k", "10", "valu"], PageSummary) == "valu"
    assert unknown_key(["runs", "map"], PageSummary) is None


@pytest.mark.parametrize("count", [1, 2])
def test_every_key_that_the_page_reads_in_a_browser_is_in_the_schema(browser, tmp_path, count):
    runs = {}
    for name in ("before", "after")[-count:]:
        folder = write_run(tmp_path / name, {("alpha", 10): [(CORRECTION, True), ("More", None)]}, full_metrics())
        runs[name] = RunData(full_metrics(), folder, some_items("alpha"), some_prefill)
    estimate = {"value": 0.1, "ci95": [0.0, 0.2]}
    difference = {"corr_at_k": {"10": estimate}, "corr_mean": {**estimate, "p_value": 0.01}, "requests": 1}
    page = Page(browser, write_html_report(tmp_path / "report.html", runs, difference), script=RECORDER)
    page.press("b")
    assert page.complaints() == []
    shapes = {"summary": PageSummary, "index": list[IndexRow], "item": PageItem}
    reads = page.run("window.readKeys()")
    assert [read for read in reads if unknown_key(read[1:], shapes[read[0]])] == []
    assert {read[0] for read in reads} == set(shapes)
    metrics_read = {read[4] for read in reads if read[1:2] == ["runs"] and len(read) > 4}
    assert {"corr_at_k", "first_correction", "benign", "jailbreak", "general", "dynamics", "settings"} <= metrics_read


def test_each_module_of_the_page_comes_after_those_that_it_imports():
    assert sorted(SCRIPTS) == sorted(path.stem for path in PAGE.glob("*.js"))
    exported: dict[str, set[str]] = {}
    for name in SCRIPTS:
        text = (PAGE / f"{name}.js").read_text(encoding="utf-8")
        for names, module in re.findall(r'^import \{([^}]*)\} from "\./(\w+)\.js";$', text, re.MULTILINE):
            assert {one.strip() for one in names.split(",")} <= exported[module], (name, module)
        assert text.count("import ") == len(re.findall(r"^import \{", text, re.MULTILINE)), name
        exported[name] = set(re.findall(r"^export (?:const|function) (\w+)", text, re.MULTILINE))


def test_no_two_modules_of_the_page_define_the_same_name():
    defined = re.findall(r"^(?:const|let|function) (\w+)", html.page_script(), re.MULTILINE)
    assert len(defined) == len(set(defined)) > 50
    assert not re.search(r"^(?:import|export)\b", html.page_script(), re.MULTILINE)
