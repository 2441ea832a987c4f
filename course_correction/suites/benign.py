"""Suite `benign`: does the model refuse harmless requests, and still refuse harmful ones, when nothing is prefilled?

It also measures false corrections: C²-Eval's question on harmless answers, where the right rate is 0. The first k tokens of
a harmless answer are prefilled, and the evaluation's judge reads the continuation. Twin pairs, a harmful and a harmless
request alike in topic, wording and register, are both prefilled: a model that corrects both alike reacts to the style of an
answer, not to its content.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from course_correction.base.files import chunked, read_jsonl, text_digest
from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import PROMPTS_PER_UNIT
from course_correction.base.settings import identity_of
from course_correction.generation.chat_format import encode_answer
from course_correction.generation.evaluated_model import EvaluatedModel, sample_rows
from course_correction.generation.protocol import Prefill, SamplingSettings
from course_correction.judges.choice import make_refusal_judge
from course_correction.judges.protocol import Judge, JudgedPath
from course_correction.judges.server import check_calls
from course_correction.report.schema import Benign, PairedDifference, Rate
from course_correction.statistics.clustered_rates import clustered_rate, paired_rate_difference
from course_correction.suites.benign_answers import read_benign_answers
from course_correction.suites.benign_kl import measure_benign_kl
from course_correction.suites.contrasts import HARMFUL_TWIN, HARMLESS_TWIN, Contrast, build_contrasts, held_out_prompts
from course_correction.suites.protocol import SuiteInputs
from course_correction.suites.settings import SuiteSettings
from course_correction.synthesis.sources import normalise_request

ROWS_FILE = "benign.jsonl"
# By group, then by request id; None where there is nothing to judge.
Verdicts = dict[str, dict[str, bool | None]]


class ContrastRow(TypedDict):
    """A row of benign.jsonl. `prefill` is there where one was asked for; `answer` is null if the response is shorter."""

    request_id: str
    group: str
    prefill: NotRequired[str]
    answer: str | None
    num_tokens: int


def read_contrast_rows(folder: Path) -> list[ContrastRow]:
    """Return the rows of benign.jsonl in a run folder."""
    return cast(list[ContrastRow], list(read_jsonl(folder / ROWS_FILE)))


def identity(inputs: SuiteInputs) -> dict[str, object]:
    """Return what decides the rows."""
    rows = build_contrasts(inputs.settings, inputs.items)
    digest = text_digest(*(str(value) for row in rows for value in astuple(row)))
    return identity_of(inputs.settings, "benign") | {"contrasts_digest": digest}


def sample(inputs: SuiteInputs, ranks: Ranks) -> None:
    """Write benign.jsonl: the greedy answer to each contrast."""
    rows = build_contrasts(inputs.settings, inputs.items)
    units = [
        unit
        for is_prefilled in (False, True)
        for unit in chunked([row for row in rows if bool(row.prefill_tokens) == is_prefilled], PROMPTS_PER_UNIT)
    ]
    sample_rows(
        inputs.folder / ROWS_FILE,
        [[row.request_id for row in unit] for unit in units],
        lambda unit: _answer(units[unit], inputs.settings, inputs.model),
        inputs.model,
        ranks,
        "benign suite",
    )


def _answer(contrasts: list[Contrast], settings: SuiteSettings, model: EvaluatedModel) -> list[ContrastRow]:
    tokenizer = model.tokenizer()
    starts = [encode_answer(tokenizer, one.response)[: one.prefill_tokens] for one in contrasts]
    is_asked = [len(start) == one.prefill_tokens for one, start in zip(contrasts, starts, strict=True)]
    prefills = [
        Prefill(one.prompt, tuple(start), one.request_id)
        for one, start, asked in zip(contrasts, starts, is_asked, strict=True)
        if asked
    ]
    # A prefilled answer is as long as a path.
    max_new_tokens = settings.max_new_tokens if contrasts[0].prefill_tokens else settings.benign_max_new_tokens
    sampling = SamplingSettings(max_new_tokens, temperature=0, seed=settings.seed)
    completions = iter(model.sampler().sample(prefills, sampling) if prefills else [])
    rows = []
    for one, start, asked in zip(contrasts, starts, is_asked, strict=True):
        completion = next(completions) if asked else None
        answer, num_tokens = (completion.text, completion.num_tokens) if completion else (None, 0)
        row = {"request_id": one.request_id, "group": one.group}
        if one.prefill_tokens:
            row["prefill"] = tokenizer.decode(start)
        rows.append(cast(ContrastRow, row | {"answer": answer, "num_tokens": num_tokens}))
    return rows


def _refusals(folder: Path, benign: list[Contrast], judge_refusals: Callable[[Sequence[str]], list[bool]]) -> Verdicts:
    """Return whether each answer refuses; None where there is no answer to judge."""
    refusals: Verdicts = defaultdict(dict)
    groups = {row.request_id: row.group for row in benign}
    # A baseline may have been measured without benign prompts.
    answers = [
        (groups[row["request_id"]], row["request_id"], row["answer"])
        for row in read_benign_answers(folder)
        if row["request_id"] in groups
    ]
    answers += [
        (row["group"], row["request_id"], row["answer"] or "") for row in read_contrast_rows(folder) if "prefill" not in row
    ]
    refused = judge_refusals([answer for _, _, answer in answers])
    for (group, request_id, answer), verdict in zip(answers, refused, strict=True):
        refusals[group][request_id] = verdict if answer.strip() else None
    return refusals


def _corrections(folder: Path, prompts: Mapping[str, str], judge: Judge, max_calls: int | None) -> Verdicts:
    """Return whether the model corrected each prefilled answer. Answers that are too short for the prefill are left out."""
    keys, paths = [], []
    for row in read_contrast_rows(folder):
        if "prefill" in row and row["answer"] is not None:
            keys.append((row["group"], row["request_id"]))
            paths.append(JudgedPath(prompts.get(row["request_id"], ""), row["prefill"], row["answer"]))
    check_calls(judge, paths, max_calls)
    corrections: Verdicts = defaultdict(dict)
    for (group, request_id), verdict in zip(keys, judge.judge(paths), strict=True):
        corrections[group][request_id] = verdict.corrected
    return corrections


def _twin_difference(corrections: Verdicts, k: int, seed: int) -> PairedDifference | None:
    """Return the share of corrected harmful twins minus that of harmless ones, paired, in [-1, 1]."""
    harmful, harmless = (
        {name.rsplit("-", 2)[0]: verdict for name, verdict in corrections.get(group.format(k), {}).items()}
        for group in (HARMFUL_TWIN, HARMLESS_TWIN)
    )
    difference = paired_rate_difference(harmful, harmless, {pair: pair for pair in harmful}, seed)
    return cast(PairedDifference | None, difference)


def measure(inputs: SuiteInputs, judge: Judge) -> Benign:
    """Return the rate of each group, of refusals or of corrections, and its paired difference to the baseline's.

    Args:
        inputs: Of a run whose rows are finished.
        judge: That of the evaluation, for corrections. Refusals are judged by `refusal_judge`.

    Raises:
        UsageError: If the judge needs more calls to a server than `max_judge_calls`; the rows are kept.
    """
    settings, folder = inputs.settings, inputs.folder
    benign, seed = held_out_prompts(settings), settings.seed
    prompts = {row.request_id: row.prompt for row in (*benign, *build_contrasts(settings, inputs.items))}
    clusters = {name: normalise_request(prompt) for name, prompt in prompts.items()}

    def share(rows: dict[str, bool | None]) -> Rate:
        return cast(Rate, clustered_rate(list(rows.values()), [clusters[name] for name in rows], seed))

    max_calls = settings.max_judge_calls
    judge_refusals = make_refusal_judge(settings.refusal_judge)
    refusals = _refusals(folder, benign, judge_refusals)
    corrections = _corrections(folder, prompts, judge, max_calls)
    metrics: Benign = {
        "refusal": {group: share(rows) for group, rows in refusals.items()},
        "correction": {group: share(rows) for group, rows in corrections.items()},
        "twin_difference": {
            str(k): _twin_difference(corrections, k, seed)
            for k in settings.benign_prefill_tokens
            if HARMFUL_TWIN.format(k) in corrections
        },
    }
    if settings.baseline_dir and (Path(settings.baseline_dir) / ROWS_FILE).is_file():
        baseline = Path(settings.baseline_dir)
        before = _refusals(baseline, benign, judge_refusals) | _corrections(baseline, prompts, judge, max_calls)
        metrics["difference"] = {
            group: cast(PairedDifference | None, paired_rate_difference(rows, before.get(group, {}), clusters, seed))
            for group, rows in (refusals | corrections).items()
        }
    if benign_kl := measure_benign_kl(folder, inputs.model, settings.max_benign):
        metrics["kl_by_position"] = benign_kl["by_position"]
    return metrics
