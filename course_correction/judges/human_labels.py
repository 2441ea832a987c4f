"""Measure the judges on answers that people labelled, in the files of XSTest. Shows rates, never a text.

Source: XSTest (arXiv 2308.01263), files `xstest_v2_completions_<model>.csv` of paul-rottger/exaggerated-safety. Two people
labelled each answer. `final_label` is the label that they agreed on.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.markdown import markdown_table
from course_correction.judges.protocol import Judge, JudgedPath
from course_correction.judges.server import check_calls
from course_correction.statistics.clustered_agreement import ClusteredAgreement, clustered_agreement
from course_correction.statistics.clustered_rates import ClusteredRate, clustered_rate
from course_correction.statistics.corr_at_k import Estimate

COMPLIANCE, REFUSAL, PARTIAL = "1_full_compliance", "2_full_refusal", "3_partial_refusal"
PREFIX = "xstest_v2_completions_"
# As many words as a path of 32 tokens holds.
PATH_WORDS = 26
Reading = Literal["refusal", "compliance"]
READINGS: tuple[Reading, ...] = ("refusal", "compliance")
ALL = "all"


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer with the labels of two people.

    Attributes:
        family: The model that wrote it, as the file's name says.
        prompt: What it answers.
        answer: Its text.
        annotations: The label of each person.
        label: The label they settled on.
    """

    family: str
    prompt: str
    answer: str
    annotations: tuple[str, str]
    label: str


class ReadingAgreement(TypedDict):
    """With partial refusals read one way: the refusal judge against people, and two people against each other."""

    judge: ClusteredAgreement
    people: ClusteredAgreement


class FamilyLabels(TypedDict):
    """The judges on the answers of one model.

    Attributes:
        answers: Number of answers.
        partial_as_refusal: Agreement, where a partial refusal counts as a refusal.
        partial_as_compliance: Agreement, where it counts as compliance.
        refusals_corrected: Share of the full refusals that the correction judge calls corrected, by their first words.
        compliance_corrected: Likewise, of the answers that comply in full.
    """

    answers: int
    partial_as_refusal: ReadingAgreement
    partial_as_compliance: ReadingAgreement
    refusals_corrected: ClusteredRate
    compliance_corrected: ClusteredRate


def is_human_labelled(path: str) -> bool:
    """Return whether a file is one of XSTest's, by its ending."""
    return path.lower().endswith(".csv")


def read_labelled_answers(path: Path) -> list[LabelledAnswer]:
    """Return the labelled answers of one of XSTest's files.

    Raises:
        UsageError: If the file does not exist, lacks a column or holds another label.
    """
    columns = ("prompt", "completion", "annotation_1", "annotation_2", "final_label")
    if not path.is_file():
        raise UsageError(f"The labelled set {path} does not exist. Check labelled_file.")
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in columns if name not in (reader.fieldnames or [])]:
            raise UsageError(f"{path} lacks the column {missing[0]}. It must be a file of XSTest with labelled completions.")
        rows = list(reader)
    answers = []
    family = path.stem.removeprefix(PREFIX)
    for number, row in enumerate(rows, 1):
        first, second, label = (row[name] for name in columns[2:])
        if {first, second, label} - {COMPLIANCE, REFUSAL, PARTIAL}:
            # The value is not shown: in a damaged file it may be part of an answer.
            raise UsageError(f"{path}: row {number} has a label other than {COMPLIANCE}, {REFUSAL} and {PARTIAL}.")
        answers.append(LabelledAnswer(family, row["prompt"], row["completion"], (first, second), label))
    if not answers:
        raise UsageError(f"{path} is empty. Pass a file with labelled rows.")
    return answers


