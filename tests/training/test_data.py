"""The rows that training reads: none is cut, and errors name a row without its text."""

from pathlib import Path

import pytest

from course_correction.base.errors import UsageError
from course_correction.synthesis.sources import read_eval_items
from tests.support.training import NUM_GROUPS, OBJECTIVES, read_rows, write_dataset

pytestmark = pytest.mark.usefixtures("own_dataset_cache")


def token_lengths(dataset_folder: Path, tokenizer) -> list[int]:
    """Return the longest side of every pair, in tokens."""
    return [
        max(
            len(tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=True, return_dict=False))
            for side in ("chosen", "rejected")
        )
        for row in read_rows(dataset_folder, "pairs")
    ]


def test_rows_longer_than_max_length_are_refused_with_their_number(parse, dataset_folder, tiny_tokenizer):
    from course_correction.training.run import build_trainer

    lengths = token_lengths(dataset_folder, tiny_tokenizer)
    limit = sorted(lengths)[20]
    count = sum(length > limit for length in lengths)
    message = f"{count} of {len(lengths)} .* longer than max_length {limit} .*{max(lengths)} tokens"
    with pytest.raises(UsageError, match=message):
        build_trainer(*parse(objective="pairwise", max_length=limit))


def test_rows_longer_than_max_length_are_dropped_on_demand_and_counted(parse, dataset_folder, tiny_tokenizer):
    from course_correction.training.run import build_trainer

    lengths = token_lengths(dataset_folder, tiny_tokenizer)
    limit = sorted(lengths)[20]
    count = sum(length > limit for length in lengths)
    trainer, facts = build_trainer(*parse("--drop_long_rows", "true", objective="pairwise", max_length=limit))
    assert facts["rows_dropped_too_long"] == count
    assert facts["rows"] == len(trainer.train_dataset) == len(lengths) - count
    longest = max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in trainer.train_dataset
    )
    assert longest <= limit  # What the trainer tokenizes is what was counted, so it cuts nothing.


