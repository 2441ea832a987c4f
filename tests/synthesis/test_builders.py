"""Laws of the `datasets` builders and of exports: both give the same rows, and refuse incomplete groups."""

import json
import random
from itertools import combinations
from pathlib import Path

import pytest

from course_correction.base.errors import UsageError
from tests.support.rows import read_parquet

KINDS = ["safe", "corrected_1", "corrected_2", "corrected_3", "corrected_4", "harmful"]


def make_group(name: str, words: list[str]) -> dict:
    """Return a ranked group with six distinct texts made of `words`."""
    starts, responses = [-1, 0, 1, 2, 3, -1], []
    for rank in range(6):
        text = " ".join(f"{word}{rank}" for word in words)
        responses.append(f"{name} {text}")
    return {
        "request_id": name,
        "request": f"How do I borrow a pencil for {name}?",
        "responses": responses,
        "kinds": KINDS,
        "correction_starts": starts,
        "opener": "",
        "triggers": ["However,"] * 4,
        "teacher": "written",
        "source": "test",
    }


def write_groups(path: Path, groups: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(group) + "\n" for group in groups), encoding="utf-8")
    return path


def pairs_by_a_plain_loop(groups: list[dict]) -> list[dict]:
    rows = []
    for group in groups:
        for better, worse in combinations(range(6), 2):
            rows.append(
                {
                    "request_id": group["request_id"],
                    "prompt": [{"role": "user", "content": group["request"]}],
                    "chosen": [{"role": "assistant", "content": group["responses"][better]}],
                    "rejected": [{"role": "assistant", "content": group["responses"][worse]}],
                    "chosen_rank": better,
                    "rejected_rank": worse,
                    "principle": "correcting_over_not_correcting" if worse == 5 else "earlier_over_later",
                }
            )
    return rows


@pytest.fixture(scope="module")
def groups() -> list[dict]:
    return [make_group(f"group-{number}", ["pencil", "paper", "eraser"]) for number in range(7)]


@pytest.fixture
def groups_file(tmp_path, groups) -> Path:
    return write_groups(tmp_path / "run" / "groups.jsonl", groups)


def build_syn(groups_file: Path, config_name: str, cache: Path) -> list[dict]:
    from c2_syn import C2Syn

    builder = C2Syn(groups_file=groups_file, config_name=config_name, cache_dir=str(cache))
    builder.download_and_prepare()
    return builder.as_dataset(split="train").to_list()


@pytest.fixture
def exported(tmp_path, groups_file) -> Path:
    from course_correction.hub.dataset_exports import C2SynSettings, export_c2_syn

    (groups_file.parent / "selection.json").write_text('{"kept": 7, "dropped": {}}')
    export_c2_syn(groups_file, tmp_path / "export", C2SynSettings())
    return tmp_path / "export"


@pytest.mark.parametrize("config_name", ["pairs", "ranked"])
def test_the_builder_gives_the_rows_of_the_export_and_of_a_plain_loop(config_name, groups_file, groups, exported, tmp_path):
    built = build_syn(groups_file, config_name, tmp_path / "cache")
    assert built == (groups if config_name == "ranked" else pairs_by_a_plain_loop(groups))
    assert read_parquet(exported / config_name) == built


def test_pairs_are_the_default_config(groups_file, tmp_path):
    from c2_syn import C2Syn

    assert C2Syn(groups_file=groups_file, cache_dir=str(tmp_path)).config.name == "pairs"


@pytest.mark.parametrize("config_name", ["pairs", "ranked"])
def test_streaming_gives_the_same_rows_in_the_same_order(config_name, groups_file, tmp_path):
    from c2_syn import C2Syn

    builder = C2Syn(groups_file=groups_file, config_name=config_name, cache_dir=str(tmp_path / "a"))
    streamed = list(builder.as_streaming_dataset(split="train"))
    assert streamed == build_syn(groups_file, config_name, tmp_path / "b")


def test_the_builders_features_are_those_of_the_rows(groups_file, tmp_path):
    from c2_syn import C2Syn

    builder = C2Syn(groups_file=groups_file, config_name="pairs", cache_dir=str(tmp_path))
    builder.download_and_prepare()
    assert builder.as_dataset(split="train").features == builder.info.features


def test_an_edited_groups_file_is_not_served_from_a_stale_cache(groups_file, groups, tmp_path):
    cache = tmp_path / "cache"
    assert len(build_syn(groups_file, "ranked", cache)) == 7
    edited = [{**group, "opener": "Sure."} for group in groups[:3]]
    write_groups(groups_file, edited)
    assert build_syn(groups_file, "ranked", cache) == edited


@pytest.mark.parametrize("module", ["export", "ranked_groups", "sources"])
def test_an_edited_module_that_makes_the_rows_is_not_served_from_a_stale_cache(module, tmp_path, monkeypatch):
    from course_correction.synthesis import builders

    before = builders._digest()
    edited = tmp_path / "edited.py"
    edited.write_text(f"# Another {module}.\n")
    monkeypatch.setattr(getattr(builders, module), "__file__", str(edited))
    assert builders._digest() != before


def test_two_groups_files_with_the_same_name_do_not_share_a_cache(groups, tmp_path):
    first = write_groups(tmp_path / "a" / "groups.jsonl", groups[:2])
    second = write_groups(tmp_path / "b" / "groups.jsonl", groups[2:4])
    cache = tmp_path / "cache"
    assert build_syn(first, "ranked", cache) == groups[:2]
    assert build_syn(second, "ranked", cache) == groups[2:4]


