"""The run of C²-Syn: select source pairs, let the teacher write a ranked group per pair, store them as JSONL."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from course_correction.base.errors import UsageError
from course_correction.base.files import chunked, text_digest, write_json
from course_correction.base.ranks import Ranks
from course_correction.base.resumable_rows import Rows, run_units
from course_correction.base.run_folder import open_run
from course_correction.base.settings import identity_of
from course_correction.generation.loading import read_chat_template
from course_correction.generation.protocol import Sampler
from course_correction.synthesis.settings import STAGE, SynthesisSettings
from course_correction.synthesis.sources import (
    SelectionRules,
    SourcePair,
    normalise_request,
    read_eval_items,
    read_source_rows,
    select_source_pairs,
)
from course_correction.synthesis.teachers import choose_teacher

logger = logging.getLogger(__name__)

GROUPS_FILE = "groups.jsonl"


class Selection(NamedTuple):
    """The source pairs that synthesis starts from, and the number of dropped rows by reason."""

    pairs: list[SourcePair]
    dropped: dict[str, int]


def select_pairs(settings: SynthesisSettings) -> Selection:
    """Read the source and keep the pairs that C²-Syn can use, in the order of the source."""
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
    return Selection(pairs, {reason: number for reason, number in sorted(counts.items()) if reason != "kept"})


def synthesize(settings: SynthesisSettings) -> Path | None:
    """Write `groups.jsonl`; continue where an earlier run with the same settings stopped.

    Returns:
        The path of `groups.jsonl`: one ranked group per line, in source order. Where the teacher's texts make no group (an
        empty continuation, two equal responses), the line has the key `dropped`. None in a process that is not the main one.
    """
    folder = Path(settings.output_dir)
    chat_template = read_chat_template(settings.chat_template)
    pairs, dropped = select_pairs(settings)
    logger.info(
        f"{settings.source}: {len(pairs)} requests kept"
        + "".join(f", {number} dropped ({reason})" for reason, number in dropped.items())
    )
    if not pairs:
        raise UsageError(f"No row of {settings.source} passes the selection. Loosen its thresholds.")
    identity = identity_of(settings, "model") | identity_of(settings, STAGE) | {"chat_template": chat_template}
    # A source whose content changed under the same name is another source.
    identity["pairs_digest"] = text_digest(*(text for pair in pairs for text in map(str, asdict(pair).values())))
    ranks = Ranks()
    units = chunked(pairs, settings.requests_per_unit)

    def begin() -> tuple[Callable[[int], Rows], Sampler | None]:
        teacher = choose_teacher(settings)

        def write_unit(unit: int) -> list[dict[str, Any]]:
            return [dict(group) for group in teacher.write_groups(units[unit])]

        return write_unit, teacher.sampler

    with ExitStack() as claims:
        if ranks.is_main:
            claims.enter_context(open_run(folder, "c2_syn", identity, GROUPS_FILE))
        ids = [[pair.request_id for pair in unit] for unit in units]
        run_units(folder / GROUPS_FILE, ids, lambda rows: len(rows) == 1, begin, ranks, "C²-Syn")
        if ranks.is_main:
            write_json(folder / "selection.json", {"kept": len(pairs), "dropped": dropped})
    ranks.leave()
    return folder / GROUPS_FILE if ranks.is_main else None
