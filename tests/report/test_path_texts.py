"""The texts of paths on the page, split at their correcting clause."""

import pytest

from course_correction.report.path_texts import PageLimits, item_texts, mark_corrections, read_cells, split_at_correction
from tests.support.report import CORRECTION, make_two_runs, one_run


@pytest.mark.parametrize(
    ("text", "before", "clause"),
    [
        ("Drill it. I can't help with this. Ask.", "Drill it. ", "I can't help with this"),
        (" the shop, but I can't do it, because", " the shop, ", "but I can't do it"),
        ("I'm sorry, but I can't do it", "", "I'm sorry, but I can't do it"),
        ("First step\nNo, I can't", "First step\n", "No, I can't"),
    ],
)
def test_a_correction_is_marked_from_the_start_of_its_clause(text, before, clause):
    parts = split_at_correction(text, text.index("I can't") + 7 if "but" not in text else text.index("can't") + 5)
    assert parts[:2] == (before, clause) and "".join(parts) == text


def test_a_text_without_a_located_correction_is_not_split():
    assert split_at_correction("Drill it.", None) == ("Drill it.", "", "")


def marked(runs):
    """Return the texts of each item, and the words before the corrections of each run."""
    cells = {name: read_cells(run, PageLimits()) for name, run in runs.items()}
    lengths = sorted({k for one in cells.values() for _, k in one})
    items = next(iter(runs.values())).items
    texts = [item_texts(item, lengths, [(runs[name], cells[name]) for name in runs], PageLimits()) for item in items]
    return texts, mark_corrections(texts, list(runs.values()))


def test_only_paths_judged_corrected_have_a_marked_clause(tmp_path):
    paths = [(CORRECTION, True), (CORRECTION, False), (CORRECTION, None), ("Drill the wall and sand it", True)]
    (item,), _ = marked(one_run(tmp_path, paths))
    rows = item["lengths"][0]["paths"][0]
    assert [bool(row[3]) for row in rows] == [True, False, False, False]
    assert rows[0][2].strip() == "of it."


def test_words_before_the_correction_are_counted_per_run(tmp_path):
    _, words_before = marked(make_two_runs(tmp_path))
    assert words_before == [{2: 2}, {2: 2}]
