"""The settings of an evaluation, all flags of eval.py."""

from dataclasses import MISSING, dataclass, fields
from typing import Literal

from course_correction.base.errors import UsageError
from course_correction.base.settings import check_values, setting
from course_correction.generation.choice import check_backend
from course_correction.hub.settings import ResultPushSettings
from course_correction.suites.choice import check_suites
from course_correction.suites.settings import SuiteSettings
from course_correction.synthesis.sources import SEED


@dataclass
class EvaluationSettings(ResultPushSettings, SuiteSettings):
    """Which model is evaluated on what, and how its paths are sampled and judged."""

    items: str = setting(
        SEED,
        "C²-Eval items: seed, pku500, a .jsonl/.parquet file, or owner/name on the Hub",
        group="data",
        identity="sampling",
        common=True,
    )
    # Which items these are is part of the identity by a digest, whatever the revision is called.
    items_revision: str | None = setting(
        None, "revision of items on the Hub; the last commit by default", group="data", identity=()
    )
    max_requests: int | None = setting(
        None, "evaluate only the first n items", group="data", identity=(), common=True, at_least=1
    )
    prefill_mode: Literal["continue", "reference"] = setting(
        "continue",
        "continue one open turn, or prefill as the reference implementation does: k words with an opener, in a closed turn",
        group="sampling",
        identity="sampling",
    )
    num_paths: int = setting(
        4, "paths sampled per request and k (b)", group="sampling", identity="sampling", common=True, at_least=1
    )
    temperature: float = setting(0.8, "0 is greedy", group="sampling", identity="sampling", at_least=0)
    top_p: float = setting(
        0.7, "probability mass of nucleus sampling", group="sampling", identity="sampling", above=0, at_most=1
    )
    suite: list[str] = setting(
        default_factory=list,
        help="suites to run beside C²-Eval: jailbreak, general, benign, dynamics; finished stages are not run again",
        group="suites",
        identity=(),
        common=True,
    )
    calibrate: bool = setting(
        False, "measure the judge on the labelled set instead of a model, and stop", group="judging", identity=()
    )
    judge_calibration: str | None = setting(
        None,
        "judge_calibration.json of the judge, to quote in the report; encoder and pattern have one",
        group="judging",
        identity=(),
    )
    model_family: str | None = setting(
        None,
        "family whose texts the judge's agreement is quoted on, such as llama-2; by default the model's name tells it",
        group="judging",
        identity=(),
    )
    labelled_file: list[str] = setting(
        default_factory=list,
        help="labelled set for calibrate; the project's own by default. Or files of XSTest, xstest_v2_completions_*.csv, to "
        "measure on people's labels",
        group="judging",
        identity=(),
    )
    output_dir: str = setting(
        "runs/eval", "run folder: generations, verdicts, metrics, report", group="output", identity=(), common=True
    )

    def __post_init__(self) -> None:
        """Refuse values out of range and settings that do not fit together, before anything is loaded."""
        self._wrap_single_names()
        check_values(self)
        self.check_judges()
        self.check_push()
        check_suites(self.suite)
        self.check_jailbreak()
        self.check_benign()
        self.check_general()
        check_backend(self.backend == "openai", self.server_url, "backend")
        if self.backend == "openai" and (self.adapter_name_or_path or self.load_in_4bit):
            raise UsageError(
                "adapter_name_or_path and load_in_4bit have no effect with backend: openai. Leave "
                "them out, as the server loads the model."
            )
        if not self.prefill_tokens:
            raise UsageError("prefill_tokens is empty; name at least one length.")
        if len(set(self.prefill_tokens)) != len(self.prefill_tokens):
            raise UsageError(f"prefill_tokens names a length twice: {self.prefill_tokens}.")

    def _wrap_single_names(self) -> None:
        """Turn a name into a list of one, as a recipe may name a single judge or suite without a list."""
        for one in fields(self):
            value = getattr(self, one.name)
            if one.default_factory is not MISSING and isinstance(value, str):
                setattr(self, one.name, [value])
