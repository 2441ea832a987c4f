"""C²-Syn: make synthetic preferences that teach course-correction, export them, read them back.

python c2_syn.py --config recipes/smollm2-135m/c2_syn.yaml
from c2_syn import C2Syn; C2Syn(config_name="ranked", groups_file=...).download_and_prepare()
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from course_correction.preferences import GROUP_SIZE, build_ranked_group, draft_corrections
from course_correction.prefixes import join_trigger
from course_correction.run_files import UnitFile, UsageError, chunked, open_run, text_digest, write_json
from course_correction.settings import DTYPES, announce, check_sampling, check_values, parse_settings, run_script
from course_correction.sources import (
    SEED,
    SelectionRules,
    SourcePair,
    normalise_request,
    read_eval_items,
    read_source_rows,
    select_source_pairs,
)

WRITTEN = "written"


def __getattr__(name: str) -> Any:
    """Give the builder on demand: importing `datasets` takes a second that `--help` need not wait for."""
    if name == "C2Syn":
        from course_correction.builders import C2Syn

        return C2Syn
    raise AttributeError(name)


@dataclass
class SynthesisSettings:
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
    teacher: Literal["written", "transformers"] = field(
        default=WRITTEN, metadata={"help": "the seed set's own corrections, or a chat model"}
    )
    teacher_model: str = field(default="smollm2-135m", metadata={"help": "chat model of teacher: transformers"})
    teacher_revision: str | None = field(default=None, metadata={"help": "its revision on the Hub"})
    teacher_dtype: str = field(default="auto", metadata={"help": "auto, bfloat16, float16 or float32"})
    teacher_load_in_4bit: bool = field(default=False, metadata={"help": "load it in 4-bit NF4"})
    max_new_tokens: int = field(default=128, metadata={"help": "tokens that the teacher goes on for"})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus"})
    batch_size: int = field(default=20, metadata={"help": "rows a forward pass of the teacher"})
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
        for name in ("batch_size", "requests_per_unit", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.max_requests is not None and self.max_requests < 1:
            raise UsageError(f"max_requests is {self.max_requests}, but must be at least 1, or null for all.")
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


def synthesize(settings: SynthesisSettings) -> Path:
    """Write `groups.jsonl`, going on where an earlier run with the same settings stopped.

    Returns:
        The path of `groups.jsonl`: one ranked group a line, in source order. A group that the teacher spoilt (an empty
        continuation, two equal responses) is a line with the key `dropped`.
    """
    from tqdm.auto import tqdm

    folder = Path(settings.output_dir)
    identity = {key: value for key, value in asdict(settings).items() if key not in {"output_dir", "export_dir"}}
    pairs, counts = select_pairs(settings)
    announce(
        f"{settings.source}: {counts.pop('kept', 0)} requests kept"
        + "".join(f", {number} dropped ({reason})" for reason, number in sorted(counts.items()))
    )
    if not pairs:
        raise UsageError(f"No row of {settings.source} passes the selection. Loosen its thresholds.")
    # A source that changed under the same name is another source.
    identity["pairs_digest"] = text_digest(*(text for pair in pairs for text in map(str, asdict(pair).values())))
    with open_run(folder, "c2_syn", identity, "groups.jsonl"):
        units = chunked(pairs, settings.requests_per_unit)
        file = UnitFile(
            folder / "groups.jsonl", [[pair.request_id for pair in unit] for unit in units], lambda rows: len(rows) == 1
        )
        if file.quarantined_bytes:
            announce(f"A torn unit was moved to {file.quarantine} and is done again.")
        if file.units_done < len(units):
            # Loaded before the bar is drawn, so that an error stands on a line of its own.
            write_groups = _written_teacher(settings) if settings.teacher == WRITTEN else _model_teacher(settings)
            with tqdm(total=len(pairs), desc="C²-Syn", unit="request", mininterval=1) as bar:
                bar.update(sum(map(len, units[: file.units_done])))
                for unit in units[file.units_done :]:
                    file.append(write_groups(unit))
                    bar.update(len(unit))
        write_json(folder / "selection.json", {"kept": len(pairs), "dropped": dict(sorted(counts.items()))})
    return folder / "groups.jsonl"


def _written_teacher(settings: SynthesisSettings) -> Callable[[list[SourcePair]], list[dict[str, Any]]]:
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

    return write_groups


def _model_teacher(settings: SynthesisSettings) -> Callable[[list[SourcePair]], list[dict[str, Any]]]:
    from course_correction.generation import (
        SamplingSettings,
        continue_prefills,
        decode_continuation,
        encode_answer,
        render_prompt,
    )
    from course_correction.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(settings.teacher_model, settings.teacher_revision)
    model = load_model(
        settings.teacher_model,
        dtype=settings.teacher_dtype,
        revision=settings.teacher_revision,
        load_in_4bit=settings.teacher_load_in_4bit,
    )
    sampling = SamplingSettings(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)

    def write_groups(pairs: list[SourcePair]) -> list[dict[str, Any]]:
        drafts = [draft_corrections(pair, settings.seed, settings.opener_rate, settings.mid_sentence_rate) for pair in pairs]
        rows: list[tuple[list[int], list[int], str]] = []
        for pair, (_, initial_responses, triggers) in zip(pairs, drafts, strict=True):
            prompt = render_prompt(tokenizer, pair.request)
            begun = [
                "",
                *(join_trigger(initial, trigger)[0] for initial, trigger in zip(initial_responses, triggers, strict=True)),
            ]
            for rank, text in enumerate(begun):
                rows.append((prompt, encode_answer(tokenizer, text), f"{pair.request_id}\x1f{rank}"))
        # Rows of like length share a batch; the order is fixed within the unit, so a resumed run batches alike.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]) + len(rows[index][1]))
        texts = [""] * len(rows)
        for batch in chunked(order, settings.batch_size):
            prefills = [rows[index][0] + rows[index][1] for index in batch]
            written = continue_prefills(model, tokenizer, prefills, [rows[index][2] for index in batch], sampling)
            for index, continuation in zip(batch, written, strict=True):
                texts[index] = decode_continuation(tokenizer, rows[index][1], continuation.token_ids)
        groups = []
        for pair, draft, (safe_response, *continuations) in zip(pairs, drafts, chunked(texts, GROUP_SIZE - 1), strict=True):
            groups.append(_group_or_reason(pair, draft, safe_response, continuations, settings.teacher_model))
        return groups

    return write_groups


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

    from course_correction.builders import GROUPS_A_SHARD, SYN_SCHEMAS, syn_tables, write_shards
    from course_correction.cards import write_syn_card

    num_rows = {}
    for name, pairs_a_group in (("pairs", 15), ("ranked", 1)):
        tables = syn_tables(groups_file, name)
        num_rows[name] = write_shards(tables, SYN_SCHEMAS[name], export_dir / name, "train", GROUPS_A_SHARD * pairs_a_group)
    selection = json.loads((groups_file.parent / "selection.json").read_text())
    write_syn_card(export_dir, num_rows, selection, asdict(settings))
    return num_rows


def main() -> None:
    """Synthesize, then export if asked to."""
    (settings,) = parse_settings([SynthesisSettings], description=__doc__)
    groups_file = synthesize(settings)
    announce(f"Ranked groups: {groups_file}")
    if settings.export_dir:
        num_rows = export(groups_file, Path(settings.export_dir), settings)
        announce(f"Exported {num_rows['ranked']} groups, {num_rows['pairs']} pairs to {settings.export_dir}")


if __name__ == "__main__":
    run_script(main)
