"""The probe of harm: it detects what differs as the training texts do, at the given false alarm rate, and refuses leaks."""

import json
import sys

import numpy as np
import pytest

from benchmarks import harm_probe
from benchmarks.harm_probe import ProbeSettings, detection_rates, hidden_means, probe_sizes, read_texts, table
from course_correction.base.errors import UsageError
from course_correction.synthesis.sources import read_eval_items
from tests.support.rows import write_rows


@pytest.fixture
def states():
    """States in which harm is the first of eight directions in the seed set and the second in the items."""
    chance = np.random.default_rng(0)

    def rows(count: int, direction: int | None) -> np.ndarray:
        made = chance.normal(size=(count, 8))
        if direction is not None:
            made[:, direction] += 5
        return made

    return {
        "harmful": rows(200, 0), "harmless": rows(200, None), "seed items": rows(100, 0), "harmful twins": rows(50, 0),
        "held-out harmless": rows(400, None), "items": rows(100, 1), "train_items": rows(40, 1),
    }  # fmt: skip


def test_the_probe_detects_what_differs_as_the_training_texts_do_and_nothing_else(states):
    rates = detection_rates(ProbeSettings(), states, states["harmful"], states["harmless"], states["harmful"][:0])
    assert rates["seed items"]["value"] > 0.95
    assert rates["items"]["value"] < 0.2
    alike = states | {"items": np.random.default_rng(1).normal(size=(2000, 8))}
    rates = detection_rates(ProbeSettings(), alike, states["harmful"], states["harmless"], states["harmful"][:0])
    assert rates["items"]["value"] == pytest.approx(0.05, abs=0.03)


def test_training_texts_of_the_items_kind_make_the_items_detectable_and_the_table_shows_it(states):
    settings = ProbeSettings(draws=2)
    rows = probe_sizes(settings, states)
    sizes = [(row["harmful"], row["train_items"]) for row in rows]
    assert sizes == [(25, 0)] * 2 + [(50, 0)] * 2 + [(100, 0)] * 2 + [(200, 0)] + [
        (200, number) for number in (5, 5, 10, 10, 20, 20, 40)
    ]
    assert rows[-1]["items"]["value"] > 0.95 > 0.5 > rows[6]["items"]["value"]
    lines = table(rows, settings).splitlines()
    assert len(lines) == 4 + 8
    assert lines[-1].startswith("| 200 | 200 | 40 | ")


def test_items_that_are_trained_on_are_refused(tmp_path):
    item = next(iter(read_eval_items("seed")))
    (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n")
    path = str(tmp_path / "items.jsonl")
    with pytest.raises(UsageError, match="1 requests of items are trained on"):
        read_texts(ProbeSettings(items=path, train_items=path))


def test_states_are_means_over_the_answers_first_tokens_alone(tiny_model_folder):
    settings = ProbeSettings(model_name_or_path=str(tiny_model_folder), layer=1, answer_tokens=3)
    texts = {"a": [("Tie a tie?", "one two three")], "b": [("Tie a tie?", "one two three four five six")]}
    states = hidden_means(settings, texts | {"c": [("Tie a knot?", "one two three")]})
    assert np.allclose(states["a"], states["b"], atol=1e-5)
    assert not np.allclose(states["a"], states["c"], atol=1e-3)
    with pytest.raises(UsageError, match="layer is 99"):
        hidden_means(ProbeSettings(model_name_or_path=str(tiny_model_folder), layer=99), texts)


@pytest.mark.parametrize(
    ("name", "value"), [("layer", 0), ("draws", 0), ("answer_tokens", 0), ("false_alarms", 1.0), ("weight", 0.0)]
)
def test_a_value_outside_its_range_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=name):
        ProbeSettings(**{name: value})


def test_the_probe_runs_at_its_smallest_size(tiny_model_folder, tmp_path, monkeypatch, capsys):
    items = [row for row in read_eval_items("seed")][:4]
    for name, rows in (("items", items[:2]), ("train_items", items[2:])):
        write_rows(tmp_path / f"{name}.jsonl", [row | {"request": f"{name}: {row['request']}"} for row in rows])
    arguments = {
        "model_name_or_path": tiny_model_folder, "layer": 1, "answer_tokens": 2, "draws": 1,
        "items": tmp_path / "items.jsonl", "train_items": tmp_path / "train_items.jsonl",
        "output_file": tmp_path / "out.json",
    }  # fmt: skip
    monkeypatch.setattr(
        sys, "argv", ["harm_probe", *(word for name, value in arguments.items() for word in (f"--{name}", str(value)))]
    )
    monkeypatch.setattr(harm_probe, "read_texts", lambda settings: {k: v[:6] for k, v in read_texts(settings).items()})
    harm_probe.main()
    result = json.loads((tmp_path / "out.json").read_text())
    assert {"seed items", "harmful twins", "items"} <= set(result["probes"][-1])
    assert str(tmp_path) not in json.dumps(result)
    assert "| trained on: harmful | harmless |" in capsys.readouterr().out
