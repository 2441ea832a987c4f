"""C²-Eval: sample paths after k tokens of harmful responses, judge them, report Corr@k and Corr_mean.

python eval.py --config recipes/smollm2-135m/c2_eval.yaml --output_dir runs/base
python eval.py --config recipes/smollm2-135m/c2_eval.yaml --adapter_name_or_path runs/dpo --output_dir runs/dpo-eval
python eval.py --calibrate true --judge pattern --output_dir runs/judge
"""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.ranks import Ranks
from course_correction.base.run_folder import open_run
from course_correction.base.settings import DTYPES, check_sampling, check_values, parse_settings
from course_correction.evaluation.stages import Evaluation
from course_correction.generation.choice import SamplerSettings, check_backend
from course_correction.hub.push import open_repo
from course_correction.hub.settings import ResultPushSettings
from course_correction.judges.choice import JudgeSettings
from course_correction.suites.benign import BenignSettings
from course_correction.suites.choice import check_suite, check_suites, measure_suite, run_suite
from course_correction.suites.dynamics import DynamicsSettings
from course_correction.suites.general import GeneralSettings
from course_correction.suites.jailbreak import JailbreakSettings
from course_correction.synthesis.sources import SEED, is_hub_id

logger = logging.getLogger("course_correction")


@dataclass
class EvaluationSettings(
    JudgeSettings,
    SamplerSettings,
    ResultPushSettings,
    JailbreakSettings,
    GeneralSettings,
    BenignSettings,
    DynamicsSettings,
):
    """Which model is evaluated on what, and how its paths are sampled and judged."""

    model_name_or_path: str = field(
        default="smollm2-135m", metadata={"help": "chat model: Hub id, folder or the offline smollm2-135m"}
    )
    model_revision: str | None = field(default=None, metadata={"help": "its revision on the Hub"})
    adapter_name_or_path: str | None = field(default=None, metadata={"help": "a trained LoRA adapter to put on it"})
    dtype: str = field(default="auto", metadata={"help": "auto, bfloat16, float16 or float32"})
    attn_implementation: str = field(default="sdpa", metadata={"help": "as for from_pretrained"})
    load_in_4bit: bool = field(default=False, metadata={"help": "load the model in 4-bit NF4"})
    backend: Literal["transformers", "openai"] = field(
        default="transformers", metadata={"help": "the model in this process, or behind server_url"}
    )
    items: str = field(
        default=SEED, metadata={"help": "C²-Eval items: seed, pku500, a .jsonl/.parquet file, or owner/name on the Hub"}
    )
    items_revision: str | None = field(default=None, metadata={"help": "revision of items on the Hub; the last without it"})
    max_requests: int | None = field(default=None, metadata={"help": "evaluate the first n items only"})
    prefill_tokens: list[int] = field(
        default_factory=lambda: [10, 20, 30, 40, 50, 60, 70, 80], metadata={"help": "the k's: tokens prefilled"}
    )
    prefill_mode: Literal["continue", "reference"] = field(
        default="continue",
        metadata={"help": "go on in one open turn, or as the reference renders it: k words with an opener, a closed turn"},
    )
    num_paths: int = field(default=4, metadata={"help": "paths sampled for each request and k (b)"})
    max_new_tokens: int = field(default=32, metadata={"help": "tokens a path (m)"})
    temperature: float = field(default=0.8, metadata={"help": "0 is greedy"})
    top_p: float = field(default=0.7, metadata={"help": "nucleus"})
    requests_per_unit: int = field(default=4, metadata={"help": "requests sampled together; kill -9 costs one unit"})
    suite: list[str] = field(
        default_factory=list,
        metadata={"help": "beside C²-Eval: jailbreak, general, benign, dynamics; a finished C²-Eval is not done again"},
    )
    calibrate: bool = field(
        default=False, metadata={"help": "measure the judge on the labelled set instead of a model, and stop"}
    )
    judge_calibration: str | None = field(
        default=None, metadata={"help": "judge_calibration.json of that judge, to quote; pattern is measured on the spot"}
    )
    labelled_file: str | None = field(default=None, metadata={"help": "another labelled set than the project's own"})
    max_benign: int = field(default=60, metadata={"help": "held-out benign prompts for over-refusal; 0 for none"})
    benign_max_new_tokens: int = field(default=64, metadata={"help": "tokens an answer to a benign prompt"})
    reference_model: str | None = field(
        default=None, metadata={"help": "model to measure the KL on benign answers to; an adapter's base without it"}
    )
    baseline_dir: str | None = field(default=None, metadata={"help": "an earlier evaluation: adds paired differences"})
    seed: int = field(default=0, metadata={"help": "seed of sampling and of the bootstrap"})
    output_dir: str = field(default="runs/eval", metadata={"help": "generations, verdicts, metrics, report, plot"})

    def __post_init__(self) -> None:
        """Refuse values outside their range, before anything is loaded."""
        # A recipe may name a single judge or model without a list.
        self.judge = [self.judge] if isinstance(self.judge, str) else self.judge
        for name in ("judge_model", "suite", "benign_files", "general_tasks", "jailbreak_files", "jailbreak_ciphers"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        check_values(self)
        self.check_judges()
        self.check_push()
        check_suites(self.suite)
        self.check_dynamics()
        self.check_jailbreak()
        self.check_benign()
        self.check_general()
        check_backend(self.backend == "openai", self.server_url, "backend")
        if self.backend == "openai" and (self.adapter_name_or_path or self.load_in_4bit):
            raise UsageError("With backend: openai the server holds the model: no adapter_name_or_path, no load_in_4bit.")
        for name in ("num_paths", "max_new_tokens", "benign_max_new_tokens", "requests_per_unit"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.max_requests is not None and self.max_requests < 1:
            raise UsageError(f"max_requests is {self.max_requests}, but must be at least 1.")
        check_sampling(self.temperature, self.top_p)
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype is {self.dtype!r}, but takes {', '.join(DTYPES)}.")
        if not self.prefill_tokens or min(self.prefill_tokens) < 1:
            raise UsageError(f"prefill_tokens is {self.prefill_tokens}; it needs lengths of at least 1.")
        if len(set(self.prefill_tokens)) != len(self.prefill_tokens):
            raise UsageError(f"prefill_tokens names a length twice: {self.prefill_tokens}.")
        if self.max_benign < 0:
            raise UsageError(f"max_benign is {self.max_benign}, but must be at least 0.")


def evaluate(settings: EvaluationSettings) -> dict[str, Any] | None:
    """Run what is left of an evaluation, and return its metrics; None in a process that is not the main one.

    Raises:
        UsageError: Also at the end, with everything saved, if more than `max_unscored` of the paths have no verdict.
    """
    from course_correction.evaluation.measure import measure
    from course_correction.hub.push_evaluation import push_evaluation
    from course_correction.judges import choice as judging
    from course_correction.report.run_data import read_run

    # What would fail at the end fails now.
    ranks = Ranks()
    repo = None
    if settings.push_to_hub and ranks.is_main:
        repo = open_repo(settings.hub_model_id, "model", settings.hub_private_repo, create_pr=settings.create_pr)
    evaluation = Evaluation(settings)
    judge = judging.make_judge(settings) if ranks.is_main else None
    if settings.baseline_dir:
        read_run(Path(settings.baseline_dir))
    for suite in settings.suite:
        check_suite(suite, evaluation)
    start = time.monotonic()
    with ExitStack() as claims:
        if ranks.is_main:
            claims.enter_context(
                open_run(evaluation.folder, "sampling", evaluation.sampling_identity(), "generations.jsonl")
            )
        evaluation.sample(ranks)
        if settings.max_benign:
            evaluation.answer_benign(ranks)
        for suite in settings.suite:
            run_suite(suite, evaluation, ranks)
        ranks.leave()
        if judge is None:
            return None
        names = [
            "judge",
            "judge_model",
            "judge_revision",
            "judge_threshold",
            "judge_by_probability",
            "judge_label",
            "judge_base_url",
        ]
        judging_identity = {name: getattr(settings, name) for name in names}
        claims.enter_context(open_run(evaluation.folder, "judging", judging_identity, "verdicts.jsonl"))
        evaluation.judge(judge)
        suites = {suite: measure_suite(suite, evaluation, judge) for suite in settings.suite}
        metrics = measure(evaluation, judge.name, time.monotonic() - start, suites)
    if metrics["unscored_rate"] > settings.max_unscored:
        reasons = ", ".join(f"{name} {count}" for name, count in metrics["unscored_reasons"].items())
        raise UsageError(
            f"{metrics['unscored_rate']:.1%} of the paths are unscored ({reasons}), more than max_unscored "
            f"{settings.max_unscored}. Everything is saved in {settings.output_dir}: remove verdicts.jsonl there to judge "
            "again, or raise max_unscored."
        )
    if repo is not None:
        dataset_id = settings.hub_dataset_id or (settings.items if is_hub_id(settings.items) else None)
        if dataset_id is None:
            logger.info("No --hub_dataset_id: .eval_results, which points at a dataset on the Hub, is left out.")
        revision = evaluation.items_revision if dataset_id == settings.items else None
        logger.info(f"Pushed: {push_evaluation(repo, evaluation.folder, dataset_id, revision)}")
    return metrics


def measure_judge(settings: EvaluationSettings) -> None:
    """Measure the judge on labels, print its tables and write judge_calibration.json."""
    from course_correction.judges import choice as judging
    from course_correction.judges.calibration import calibrate, calibration_table, read_labelled, write_calibration

    rows = read_labelled(Path(settings.labelled_file) if settings.labelled_file else None)
    found = calibrate(judging.make_judge(settings), rows, settings.seed, settings.max_judge_calls)
    path = write_calibration(Path(settings.output_dir), found)
    print(f"{calibration_table(found)}\n\n{path}")


def main() -> None:
    """Evaluate and print the table."""
    from course_correction.report.tables import metrics_table, suites_table

    (settings,) = parse_settings([EvaluationSettings], description=__doc__)
    if settings.calibrate:
        measure_judge(settings)
        return
    metrics = evaluate(settings)
    if metrics is not None:
        print(metrics_table({"measured": metrics}, metrics.get("difference_to_baseline")))
        if table := suites_table({"measured": metrics}):
            print(f"\n{table}")
        print(f"\n{settings.output_dir}/report.html, report.md, metrics.json, corr_at_k.png")


if __name__ == "__main__":
    run_script(main)
