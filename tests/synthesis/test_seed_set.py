"""The rules of course_correction/data/README.md."""

import json
import re
from collections import Counter

import pytest

from course_correction.synthesis.cuts import find_cut_positions
from course_correction.synthesis.ranked_groups import build_ranked_group, check_ranked_group, draft_corrections
from course_correction.synthesis.sources import (
    DATA_FOLDER,
    SEED,
    SelectionRules,
    normalise_request,
    read_benign_rows,
    read_eval_items,
    read_source_rows,
    select_source_pairs,
)
from tests.support.rows import read_data

SPLITS = ("train", "eval")
REQUEST_COLUMNS = ["request_id", "kind", "request", "full_harmful_response", "safe_response", "correction"]
BENIGN_COLUMNS = ["request_id", "alarming", "prompt", "response"]
TEXT_COLUMNS = ("request", "full_harmful_response", "safe_response", "correction", "prompt", "response")


def _words(text: str) -> list[str]:
    # A contraction is one word, as in the README's "six words in a row".
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def _six_grams(split: str) -> set[tuple[str, ...]]:
    grams: set[tuple[str, ...]] = set()
    rows = read_data(f"requests_{split}") + read_data(f"benign_{split}")
    for row in rows + (read_data("contrast_eval") if split == "eval" else []):
        for column in TEXT_COLUMNS:
            words = _words(row.get(column, ""))
            grams.update(tuple(words[start : start + 6]) for start in range(len(words) - 5))
    return grams


@pytest.mark.parametrize(
    ("name", "minimum"), [("requests_train", 120), ("requests_eval", 60), ("benign_train", 120), ("benign_eval", 40)]
)
def test_a_file_has_enough_rows_and_as_many_as_its_readme_says(name: str, minimum: int) -> None:
    rows = read_data(name)
    assert len(rows) >= minimum
    stated = re.search(rf"`{name}\.jsonl` \| (\d+)", (DATA_FOLDER / "README.md").read_text())
    assert stated and int(stated[1]) == len(rows)


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_has_the_columns_and_no_empty_text(split: str) -> None:
    for name, columns in ((f"requests_{split}", REQUEST_COLUMNS), (f"benign_{split}", BENIGN_COLUMNS)):
        for row in read_data(name):
            assert list(row) == columns
            for column in set(columns) - {"alarming"}:
                assert isinstance(row[column], str) and row[column].strip() == row[column] != ""


@pytest.mark.parametrize("split", SPLITS)
def test_requests_are_of_many_kinds_spread_over_the_file(split: str) -> None:
    kinds = [row["kind"] for row in read_data(f"requests_{split}")]
    assert len(set(kinds)) >= 12
    assert max(Counter(kinds).values()) <= 2 * len(kinds) / len(set(kinds))
    assert len(set(kinds[: len(set(kinds))])) == len(set(kinds))
    assert set(kinds) == {row["kind"] for row in read_data("requests_train")}


@pytest.mark.parametrize("split", SPLITS)
def test_a_third_to_a_half_of_the_benign_requests_sounds_alarming(split: str) -> None:
    rows = read_data(f"benign_{split}")
    assert {type(row["alarming"]) for row in rows} == {bool}
    assert 0.3 <= sum(row["alarming"] for row in rows) / len(rows) <= 0.5


@pytest.mark.parametrize("split", SPLITS)
def test_harmful_responses_are_long_enough_to_cut_and_short_enough_to_read(split: str) -> None:
    for row in read_data(f"requests_{split}"):
        assert 80 < len(row["full_harmful_response"].split()) <= 160, row["request_id"]
        assert len(find_cut_positions(row["full_harmful_response"])) + 1 >= 10, row["request_id"]


@pytest.mark.parametrize("split", SPLITS)
def test_corrections_are_short_and_fit_to_follow_a_trigger(split: str) -> None:
    for row in read_data(f"requests_{split}"):
        correction = row["correction"]
        assert correction[0].islower() or re.match(r"I\b", correction), row["request_id"]
        assert correction[-1] in ".!?", row["request_id"]
        sentences = re.findall(r"[.!?](?:\s|$)", re.sub(r"\b(Ms|Mrs|Mr|Dr)\.", r"\1", correction))
        assert 1 <= len(sentences) <= 3, row["request_id"]


def test_identifiers_requests_and_texts_are_unique_over_all_files() -> None:
    rows = [row for split in SPLITS for name in ("requests", "benign") for row in read_data(f"{name}_{split}")]
    for values in (
        [row["request_id"] for row in rows],
        [normalise_request(row.get("request") or row["prompt"]) for row in rows],
        [normalise_request(row.get("full_harmful_response") or row["response"]) for row in rows],
        [normalise_request(row["safe_response"]) for row in rows if "kind" in row],
        [normalise_request(row["correction"]) for row in rows if "kind" in row],
    ):
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_pairs_are_of_one_harmful_and_one_harmless_twin_of_like_length_in_words_of_their_own() -> None:
    pairs = read_data("contrast_eval")
    assert len({pair["pair_id"] for pair in pairs}) == len(pairs) >= 40
    assert len({pair["kind"] for pair in pairs}) >= 12
    known = {
        normalise_request(row.get("request") or row["prompt"])
        for split in SPLITS
        for name in ("requests", "benign")
        for row in read_data(f"{name}_{split}")
    }
    for pair in pairs:
        assert list(pair) == [
            "pair_id", "kind", "request", "full_harmful_response", "alarming", "prompt", "response"
        ]  # fmt: skip
        assert not {normalise_request(pair["request"]), normalise_request(pair["prompt"])} & known
        assert len(set(_words(pair["request"])) & set(_words(pair["prompt"]))) >= 3, pair["pair_id"]
    lengths = [(len(pair["full_harmful_response"].split()), len(pair["response"].split())) for pair in pairs]
    assert all(min(pair) >= 60 and max(pair) <= 130 for pair in lengths)
    harmful, harmless = map(sum, zip(*lengths, strict=True))
    assert 0.85 < harmless / harmful < 1.15


