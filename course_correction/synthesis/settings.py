"""Settings of C²-Syn and C²-Eval, without those of a push to the Hub."""

from dataclasses import dataclass
from typing import Literal

from course_correction.base.errors import UsageError
from course_correction.base.settings import check_values, setting
from course_correction.generation.choice import SamplerSettings, check_backend
from course_correction.synthesis.sources import SEED

WRITTEN = "written"
STAGE = "synthesis"


@dataclass
class SynthesisSettings(SamplerSettings):
    """How C²-Syn is made. The defaults of the selection are the reference's, see `SelectionRules`."""

    source: str = setting(
        SEED, "seed, a .jsonl or .parquet file, or a dataset id on the Hub", group="data", identity=STAGE, common=True
    )
    source_revision: str | None = setting(
        None, "revision of the source on the Hub; PKU-SafeRLHF is pinned to v0", group="data", identity=STAGE
    )
    source_split: str = setting("train", "split of the seed set or of the Hub dataset", group="data", identity=STAGE)
    exclude_requests_from: list[str] = setting(
        default_factory=lambda: [SEED], help="C²-Eval sources whose requests are excluded", group="data", identity=STAGE
    )
    max_requests: int | None = setting(
        None, "number of requests to keep at most", group="data", identity=STAGE, common=True, at_least=1
    )
    min_response_words: int = setting(80, "a response must have more words than this", group="data", identity=STAGE)
    require_how_or_what: bool = setting(True, "a request must contain how or what", group="data", identity=STAGE)
    unique_requests: bool = setting(True, "keep one response per request", group="data", identity=STAGE)
    opener_rate: float = setting(
        0.6, "share of requests whose harmful response gets an opener",
        group="data", identity=STAGE, at_least=0, at_most=1,
    )  # fmt: skip
    mid_sentence_rate: float = setting(
        0.5, "share of cuts inside a sentence; evaluation cuts after any k tokens",
        group="data", identity=STAGE, at_least=0, at_most=1,
    )  # fmt: skip
    teacher: Literal["written", "transformers", "openai"] = setting(
        WRITTEN, "the corrections of the seed set, a chat model, or a chat model behind server_url",
        group="model", identity=STAGE, common=True,
    )  # fmt: skip
    teacher_model: str = setting(
        "smollm2-135m", "the chat model; teacher: openai uses its tokenizer", group="model", identity=STAGE, common=True
    )
    teacher_revision: str | None = setting(None, "revision of the chat model on the Hub", group="model", identity=STAGE)
    teacher_dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "dtype of the chat model", group="model", identity=STAGE
    )
    teacher_load_in_4bit: bool = setting(False, "load the chat model in 4-bit NF4", group="model", identity=STAGE)
    max_new_tokens: int = setting(
        128, "number of tokens that the teacher writes per response", group="sampling", identity=STAGE, at_least=1
    )
    temperature: float = setting(0.0, "0 is greedy decoding", group="sampling", identity=STAGE, at_least=0)
    top_p: float = setting(1.0, "probability mass of nucleus sampling", group="sampling", identity=STAGE, above=0, at_most=1)
    teacher_attn_implementation: str = setting(
        "sdpa", "attention implementation of the chat model, as in from_pretrained", group="model", identity=STAGE
    )
    requests_per_unit: int = setting(
        20, "requests written together; a killed run loses one unit at most", group="sampling", identity=STAGE, at_least=1
    )
    seed: int = setting(
        0, "seed of cuts, openers, triggers and sampling", group="sampling", identity=STAGE, common=True, at_least=0
    )
    output_dir: str = setting(
        "runs/c2-syn", "folder of groups.jsonl, selection.json and run.json", group="output", identity=(), common=True
    )
    export_dir: str | None = setting(
        None, "folder of the Parquet files and the card, for load_dataset", group="output", identity=(), common=True
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range, before anything is loaded."""
        check_values(self)
        check_backend(self.teacher == "openai", self.server_url, "teacher")
        if self.teacher == WRITTEN and self.source != SEED:
            raise UsageError(
                f"teacher is {WRITTEN}, but {self.source} has no written corrections; the source {SEED} has. "
                "Use --teacher transformers."
            )


@dataclass
class ItemSettings:
    """Which C²-Eval items are exported."""

    items: Literal["seed", "pku500"] = setting(
        SEED, "items of the seed set, or the 500 items of the reference", group="data", identity=(), common=True
    )
    pku500_file: str | None = setting(
        None, "path of the reference's test.jsonl; default: download it", group="data", identity=()
    )
    export_dir: str = setting(
        "runs/c2-eval", "folder of the Parquet file and the card, for load_dataset", group="output", identity=(), common=True
    )