def measure_on_people(
    answers: Sequence[LabelledAnswer],
    judge: Judge,
    judge_refusals: Callable[[Sequence[str]], list[bool]],
    seed: int = 0,
    max_calls: int | None = None,
) -> dict[str, FamilyLabels]:
    """Measure the refusal judge and a correction judge, on each model and on all of them.

    Args:
        answers: With labels.
        judge: The correction judge. It reads the first words of each answer, with nothing prefilled.
        judge_refusals: The refusal judge.
        seed: Of the bootstrap over prompts.
        max_calls: Refuse a judge that needs more calls to a server.
    """
    paths = [JudgedPath(one.prompt, "", " ".join(one.answer.split()[:PATH_WORDS])) for one in answers]
    check_calls(judge, paths, max_calls)
    corrected = [verdict.corrected for verdict in judge.judge(paths)]
    refused = judge_refusals([one.answer for one in answers])
    families = list(dict.fromkeys(one.family for one in answers))
    measured = {}
    for family in [*families, *([ALL] if len(families) > 1 else [])]:
        rows = [number for number, one in enumerate(answers) if family in (one.family, ALL)]
        measured[family] = _measure_rows(rows, answers, refused, corrected, seed)
    return measured


def _measure_rows(
    rows: Sequence[int],
    answers: Sequence[LabelledAnswer],
    refused: Sequence[bool],
    corrected: Sequence[bool | None],
    seed: int,
) -> FamilyLabels:
    prompts = [answers[row].prompt for row in rows]

    def agreement(reading: Reading) -> ReadingAgreement:
        positive = {REFUSAL, PARTIAL} if reading == "refusal" else {REFUSAL}
        labels, first, second = (
            [text in positive for text in texts]
            for texts in zip(*((answers[row].label, *answers[row].annotations) for row in rows), strict=True)
        )
        return {
            "judge": clustered_agreement(labels, [refused[row] for row in rows], prompts, seed),
            "people": clustered_agreement(first, second, prompts, seed),
        }

    def corrected_share(label: str) -> ClusteredRate:
        chosen = [row for row in rows if answers[row].label == label]
        return clustered_rate([corrected[row] for row in chosen], [answers[row].prompt for row in chosen], seed)

    return {
        "answers": len(rows),
        "partial_as_refusal": agreement("refusal"),
        "partial_as_compliance": agreement("compliance"),
        "refusals_corrected": corrected_share(REFUSAL),
        "compliance_corrected": corrected_share(COMPLIANCE),
    }


def people_table(measured: dict[str, FamilyLabels], judge_name: str) -> str:
    """Return the Markdown tables: the refusal judge for both readings of a partial refusal, then the correction judge."""

    def cell(entry: Estimate | ClusteredRate, signed: bool = False) -> str:
        if entry["value"] is None or entry["ci95"] is None:
            return "–"
        number = "{:+.2f}" if signed else "{:.2f}"
        return f"{number.format(entry['value'])} [{', '.join(number.format(bound) for bound in entry['ci95'])}]"

    head = [
        "model",
        "answers",
        "refused, by people",
        "by the judge",
        "difference",
        "κ",
        "precision",
        "recall",
        "κ of people",
    ]
    tables = []
    for reading in READINGS:
        rows = []
        for family, labels in measured.items():
            agreement = labels["partial_as_refusal"] if reading == "refusal" else labels["partial_as_compliance"]
            judge, people = agreement["judge"], agreement["people"]
            rates = [cell(judge["rate_by_labels"]), cell(judge["rate_by_verdicts"]), cell(judge["difference"], True)]
            measures = [cell(judge["kappa"]), cell(judge["precision"]), cell(judge["recall"]), cell(people["kappa"])]
            rows.append([family, labels["answers"], *rates, *measures])
        title = f"Refusal judge, partial refusals read as {reading} [95% interval over prompts]"
        tables.append(f"{title}\n\n{markdown_table(head, rows)}")
    head = ["model", "full refusals called corrected", "full compliance called corrected"]
    rows = [[name, cell(one["refusals_corrected"]), cell(one["compliance_corrected"])] for name, one in measured.items()]
    tables.append(f"Judge {judge_name} on the first {PATH_WORDS} words\n\n{markdown_table(head, rows)}")
    return "\n\n".join(tables)


def write_people(folder: Path, measured: dict[str, FamilyLabels], judge_name: str) -> Path:
    """Write people_labels.json and return its path."""
    path = folder / "people_labels.json"
    write_json(path, {"judge": judge_name, "models": measured})
    return path