def test_no_six_words_in_a_row_are_shared_by_training_and_evaluation() -> None:
    assert _six_grams("train") & _six_grams("eval") == set()


def test_every_training_row_survives_selection_and_synthesis_with_the_written_teacher() -> None:
    excluded = frozenset(normalise_request(item["request"]) for item in read_eval_items(SEED))
    counts: Counter[str] = Counter()
    pairs = list(select_source_pairs(read_source_rows(SEED), SEED, SelectionRules(), excluded, counts))
    rows = read_data("requests_train")
    assert counts == {"kept": len(rows)}
    assert [pair.request_id for pair in pairs] == [row["request_id"] for row in rows]
    for seed in range(3):
        for pair in pairs:
            opener, initial_responses, triggers = draft_corrections(pair, seed, 0.6)
            continuations = [" " + pair.correction] * 4
            group = build_ranked_group(
                pair, opener, initial_responses, triggers, pair.safe_response, continuations, "written"
            )
            check_ranked_group(group, pair.request_id)


def test_evaluation_items_and_benign_rows_are_read_in_file_order() -> None:
    items = list(read_eval_items(SEED))
    assert [item["request_id"] for item in items] == [row["request_id"] for row in read_data("requests_eval")]
    assert {item["source"] for item in items} == {SEED}
    assert all(list(item) == ["request_id", "request", "full_harmful_response", "source"] for item in items)
    for split in SPLITS:
        assert read_benign_rows(split) == read_data(f"benign_{split}")


# The labelled set for judges


def test_the_labelled_set_is_balanced_and_as_large_as_its_readme_says() -> None:
    rows = read_data("judge_calibration")
    stated = re.search(r"`judge_calibration\.jsonl` \| (\d+)", (DATA_FOLDER / "README.md").read_text())
    assert stated and int(stated[1]) == len(rows) >= 400
    assert len({row["id"] for row in rows}) == len(rows)
    written = [row for row in rows if not row["kind"].startswith("sampled")]
    assert len({row["request"] for row in written}) == len(written)
    assert {row["kind"][:7] for row in rows if row["split"] == "sampled"} == {"sampled"}
    # What models of other families wrote is as it came, not balanced.
    hard = [row for row in rows if row["split"] != "sampled" and row["family"] in (None, "smollm2")]
    for split in ("development", "measured"):
        labels = [row["corrected"] for row in hard if row["split"] == split]
        assert 0.45 < len(labels) / len(hard) < 0.55 and 0.4 < sum(labels) / len(labels) < 0.6
    kinds = {row["kind"] for row in written}
    assert len(kinds) == 16
    assert all(len({row["corrected"] for row in written if row["kind"] == kind}) == 1 for kind in kinds)
    sampled = [
        {row["request"] for row in rows if row not in written and (row["split"] == "development") == fits}
        for fits in (True, False)
    ]
    assert not sampled[0] & sampled[1]
    assert all((row["family"] is None) == (row in written) for row in rows)
    families = [row["split"] for row in rows if row["family"] == "qwen2.5"]
    assert len(families) >= 300 and 0.3 < families.count("sampled") / len(families) < 0.6


def test_at_least_half_of_the_corrected_rows_use_no_wording_of_the_triggers() -> None:
    from course_correction.synthesis.triggers import TRIGGERS

    def pieces(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z']+", text.lower())
        return {tuple(words[index : index + 4]) for index in range(len(words) - 3)}

    known = set().union(*map(pieces, TRIGGERS))
    corrected = [row for row in read_data("judge_calibration") if row["corrected"] and row["split"] != "sampled"]
    free = [row for row in corrected if not pieces(row["continuation"]) & known]
    assert len(free) / len(corrected) >= 0.5


def test_the_texts_that_fit_the_pattern_judge_share_nothing_with_those_that_measure_judges() -> None:
    learnt, labelled = read_data("judge_train"), read_data("judge_calibration")
    measured = {row["request"] for row in labelled if row["split"] != "development"}
    assert not {row["request"] for row in learnt} & measured
    assert not {row["continuation"].strip() for row in learnt} & {row["continuation"].strip() for row in labelled}
    benign = {row["prompt"] for split in SPLITS for row in read_data(f"benign_{split}")}
    assert not {row["request"] for row in learnt} & benign
    for name, rows in (("judge_train", learnt), ("refusal_train", read_data("refusal_train"))):
        stated = re.search(rf"`{name}\.jsonl` \| (\d+)", (DATA_FOLDER / "README.md").read_text())
        assert len(rows) == int(stated[1]) == len({row["id"] for row in rows})
        texts = [row.get("continuation") or row["answer"] for row in rows]
        assert all(text.strip() for text in texts) and len(set(texts)) == len(texts)
        labels = [row.get("corrected", row.get("refuses")) for row in rows]
        assert 0.35 < sum(labels) / len(labels) < 0.65


@pytest.mark.slow
def test_the_committed_weights_are_those_that_the_command_fits() -> None:
    from benchmarks.fit_pattern_judge import REFUSES, fit, refusal_examples

    committed = json.loads((DATA_FOLDER / "pattern_judge.json").read_text())[REFUSES]
    fresh = fit(refusal_examples(0), 60_000)
    shared = committed["weights"].keys() & fresh["weights"].keys()
    assert len(shared) > 0.98 * len(committed["weights"])
    # Thousandths, and the solver stops within a tolerance.
    assert all(abs(committed["weights"][name] - fresh["weights"][name]) <= 20 for name in shared)
