"""C²-Syn: make synthetic preferences that teach course-correction, export them, read them back.

python c2_syn.py --config recipes/smollm2-135m/c2_syn.yaml
from c2_syn import C2Syn; C2Syn(config_name="ranked", groups_file=...).download_and_prepare()
"""

import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from course_correction.base.console import run_script
from course_correction.base.errors import UsageError
from course_correction.base.files import chunked, text_digest, write_json
from course_correction.base.ranks import Ranks
from course_correction.base.redaction import public_name
from course_correction.base.resumable_rows import run_units
from course_correction.base.run_folder import open_run
from course_correction.base.settings import DTYPES, check_sampling, check_values, parse_settings
from course_correction.generation.choice import SamplerSettings, check_backend, load_sampler
from course_correction.generation.loading import read_chat_template
from course_correction.generation.protocol import Prefill
from course_correction.hub.dataset_cards import WHERE_TO
from course_correction.hub.push import open_dataset_repo, push_dataset
from course_correction.hub.settings import DatasetPushSettings
from course_correction.synthesis.ranked_groups import GROUP_SIZE, build_ranked_group, draft_corrections
from course_correction.synthesis.sources import (
    SEED,
    SelectionRules,
    SourcePair,
    normalise_request,
    read_eval_items,
    read_source_rows,
    select_source_pairs,
)
from course_correction.synthesis.triggers import join_trigger

logger = logging.getLogger("course_correction")

WRITTEN = "written"


def __getattr__(name: str) -> Any:
    """Give the builder on demand: importing `datasets` takes a second that `--help` need not wait for."""
    if name == "C2Syn":
        from course_correction.synthesis.builders import C2Syn

        return C2Syn
    raise AttributeError(name)


