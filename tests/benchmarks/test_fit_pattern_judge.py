"""The fit of the pattern judge runs, and gives the committed weights."""

import json
import sys

import pytest

from benchmarks import fit_pattern_judge
from course_correction.judges.pattern import WEIGHTS_FILE


@pytest.mark.slow
def test_the_fit_gives_the_committed_weights(tmp_path, monkeypatch, capsys):
    file = tmp_path / "weights.json"
    monkeypatch.setattr(sys, "argv", ["fit_pattern_judge", "--output_file", str(file)])
    fit_pattern_judge.main()
    fitted, committed = json.loads(file.read_text()), json.loads(WEIGHTS_FILE.read_text())
    assert fitted.keys() == committed.keys()
    for question, weights in committed.items():
        # The solver stops at a tolerance, so another CPU may round single weights elsewhere.
        assert fitted[question]["bias"] == pytest.approx(weights["bias"], rel=0.01)
        shared = fitted[question]["weights"].keys() & weights["weights"].keys()
        assert len(shared) > 0.99 * len(weights["weights"])
    assert "15 of 16 sampled refusals detected, 5 of 184 other answers misclassified" in capsys.readouterr().out
