"""The page of an evaluation: what stands in its file, and what it does in a browser (skipped without chromium)."""

import base64
import hashlib
import html.parser
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from course_correction.headline import headline
from course_correction.html_report import (
    PageLimits,
    RunData,
    read_run,
    split_at_correction,
    write_html_report,
)
from course_correction.run_files import UsageError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TURN = " of it. I'm sorry, but I can't help with this. Let us talk of something else."
HOSTILE = {
    "script": "<script>window.hacked=1</script>",
    "closing": "</script><script>window.hacked=2</script>",
    "image": "<img src=x onerror=window.hacked=3>",
    "comment": "<!--<script>window.hacked=4</script>-->",
    "separators": "one\u2028two\u2029three\u0000four",
    "override": "left \u202eRIGHT\u202c left",
    "braces": "{{script}} {{nothing}}",
}


# ---- Folders made on the spot ----


def some_metrics(value: float = 0.5, **more: Any) -> dict[str, Any]:
    entry = {"value": value, "ci95": [max(0, value - 0.1), min(1, value + 0.1)]}
    return {
        "corr_at_k": {k: {**entry, "requests": 2, "unscored_rate": 0.0, "too_short": 0} for k in ("10", "20")},
        "corr_mean": entry,
        "settings": {"num_paths": 2, "seed": 0},
        "model": "tiny",
        "adapter": None,
        "judge": "pattern",
        "versions": {"course-correction": "0.1.0"},
        "seconds": 12.3,
        **more,
    }


