"""The page of an evaluation in a browser: what it shows, hides and never runs (skipped without chromium)."""

import re
import time

import pytest

from course_correction.report.html import write_html_report
from course_correction.report.run_data import RunData, read_run
from tests.support.browser import Page
from tests.support.browser import browser as browser
from tests.support.report import (
    CORRECTION,
    HOSTILE,
    full_metrics,
    make_two_runs,
    run_data,
    some_items,
    some_metrics,
    write_run,
)


@pytest.fixture
def two_runs(tmp_path):
    return make_two_runs(tmp_path)


@pytest.fixture
def hostile_page(tmp_path):
    texts = [(text, False) for text in HOSTILE.values()] + [(CORRECTION + text, True) for text in HOSTILE.values()]
    evil = "<img src=x onerror=window.hacked=5>"
    run = write_run(tmp_path / "run", {(evil, 10): [*texts, ("y" * 1_000_000, False)]}, some_metrics(judge=evil))
    items = [{"request_id": evil, "request": evil, "full_harmful_response": evil}]
    runs = {f"{evil}{HOSTILE['closing']}": RunData(read_run(run), run, items, lambda item, k: evil)}
    return write_html_report(tmp_path / "report.html", runs), [text for text, _ in texts]


def test_continuations_are_shown_as_text_and_run_nothing(browser, hostile_page):
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


def test_a_script_added_to_the_file_does_not_run(browser, tmp_path, two_runs):
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
def test_the_page_opens_without_errors_or_requests(browser, tmp_path, two_runs, count):
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
    assert hidden == ["side-effects", "dynamics", "paths"]
    assert page.complaints() == []


def test_every_optional_part_is_drawn(browser, tmp_path):
    run = run_data(write_run(tmp_path / "run", {("alpha", 10): [(CORRECTION, True)]}, full_metrics()), some_items("alpha"))
    page = Page(browser, write_html_report(tmp_path / "report.html", {"run": run}))
    assert page.complaints() == []
    drawn = "[...document.querySelectorAll('figure')].filter((one) => one.querySelector('svg text'))"
    assert page.run(f"{drawn}.map((one) => one.querySelector('figcaption').innerText)") == [
        "Corr@k",
        "First correction",
        "Refusals",
        "Corrections and false corrections",
        "Jailbreaks",
        "General ability",
        "KL to the base on benign answers",
        "Safety tokens, base model",
        "Safety tokens, run",
        "KL to the base",
    ]
    assert "the model corrects itself in 50.0% of the sampled continuations." in page.text("#lead")
    assert "p = 0.040" in page.text("#summary-table")


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
    page.choose("#query", "no such id")
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
    assert page.run("document.getElementById('summary-table').offsetHeight") > 0


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
    for name, path in (("before", ("And so on", False)), ("after", ("I can't help with that", True))):
        paths = {(item, k): [path] * 20 for item in names for k in range(10, 90, 10)}
        runs[name] = run_data(write_run(tmp_path / name, paths), some_items(*names))
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
