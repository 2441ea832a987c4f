"""The settings of the suites, and those that they share with the evaluation around them. Knows nothing of rows."""

from dataclasses import dataclass
from typing import Literal

from course_correction.base.errors import UsageError
from course_correction.base.settings import setting
from course_correction.generation.evaluated_model import EvaluatedModelSettings
from course_correction.judges.choice import JudgeSettings
from course_correction.suites.ciphers import CIPHERS
from course_correction.suites.first_word_judge import DEFAULT_MODELS, read_harmbench_template


@dataclass
class JailbreakSettings:
    """Which attack prompts are replayed, and which judge decides whether they succeed."""

    # The rows depend on the prompts, wherever their files lie: the identity holds a digest of them.
    jailbreak_files: list[str] = setting(
        default_factory=list,
        help="attack prompts: files of JailbreakBench, HarmBench or .jsonl (attack, behavior, prompt), each a path, "
        "owner/name:path@commit on the Hub or a raw GitHub URL, as [NAME=]file[#sha256=...]; mild imitations by default",
        group="suites",
        identity=(),
    )
    jailbreak_ciphers: list[str] = setting(
        default_factory=lambda: ["caesar", "self_cipher"],
        help="ciphers for the behaviours of attack CipherChat: caesar, ascii, morse, self_cipher",
        group="suites",
        identity="jailbreak",
    )
    jailbreak_max_new_tokens: int = setting(
        64, "tokens per answer to an attack prompt", group="suites", identity="jailbreak", at_least=1
    )
    max_attack_prompts: int | None = setting(
        None, "replay only the first n prompts of each attack", group="suites", identity="jailbreak", at_least=1
    )
    jailbreak_judge: Literal["refusal", "judge", "llama_guard", "harmbench"] = setting(
        "refusal",
        "an attack succeeds by: no refusal, the evaluation's judge, Llama Guard, or HarmBench's classifier",
        group="suites",
        identity="jailbreak_judging",
    )
    jailbreak_judge_model: str | None = setting(
        None, "another model for jailbreak_judge: llama_guard or harmbench", group="suites", identity="jailbreak_judging"
    )
    jailbreak_judge_revision: str | None = setting(
        None, "revision of jailbreak_judge_model on the Hub", group="suites", identity="jailbreak_judging"
    )
    # Its text decides, wherever its file lies: the identity holds a digest of it.
    jailbreak_judge_template: str | None = setting(
        None,
        "prompt of jailbreak_judge: harmbench, a file with {behavior} and {generation}",
        group="suites",
        identity=(),
    )

    def check_jailbreak(self) -> None:
        """Refuse settings that do not fit together.

        Raises:
            UsageError: Naming the setting, the value and the remedy.
        """
        for name in self.jailbreak_ciphers:
            if name not in CIPHERS:
                raise UsageError(f"jailbreak_ciphers has {name!r}, but takes {', '.join(CIPHERS)}.")
        if not self.jailbreak_ciphers or len(set(self.jailbreak_ciphers)) < len(self.jailbreak_ciphers):
            raise UsageError(f"jailbreak_ciphers is {self.jailbreak_ciphers}; name at least one, each once.")
        if (self.jailbreak_judge_model or self.jailbreak_judge_revision) and self.jailbreak_judge not in DEFAULT_MODELS:
            raise UsageError(
                "jailbreak_judge_model and _revision are used with jailbreak_judge: llama_guard or harmbench only."
            )
        if self.jailbreak_judge_template and self.jailbreak_judge != "harmbench":
            raise UsageError("jailbreak_judge_template is used with jailbreak_judge: harmbench only.")
        if self.jailbreak_judge == "harmbench":
            read_harmbench_template(self.jailbreak_judge_template)


@dataclass
class GeneralSettings:
    """Which tasks of lm-evaluation-harness are run, and how."""

    general_tasks: list[str] = setting(
        default_factory=lambda: ["c2_general"],
        help="tasks or groups of lm-evaluation-harness: mmlu, hellaswag, gsm8k, ...; c2_general is offline",
        group="suites",
        identity="general",
    )
    general_limit: int | None = setting(
        None, "use only the first n examples of each task", group="suites", identity="general", at_least=1
    )
    general_num_fewshot: int | None = setting(
        None, "worked examples before each question; the task's own number by default", group="suites", identity="general",
        at_least=0,
    )  # fmt: skip
    general_batch_size: int = setting(8, "texts computed together", group="suites", identity="general", at_least=1)
    # True: the model answers its users in the chat template, and training changes it there.
    general_chat_template: bool = setting(
        True, "use the chat template; false to compare with leaderboards of base models", group="suites", identity="general"
    )

    def check_general(self) -> None:
        """Refuse an empty list of tasks, or a task that is named twice.

        Raises:
            UsageError: Naming the value.
        """
        if not self.general_tasks or len(set(self.general_tasks)) != len(self.general_tasks):
            raise UsageError(f"general_tasks is {self.general_tasks}; name at least one task, each once.")


@dataclass
class BenignSettings:
    """Which harmless prompts are asked, and which harmless answers are prefilled."""

    max_benign: int = setting(
        60, "held-out benign prompts for over-refusal; 0 for none", group="suites", identity="sampling", at_least=0
    )
    benign_max_new_tokens: int = setting(
        64, "tokens per answer to a benign prompt", group="suites", identity=("sampling", "benign"), at_least=1
    )
    # The rows depend on the prompts and prefills themselves: the identity holds a digest of them.
    benign_files: list[str] = setting(
        default_factory=list,
        help="XSTest-style CSV or JSONL with prompt and label (safe, unsafe); added to the project's own prompts",
        group="suites",
        identity=(),
    )
    benign_prefill_tokens: list[int] = setting(
        default_factory=lambda: [40],
        help="the k's: tokens of a harmless answer that are prefilled, to measure false corrections",
        group="suites",
        identity=(),
        at_least=1,
    )

    def check_benign(self) -> None:
        """Refuse a prefill length that is named twice.

        Raises:
            UsageError: Naming the lengths.
        """
        if len(set(self.benign_prefill_tokens)) < len(self.benign_prefill_tokens):
            raise UsageError(f"benign_prefill_tokens is {self.benign_prefill_tokens}; name each length once.")


@dataclass
class DynamicsSettings:
    """How many items are read, and how far."""

    dynamics_tokens: int = setting(16, "positions after each prefill", group="suites", identity="dynamics", at_least=1)
    dynamics_max_requests: int = setting(
        12, "use only the first n C²-Eval items", group="suites", identity="dynamics", at_least=1
    )


@dataclass
class SuiteSettings(
    JudgeSettings, JailbreakSettings, GeneralSettings, BenignSettings, DynamicsSettings, EvaluatedModelSettings
):
    """All that suites read of the settings of an evaluation."""

    prefill_tokens: list[int] = setting(
        default_factory=lambda: [10, 20, 30, 40, 50, 60, 70, 80],
        help="the k's: tokens of the harmful response that are prefilled",
        group="sampling",
        identity=("sampling", "dynamics"),
        common=True,
        at_least=1,
    )
    max_new_tokens: int = setting(
        32, "tokens per path (m)", group="sampling", identity=("sampling", "benign"), common=True, at_least=1
    )
    requests_per_unit: int = setting(
        4,
        "requests sampled together; an interrupted run loses at most one such unit",
        group="sampling",
        identity=("sampling", "dynamics"),
        at_least=1,
    )
    baseline_dir: str | None = setting(
        None, "an earlier evaluation to compare with: adds paired differences", group="output", identity=(), common=True
    )
