"""The page of an evaluation: the content of its file."""

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from course_correction.report.html import write_html_report
from course_correction.report.path_texts import PageLimits
from course_correction.report.run_data import RunData
from tests.support.report import HOSTILE, make_two_runs, one_run, run_data, some_items, some_prefill, write_run


@pytest.fixture
def two_runs(tmp_path):
    return make_two_runs(tmp_path)


class Parts(html.parser.HTMLParser):
    """The elements of a page by a parser of HTML, and the content of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag in ("script", "style") and data.strip():
            self.inside.append((tag, attributes, data))

    def block(self, name: str) -> Any:
        return json.loads("".join(data for _, attributes, data in self.inside if attributes.get("id") == name))

    def texts_of(self, item: int) -> list[str]:
        lengths = self.block(f"item-{item}")["lengths"]
        return ["".join(row[2:5]) for one in lengths for rows in one["paths"] for row in rows]


def parse(path: Path) -> Parts:
    return Parts(path.read_text(encoding="utf-8"))


def test_continuations_are_in_the_page_and_end_no_element(tmp_path):
    texts = list(HOSTILE.values())
    parts = parse(write_html_report(tmp_path / "report.html", one_run(tmp_path, [(text, False) for text in texts])))
    assert parts.texts_of(0) == texts
    plain = parse(write_html_report(tmp_path / "plain.html", one_run_again(tmp_path, [("mild", False)])))
    assert [tag for tag, _ in parts.elements] == [tag for tag, _ in plain.elements]


def one_run_again(folder: Path, texts: list[tuple[str, bool | None]]) -> dict[str, RunData]:
    (folder / "again").mkdir()
    return one_run(folder / "again", texts)


def test_no_character_of_the_data_has_a_meaning_in_html(tmp_path):
    path = write_html_report(tmp_path / "report.html", one_run(tmp_path, [(text, False) for text in HOSTILE.values()]))
    for _, attributes, data in parse(path).inside:
        if attributes.get("type") == "application/json":
            assert not re.search("[<>&\u2028\u2029]", data)


@pytest.mark.parametrize("field", ["name", "request", "request_id", "prefill", "judge", "setting", "reason"])
def test_a_hostile_name_or_text_is_escaped_everywhere(tmp_path, field):
    evil = "</script></title><script>window.hacked=1</script>"
    name = evil if field == "request_id" else "alpha"
    metrics = {"judge": evil} if field == "judge" else {"settings": {evil: evil}} if field == "setting" else {}
    run = one_run(tmp_path, [("mild", False)], name, **metrics)["run"]
    if field == "reason":
        row = {
            "request_id": name,
            "prefill_tokens": 10,
            "path": 0,
            "corrected": False,
            "reason": evil,
            "votes": {evil: True},
        }
        (run.folder / "verdicts.jsonl").write_text(json.dumps(row) + "\n")
    items = [{**run.items[0], "request": evil if field == "request" else "mild"}]
    prefill = {(name, 10): evil} if field == "prefill" else some_prefill
    runs = {evil if field == "name" else "run": RunData(run.metrics, run.folder, items, prefill)}
    page = write_html_report(tmp_path / "report.html", runs).read_text(encoding="utf-8")
    assert "<script>window" not in page and "</title><script" not in page
    assert sum(tag == "script" for tag, _ in Parts(page).elements) == 4


def test_the_policy_allows_the_inlined_script_and_style_by_their_hashes_and_nothing_else(tmp_path, two_runs):
    parts = parse(write_html_report(tmp_path / "report.html", two_runs))
    policy = next(a["content"] for tag, a in parts.elements if tag == "meta" and a.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy and rules["img-src"] == "data:"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (content,) = [data for name, a, data in parts.inside if name == tag and a.get("type") is None]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_the_page_loads_nothing_and_has_no_inline_handler_or_style(tmp_path, two_runs):
    parts = parse(write_html_report(tmp_path / "report.html", two_runs))
    for tag, attributes in parts.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")]
        for name in ("src", "href"):
            link = attributes.get(name) or "#"
            assert link.startswith("#") or link == "data:," or (tag, link) == ("a", "https://arxiv.org/abs/2407.16637")
    style = next(data for tag, _, data in parts.inside if tag == "style")
    assert "url(" not in style and "@import" not in style
    script = next(data for tag, a, data in parts.inside if tag == "script" and not a.get("type"))
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
        "XMLHttpRequest",
        "import(",
    ):
        assert word not in script


def test_the_same_runs_give_the_same_bytes(tmp_path, two_runs):
    one, other = (write_html_report(tmp_path / name, two_runs).read_bytes() for name in ("one.html", "other.html"))
    assert one == other


def test_the_page_names_no_folder(tmp_path, two_runs):
    assert str(tmp_path) not in write_html_report(tmp_path / "report.html", two_runs).read_text(encoding="utf-8")


def test_a_long_text_is_cut_and_its_length_is_kept(tmp_path):
    path = write_html_report(tmp_path / "report.html", one_run(tmp_path, [("x" * 1_000_000, True)]))
    row = parse(path).block("item-0")["lengths"][0]["paths"][0][0]
    assert len("".join(row[2:5])) == 2000 and row[5] == 1_000_000
    assert path.stat().st_size < 200_000


def test_no_more_paths_than_allowed_are_shown_but_all_are_counted(tmp_path):
    run = one_run(tmp_path, [(f"path {number}", number < 3) for number in range(30)])
    parts = parse(write_html_report(tmp_path / "report.html", run, limits=PageLimits(paths=5)))
    assert parts.texts_of(0) == [f"path {number}" for number in range(5)]
    assert parts.block("index")[0][1][0][0] == [3, 27, 0]
    assert parts.block("summary")["left_out"] == 25


def test_a_sample_of_items_is_drawn_if_all_would_make_the_page_too_large(tmp_path):
    names = [f"item-{number}" for number in range(40)]
    folder = write_run(tmp_path / "run", {(name, 10): [("words " * 100, False)] for name in names})
    run = {"run": run_data(folder, some_items(*names))}
    parts = parse(write_html_report(tmp_path / "report.html", run, limits=PageLimits(bytes=9_000)))
    kept = [name for name, _ in parts.block("index")]
    assert 5 < len(kept) < 40 and kept == [name for name in names if name in kept]
    assert kept != names[: len(kept)]
    assert parts.block("summary")["items"] == 40


def test_numbers_that_json_lacks_become_null(tmp_path):
    run = one_run(tmp_path, [("mild", False)], corr_mean={"value": float("nan"), "ci95": [float("-inf"), 1.0]})
    assert "NaN" not in (page := write_html_report(tmp_path / "report.html", run).read_text(encoding="utf-8"))
    assert Parts(page).block("summary")["runs"][0]["metrics"]["corr_mean"] == {"value": None, "ci95": [None, 1.0]}


def test_a_lone_surrogate_can_be_written(tmp_path):
    write_html_report(tmp_path / "report.html", one_run(tmp_path, [("\ud800 text", False)])).read_bytes().decode("utf-8")


def test_without_the_rows_of_paths_the_page_has_its_rates(tmp_path, two_runs):
    for run in two_runs.values():
        for name in ("generations.jsonl", "verdicts.jsonl"):
            (run.folder / name).unlink()
    parts = parse(write_html_report(tmp_path / "report.html", two_runs))
    assert parts.block("index") == [] and parts.block("summary")["summary_rows"]


def test_a_path_without_verdict_is_unscored(tmp_path):
    run = one_run(tmp_path, [("mild", True)])
    (run["run"].folder / "verdicts.jsonl").unlink()
    parts = parse(write_html_report(tmp_path / "report.html", run))
    assert parts.block("index")[0][1][0][0] == [0, 0, 1]


def test_a_response_shorter_than_k_is_marked_and_has_no_prefill(tmp_path):
    run = one_run(tmp_path, [("mild", True)])
    with open(run["run"].folder / "generations.jsonl", "a") as file:
        file.write(json.dumps({"request_id": "alpha", "prefill_tokens": 80, "path": None, "too_short": True}) + "\n")
    parts = parse(write_html_report(tmp_path / "report.html", run))
    assert parts.block("index")[0][1] == [[[1, 0, 0]], [1]]
    assert parts.block("item-0")["lengths"][1] == {"prefills": [None], "paths": [[]]}


def test_only_known_parts_of_the_metrics_get_into_the_page(tmp_path):
    run = one_run(tmp_path, [("mild", False)], added_later="MARKED")
    assert "MARKED" not in write_html_report(tmp_path / "report.html", run).read_text(encoding="utf-8")
