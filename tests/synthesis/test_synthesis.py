"""Laws of synthesis: a stopped run ends with the same bytes, and no text depends on the order of the rows."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import c2_syn
from course_correction.base.errors import UsageError
from course_correction.base.files import read_jsonl
from course_correction.base.resumable_rows import UnitFile
from course_correction.synthesis.ranked_groups import check_ranked_group
from course_correction.synthesis.run import synthesize
from course_correction.synthesis.settings import SynthesisSettings
from tests.support.rows import ROOT, as_pku_row, read_data, write_rows

NUM_REQUESTS = 7
PER_UNIT = 2
NUM_UNITS = 4


def _written(folder: Path, **changes: Any) -> SynthesisSettings:
    return SynthesisSettings(
        **{"max_requests": NUM_REQUESTS, "requests_per_unit": PER_UNIT, "output_dir": str(folder), **changes}
    )


def _by_model(folder: Path, model: Path, source: Path | str = "seed", **changes: Any) -> SynthesisSettings:
    options = {"teacher": "transformers", "teacher_model": str(model), "max_new_tokens": 6, "batch_size": 4}
    return _written(folder, source=str(source), **{**options, **changes})


def _stop_after(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """Kill the run when it has written this many units."""
    append, written = UnitFile.append, []

    def append_or_stop(self: UnitFile, unit: int, rows: Any) -> None:
        if len(written) == units:
            raise KeyboardInterrupt
        append(self, unit, rows)
        written.append(1)

    monkeypatch.setattr(UnitFile, "append", append_or_stop)


def _synthesize_stopped(monkeypatch: pytest.MonkeyPatch, settings: SynthesisSettings, units: int) -> Path:
    with monkeypatch.context() as patch:
        _stop_after(patch, units)
        with pytest.raises(KeyboardInterrupt):
            synthesize(settings)
    return synthesize(settings)


@pytest.fixture(scope="module")
def written_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return synthesize(_written(tmp_path_factory.mktemp("written"))).read_bytes()


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> bytes:
    settings = _by_model(tmp_path_factory.mktemp("model"), tiny_model_folder, temperature=0.9, top_p=0.9)
    return synthesize(settings).read_bytes()


# The written teacher


@pytest.mark.parametrize("units", range(NUM_UNITS))
def test_a_resumed_run_of_the_written_teacher_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_bytes: bytes, units: int
) -> None:
    settings = _written(tmp_path)
    assert _synthesize_stopped(monkeypatch, settings, units).read_bytes() == written_bytes
    assert len(written_bytes.splitlines()) == NUM_REQUESTS
    assert json.loads((tmp_path / "selection.json").read_text()) == {"kept": NUM_REQUESTS, "dropped": {}}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.77, 0.999])
def test_a_run_cut_off_at_any_byte_writes_the_same_bytes(tmp_path: Path, written_bytes: bytes, share: float) -> None:
    groups_file = synthesize(_written(tmp_path))
    groups_file.write_bytes(written_bytes[: int(len(written_bytes) * share)])
    assert synthesize(_written(tmp_path)).read_bytes() == written_bytes


def test_a_finished_run_is_not_changed(tmp_path: Path, written_bytes: bytes) -> None:
    groups_file = synthesize(_written(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert synthesize(_written(tmp_path)) == groups_file
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert groups_file.read_bytes() == written_bytes


def test_the_size_of_a_unit_changes_no_byte(tmp_path: Path, written_bytes: bytes) -> None:
    assert synthesize(_written(tmp_path, requests_per_unit=3)).read_bytes() == written_bytes


def test_written_groups_are_complete_and_hold_the_written_texts(written_bytes: bytes) -> None:
    groups = [json.loads(line) for line in written_bytes.splitlines()]
    rows = {row["request_id"]: row for row in read_data("requests_train")}
    assert [group["request_id"] for group in groups] == list(rows)[:NUM_REQUESTS]
    for group in groups:
        row = rows[group["request_id"]]
        check_ranked_group(group, "here")
        assert group["responses"][0] == row["safe_response"]
        assert group["responses"][5].endswith(row["full_harmful_response"])
        for response, start, trigger in zip(
            group["responses"][1:5], group["correction_starts"][1:5], group["triggers"], strict=True
        ):
            assert response[start:].removeprefix("... ") == f"{trigger} {row['correction']}"
        assert (group["teacher"], group["source"]) == ("written", "seed")


def test_another_seed_gives_other_groups(tmp_path: Path, written_bytes: bytes) -> None:
    assert synthesize(_written(tmp_path, seed=1)).read_bytes() != written_bytes


def test_a_run_under_other_settings_is_refused_with_the_difference_and_changes_nothing(
    tmp_path: Path, written_bytes: bytes
) -> None:
    groups_file = synthesize(_written(tmp_path))
    with pytest.raises(UsageError, match="seed: 0 there, 1 now"):
        synthesize(_written(tmp_path, seed=1))
    assert groups_file.read_bytes() == written_bytes


def test_run_json_records_all_settings_but_folders_and_limits_of_calls(tmp_path: Path) -> None:
    synthesize(_written(tmp_path))
    kept = json.loads((tmp_path / "run.json").read_text())["c2_syn"]["settings"]
    names = {field.name for field in fields(SynthesisSettings)}
    assert names - kept.keys() == {"output_dir", "export_dir", "max_parallel_calls", "call_timeout"}
    assert kept.keys() - names == {"pairs_digest"}


def test_a_source_that_changed_under_the_same_name_is_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = [as_pku_row(row) for row in read_data("requests_train")[:2]]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    settings = _by_model(tmp_path / "run", tiny_model_folder, source)
    before = synthesize(settings).read_bytes()
    rows[1]["response_1"] += " And so on."
    write_rows(source, rows)
    with pytest.raises(UsageError, match="other settings"):
        synthesize(settings)
    assert (tmp_path / "run" / "groups.jsonl").read_bytes() == before


def test_a_source_without_usable_rows_is_one_line(tmp_path: Path, tiny_model_folder: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{**as_pku_row(read_data("requests_train")[0]), "prompt": "No."}])
    with pytest.raises(UsageError, match="passes the selection"):
        synthesize(_by_model(tmp_path / "run", tiny_model_folder, source))


# A model as teacher


@pytest.mark.parametrize("units", [0, 1, 3])
def test_a_resumed_run_of_a_model_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_bytes: bytes, tiny_model_folder: Path, units: int
) -> None:
    settings = _by_model(tmp_path, tiny_model_folder, temperature=0.9, top_p=0.9)
    assert _synthesize_stopped(monkeypatch, settings, units).read_bytes() == model_bytes


def test_a_run_of_a_model_cut_off_inside_a_unit_writes_the_same_bytes(
    tmp_path: Path, model_bytes: bytes, tiny_model_folder: Path
) -> None:
    settings = _by_model(tmp_path, tiny_model_folder, temperature=0.9, top_p=0.9)
    groups_file = synthesize(settings)
    groups_file.write_bytes(model_bytes[: len(model_bytes) // 2])
    assert synthesize(settings).read_bytes() == model_bytes
    assert groups_file.with_name("groups.jsonl.quarantined").exists()


def test_every_line_of_a_model_is_a_complete_group_or_has_the_reason_for_dropping(
    model_bytes: bytes, tiny_model_folder: Path
) -> None:
    lines = [json.loads(line) for line in model_bytes.splitlines()]
    assert [line["request_id"] for line in lines] == [
        row["request_id"] for row in read_data("requests_train")[:NUM_REQUESTS]
    ]
    groups = [line for line in lines if "dropped" not in line]
    assert len(groups) >= NUM_REQUESTS - 2
    for group in groups:
        check_ranked_group(group, "here")
        assert group["teacher"] == tiny_model_folder.name
        for response, start, trigger in zip(
            group["responses"][1:5], group["correction_starts"][1:5], group["triggers"], strict=True
        ):
            corrective = response[start:].removeprefix("... ")
            assert corrective.startswith(trigger) and len(corrective) > len(trigger)


def test_texts_that_no_model_writes_do_not_depend_on_the_row_order(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = [as_pku_row(row) for row in read_data("requests_train")[:NUM_REQUESTS]]
    groups_by_order = []
    for name, ordered in (("forward", rows), ("backward", rows[::-1])):
        # The same file name, so that `source` is equal too.
        (tmp_path / name).mkdir()
        source = write_rows(tmp_path / "rows.jsonl", ordered)
        groups_file = synthesize(_by_model(tmp_path / name, tiny_model_folder, source))
        groups_by_order.append([group for group in read_jsonl(groups_file) if "dropped" not in group])
    forward, backward = groups_by_order
    assert len(forward) >= NUM_REQUESTS - 2
    assert [group["request_id"] for group in backward] == [group["request_id"] for group in forward][::-1]
    for one, other in zip(forward, backward[::-1], strict=True):
        for key in ("request", "kinds", "correction_starts", "opener", "triggers", "teacher", "source"):
            assert one[key] == other[key]
        assert one["responses"][5] == other["responses"][5]
        for rank in range(1, 5):
            end = one["correction_starts"][rank] + len(one["triggers"][rank - 1])
            assert one["responses"][rank][:end] == other["responses"][rank][:end]


def test_a_run_with_repeated_rows_resumes_if_requests_may_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path
) -> None:
    rows = [as_pku_row(row) for row in read_data("requests_train")[:3]]
    source = write_rows(tmp_path / "rows.jsonl", [rows[0], *rows])
    options = {"unique_requests": False, "requests_per_unit": 2}
    whole = synthesize(_by_model(tmp_path / "whole", tiny_model_folder, source, **options)).read_bytes()
    stopped = _by_model(tmp_path / "stopped", tiny_model_folder, source, **options)
    assert _synthesize_stopped(monkeypatch, stopped, 1).read_bytes() == whole
    assert not (tmp_path / "stopped" / "groups.jsonl.quarantined").exists()


# Settings and the command line


@pytest.mark.parametrize("source", ["sede", "nowhere.jsonl"])
def test_a_misspelt_exclusion_is_one_line_that_names_it(tmp_path: Path, source: str) -> None:
    with pytest.raises(UsageError, match=source):
        synthesize(_written(tmp_path, exclude_requests_from=[source]))


def test_the_builder_is_imported_from_the_script_module() -> None:
    from course_correction.synthesis.builders import C2Syn

    assert c2_syn.C2Syn is C2Syn
    with pytest.raises(AttributeError):
        _ = c2_syn.C3Syn


def test_the_command_writes_the_same_bytes_under_any_hash_seed_and_shows_no_row_text(
    tmp_path: Path, written_bytes: bytes
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"max_requests: 99\nrequests_per_unit: {PER_UNIT}\nenv:\n  PYTHONHASHSEED: 1\n")
    command = [sys.executable, "c2_syn.py", "--config", str(recipe), "--max_requests", str(NUM_REQUESTS)]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "groups.jsonl").read_bytes() == written_bytes
    for line in written_bytes.splitlines():
        group = json.loads(line)
        for text in (group["request"], *group["responses"], *group["triggers"]):
            assert text[:30] not in done.stdout + done.stderr
