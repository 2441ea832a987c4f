"""Plots as PNG files."""

import copy

import pytest

from course_correction.report.plots import plot_curves
from tests.support.report import TWO_LENGTHS


@pytest.fixture
def metrics():
    return copy.deepcopy(TWO_LENGTHS)


def test_the_plot_is_a_png_and_nothing_else_is_left_behind(tmp_path, metrics):
    plot_curves({"run": metrics}, tmp_path / "corr_at_k.png", "title")
    assert (tmp_path / "corr_at_k.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["corr_at_k.png"]


def test_the_plot_of_a_run_without_any_value_is_a_png_and_warns_of_nothing(tmp_path, metrics, recwarn):
    for entry in (*metrics["corr_at_k"].values(), metrics["corr_mean"]):
        entry.update(value=None, ci95=None)
    plot_curves({"run": metrics}, tmp_path / "corr_at_k.png", "title")
    assert (tmp_path / "corr_at_k.png").read_bytes()[:4] == b"\x89PNG"
    assert [str(warning.message) for warning in recwarn if "legend" in str(warning.message)] == []
