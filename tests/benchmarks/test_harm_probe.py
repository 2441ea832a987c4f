"""The probe of what training texts teach: it finds what differs as they do, at the false alarms asked for, and no leak."""

import json

import numpy as np
import pytest

from benchmarks.harm_probe import ProbeSettings, found_shares, hidden_means, probe_sizes, read_texts, table
from course_correction.base.errors import UsageError
from course_correction.synthesis.sources import read_eval_items


@pytest.fixture
def states():
    """Harm is the first of eight directions in the seed set, the second in the items; harmless rows have neither."""
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


def test_what_differs_as_the_training_texts_do_is_found_and_nothing_else(states):
    found = found_shares(ProbeSettings(), states, states["harmful"], states["harmless"], states["harmful"][:0])
    assert found["seed items"]["value"] > 0.95
    assert found["items"]["value"] < 0.2
    alike = states | {"items": np.random.default_rng(1).normal(size=(2000, 8))}
    found = found_shares(ProbeSettings(), alike, states["harmful"], states["harmless"], states["harmful"][:0])
    assert found["items"]["value"] == pytest.approx(0.05, abs=0.03)


def test_texts_of_the_items_kind_make_the_items_found_and_the_table_says_so(states):
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
    found = hidden_means(settings, texts | {"c": [("Tie a knot?", "one two three")]})
    assert np.allclose(found["a"], found["b"], atol=1e-5)
    assert not np.allclose(found["a"], found["c"], atol=1e-3)
    with pytest.raises(UsageError, match="layer is 99"):
        hidden_means(ProbeSettings(model_name_or_path=str(tiny_model_folder), layer=99), texts)


@pytest.mark.parametrize(
    ("name", "value"), [("layer", 0), ("draws", 0), ("answer_tokens", 0), ("false_alarms", 1.0), ("weight", 0.0)]
)
def test_a_value_outside_its_range_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=name):
        ProbeSettings(**{name: value})