@dataclass
class SynthesisSettings(SamplerSettings, DatasetPushSettings):
    """What C²-Syn is made of and where it goes. Selection defaults are the reference's, see `SelectionRules`."""

    source: str = field(default=SEED, metadata={"help": "seed, a .jsonl/.parquet file, or a Hub dataset id"})
    source_revision: str | None = field(default=None, metadata={"help": "Hub revision; PKU-SafeRLHF is pinned to v0"})
    source_split: str = field(default="train", metadata={"help": "split of the seed set or the Hub dataset"})
    exclude_requests_from: list[str] = field(
        default_factory=lambda: [SEED], metadata={"help": "C²-Eval sources whose requests are left out"}
    )
    max_requests: int | None = field(default=None, metadata={"help": "stop after this many kept requests"})
    min_response_words: int = field(default=80, metadata={"help": "a response needs more words than this"})
    require_how_or_what: bool = field(default=True, metadata={"help": "a request must hold how or what"})
    unique_requests: bool = field(default=True, metadata={"help": "keep one response a request"})
    opener_rate: float = field(default=0.6, metadata={"help": "share of requests whose harmful response has an opener"})
    mid_sentence_rate: float = field(
        default=0.5, metadata={"help": "share of cuts inside a sentence, as evaluation cuts after any k tokens"}
    )
    teacher: Literal["written", "transformers", "openai"] = field(
        default=WRITTEN, metadata={"help": "the seed set's own corrections, a chat model, or one behind server_url"}
    )
    teacher_model: str = field(
        default="smollm2-135m", metadata={"help": "the chat model; its tokenizer is needed for openai too"}
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "its revision on the Hub"})
    teacher_dtype: str = field(default="auto", metadata={"help": "auto, bfloat16, float16 or float32"})
    teacher_load_in_4bit: bool = field(default=False, metadata={"help": "load it in 4-bit NF4"})
    max_new_tokens: int = field(default=128, metadata={"help": "tokens that the teacher goes on for"})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus"})
    teacher_attn_implementation: str = field(default="sdpa", metadata={"help": "as for from_pretrained"})
    requests_per_unit: int = field(default=20, metadata={"help": "requests written together; kill -9 costs one unit"})
    seed: int = field(default=0, metadata={"help": "seed of cuts, openers, triggers and sampling"})
    output_dir: str = field(default="runs/c2-syn", metadata={"help": "groups.jsonl, selection.json and run.json"})
    export_dir: str | None = field(default=None, metadata={"help": "also write Parquet and a card, for load_dataset"})

    def __post_init__(self) -> None:
        """Refuse values outside their range, before anything is loaded."""
        check_values(self)
        check_sampling(self.temperature, self.top_p)
        if self.teacher_dtype not in DTYPES:
            raise UsageError(f"teacher_dtype is {self.teacher_dtype!r}, but takes {', '.join(DTYPES)}.")
        for name in ("opener_rate", "mid_sentence_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but is a share in [0, 1].")
        for name in ("requests_per_unit", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.max_requests is not None and self.max_requests < 1:
            raise UsageError(f"max_requests is {self.max_requests}, but must be at least 1, or null for all.")
        self.check()
        self.check_push()
        check_backend(self.teacher == "openai", self.server_url, "teacher")
        if self.teacher == WRITTEN and self.source != SEED:
            raise UsageError(
                f"teacher: written needs source: seed, whose corrections are written; {self.source} has none. "
                "Use --teacher transformers."
            )


def select_pairs(settings: SynthesisSettings) -> tuple[list[SourcePair], Counter[str]]:
    """Return the source pairs that synthesis starts from, and counts of rows kept and dropped by reason."""
    rules = SelectionRules(
        min_response_words=settings.min_response_words,
        require_how_or_what=settings.require_how_or_what,
        unique_requests=settings.unique_requests,
    )
    excluded = frozenset(
        normalise_request(item["request"]) for source in settings.exclude_requests_from for item in read_eval_items(source)
    )
    counts: Counter[str] = Counter()
    pairs: list[SourcePair] = []
    rows = read_source_rows(settings.source, settings.source_revision, settings.source_split)
    for pair in select_source_pairs(rows, settings.source, rules, excluded, counts):
        pairs.append(pair)
        if len(pairs) == settings.max_requests:
            break
    return pairs, counts


def synthesize(settings: SynthesisSettings) -> Path | None:
    """Write `groups.jsonl`, going on where an earlier run with the same settings stopped.

    Returns:
        The path of `groups.jsonl`: one ranked group a line, in source order. A group that the teacher spoilt (an empty
        continuation, two equal responses) is a line with the key `dropped`. None in a process that is not the main one.
    """
    folder = Path(settings.output_dir)
    identity = {key: value for key, value in asdict(settings).items() if key not in WHERE_TO}
    identity["chat_template"] = read_chat_template(settings.chat_template)
    pairs, counts = select_pairs(settings)
    logger.info(
        f"{settings.source}: {counts.pop('kept', 0)} requests kept"
        + "".join(f", {number} dropped ({reason})" for reason, number in sorted(counts.items()))
    )
    if not pairs:
        raise UsageError(f"No row of {settings.source} passes the selection. Loosen its thresholds.")
    # A source that changed under the same name is another source.
    identity["pairs_digest"] = text_digest(*(text for pair in pairs for text in map(str, asdict(pair).values())))
    ranks = Ranks()
    units = chunked(pairs, settings.requests_per_unit)

    def begin() -> tuple[Callable[[int], list[dict[str, Any]]], Any]:
        write_groups, sampler = _written_teacher(settings) if settings.teacher == WRITTEN else _model_teacher(settings)
        return lambda unit: write_groups(units[unit]), sampler

    with ExitStack() as claims:
        if ranks.is_main:
            claims.enter_context(open_run(folder, "c2_syn", identity, "groups.jsonl"))
        ids = [[pair.request_id for pair in unit] for unit in units]
        torn = run_units(folder / "groups.jsonl", ids, lambda rows: len(rows) == 1, begin, ranks, "C²-Syn")
        if torn:
            logger.info(f"A torn unit was moved to {folder}/groups.jsonl.quarantined and is done again.")
        if ranks.is_main:
            write_json(folder / "selection.json", {"kept": len(pairs), "dropped": dict(sorted(counts.items()))})
    ranks.leave()
    return folder / "groups.jsonl" if ranks.is_main else None


WriteGroups = Callable[[list[SourcePair]], list[dict[str, Any]]]


def _written_teacher(settings: SynthesisSettings) -> tuple[WriteGroups, None]:
    def write_groups(pairs: list[SourcePair]) -> list[dict[str, Any]]:
        groups = []
        for pair in pairs:
            if not pair.safe_response or not pair.correction:
                raise UsageError(f"{pair.request_id} of the seed set has no safe response or correction.")
            opener, initial_responses, triggers = draft_corrections(
                pair, settings.seed, settings.opener_rate, settings.mid_sentence_rate
            )
            continuations = [" " + pair.correction.strip()] * len(triggers)
            groups.append(
                build_ranked_group(pair, opener, initial_responses, triggers, pair.safe_response, continuations, WRITTEN)
            )
        return groups

    return write_groups, None


def _model_teacher(settings: SynthesisSettings) -> tuple[WriteGroups, Any]:
    from course_correction.generation.chat_format import encode_answer
    from course_correction.generation.decoding import SamplingSettings

    loading = {
        "dtype": settings.teacher_dtype,
        "attn_implementation": settings.teacher_attn_implementation,
        "load_in_4bit": settings.teacher_load_in_4bit,
    }
    sampler = load_sampler(settings.teacher_model, settings.teacher_revision, loading, settings)
    sampling = SamplingSettings(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
    teacher = public_name(settings.server_model or settings.teacher_model)

    def write_groups(pairs: list[SourcePair]) -> list[dict[str, Any]]:
        drafts = [draft_corrections(pair, settings.seed, settings.opener_rate, settings.mid_sentence_rate) for pair in pairs]
        begun = [
            Prefill(pair.request, tuple(encode_answer(sampler.tokenizer, text)), f"{pair.request_id}\x1f{rank}")
            for pair, (_, initial_responses, triggers) in zip(pairs, drafts, strict=True)
            for rank, text in enumerate(
                ["", *(join_trigger(*pieces)[0] for pieces in zip(initial_responses, triggers, strict=True))]
            )
        ]
        texts = [written.text for written in sampler.sample(begun, sampling)]
        return [
            _group_or_reason(pair, draft, safe_response, continuations, teacher)
            for pair, draft, (safe_response, *continuations) in zip(
                pairs, drafts, chunked(texts, GROUP_SIZE - 1), strict=True
            )
        ]

    return write_groups, sampler


def _group_or_reason(
    pair: SourcePair, draft: tuple, safe_response: str, continuations: list[str], teacher: str
) -> dict[str, Any]:
    if not all(text.strip() for text in [safe_response, *continuations]):
        return {"request_id": pair.request_id, "dropped": "empty_continuation"}
    group = build_ranked_group(pair, *draft, safe_response, continuations, teacher)
    if len(set(group["responses"])) < GROUP_SIZE:
        return {"request_id": pair.request_id, "dropped": "identical_responses"}
    return group


def export(groups_file: Path, export_dir: Path, settings: SynthesisSettings) -> dict[str, int]:
    """Write `ranked` and `pairs` as Parquet with a card, so that `load_dataset(export_dir)` works.

    Returns:
        The number of rows of each config.
    """
    import json

    from course_correction.hub.dataset_cards import describe_groups, write_syn_card
    from course_correction.synthesis.builders import GROUPS_A_SHARD, SYN_SCHEMAS, read_groups, syn_tables, write_shards

    exported = {}
    for name, pairs_a_group in (("pairs", 15), ("ranked", 1)):
        tables = syn_tables(groups_file, name)
        exported[name] = write_shards(tables, SYN_SCHEMAS[name], export_dir / name, "train", GROUPS_A_SHARD * pairs_a_group)
    selection = json.loads((groups_file.parent / "selection.json").read_text())
    write_syn_card(export_dir, exported, selection, settings, describe_groups(read_groups(groups_file)))
    return {name: shards.num_rows for name, shards in exported.items()}


def main() -> None:
    """Synthesize, then export and push if asked to."""
    (settings,) = parse_settings([SynthesisSettings], description=__doc__)
    # A token that may not write is found now, not after hours of work.
    is_first = os.environ.get("RANK", "0") == "0"
    repo = open_dataset_repo(settings) if settings.push_to_hub and is_first else None
    groups_file = synthesize(settings)
    if groups_file is None:
        return
    logger.info(f"Ranked groups: {groups_file}")
    if settings.export_dir or repo:
        export_dir = Path(settings.export_dir or groups_file.parent / "export")
        num_rows = export(groups_file, export_dir, settings)
        logger.info(f"Exported {num_rows['ranked']} groups, {num_rows['pairs']} pairs to {export_dir}")
        if repo:
            logger.info(f"Pushed: {push_dataset(repo, export_dir, ['pairs', 'ranked'])}")


if __name__ == "__main__":
    run_script(main)
