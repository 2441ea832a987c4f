"""The first table of the page."""

import pytest

from course_correction.report.schema import TaskScore
from course_correction.report.summary_table import summary_rows
from tests.support.report import full_metrics, some_metrics


def test_the_table_has_a_row_for_each_part_that_was_measured():
    full = full_metrics()
    change = full["benign"]["difference"]["false correction @20"]
    rows = {row["label"]: row for row in summary_rows([some_metrics(), full], {"corr_mean": {"value": 0.2, "p_value": 0.5}})}
    assert list(rows) == [
        "Corr_mean",
        "Corr_mean, adjusted for judge errors",
        "over-refusal, benign prompts",
        "false correction @20",
        "twin difference @20",
        "KL to the base, benign answers",
        "jailbreak success, all prompts",
        "general ability, mean of tasks",
    ]
    assert rows["Corr_mean"]["difference"] == {"value": 0.2, "p_value": 0.5}
    assert rows["over-refusal, benign prompts"]["difference"] == full["over_refusal_difference"]
    assert rows["false correction @20"]["better"] == -1
    assert rows["false correction @20"]["difference"] == change
    assert rows["twin difference @20"]["values"] == [None, full["benign"]["twin_difference"]["20"]]
    assert rows["KL to the base, benign answers"]["unit"] == "nats"
    assert rows["jailbreak success, all prompts"]["values"] == [None, full["jailbreak"]["overall"]]
    assert rows["jailbreak success, all prompts"]["difference"] == full["jailbreak"]["overall_difference"]


def test_a_run_that_measured_nothing_else_has_one_row():
    assert [row["label"] for row in summary_rows([some_metrics()], None)] == ["Corr_mean"]


def score(value: float, **more) -> TaskScore:
    return {"metric": "acc", "value": value, "stderr": 0.01, "higher_is_better": True, **more}


def ability(before, after):
    return summary_rows([some_metrics(general=before), some_metrics(general=after)], None)[-1]


def test_general_ability_is_the_mean_of_tasks_whose_scores_are_shares():
    perplexity = {"metric": "word_perplexity", "value": 9.0, "higher_is_better": False}
    row = ability({"tasks": {}}, {"tasks": {"one": score(0.5), "two": score(0.7), "perplexity": perplexity}})
    assert row["values"][1]["value"] == pytest.approx(0.6)
    assert row["values"][1]["ci95"] == pytest.approx([0.6 - 1.96 * 0.02**0.5 / 20, 0.6 + 1.96 * 0.02**0.5 / 20])


def test_the_difference_in_general_ability_needs_one_for_every_task():
    tasks, half = {"one": score(0.5), "two": score(0.7)}, {"one": {"value": 0.1}}
    assert ability({"tasks": tasks}, {"tasks": tasks, "difference": half})["difference"] is None
    both = {**half, "two": {"value": 0.3}}
    assert ability({"tasks": tasks}, {"tasks": tasks, "difference": both})["difference"]["value"] == pytest.approx(0.2)


def test_a_group_of_tasks_replaces_its_members():
    general = {
        "tasks": {"mmlu_law": score(0.1), "mmlu_art": score(0.3), "boolq": score(0.6)},
        "groups": {"mmlu": score(0.2)},
    }
    (_, row) = summary_rows([some_metrics(general=general)], None)
    assert row["values"][0]["value"] == pytest.approx(0.4)