def test_a_group_with_one_response_that_is_too_long_is_dropped_whole(parse, dataset_folder, tiny_tokenizer):
    from course_correction.training.run import build_trainer

    lengths = token_lengths(dataset_folder, tiny_tokenizer)
    by_group = sorted(max(lengths[start : start + 15]) for start in range(0, len(lengths), 15))
    assert by_group[0] < by_group[1], "choose other requests"
    trainer, facts = build_trainer(*parse("--drop_long_rows", "true", objective="grouped", max_length=by_group[0]))
    assert (facts["rows"], facts["rows_dropped_too_long"]) == (1, NUM_GROUPS - 1)
    (group,) = list(trainer.train_dataset)
    assert max(len(group["prompt_ids"]) + len(ids) for ids in group["completion_ids"]) == by_group[0]
    with pytest.raises(UsageError, match=f"{NUM_GROUPS - 1} of {NUM_GROUPS}"):
        build_trainer(*parse(objective="grouped", max_length=by_group[0]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_where_every_row_is_too_long_dropping_is_refused(objective, parse):
    from course_correction.training.run import build_trainer

    with pytest.raises(UsageError, match="longer than max_length 8"):
        build_trainer(*parse("--drop_long_rows", "true", objective=objective, max_length=8))


def test_max_groups_keeps_all_rows_of_the_first_requests(parse, dataset_folder):
    from course_correction.training.data import load_rows
    from course_correction.training.settings import TrainingData

    data = TrainingData(dataset_name=str(dataset_folder), max_groups=2)
    assert len(load_rows(data, "pairwise")) == 30
    assert load_rows(data, "grouped").to_list() == read_rows(dataset_folder, "ranked")[:2]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_datasets_are_mixed_in_the_order_named_and_one_named_twice_counts_twice(objective, dataset_folder, tmp_path):
    from course_correction.training.data import CONFIGS, load_rows
    from course_correction.training.settings import TrainingData

    config = CONFIGS[objective]
    seed, own = read_rows(dataset_folder, config), [dict(row) for row in read_rows(dataset_folder, config)[:1]]
    if objective == "grouped":
        own[0]["request"] = "How do I dodge the washing-up?"
    folder = write_dataset(tmp_path / "own@home", **{config: own})
    data = TrainingData(dataset_name=str(dataset_folder), mix_with=[str(folder), str(folder)])
    assert load_rows(data, objective).to_list() == [
        {name: row[name] for name in load_rows(data, objective).column_names} for row in seed + own + own
    ]


def test_what_is_mixed_in_is_checked_like_the_rest_and_named(parse, dataset_folder, tmp_path):
    from course_correction.training.data import load_rows
    from course_correction.training.run import build_trainer
    from course_correction.training.settings import TrainingData

    def mixed(folder, name, **changes):
        rows = [row | changes for row in read_rows(dataset_folder, "ranked")[:1]]
        return TrainingData(dataset_name=str(dataset_folder), mix_with=[str(write_dataset(folder / name, ranked=rows))])

    held_out = next(iter(read_eval_items("seed")))["request"]
    with pytest.raises(UsageError, match="copied holds 1 requests of the C²-Eval items seed"):
        load_rows(mixed(tmp_path, "copied", request=held_out), "grouped")
    with pytest.raises(UsageError, match="short: row 1"):
        load_rows(mixed(tmp_path, "short", responses=["one", "two"]), "grouped")
    with pytest.raises(UsageError, match=r"none.* cannot be loaded"):
        load_rows(TrainingData(dataset_name=str(dataset_folder), mix_with=[str(tmp_path / "none")]), "grouped")
    with pytest.raises(UsageError, match="odd cannot be mixed"):
        load_rows(mixed(tmp_path, "odd", opener={"a": 1}), "grouped")
    _, facts = build_trainer(*parse("--mix_with", str(dataset_folder), objective="grouped"))
    assert (facts["mix_with"], facts["rows"]) == (["export"], 2 * NUM_GROUPS)


@pytest.mark.parametrize("value", [0, -1])
def test_max_groups_below_one_is_refused(value, parse):
    from course_correction.training.run import build_trainer

    with pytest.raises(UsageError, match="max_groups"):
        build_trainer(*parse(max_groups=value))


@pytest.mark.parametrize(("objective", "column"), [("pairwise", "rejected"), ("grouped", "responses")])
def test_a_missing_column_is_refused_by_name(objective, column, dataset_folder, tmp_path):
    from course_correction.training.data import CONFIGS, load_rows
    from course_correction.training.settings import TrainingData

    config = CONFIGS[objective]
    rows = [{name: value for name, value in row.items() if name != column} for row in read_rows(dataset_folder, config)]
    folder = write_dataset(tmp_path / "data", **{config: rows})
    with pytest.raises(UsageError, match=f"lacks the columns {column}"):
        load_rows(TrainingData(dataset_name=str(folder)), objective)


@pytest.mark.parametrize("content", ["", "  \n", None])
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_an_empty_text_in_a_pair_is_refused_by_row_without_the_others(column, content, dataset_folder, tmp_path):
    from course_correction.training.data import load_rows
    from course_correction.training.settings import TrainingData

    rows = read_rows(dataset_folder, "pairs")[:4]
    for name in ("prompt", "chosen", "rejected"):
        rows[2][name][0]["content"] = content if name == column else "MARKED"
    folder = write_dataset(tmp_path / "data", pairs=rows)
    with pytest.raises(UsageError, match="row 3 has a null or empty text") as error:
        load_rows(TrainingData(dataset_name=str(folder)), "pairwise")
    assert "MARKED" not in str(error.value)


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("value", [None, []], ids=["null", "no turn"])
def test_a_pair_without_a_turn_is_refused_by_row(column, value, dataset_folder, tmp_path):
    from course_correction.training.data import load_rows
    from course_correction.training.settings import TrainingData

    rows = read_rows(dataset_folder, "pairs")[:4]
    rows[2][column] = value
    folder = write_dataset(tmp_path / "data", pairs=rows)
    with pytest.raises(UsageError, match="row 3"):
        load_rows(TrainingData(dataset_name=str(folder)), "pairwise")


def test_an_empty_response_in_a_group_is_refused_by_row_without_the_others(dataset_folder, tmp_path):
    from course_correction.training.data import load_rows
    from course_correction.training.settings import TrainingData

    rows = read_rows(dataset_folder, "ranked")
    rows[1]["responses"] = ["MARKED", "MARKED 1", "", "MARKED 3", "MARKED 4", "MARKED 5"]
    folder = write_dataset(tmp_path / "data", ranked=rows)
    with pytest.raises(UsageError, match="row 2") as error:
        load_rows(TrainingData(dataset_name=str(folder)), "grouped")
    assert "MARKED" not in str(error.value)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_dataset_that_is_not_there_is_refused_on_one_line(objective, tmp_path):
    from course_correction.training.data import load_rows
    from course_correction.training.settings import TrainingData

    with pytest.raises(UsageError, match="cannot be loaded") as error:
        load_rows(TrainingData(dataset_name=str(tmp_path / "none")), objective)
    assert "\n" not in str(error.value)


def test_a_model_without_a_name_or_a_chat_template_is_refused(parse, tmp_path, tiny_llama, tiny_tokenizer):
    import copy

    from course_correction.training.run import build_trainer

    settings = parse()
    settings[-1].model_name_or_path = None
    with pytest.raises(UsageError, match="model_name_or_path"):
        build_trainer(*settings)
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    tiny_llama.save_pretrained(tmp_path / "plain")
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(UsageError, match="no chat template"):
        build_trainer(*parse(model_name_or_path=tmp_path / "plain"))


@pytest.mark.parametrize(("name", "value"), [("truncation_mode", "keep_end"), ("model_init_kwargs", '{"use_cache": false}')])
def test_a_setting_of_trl_that_has_no_effect_here_is_refused_by_name(name, value, parse):
    from course_correction.training.run import build_trainer

    with pytest.raises(UsageError, match=f"{name} has no effect here"):
        build_trainer(*parse(**{name: value}))
