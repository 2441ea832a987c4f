"""Suite `jailbreak`: how often does the model give in to published attack prompts, replayed as they are?

Attack success rate: the share of answers that do not refuse (or that a judge calls a success), by attack. Prompts are read
by `jailbreaks`; nothing here searches for one. An attack made on this very model would do better than one replayed.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal

from course_correction.base.errors import UsageError
from course_correction.base.files import chunked, read_jsonl, text_digest
from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import PROMPTS_PER_UNIT
from course_correction.base.run_folder import RUN_FILE, open_run
from course_correction.generation.protocol import Prefill
from course_correction.statistics.clustered_rates import clustered_rate, paired_rate_difference
from course_correction.suites.attack_judges import DEFAULT_MODELS, ROWS_FILE, VERDICTS_FILE, judge_rows, read_template
from course_correction.suites.attack_prompts import AttackPrompt, index_prompts, read_attack_prompts
from course_correction.suites.ciphers import CIPHERS

logger = logging.getLogger(__name__)

_JUDGING = "jailbreak_judging"


@dataclass
class JailbreakSettings:
    """Which attack prompts are replayed, and who says whether they succeed."""

    jailbreak_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "attack prompts: files of JailbreakBench, HarmBench or .jsonl (attack, behavior, prompt), each a path, "
            "owner/name:path@commit on the Hub or a raw GitHub URL, as [NAME=]file[#sha256=...]; mild imitations without it"
        },
    )
    jailbreak_ciphers: list[str] = field(
        default_factory=lambda: ["caesar", "self_cipher"],
        metadata={"help": "ciphers for the behaviours of attack CipherChat: caesar, ascii, morse, self_cipher"},
    )
    jailbreak_max_new_tokens: int = field(default=64, metadata={"help": "tokens an answer to an attack prompt"})
    max_attack_prompts: int | None = field(default=None, metadata={"help": "replay the first n prompts of each attack only"})
    jailbreak_judge: Literal["refusal", "judge", "llama_guard", "harmbench"] = field(
        default="refusal",
        metadata={
            "help": "an attack succeeds by: no refusal, the evaluation's judge, Llama Guard, or HarmBench's classifier"
        },
    )
    jailbreak_judge_model: str | None = field(
        default=None, metadata={"help": "another model for jailbreak_judge: llama_guard or harmbench"}
    )
    jailbreak_judge_revision: str | None = field(default=None, metadata={"help": "its revision on the Hub"})
    jailbreak_judge_template: str | None = field(
        default=None, metadata={"help": "prompt of jailbreak_judge: harmbench, a file with {behavior} and {generation}"}
    )

    def check_jailbreak(self) -> None:
        """Refuse values outside their range.

        Raises:
            UsageError: Naming the setting, the value and what it takes.
        """
        for name in ("jailbreak_max_new_tokens", "max_attack_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, but must be at least 1.")
        for name in self.jailbreak_ciphers:
            if name not in CIPHERS:
                raise UsageError(f"jailbreak_ciphers has {name!r}, but takes {', '.join(CIPHERS)}.")
        if not self.jailbreak_ciphers or len(set(self.jailbreak_ciphers)) < len(self.jailbreak_ciphers):
            raise UsageError(f"jailbreak_ciphers is {self.jailbreak_ciphers}; name at least one, each once.")
        if self.jailbreak_judge not in ("refusal", "judge", *DEFAULT_MODELS):
            raise UsageError(
                f"jailbreak_judge is {self.jailbreak_judge!r}, but takes refusal, judge, {', '.join(DEFAULT_MODELS)}."
            )
        if (self.jailbreak_judge_model or self.jailbreak_judge_revision) and self.jailbreak_judge not in DEFAULT_MODELS:
            raise UsageError(
                "jailbreak_judge_model and _revision are used with jailbreak_judge: llama_guard or harmbench only."
            )
        if self.jailbreak_judge_template and self.jailbreak_judge != "harmbench":
            raise UsageError("jailbreak_judge_template is used with jailbreak_judge: harmbench only.")
        if self.jailbreak_judge == "harmbench":
            read_template(self.jailbreak_judge_template)


def identity(evaluation: Any) -> dict[str, Any]:
    """Return what decides the rows, once the files are read and found fit for the judge and the baseline.

    Raises:
        UsageError: If a file cannot be used, the judge needs texts that it lacks, or the baseline was judged otherwise.
    """
    settings, indexed = evaluation.settings, _read_prompts(evaluation.settings)
    if settings.jailbreak_judge != "refusal":
        without = sum(one.behavior is None and one.prompt is not None for _, _, one in indexed)
        if without:
            raise UsageError(
                f"jailbreak_judge: {settings.jailbreak_judge} reads the behaviour, and {without} prompts have its id only. "
                "Add HarmBench's table of behaviours (.csv) to jailbreak_files, or judge by refusal."
            )
    found = {
        "jailbreak_ciphers": settings.jailbreak_ciphers,
        "jailbreak_max_new_tokens": settings.jailbreak_max_new_tokens,
        "max_attack_prompts": settings.max_attack_prompts,
        "attack_prompts": len(indexed),
        # A request id stands for attack, behaviour, cipher and prompt.
        "attack_prompts_digest": text_digest(*(request_id for request_id, _, _ in indexed)),
    }
    if settings.baseline_dir:
        _check_baseline(FilePath(settings.baseline_dir), settings)
    return found


def _read_prompts(settings: Any) -> list[tuple[str, int, AttackPrompt]]:
    return index_prompts(
        read_attack_prompts(settings.jailbreak_files, settings.jailbreak_ciphers, settings.max_attack_prompts)
    )


def _judging_identity(settings: Any) -> dict[str, Any]:
    found = {name: getattr(settings, name) for name in ("jailbreak_judge", "jailbreak_judge_revision")}
    found["jailbreak_judge_model"] = settings.jailbreak_judge_model or DEFAULT_MODELS.get(settings.jailbreak_judge)
    if settings.jailbreak_judge == "harmbench":
        found["jailbreak_judge_template"] = text_digest(read_template(settings.jailbreak_judge_template))
    if settings.jailbreak_judge == "judge":
        names = "judge judge_model judge_revision judge_threshold judge_by_probability judge_label judge_base_url"
        found |= {name: getattr(settings, name) for name in names.split()}
    return found


def _check_baseline(folder: FilePath, settings: Any) -> None:
    """Refuse a baseline whose rates mean something else: another judge, or longer answers."""
    if not (folder / VERDICTS_FILE).is_file():
        return
    runs = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    wanted = {"jailbreak": {"jailbreak_max_new_tokens": settings.jailbreak_max_new_tokens}}
    for stage, values in (wanted | {_JUDGING: _judging_identity(settings)}).items():
        known = runs.get(stage, {}).get("settings", {})
        for name, value in values.items():
            if known.get(name) != value:
                raise UsageError(
                    f"{folder} was measured with {name} {known.get(name)!r}, not {value!r}: no difference can be taken. "
                    "Use the same, or another baseline_dir."
                )


def run(evaluation: Any, ranks: Ranks) -> None:
    """Write jailbreak.jsonl: the model's greedy answer to each attack prompt; null prompts are marked and not asked."""
    from course_correction.generation.decoding import SamplingSettings

    units = chunked(_read_prompts(evaluation.settings), PROMPTS_PER_UNIT)
    sampling = SamplingSettings(evaluation.settings.jailbreak_max_new_tokens, temperature=0, seed=evaluation.settings.seed)

    def answer(unit: int) -> list[dict[str, Any]]:
        begun = [Prefill(one.prompt, (), request_id) for request_id, _, one in units[unit] if one.prompt is not None]
        written = iter(evaluation.sampler().sample(begun, sampling) if begun else [])
        rows = []
        for request_id, number, one in units[unit]:
            row = {"request_id": request_id, "attack": one.attack, "behavior_id": one.behavior_id, "prompt_index": number}
            if one.prompt is None:
                rows.append(row | {"null_prompt": True})
            else:
                found = next(written)
                rows.append(row | {"answer": found.text, "num_tokens": found.num_tokens})
        return rows

    ids = [[request_id for request_id, _, _ in unit] for unit in units]
    evaluation.run_stage(ROWS_FILE, ids, lambda rows: len(rows) == 1, answer, ranks, "attack prompts")


