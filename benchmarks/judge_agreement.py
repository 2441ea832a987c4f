"""Measure the offline judges on labels, by model family, and write judge_agreement.json, which reports quote.

Corrections are measured on the labelled set. Refusals are measured on refusal_calibration.jsonl and on answers that people
labelled (`--people_files`, the files of XSTest). The encoder judge is fitted to those answers too, so `--left_out` names for
each of their models the weights that were fitted without it (`benchmarks.fit_encoder_judge --leave_out`).

python -m benchmarks.judge_agreement --people_files xstest_v2_completions_*.csv --left_out gpt4=w1.safetensors
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fit_pattern_judge import read_data
from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import write_json
from course_correction.base.settings import parse_settings, setting
from course_correction.judges.calibration import calibrate, read_labelled
from course_correction.judges.encoder import WEIGHTS_FILE, EncoderJudge, judge_refusal_by_encoder
from course_correction.judges.human_labels import COMPLIANCE, measure_on_people, people_table, read_labelled_answers
from course_correction.judges.known_agreement import AGREEMENT_FILE, FamilyAgreement, summarise_family, weights_digest
from course_correction.judges.pattern import PatternJudge, judge_refusal

# The families of the models that XSTest's files name.
XSTEST_FAMILIES = {"gpt4": "gpt-4", "llama2new": "llama-2", "llama2orig": "llama-2", "mistralinstruct": "mistral"}
RefusalJudge = Callable[[Sequence[str]], list[bool]]


@dataclass
class AgreementSettings:
    """What the judges are measured on."""

    people_files: list[str] = setting(
        default_factory=list, help="files of XSTest with labelled answers", group="data", identity=()
    )
    left_out: list[str] = setting(
        default_factory=list, help="MODEL=FILE: the encoder's weights fitted without the answers of a model of people_files",
        group="data", identity=(),
    )  # fmt: skip
    output_file: str = setting(str(AGREEMENT_FILE), "file to write", group="output", identity=())


def own_refusals(judge: RefusalJudge) -> dict[str, FamilyAgreement]:
    """Return the agreement on the labelled answers of this project, by family."""
    rows = read_data("refusal_calibration")
    verdicts = judge([row["answer"] for row in rows])
    families: dict[str, tuple[list[bool], list[bool]]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        labels, judged = families.setdefault(row["family"], ([], []))
        labels.append(row["refuses"])
        judged.append(verdict)
    return {name: summarise_family(*pair, "answers to benign prompts") for name, pair in families.items()}


def main() -> None:
    """Measure both judges, print the tables on XSTest, and write the file."""
    (settings,) = parse_settings([AgreementSettings], description=__doc__)
    files = {family: Path(file) for family, _, file in (entry.partition("=") for entry in settings.left_out)}
    answers = [answer for file in settings.people_files for answer in read_labelled_answers(Path(file))]
    models = list(dict.fromkeys(answer.family for answer in answers))
    if missing := [model for model in models if model not in files]:
        raise UsageError(
            f"left_out names no weights for {missing[0]}. Fit them with benchmarks.fit_encoder_judge --leave_out."
        )
    result: dict[str, Any] = {}
    for name in ("encoder", "pattern"):
        corrections = calibrate(EncoderJudge() if name == "encoder" else PatternJudge(), read_labelled())
        corrections.pop("versions")
        refusals = own_refusals(judge_refusal_by_encoder if name == "encoder" else judge_refusal)
        for model in models:
            chosen = [answer for answer in answers if answer.family == model]
            weights = files[model] if name == "encoder" else WEIGHTS_FILE
            judge = EncoderJudge(weights) if name == "encoder" else PatternJudge()

            def refused(texts: Sequence[str], weights: Path = weights, name: str = name) -> list[bool]:
                return judge_refusal_by_encoder(texts, weights) if name == "encoder" else judge_refusal(texts)

            verdicts = refused([answer.answer for answer in chosen])
            labels = [answer.label != COMPLIANCE for answer in chosen]
            source = "XSTest, without this model in the fit" if name == "encoder" else "XSTest"
            refusals[XSTEST_FAMILIES.get(model, model)] = summarise_family(labels, verdicts, source)
            print(f"{people_table(measure_on_people(chosen, judge, refused), name)}\n")
        result[name] = {"weights": weights_digest(name), "corrections": corrections, "refusals": refusals}
    write_json(Path(settings.output_file), result)


if __name__ == "__main__":
    run_script(main)
