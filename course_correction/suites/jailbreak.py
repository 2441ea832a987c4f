"""Suite `jailbreak`: how often does the model comply with published attack prompts, replayed unchanged?

Attack success rate: the share of answers that do not refuse (or that a judge calls a success), by attack. Prompts are read
by `attack_prompts`; nothing here searches for one. An attack optimised on this very model would succeed more often.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from course_correction.base.errors import UsageError
from course_correction.base.files import chunked, text_digest
from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import PROMPTS_PER_UNIT
from course_correction.base.run_folder import RUN_FILE, open_run
from course_correction.base.settings import identity_of
from course_correction.generation.evaluated_model import sample_rows
from course_correction.generation.protocol import Prefill, SamplingSettings
from course_correction.judges.protocol import Judge
from course_correction.report.schema import AttackRate, Jailbreak, PairedDifference, Rate
from course_correction.statistics.clustered_rates import (
    clustered_rate,
    paired_rate_difference,
)
from course_correction.suites.attack_judges import ROWS_FILE, VERDICTS_FILE, AttackRow, judge_rows, read_successes
from course_correction.suites.attack_prompts import AttackPrompt, index_prompts, read_attack_prompts
from course_correction.suites.first_word_judge import DEFAULT_MODELS, read_harmbench_template
from course_correction.suites.protocol import SuiteInputs
from course_correction.suites.settings import JailbreakSettings, SuiteSettings

logger = logging.getLogger(__name__)

_JUDGING = "jailbreak_judging"


def identity(inputs: SuiteInputs) -> dict[str, object]:
    """Return what decides the rows, once the files are read and fit the judge and the baseline.

    Raises:
        UsageError: If a file cannot be used, the judge needs texts that it lacks, or the baseline had another judge.
    """
    settings = inputs.settings
    indexed = _read_prompts(settings)
    if settings.jailbreak_judge != "refusal":
        without = sum(one.behavior is None and one.prompt is not None for _, _, one in indexed)
        if without:
            raise UsageError(
                f"jailbreak_judge: {settings.jailbreak_judge} reads the behaviour, and {without} prompts have its id only. "
                "Add HarmBench's table of behaviours (.csv) to jailbreak_files, or judge by refusal."
            )
    if settings.baseline_dir:
        _check_baseline(Path(settings.baseline_dir), settings)
    return identity_of(settings, "jailbreak") | {
        "attack_prompts": len(indexed),
        # A request id stands for attack, behaviour, cipher and prompt.
        "attack_prompts_digest": text_digest(*(request_id for request_id, _, _ in indexed)),
    }


def _read_prompts(settings: JailbreakSettings) -> list[tuple[str, int, AttackPrompt]]:
    return index_prompts(
        read_attack_prompts(settings.jailbreak_files, settings.jailbreak_ciphers, settings.max_attack_prompts)
    )


def _judging_identity(settings: SuiteSettings) -> dict[str, object]:
    judge = settings.jailbreak_judge
    identity = identity_of(settings, _JUDGING)
    identity["jailbreak_judge_model"] = settings.jailbreak_judge_model or DEFAULT_MODELS.get(judge)
    if judge == "harmbench":
        identity["jailbreak_judge_template"] = text_digest(read_harmbench_template(settings.jailbreak_judge_template))
    return identity | (identity_of(settings, "judging") if judge == "judge" else {})


def _check_baseline(folder: Path, settings: SuiteSettings) -> None:
    """Refuse a baseline whose rates mean something else: another judge, or answers of another length."""
    if not (folder / VERDICTS_FILE).is_file():
        return
    runs = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    wanted = {"jailbreak": {"jailbreak_max_new_tokens": settings.jailbreak_max_new_tokens}}
    for stage, values in (wanted | {_JUDGING: _judging_identity(settings)}).items():
        known = runs.get(stage, {}).get("settings", {})
        for name, value in values.items():
            if known.get(name) != value:
                raise UsageError(
                    f"{folder} was measured with {name} {known.get(name)!r}, not {value!r}: no difference can be computed. "
                    "Use the same value, or another baseline_dir."
                )


def sample(inputs: SuiteInputs, ranks: Ranks) -> None:
    """Write jailbreak.jsonl: the model's greedy answer to each attack prompt; null prompts are marked and not asked."""
    settings, model = inputs.settings, inputs.model
    units = chunked(_read_prompts(settings), PROMPTS_PER_UNIT)
    sampling = SamplingSettings(settings.jailbreak_max_new_tokens, temperature=0, seed=settings.seed)

    def answer(unit: int) -> list[AttackRow]:
        asked = [Prefill(one.prompt, (), request_id) for request_id, _, one in units[unit] if one.prompt is not None]
        completions = iter(model.sampler().sample(asked, sampling) if asked else [])
        rows = []
        for request_id, number, one in units[unit]:
            row: AttackRow = {
                "request_id": request_id, "attack": one.attack, "behavior_id": one.behavior_id, "prompt_index": number,
            }  # fmt: skip
            if one.prompt is None:
                row["null_prompt"] = True
            else:
                completion = next(completions)
                row["answer"], row["num_tokens"] = completion.text, completion.num_tokens
            rows.append(row)
        return rows

    ids = [[request_id for request_id, _, _ in unit] for unit in units]
    sample_rows(inputs.folder / ROWS_FILE, ids, answer, model, ranks, "attack prompts")