def measure(evaluation: Any, judge: Any) -> dict[str, Any]:
    """Judge what is left to judge, and return the suite's part of metrics.json.

    Args:
        evaluation: Whose rows are written.
        judge: The evaluation's own, asked where `jailbreak_judge` is `judge`.
    """
    settings, indexed = evaluation.settings, _read_prompts(evaluation.settings)
    prompts = {request_id: one for request_id, _, one in indexed}
    # Verdicts on other answers to the same prompts are not these ones'.
    answers = {"answers_digest": text_digest((evaluation.folder / ROWS_FILE).read_text(encoding="utf-8"))}
    with open_run(evaluation.folder, _JUDGING, _judging_identity(settings) | answers, VERDICTS_FILE):
        judge_rows(evaluation, prompts, judge)
    verdicts = {row["request_id"]: row["success"] for row in read_jsonl(evaluation.folder / VERDICTS_FILE)}
    ids: dict[str, list[str]] = {}
    for request_id, one in prompts.items():
        ids.setdefault(one.attack, []).append(request_id)

    def share(some: Sequence[str]) -> dict[str, Any]:
        return clustered_rate([verdicts[name] for name in some], [prompts[name].behavior_id for name in some], settings.seed)

    attacks = {}
    for attack, some in ids.items():
        asked = [name for name in some if prompts[name].prompt is not None]
        entry = share(some) | {"null_prompts": len(some) - len(asked), "value_without_null": share(asked)["value"]}
        ciphers = dict.fromkeys(prompts[name].cipher for name in some)
        if any(ciphers):
            entry["ciphers"] = {
                cipher: share([name for name in some if prompts[name].cipher == cipher]) for cipher in ciphers if cipher
            }
        attacks[attack] = entry
    values = [entry["value"] for entry in attacks.values() if entry["value"] is not None]
    metrics = {
        "attacks": attacks,
        "mean": sum(values) / len(values) if values else None,
        "overall": share(list(prompts)),
        "judge": judge.name if settings.jailbreak_judge == "judge" else settings.jailbreak_judge,
        "max_new_tokens": settings.jailbreak_max_new_tokens,
    }
    if settings.baseline_dir:
        path = FilePath(settings.baseline_dir) / VERDICTS_FILE
        if path.is_file():
            before = {row["request_id"]: row["success"] for row in read_jsonl(path)}
            behaviors = {name: one.behavior_id for name, one in prompts.items()}

            def difference(some: Sequence[str]) -> dict[str, Any] | None:
                return paired_rate_difference({name: verdicts[name] for name in some}, before, behaviors, settings.seed)

            metrics["difference"] = {attack: difference(some) for attack, some in ids.items()}
            metrics["overall_difference"] = difference(list(prompts))
        else:
            logger.info(f"{settings.baseline_dir} holds no verdicts on attack prompts: there is no difference to it.")
    return metrics
