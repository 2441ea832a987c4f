"""The fit of the pattern judge's weights runs at its smallest size."""

import json
import re
import sys

from benchmarks import fit_pattern_judge


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