def write_run(
    folder: Path, paths: dict[tuple[str, int], list[tuple[str, bool | None]]], metrics: dict | None = None
) -> Path:
    """Write the three files of a finished evaluation: (request_id, k) to its texts and verdicts."""
    folder.mkdir()
    places = [(request_id, k, path, *said) for (request_id, k), texts in paths.items() for path, said in enumerate(texts)]
    keys = [{"request_id": request_id, "prefill_tokens": k, "path": path} for request_id, k, path, *_ in places]
    spoken = [
        key | {"continuation": text, "num_tokens": 3, "ended": True} for key, (*_, text, _) in zip(keys, places, strict=True)
    ]
    judged = [key | {"corrected": flag, "reason": "told"} for key, (*_, flag) in zip(keys, places, strict=True)]
    for name, rows in (("generations.jsonl", spoken), ("verdicts.jsonl", judged)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.json").write_text(json.dumps(some_metrics() if metrics is None else metrics))
    return folder


def some_items(*names: str) -> list[dict[str, str]]:
    return [{"request_id": n, "request": f"Request of {n}", "full_harmful_response": f"Sure, {n}"} for n in names]


def some_prefill(item: dict[str, str], k: int) -> str:
    return f"Sure, the first {k} of {item['request_id']}"


@pytest.fixture
def two_runs(tmp_path):
    """Of three items, `alpha` is turned only after, `beta` only before, `gamma` never; one path is unscored."""
    items = some_items("alpha", "beta", "gamma")
    before = {
        ("alpha", 10): [("So it goes on", False)] * 2,
        ("beta", 10): [(TURN, True)] * 2,
        ("gamma", 20): [("On", False)] * 2,
    }
    after = {
        ("alpha", 10): [(TURN, True)] * 2,
        ("beta", 10): [("And on", False)] * 2,
        ("gamma", 20): [("", None), ("On", False)],
    }
    return {
        "before": read_run(write_run(tmp_path / "before", before, some_metrics(0.3)), items, some_prefill),
        "after": read_run(write_run(tmp_path / "after", after, some_metrics(0.6)), items, some_prefill),
    }


def one_run(folder: Path, texts: list[tuple[str, bool | None]], name: str = "alpha", **metrics: Any) -> dict[str, RunData]:
    run = write_run(folder / "run", {(name, 10): texts}, some_metrics(**metrics))
    return {"run": read_run(run, some_items(name), some_prefill)}


class Parts(html.parser.HTMLParser):
    """The elements of a page as a parser of HTML finds them, and what stands inside scripts and styles."""

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


# ---- The file ----


def test_what_models_said_stands_in_the_page_and_ends_no_element(tmp_path):
    texts = list(HOSTILE.values())
    parts = parse(write_html_report(tmp_path / "report.html", one_run(tmp_path, [(text, False) for text in texts])))
    assert parts.texts_of(0) == texts
    plain = parse(write_html_report(tmp_path / "plain.html", one_run_again(tmp_path, [("mild", False)])))
    assert [tag for tag, _ in parts.elements] == [tag for tag, _ in plain.elements]


def one_run_again(folder: Path, texts: list[tuple[str, bool | None]]) -> dict[str, RunData]:
    (folder / "again").mkdir()
    return one_run(folder / "again", texts)


def test_no_character_of_the_data_means_anything_to_html(tmp_path):
    path = write_html_report(tmp_path / "report.html", one_run(tmp_path, [(text, False) for text in HOSTILE.values()]))
    for _, attributes, data in parse(path).inside:
        if attributes.get("type") == "application/json":
            assert not re.search("[<>&\u2028\u2029]", data)


@pytest.mark.parametrize("field", ["name", "request", "request_id", "prefill", "judge", "setting", "reason"])
def test_a_hostile_name_or_text_is_escaped_wherever_it_stands(tmp_path, field):
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


def test_a_long_text_is_cut_and_its_length_is_told(tmp_path):
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


def test_items_are_drawn_where_all_would_make_the_page_too_large(tmp_path):
    names = [f"item-{number}" for number in range(40)]
    folder = write_run(tmp_path / "run", {(name, 10): [("words " * 100, False)] for name in names})
    run = {"run": read_run(folder, some_items(*names), some_prefill)}
    parts = parse(write_html_report(tmp_path / "report.html", run, limits=PageLimits(bytes=9_000)))
    kept = [name for name, _ in parts.block("index")]
    assert 5 < len(kept) < 40 and kept == [name for name in names if name in kept]
    assert kept != names[: len(kept)]
    assert parts.block("summary")["items"] == 40


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    run = one_run(tmp_path, [("mild", False)], corr_mean={"value": float("nan"), "ci95": [float("-inf"), 1.0]})
    assert "NaN" not in (page := write_html_report(tmp_path / "report.html", run).read_text(encoding="utf-8"))
    assert Parts(page).block("summary")["runs"][0]["metrics"]["corr_mean"] == {"value": None, "ci95": [None, 1.0]}


def test_a_lone_surrogate_can_be_written(tmp_path):
    write_html_report(tmp_path / "report.html", one_run(tmp_path, [("\ud800 said", False)])).read_bytes().decode("utf-8")


def test_without_the_rows_of_paths_the_page_has_its_rates(tmp_path, two_runs):
    for run in two_runs.values():
        for name in ("generations.jsonl", "verdicts.jsonl"):
            (run.folder / name).unlink()
    parts = parse(write_html_report(tmp_path / "report.html", two_runs))
    assert parts.block("index") == [] and parts.block("summary")["headline"]


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


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no metrics\.json"):
        read_run(tmp_path, [], some_prefill)


def test_only_known_parts_of_the_metrics_get_into_the_page(tmp_path):
    run = one_run(tmp_path, [("mild", False)], added_later="MARKED")
    assert "MARKED" not in write_html_report(tmp_path / "report.html", run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "before", "clause"),
    [
        ("Drill it. I can't help with this. Ask.", "Drill it. ", "I can't help with this"),
        (" the shop, but I can't go on, because", " the shop, ", "but I can't go on"),
        ("I'm sorry, but I can't do it", "", "I'm sorry, but I can't do it"),
        ("First step\nNo, I can't", "First step\n", "No, I can't"),
    ],
)
def test_a_correction_is_marked_from_where_its_clause_begins(text, before, clause):
    parts = split_at_correction(text, text.index("I can't") + 7 if "but" not in text else text.index("can't") + 5)
    assert parts[:2] == (before, clause) and "".join(parts) == text


def test_only_paths_judged_corrected_have_a_marked_clause(tmp_path):
    run = one_run(tmp_path, [(TURN, True), (TURN, False), (TURN, None), ("Drill the wall and sand it", True)])
    rows = parse(write_html_report(tmp_path / "report.html", run)).block("item-0")["lengths"][0]["paths"][0]
    assert [bool(row[3]) for row in rows] == [True, False, False, False]
    assert rows[0][2].strip() == "of it."


def test_words_before_the_correction_are_counted_for_each_run(tmp_path, two_runs):
    found = parse(write_html_report(tmp_path / "report.html", two_runs)).block("summary")["words_before"]
    assert found == [[[2, 2]], [[2, 2]]]


