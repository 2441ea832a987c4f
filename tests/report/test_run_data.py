"""Finished evaluations, as reports read them."""

import pytest

from course_correction.base.errors import UsageError
from course_correction.report.run_data import RunData, read_generations, read_run, read_verdicts
from tests.support.report import some_items, some_metrics, some_prefill, write_run


def test_the_metrics_and_rows_of_a_finished_evaluation_are_read(tmp_path):
    folder = write_run(tmp_path / "run", {("alpha", 10): [("mild", True)]})
    assert read_run(folder) == some_metrics()
    assert [row["continuation"] for row in read_generations(folder)] == ["mild"]
    assert [row["corrected"] for row in read_verdicts(folder)] == [True]


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"contains no finished evaluation \(no metrics\.json\)"):
        read_run(tmp_path)


def test_a_folder_without_rows_has_none(tmp_path):
    assert [*read_generations(tmp_path), *read_verdicts(tmp_path)] == []


def test_a_prefill_is_given_by_a_function_or_by_a_mapping(tmp_path):
    (item,) = some_items("alpha")
    assert RunData(some_metrics(), tmp_path, [item], some_prefill).prefill(item, 10) == some_prefill(item, 10)
    assert RunData(some_metrics(), tmp_path, [item], {("alpha", 10): "Sure"}).prefill(item, 10) == "Sure"
    assert RunData(some_metrics(), tmp_path, [item], {}).prefill(item, 10) == ""
