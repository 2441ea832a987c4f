"""The fit of the pattern judge runs, and gives the committed weights."""

import json
import re
import sys

import pytest

from benchmarks import fit_pattern_judge
from course_correction.judges.pattern import WEIGHTS_FILE


def test_weights_of_both_questions_are_fitted_on_a_part_of_the_texts(tmp_path, monkeypatch, capsys):
    whole = fit_pattern_judge.read_data
    monkeypatch.setattr(fit_pattern_judge, "read_data", lambda name: whole(name)[::10])
    output = tmp_path / "weights.json"
    arguments = ["fit_pattern_judge", "--max_features", "20", "--output_file", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    fit_pattern_judge.main()
    fitted = json.loads(output.read_text())
    assert set(fitted) == {fit_pattern_judge.CORRECTS, fit_pattern_judge.REFUSES}
    assert all(0 < len(weights["weights"]) <= 20 and isinstance(weights["bias"], int) for weights in fitted.values())
    assert re.search(r"cross-validated: \d+ of \d+ sampled refusals detected", capsys.readouterr().out)


@pytest.mark.slow
def test_the_fit_on_all_texts_gives_the_committed_weights(tmp_path, monkeypatch, capsys):
    output = tmp_path / "weights.json"
    monkeypatch.setattr(sys, "argv", ["fit_pattern_judge", "--output_file", str(output)])
    fit_pattern_judge.main()
    fitted, committed = json.loads(output.read_text()), json.loads(WEIGHTS_FILE.read_text())
    assert fitted.keys() == committed.keys()
    for question, weights in committed.items():
        # The solver stops at a tolerance, so another CPU may round single weights elsewhere.
        assert fitted[question]["bias"] == pytest.approx(weights["bias"], rel=0.01)
        shared = fitted[question]["weights"].keys() & weights["weights"].keys()
        assert len(shared) > 0.99 * len(weights["weights"])
    assert "16 of 16 sampled refusals detected, 1 of 184 other answers misclassified" in capsys.readouterr().out
