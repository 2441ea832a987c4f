"""Laws of the two committed exports: they equal fresh ones, load by name, and no cache serves another export for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_correction.base.errors import UsageError
from course_correction.hub.dataset_exports import C2EvalSettings, C2SynSettings, export_c2_eval, export_c2_syn
from course_correction.synthesis.run import synthesize
from tests.support.rows import ROOT, read_parquet


@pytest.fixture(scope="module")
def fresh_export(tmp_path_factory) -> Path:
    """Both seed exports, made anew by the committed recipe."""
    from course_correction.base.settings import parse_settings

    folder = tmp_path_factory.mktemp("fresh")
    recipe = ROOT / "recipes" / "smollm2-135m" / "c2_syn.yaml"
    arguments = ["--config", str(recipe), "--output_dir", str(folder / "run"), "--export_dir", str(folder / "c2-syn")]
    (settings,) = parse_settings([C2SynSettings], arguments)
    export_c2_syn(synthesize(settings), Path(settings.export_dir), settings)
    export_c2_eval(folder / "c2-eval", C2EvalSettings())
    return folder


@pytest.mark.parametrize("folder", ["c2-syn/pairs", "c2-syn/ranked", "c2-eval/seed"])
def test_the_committed_export_equals_a_fresh_one_row_by_row(folder, fresh_export):
    fresh, committed = read_parquet(fresh_export / folder), read_parquet(ROOT / folder)
    assert len(fresh) == len(committed)
    different = [number for number, (one, other) in enumerate(zip(fresh, committed, strict=True)) if one != other]
    assert different == [], f"rows that differ: {different[:10]}; run `make export`"
    assert [path.name for path in sorted((fresh_export / folder).iterdir())] == [
        path.name for path in sorted((ROOT / folder).iterdir())
    ]


@pytest.mark.parametrize("name", ["c2-syn", "c2-eval"])
def test_the_committed_card_equals_a_fresh_one_byte_by_byte(name, fresh_export):
    assert (fresh_export / name / "README.md").read_bytes() == (ROOT / name / "README.md").read_bytes()


@pytest.mark.parametrize("name", ["c2-syn", "c2-eval"])
def test_a_card_states_the_number_of_rows_and_no_text_of_them(name, fresh_export):
    card = (fresh_export / name / "README.md").read_text(encoding="utf-8")
    folders = {"c2-syn": ["ranked"], "c2-eval": ["seed"]}[name]
    for folder in folders:
        rows = read_parquet(fresh_export / name / folder)
        assert str(len(rows)) in card
        for row in rows:
            assert row["request"] not in card
            assert all(text not in card for text in row.get("responses", [row.get("full_harmful_response")]))


def test_the_committed_datasets_load_by_name_from_the_repository_root(tmp_path):
    script = """
import json
from datasets import load_dataset
print(json.dumps({
    "pairs": [len(load_dataset("c2-syn", split="train")), load_dataset("c2-syn", split="train").column_names],
    "ranked": [len(load_dataset("c2-syn", "ranked", split="train")), None],
    "eval": [len(load_dataset("c2-eval", split="test")), load_dataset("c2-eval", split="test").column_names],
}))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_DATASETS_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = json.loads(done.stdout.splitlines()[-1])
    ranked = len(read_parquet(ROOT / "c2-syn" / "ranked"))
    assert loaded["ranked"][0] == ranked
    assert loaded["pairs"][0] == 15 * ranked
    assert {"prompt", "chosen", "rejected"} <= set(loaded["pairs"][1])
    assert loaded["eval"][0] == len(read_parquet(ROOT / "c2-eval" / "seed"))
    assert loaded["eval"][1] == ["request_id", "request", "full_harmful_response", "source"]


def test_another_export_of_the_same_folder_name_is_not_served_from_the_cache(tmp_path):
    script = (
        "import sys; from datasets import load_dataset; "
        "load = lambda name: load_dataset(sys.argv[1], name, split='train').num_rows; "
        "print(load('ranked'), load('pairs'))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    counts = []
    for number in (3, 5):
        settings = C2SynSettings(max_requests=number, output_dir=str(tmp_path / f"run{number}"))
        folder = tmp_path / f"place{number}" / "export"
        export_c2_syn(synthesize(settings), folder, settings)
        shown = subprocess.run(
            [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=True
        ).stdout
        counts.append(tuple(map(int, shown.split())))
    assert counts == [(3, 45), (5, 75)]


def test_training_reads_the_given_folder_after_another_of_the_same_name(tmp_path):
    from course_correction.training.data import TrainingData, load_rows

    counts = []
    for number in (3, 5):
        settings = C2SynSettings(max_requests=number, output_dir=str(tmp_path / f"run{number}"))
        folder = tmp_path / f"place{number}" / "export"
        export_c2_syn(synthesize(settings), folder, settings)
        card = folder / "README.md"
        card.write_text("\n".join(line for line in card.read_text().splitlines() if "version: 1.0." not in line))
        counts.append(load_rows(TrainingData(dataset_name=str(folder)), "grouped").num_rows)
    assert counts == [3, 5]


def test_the_card_of_another_dataset_is_not_replaced_and_this_is_found_before_any_work(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text("my own data")
    for settings in (C2SynSettings, C2EvalSettings):
        with pytest.raises(UsageError, match=r"README\.md was not written by this project"):
            settings(export_dir=str(folder))
    assert (folder / "README.md").read_text() == "my own data"


def test_an_earlier_export_and_an_empty_folder_are_written_to(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none", ROOT / "c2-syn"):
        C2SynSettings(export_dir=str(folder))
    C2EvalSettings(export_dir=str(ROOT / "c2-eval"))