def test_the_first_table_has_a_row_for_each_part_that_was_measured():
    entry = {"value": 0.2, "ci95": [0.1, 0.3]}
    task = {"metric": "accuracy", "value": 0.5, "stderr": 0.01, "higher_is_better": True}
    full = some_metrics(
        corr_mean_less_judge_errors=entry,
        over_refusal=entry,
        benign_kl={"kl": 0.1, "by_position": []},
        over_refusal_difference={**entry, "p_value": 0.3},
        jailbreak={"attacks": {"GCG": entry}, "overall": entry, "overall_difference": {**entry, "p_value": 0.01}},
        general={
            "tasks": {"one": task, "two": {**task, "value": 0.7}, "perplexity": {"value": 9.0, "higher_is_better": False}}
        },
        benign={
            "refusal": {"benign, plain": entry},
            "turned_back": {"after 20 tokens of a harmless answer": entry, "after 20 tokens of a harmless twin": entry},
            "told_apart": {"20": entry},
            "difference": {"after 20 tokens of a harmless answer": {**entry, "p_value": 0.04}},
        },
    )
    rows = {row["label"]: row for row in headline([some_metrics(), full], {"corr_mean": {**entry, "p_value": 0.5}})}
    assert len(rows) == 8
    assert rows["turned back after 20 tokens of a harmless answer"]["better"] == -1
    assert rows["turned back after 20 tokens of a harmless answer"]["difference"]["p_value"] == 0.04
    assert rows["turned back after 20 tokens: harmful less harmless twins"]["values"] == [None, entry]
    assert rows["Corr_mean"]["difference"]["p_value"] == 0.5
    assert rows["jailbreak success, all prompts"]["values"] == [None, entry]
    assert rows["jailbreak success, all prompts"]["difference"]["p_value"] == 0.01
    assert rows["over-refusal, harmless prompts"]["difference"]["p_value"] == 0.3
    assert rows["general ability, mean of tasks"]["values"][1]["value"] == pytest.approx(0.6)
    assert rows["general ability, mean of tasks"]["difference"] is None
    assert [row["label"] for row in headline([some_metrics()], None)] == ["Corr_mean"]


def test_a_group_of_tasks_counts_once_and_its_members_not_beside_it():
    def task(value: float) -> dict[str, Any]:
        return {"metric": "acc", "value": value, "stderr": 0.01, "higher_is_better": True}

    general = {"tasks": {"mmlu_law": task(0.1), "mmlu_art": task(0.3), "boolq": task(0.6)}, "groups": {"mmlu": task(0.2)}}
    (_, row) = headline([some_metrics(general=general)], None)
    assert row["values"][0]["value"] == pytest.approx(0.4)


# ---- The page in a browser, driven over a pipe by the DevTools protocol ----

