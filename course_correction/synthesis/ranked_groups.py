"""Ranked groups of six responses and the fifteen pairs in them. Knows nothing of models; works on Arrow tables."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypedDict

import pyarrow as pa

from course_correction.base.errors import UsageError
from course_correction.base.seeding import random_for
from course_correction.synthesis.cuts import cut_initial_harmful_responses
from course_correction.synthesis.sources import SourcePair
from course_correction.synthesis.triggers import draw_opener, draw_triggers, join_texts, join_trigger

KINDS: tuple[str, ...] = ("safe", "corrected_1", "corrected_2", "corrected_3", "corrected_4", "harmful")
GROUP_SIZE = len(KINDS)
NUM_CUTS = GROUP_SIZE - 2
PAIR_RANKS: tuple[tuple[int, int], ...] = tuple(combinations(range(GROUP_SIZE), 2))
# The two value principles (Section 4 of the paper), as the pair's `principle`.
CORRECTING, EARLIER = "correcting_over_not_correcting", "earlier_over_later"


class RankedGroup(TypedDict):
    """A row of the config `ranked`, and a line of groups.jsonl.

    Attributes:
        request_id: Of the source pair.
        request: Its harmful request.
        responses: Six, best first.
        kinds: `KINDS`.
        correction_starts: The character where the correction begins in each response; -1 where there is none.
        opener: Stands before the harmful response; may be "".
        triggers: Four, in the order of the corrected responses.
        teacher: Wrote the safe response and the corrections.
        source: Of the request.
    """

    request_id: str
    request: str
    responses: list[str]
    kinds: list[str]
    correction_starts: list[int]
    opener: str
    triggers: list[str]
    teacher: str
    source: str


class DroppedGroup(TypedDict):
    """A line of groups.jsonl for a request that has no ranked group; `dropped` is the reason."""

    request_id: str
    dropped: str


class CorrectionDraft(NamedTuple):
    """The parts of the corrected responses that no model writes.

    Attributes:
        opener: Stands before the harmful response; may be "".
        initial_responses: Four nested texts, opener included, shortest first.
        triggers: One per initial response.
    """

    opener: str
    initial_responses: list[str]
    triggers: list[str]


RANKED_SCHEMA = pa.schema(
    {
        "request_id": pa.string(),
        "request": pa.string(),
        "responses": pa.list_(pa.string()),
        "kinds": pa.list_(pa.string()),
        "correction_starts": pa.list_(pa.int32()),
        "opener": pa.string(),
        "triggers": pa.list_(pa.string()),
        "teacher": pa.string(),
        "source": pa.string(),
    }
)


class Message(TypedDict):
    """A turn of a conversation."""

    role: str
    content: str


class PreferencePair(TypedDict):
    """A row of the config `pairs`; rank 0 is the best response of the group."""

    request_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_rank: int
    rejected_rank: int
    principle: str


_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
PAIRS_SCHEMA = pa.schema(
    {
        "request_id": pa.string(),
        "prompt": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "chosen_rank": pa.int8(),
        "rejected_rank": pa.int8(),
        "principle": pa.string(),
    }
)


def draft_corrections(pair: SourcePair, seed: int, opener_rate: float, mid_sentence_rate: float = 0.0) -> CorrectionDraft:
    """Draw the opener, the four initial harmful responses and their triggers.

    The draft depends on `seed`, the request id and the response alone.
    """
    opener = draw_opener(random_for(seed, pair.request_id, "opener"), opener_rate)
    random_source = random_for(seed, pair.request_id, "cuts")
    cuts = cut_initial_harmful_responses(pair.full_harmful_response, NUM_CUTS, random_source, mid_sentence_rate)
    triggers = draw_triggers(random_for(seed, pair.request_id, "triggers"), NUM_CUTS)
    return CorrectionDraft(opener, [join_texts(opener, cut) for cut in cuts], triggers)


def build_ranked_group(
    pair: SourcePair,
    opener: str,
    initial_responses: Sequence[str],
    triggers: Sequence[str],
    safe_response: str,
    continuations: Sequence[str],
    teacher: str,
) -> RankedGroup:
    """Rank SR > SYN_1 > SYN_2 > SYN_3 > SYN_4 > FHR for one request.

    Args:
        pair: The request and its full harmful response.
        opener: Stands before the harmful response; may be "".
        initial_responses: The 4 IHRs, opener included, shortest first.
        triggers: The 4 triggers, in the order of the IHRs.
        safe_response: The teacher's answer with no IHR before it.
        continuations: The teacher's 4 continuations after IHR + trigger, with their leading white space.
        teacher: Name of the teacher.

    Returns:
        A `ranked` row. `correction_starts[i]` is the character where the correction begins in `responses[i]`: the trigger,
        or the "..." before it if the initial harmful response ends inside a sentence.
    """
    prefixes = [join_trigger(initial, trigger) for initial, trigger in zip(initial_responses, triggers, strict=True)]
    corrected = [text + continuation.rstrip() for (text, _), continuation in zip(prefixes, continuations, strict=True)]
    starts = [start for _, start in prefixes]
    return {
        "request_id": pair.request_id,
        "request": pair.request,
        "responses": [safe_response.strip(), *corrected, join_texts(opener, pair.full_harmful_response)],
        "kinds": list(KINDS),
        "correction_starts": [-1, *starts, -1],
        "opener": opener,
        "triggers": list(triggers),
        "teacher": teacher,
        "source": pair.source,
    }


def check_ranked_group(group: Mapping[str, Any], where: str) -> None:
    """Refuse a group that cannot be trained on.

    Args:
        group: The row.
        where: Names the row in the error.

    Raises:
        UsageError: If the group does not have six different, non-empty responses in rank order, or if a correction starts
            outside its response.
    """
    missing = [name for name in RANKED_SCHEMA.names if name not in group]
    if missing:
        raise UsageError(f"{where}: the group lacks {', '.join(missing)}.")
    responses, starts = group["responses"], group["correction_starts"]
    name = f"{where}: group {group['request_id']}"
    if not all(isinstance(group[column], list) for column in ("responses", "kinds", "correction_starts")):
        raise UsageError(f"{name}: responses, kinds and correction_starts must be lists.")
    if len(responses) != GROUP_SIZE or list(group["kinds"]) != list(KINDS) or len(starts) != GROUP_SIZE:
        raise UsageError(f"{name} has {len(responses)} responses; a ranked group has {GROUP_SIZE}, best first.")
    if not all(isinstance(text, str) and text.strip() for text in [group["request"], *responses]):
        raise UsageError(f"{name} has a null or empty text.")
    if len(set(responses)) != GROUP_SIZE:
        raise UsageError(f"{name} has two identical responses, which cannot be ranked.")
    for text, start, kind in zip(responses, starts, KINDS, strict=True):
        corrected = kind.startswith("corrected")
        if not isinstance(start, int) or corrected != (start >= 0) or start >= len(text):
            raise UsageError(f"{name}: correction start {start} does not fit the {kind} response.")


def ranked_table(groups: Sequence[RankedGroup]) -> pa.Table:
    """Return ranked groups as an Arrow table with one row per group."""
    return pa.Table.from_pylist(list(groups), schema=RANKED_SCHEMA)


def pairs_table(ranked: pa.Table) -> pa.Table:
    """Return the 15 pairs of each ranked group, vectorised.

    Args:
        ranked: n rows in `RANKED_SCHEMA`.

    Returns:
        15 n rows (`PreferencePair`) in `PAIRS_SCHEMA`: groups in their order, within a group by chosen rank, then by
        rejected rank (0 is best).
    """
    num_groups = ranked.num_rows
    group_index = pa.array([group for group in range(num_groups) for _ in PAIR_RANKS], pa.int64())
    responses = pa.chunked_array(ranked["responses"].chunks, pa.list_(pa.string())).combine_chunks()
    flat = responses.flatten() if num_groups else pa.array([], pa.string())

    def messages(role: str, contents: pa.Array) -> pa.Array:
        roles = pa.array([role], pa.string()).take(pa.array([0] * len(contents), pa.int64()))
        turns = pa.StructArray.from_arrays([roles, contents], names=["role", "content"])
        return pa.ListArray.from_arrays(pa.array(range(len(contents) + 1), pa.int32()), turns)

    def responses_at(side: int) -> pa.Array:
        indices = [group * GROUP_SIZE + ranks[side] for group in range(num_groups) for ranks in PAIR_RANKS]
        return messages("assistant", flat.take(pa.array(indices, pa.int64())))

    requests = ranked["request"].combine_chunks().take(group_index)
    return pa.table(
        {
            "request_id": ranked["request_id"].combine_chunks().take(group_index),
            "prompt": messages("user", requests),
            "chosen": responses_at(0),
            "rejected": responses_at(1),
            "chosen_rank": pa.array([ranks[0] for ranks in PAIR_RANKS] * num_groups, pa.int8()),
            "rejected_rank": pa.array([ranks[1] for ranks in PAIR_RANKS] * num_groups, pa.int8()),
            "principle": pa.array(
                [CORRECTING if ranks[1] == GROUP_SIZE - 1 else EARLIER for ranks in PAIR_RANKS] * num_groups,
                pa.string(),
            ),
        },
        schema=PAIRS_SCHEMA,
    )
