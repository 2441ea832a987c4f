"""Markdown tables."""

from course_correction.base.markdown import markdown_table


def test_the_first_column_is_aligned_left_and_the_others_right():
    assert markdown_table(["", "a", "b"], [["x", 1, "2"]]) == "|  | a | b |\n| --- | --: | --: |\n| x | 1 | 2 |"


def test_alignment_can_be_given_per_column():
    assert markdown_table(["a", "b"], [], ["right", "left"]).splitlines()[1] == "| --: | --- |"


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown_table(["a|b"], [["c|d"]]).splitlines()[::2] == [r"| a\|b |", r"| c\|d |"]