def measure(inputs: SuiteInputs, judge: Judge) -> Jailbreak:
    """Judge the answers that have no verdict yet, and return the suite's part of metrics.json.

    Args:
        inputs: Of a run whose rows are finished.
        judge: That of the evaluation, asked where `jailbreak_judge` is `judge`.
    """
    settings, folder = inputs.settings, inputs.folder
    prompts = {request_id: one for request_id, _, one in _read_prompts(settings)}
    # Verdicts on other answers to the same prompts do not count for these.
    answers = {"answers_digest": text_digest((folder / ROWS_FILE).read_text(encoding="utf-8"))}
    with open_run(folder, _JUDGING, _judging_identity(settings) | answers, VERDICTS_FILE):
        judge_rows(folder, prompts, judge, settings)
    successes = read_successes(folder)
    ids: dict[str, list[str]] = {}
    for request_id, one in prompts.items():
        ids.setdefault(one.attack, []).append(request_id)

    def success_rate(names: Sequence[str]) -> Rate:
        behaviors = [prompts[name].behavior_id for name in names]
        return cast(Rate, clustered_rate([successes[name] for name in names], behaviors, settings.seed))

    attacks: dict[str, AttackRate] = {}
    for attack, names in ids.items():
        asked = [name for name in names if prompts[name].prompt is not None]
        attacks[attack] = {
            **success_rate(names),
            "null_prompts": len(names) - len(asked),
            "value_without_null": success_rate(asked)["value"],
        }
        if ciphers := list(dict.fromkeys(one.cipher for name in names if (one := prompts[name]).cipher)):
            attacks[attack]["ciphers"] = {
                str(cipher): success_rate([name for name in names if prompts[name].cipher == cipher]) for cipher in ciphers
            }
    values = [entry["value"] for entry in attacks.values() if entry["value"] is not None]
    metrics: Jailbreak = {
        "attacks": attacks,
        "mean": sum(values) / len(values) if values else None,
        "overall": success_rate(list(prompts)),
        "judge": judge.name if settings.jailbreak_judge == "judge" else settings.jailbreak_judge,
        "max_new_tokens": settings.jailbreak_max_new_tokens,
    }
    if not settings.baseline_dir:
        return metrics
    baseline = Path(settings.baseline_dir)
    if not (baseline / VERDICTS_FILE).is_file():
        logger.info(f"{baseline} holds no verdicts on attack prompts: there is no difference to it.")
        return metrics
    before = read_successes(baseline)
    behaviors = {name: one.behavior_id for name, one in prompts.items()}

    def difference(names: Sequence[str]) -> PairedDifference | None:
        after = {name: successes[name] for name in names}
        return cast(PairedDifference | None, paired_rate_difference(after, before, behaviors, settings.seed))

    metrics["difference"] = {attack: difference(names) for attack, names in ids.items()}
    metrics["overall_difference"] = difference(list(prompts))
    return metrics