_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 20) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A headless chromium; replies and events are JSON, each ended by a zero byte."""

    def __init__(self, folder: Path) -> None:
        there, self.sending = os.pipe()
        self.receiving, back = os.pipe()
        off = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
        flags = ["--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        flags += [f"--disable-{name}" for name in off]
        command = [sys.executable, "-c", _LAUNCH, str(there), str(back), CHROMIUM, *flags]
        self.process = subprocess.Popen(
            command, pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(there), os.close(back)
        self.buffer, self.number, self.events = b"", 0, []

    def call(self, method: str, session: str | None = None, tries: int = 20, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self.sending, json.dumps(message).encode() + b"\0")
        while (reply := self.receive()).get("id") != self.number:
            self.events.append(reply)
        if "navigated" in reply.get("error", {}).get("message", "") and tries:
            # Asked while one page gave way to the next.
            time.sleep(0.2)
            return self.call(method, session, tries - 1, **parameters)
        assert "error" not in reply, reply
        return reply["result"]

    def receive(self, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.receiving], [], [], seconds)[0], "chromium does not answer"
            data = os.read(self.receiving, 1 << 20)
            assert data, "chromium has ended"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def close(self) -> None:
        os.close(self.sending), os.close(self.receiving)
        self.process.terminate()
        self.process.wait(20)


class Page:
    """One tab with a report in it."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.browser.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.receive())

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def run(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({selector!r}).click()")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({selector!r}).innerText")

    def count(self, selector: str) -> int:
        return self.run(f"document.querySelectorAll({selector!r}).length")

    def choose(self, selector: str, value: str) -> None:
        script = f"const box = document.querySelector({selector!r}); box.value = {value!r};"
        self.run(
            f"{{{script} for (const kind of ['input', 'change']) box.dispatchEvent(new Event(kind, {{bubbles: true}}))}}"
        )

    def listed(self) -> list[str]:
        return self.run("[...document.querySelectorAll('#items li:not([hidden])')].map((one) => one.textContent)")

    def complaints(self) -> list[Any]:
        """Return errors, warnings and violations of the policy, and requests for anything but the page itself."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found = []
        for event in self.browser.events:
            said = event.get("params", {})
            if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                found.append(said)
            elif event.get("method") == "Network.requestWillBeSent" and not said["request"]["url"].startswith(
                ("file:", "data:")
            ):
                found.append(said["request"]["url"])
        return found

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    running = Browser(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture
def hostile_page(tmp_path):
    texts = [(text, False) for text in HOSTILE.values()] + [(TURN + text, True) for text in HOSTILE.values()]
    evil = "<img src=x onerror=window.hacked=5>"
    run = write_run(tmp_path / "run", {(evil, 10): [*texts, ("y" * 1_000_000, False)]}, some_metrics(judge=evil))
    items = [{"request_id": evil, "request": evil, "full_harmful_response": evil}]
    runs = {f"{evil}{HOSTILE['closing']}": read_run(run, items, lambda item, k: evil)}
    return write_html_report(tmp_path / "report.html", runs), [text for text, _ in texts]


def test_what_models_said_is_shown_as_text_and_runs_nothing(browser, hostile_page):
    path, texts = hostile_page
    page = Page(browser, path)
    page.press("b")
    shown = page.run("[...document.querySelectorAll('.path .text')].map((one) => one.textContent)")
    marked = {"\u0000": "U+0000", "\u202e": "U+202E", "\u202c": "U+202C"}
    for text in texts:
        for character, label in marked.items():
            text = text.replace(character, label)
        assert text in shown
    assert page.run("window.hacked") is None
    assert page.count("main img, main script, main style, main iframe") == 0
    assert page.complaints() == []


def test_a_script_that_got_into_the_file_all_the_same_does_not_run(browser, tmp_path, two_runs):
    path = write_html_report(tmp_path / "report.html", two_runs)
    added = '<script>window.hacked=1</script><img src=x onerror="window.hacked=2"><img src="http://127.0.0.1:9/x.png">'
    path.write_text(path.read_text(encoding="utf-8").replace("<main>", f"<main>{added}"), encoding="utf-8")
    page = Page(browser, path)
    assert page.text("#item-title") == "alpha"
    assert page.run("window.hacked") is None
    assert len(page.complaints()) >= 3


def test_a_line_of_a_megabyte_is_shown_cut_and_stays_within_the_page(browser, hostile_page):
    page = Page(browser, hostile_page[0])
    page.press("b")
    assert "the first 2,000 of 1,000,000 characters" in page.text("#detail")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_reading_direction_set_in_a_text_stays_in_it(browser, hostile_page):
    page = Page(browser, hostile_page[0])
    page.press("b")
    assert page.count(".path .control") > 0
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page.run("document.querySelector('main').textContent"))


@pytest.mark.parametrize("count", [1, 2])
def test_the_page_opens_without_a_complaint(browser, tmp_path, two_runs, count):
    runs = dict(list(two_runs.items())[-count:])
    page = Page(
        browser, write_html_report(tmp_path / "report.html", runs, {"corr_mean": {"value": 0.3, "ci95": [0.1, 0.5]}})
    )
    assert page.complaints() == []
    assert page.listed() == ["alpha", "beta", "gamma"]
    assert page.count(".column") == count
    assert page.run("document.getElementById('disagreement-label').hidden") is (count == 1)


def test_parts_that_were_not_measured_leave_no_empty_section(browser, tmp_path, two_runs):
    for run in two_runs.values():
        (run.folder / "generations.jsonl").unlink()
    page = Page(browser, write_html_report(tmp_path / "report.html", two_runs))
    hidden = page.run("[...document.querySelectorAll('main > section')].filter((one) => one.hidden).map((one) => one.id)")
    assert hidden == ["costs", "dynamics", "paths"]
    assert page.complaints() == []


def test_every_optional_part_is_drawn(browser, tmp_path):
    entry = {"value": 0.2, "ci95": [0.1, 0.3], "count": 50}
    task = {"metric": "accuracy", "value": 0.5, "stderr": 0.01, "ci95": [0.4, 0.6], "count": 9, "higher_is_better": True}
    run = one_run(
        tmp_path,
        [(TURN, True)],
        over_refusal=entry,
        benign_kl={"kl": 0.1, "by_position": [0.1, 0.2, 0.05]},
        benign={"refusal": {"alarming": entry, "unsafe": entry}, "kl_by_position": [0.1, 0.2]},
        jailbreak={"attacks": {"GCG": entry, "PAIR": {**entry, "value": None}}, "mean": 0.2, "judge": "pattern"},
        general={"tasks": {"MMLU": task}},
        dynamics={
            "prefill_tokens": [10, 20],
            "mass": [[0.1, 0.2], [0.3, None]],
            "reference_mass": None,
            "kl": None,
            "tokens": 9,
        },
        judge_agreement={name: entry for name in ("precision", "sensitivity", "kappa")} | {"rows": 9},
        judges_kappa={"one": {"one": 1.0, "two": None}, "two": {"one": None, "two": 1.0}},
        first_correction={"mean": 8.2, "ci95": [7.0, 9.0], "by_prefill": {"10": 8.2}, "paths": 1},
    )
    page = Page(browser, write_html_report(tmp_path / "report.html", run))
    assert page.complaints() == []
    drawn = "[...document.querySelectorAll('figure')].filter((one) => one.querySelector('svg text'))"
    titles = page.run(f"{drawn}.map((one) => one.querySelector('figcaption').innerText)")
    curves, costs = ["Corr@k", "First correction"], ["Refusals", "Jailbreaks", "General ability"]
    assert titles == [*curves, *costs, "KL to the base on benign answers", "Safety tokens, run"]


def test_texts_are_blurred_until_clicked_or_entered(browser, tmp_path, two_runs):
    page = Page(browser, write_html_report(tmp_path / "report.html", two_runs))
    blurred = "[...document.querySelectorAll('.veil > span')].map((one) => getComputedStyle(one).filter)"
    assert page.count(".veil") == 6 and all("blur" in one for one in page.run(blurred))
    assert page.text(".path.verdict-0 mark") == "I'm sorry, but I can't help with this"
    assert page.count(".path mark .veil, .veil mark") == 0
    assert page.run("document.querySelector('.veil').getAttribute('aria-label')").startswith("Request, hidden")
    page.click(".veil")
    assert page.count(".veil") == 5
    page.run("document.querySelector('.veil').focus()")
    page.press("Enter")
    assert page.count(".veil") == 4
    page.press("j")
    assert page.count(".veil") == 6


def test_one_button_and_one_key_show_and_blur_all_texts(browser, tmp_path, two_runs):
    page = Page(browser, write_html_report(tmp_path / "report.html", two_runs))
    page.click("#reveal")
    assert page.count(".veil") == 0
    assert page.run("document.getElementById('reveal').getAttribute('aria-pressed')") == "true"
    page.press("j")
    assert page.count(".veil") == 0
    page.press("b")
    assert page.count(".veil") > 0


def test_filters_leave_the_items_and_paths_that_fit(browser, tmp_path, two_runs):
    page = Page(browser, write_html_report(tmp_path / "report.html", two_runs))
    for selector, value, names in (
        ("#disagreement", "differ", ["alpha", "beta"]),
        ("#disagreement", "gained", ["alpha"]),
        ("#disagreement", "lost", ["beta"]),
        ("#disagreement", "all", ["alpha", "beta", "gamma"]),
        ("#verdict", "0", ["alpha", "beta"]),
        ("#verdict", "2", ["gamma"]),
    ):
        page.choose(selector, value)
        assert page.listed() == names, (selector, value)
    # The only unscored path is at the other k, which is then shown.
    assert page.run("document.querySelector('.lengths :checked').value") == "20"
    assert page.count(".path") == 1 and page.count(".path.verdict-2") == 1
    page.choose("#verdict", "all")
    page.choose("#query", "ET")
    assert page.listed() == ["beta"] and page.text("#item-title") == "beta"
    page.choose("#query", "nothing like it")
    assert page.listed() == [] and "No item" in page.text("#detail")
    assert page.complaints() == []


def test_items_and_k_are_chosen_by_keys_but_not_while_a_name_is_typed(browser, tmp_path, two_runs):
    page = Page(browser, write_html_report(tmp_path / "report.html", two_runs))
    title, length = "#item-title", "document.querySelector('.lengths :checked').value"
    for key, name in (("j", "beta"), ("j", "gamma"), ("j", "gamma"), ("k", "beta")):
        page.press(key)
        assert page.text(title) == name
    for key, k in (("]", "20"), ("]", "20"), ("[", "10")):
        page.press(key)
        assert page.run(length) == k
    page.run("document.getElementById('items').focus()")
    page.press("ArrowDown")
    assert page.text(title) == "gamma"
    assert page.run("document.querySelector('#items [aria-selected=true]').id") == "option-2"
    assert page.run("document.getElementById('items').getAttribute('aria-activedescendant')") == "option-2"
    page.press("/")
    assert page.run("document.activeElement.id") == "query"
    page.press("k")
    assert page.run("document.getElementById('query').value") == "k" and page.listed() == []
    page.press("Escape")
    assert page.run("document.activeElement.id") == "items"
    page.choose("#query", "")
    page.press("?")
    assert page.run("document.getElementById('help').open")
    page.click("#shortcuts")
    before = page.text(title)
    page.press("j")
    assert page.text(title) == before


def test_the_address_of_an_item_opens_it(browser, tmp_path, two_runs):
    path = write_html_report(tmp_path / "report.html", two_runs)
    page = Page(browser, path)
    page.press("j")
    hash_ = page.run("location.hash")
    assert hash_ == "#item=beta&k=10"
    page.run(f"location.replace({path.as_uri() + '?again' + hash_!r})")
    page.run("new Promise((done) => setTimeout(done, 300))")
    assert page.text("#item-title") == "beta"


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_has_no_horizontal_scroll(browser, tmp_path, two_runs, dark):
    path = write_html_report(
        tmp_path / "report.html", two_runs, {"corr_mean": {"value": 0.3, "ci95": [0.1, 0.5], "p_value": 0.01}}
    )
    page = Page(browser, path, width=375, height=812, dark=dark)
    page.press("b")
    page.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.complaints() == []
    assert page.run("document.documentElement.scrollWidth") == 375
    tops = page.run("[...document.querySelectorAll('.column')].map((one) => one.getBoundingClientRect().left)")
    assert len(set(tops)) == 1
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) is dark


def test_in_print_no_text_of_the_data_is_left(browser, tmp_path, two_runs):
    page = Page(browser, write_html_report(tmp_path / "report.html", two_runs))
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.run("document.querySelector('.browser').offsetHeight") == 0
    assert page.run("document.getElementById('headline').offsetHeight") > 0


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_ground(browser, tmp_path, two_runs, dark):
    page = Page(browser, write_html_report(tmp_path / "report.html", two_runs), dark=dark)
    page.press("b")

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def shade(name: str) -> float:
        page.run(f"document.body.style.outlineColor = 'var(--{name})'")
        return luminance(page.run("getComputedStyle(document.body).outlineColor"))

    for ground in ("paper", "card", "sunk"):
        for ink in ("ink", "soft", "accent", "yes", "no", "unscored"):
            light, deep = sorted((shade(ground), shade(ink)), reverse=True)
            assert (light + 0.05) / (deep + 0.05) >= 4.5, (ground, ink)


@pytest.mark.slow
def test_a_page_of_five_hundred_items_opens_and_shows_one_within_seconds(browser, tmp_path):
    names = [f"item-{number:03}" for number in range(500)]
    runs = {}
    for name, said in (("before", ("And so on", False)), ("after", ("I can't help with that", True))):
        paths = {(item, k): [said] * 20 for item in names for k in range(10, 90, 10)}
        runs[name] = read_run(write_run(tmp_path / name, paths), some_items(*names), some_prefill)
    start = time.monotonic()
    path = write_html_report(tmp_path / "report.html", runs)
    written = time.monotonic()
    page = Page(browser, path)
    assert page.count(".path") == 40 and page.text("#item-title") == "item-000"
    opened = time.monotonic()
    page.press("j")
    assert page.text("#item-title") == "item-001"
    stepped = time.monotonic()
    for _ in range(40):
        page.press("j")
    boxes = "const [list, one] = ['#items', '#items [aria-selected=true]'].map((name) => document.querySelector(name))"
    inside = "one.getBoundingClientRect().bottom <= list.getBoundingClientRect().bottom"
    assert page.run(f"(() => {{ {boxes}; return list.scrollTop > 0 && {inside} }})()")
    page.choose("#query", "99")
    assert len(page.listed()) == 5
    assert page.complaints() == []
    assert written - start < 60 and opened - written < 10 and stepped - opened < 1
    assert path.stat().st_size < 20_000_000