def test_a_missing_groups_file_is_an_error_with_a_remedy(tmp_path):
    from c2_syn import C2Syn

    builder = C2Syn(groups_file=tmp_path / "none" / "groups.jsonl", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"There is no .*groups\.jsonl"):
        list(builder.as_streaming_dataset(split="train"))
    with pytest.raises(UsageError, match=r"There is no .*groups\.jsonl"):
        builder.download_and_prepare()


def test_a_group_that_synthesis_dropped_is_left_out(groups, tmp_path):
    file = write_groups(
        tmp_path / "groups.jsonl", [groups[0], {"request_id": "x", "dropped": "empty_continuation"}, groups[1]]
    )
    assert build_syn(file, "ranked", tmp_path / "cache") == groups[:2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": ["MARKED", "b", "c", "d", "e"]}, "has 5 responses"),
        ({"responses": ["MARKED", "MARKED", "bbbbb", "ccccc", "ddddd", "eeeee"]}, "two identical responses"),
        ({"responses": ["MARKED", "", "bbbbb", "ccccc", "ddddd", "eeeee"]}, "null or empty text"),
        ({"correction_starts": [-1, 0, 1, 2, 9999, -1]}, "does not fit the corrected_4 response"),
        ({"correction_starts": [0, 0, 1, 2, 3, -1]}, "does not fit the safe response"),
    ],
)
def test_an_incomplete_group_is_refused_by_line_without_its_text(change, message, groups, tmp_path):
    from course_correction.synthesis.export import read_groups

    file = write_groups(tmp_path / "groups.jsonl", [groups[0], {**groups[1], **change}])
    with pytest.raises(UsageError, match=message) as error:
        list(read_groups(file))
    assert "line 2" in str(error.value)
    assert "MARKED" not in str(error.value) and "pencil" not in str(error.value)


def test_a_group_that_lacks_a_column_is_refused(groups, tmp_path):
    from course_correction.synthesis.export import read_groups

    file = write_groups(tmp_path / "groups.jsonl", [{k: v for k, v in groups[0].items() if k != "triggers"}])
    with pytest.raises(UsageError, match="lacks triggers"):
        list(read_groups(file))


def test_exporting_nothing_is_refused_and_leaves_no_file(tmp_path):
    from course_correction.hub.dataset_exports import C2SynSettings, export_c2_syn

    file = write_groups(tmp_path / "groups.jsonl", [{"request_id": "x", "dropped": "empty_continuation"}])
    with pytest.raises(UsageError, match="there is no row"):
        export_c2_syn(file, tmp_path / "export", C2SynSettings())
    assert [path for path in (tmp_path / "export").rglob("*") if path.is_file()] == []


def test_an_export_that_fails_leaves_the_earlier_one_as_it_was(groups, exported, tmp_path):
    from course_correction.hub.dataset_exports import C2SynSettings, export_c2_syn

    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    broken = write_groups(tmp_path / "groups.jsonl", [*groups, {**groups[0], "responses": []}])
    with pytest.raises(UsageError):
        export_c2_syn(broken, exported, C2SynSettings())
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before


def test_exporting_again_replaces_the_shards_of_a_larger_export(groups, tmp_path):
    from course_correction.synthesis.export import SYN_SCHEMAS, syn_tables, write_shards

    large = write_groups(tmp_path / "large.jsonl", [make_group(f"g-{number}", ["pencil"]) for number in range(1200)])
    small = write_groups(tmp_path / "small.jsonl", groups[:2])
    folder = tmp_path / "ranked"
    assert write_shards(syn_tables(large, "ranked"), SYN_SCHEMAS["ranked"], folder, "train", 500).num_rows == 1200
    assert [path.name for path in sorted(folder.iterdir())] == [f"train-{n:05d}-of-00003.parquet" for n in range(3)]
    assert [row["request_id"] for row in read_parquet(folder)] == [f"g-{number}" for number in range(1200)]
    write_shards(syn_tables(small, "ranked"), SYN_SCHEMAS["ranked"], folder, "train", 500)
    assert [path.name for path in folder.iterdir()] == ["train-00000-of-00001.parquet"]


def test_the_six_texts_of_a_group_are_stored_about_once_in_the_pairs(tmp_path):
    from course_correction.synthesis.export import SYN_SCHEMAS, syn_tables, write_shards

    random_source = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def word() -> str:
        return "".join(random_source.choices(letters, k=7))

    groups = []
    for number in range(2000):
        group = make_group(f"g-{number}", [])
        group["responses"] = [" ".join(word() for _ in range(60)) for _ in range(6)]
        groups.append(group)
    file = write_groups(tmp_path / "groups.jsonl", groups)
    sizes = {}
    for name, pairs_a_group in (("pairs", 15), ("ranked", 1)):
        rows = write_shards(syn_tables(file, name), SYN_SCHEMAS[name], tmp_path / name, "train", 1 << 30)
        assert rows.num_rows == 2000 * pairs_a_group
        sizes[name] = sum(path.stat().st_size for path in (tmp_path / name).iterdir())
    assert sizes["pairs"] <= 2.5 * sizes["ranked"], sizes


def test_the_eval_builder_gives_the_seed_sets_held_out_requests(tmp_path):
    from c2_eval import C2Eval
    from course_correction.synthesis.sources import read_eval_items

    builder = C2Eval(config_name="seed", cache_dir=str(tmp_path))
    builder.download_and_prepare()
    assert builder.as_dataset(split="test").to_list() == list(read_eval_items("seed"))
    assert C2Eval(cache_dir=str(tmp_path)).config.name == "seed"


def test_the_eval_builder_refuses_a_file_with_another_checksum(tmp_path):
    from c2_eval import C2Eval

    file = tmp_path / "test.jsonl"
    file.write_text("{}\n")
    builder = C2Eval(config_name="pku500", pku500_file=str(file), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="sha256"):
        builder.download_and_prepare()
