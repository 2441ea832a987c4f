"""Ranked groups of six responses and the fifteen pairs in them. Knows nothing of models; works on Arrow tables."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

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


def draft_corrections(
    pair: SourcePair, seed: int, opener_rate: float, mid_sentence_rate: float = 0.0
) -> tuple[str, list[str], list[str]]:
    """Draw what no model writes: the opener, the four initial harmful responses and their triggers.

    Returns:
        The opener, four nested texts (opener + prefix), shortest first, and four triggers in the same order. All of it
        depends on `seed`, the request id and the response alone.
    """
    opener = draw_opener(random_for(seed, pair.request_id, "opener"), opener_rate)
    random_source = random_for(seed, pair.request_id, "cuts")
    cuts = cut_initial_harmful_responses(pair.full_harmful_response, NUM_CUTS, random_source, mid_sentence_rate)
    triggers = draw_triggers(random_for(seed, pair.request_id, "triggers"), NUM_CUTS)
    return opener, [join_texts(opener, cut) for cut in cuts], triggers


def build_ranked_group(
    pair: SourcePair,
    opener: str,
    initial_responses: Sequence[str],
    triggers: Sequence[str],
    safe_response: str,
    continuations: Sequence[str],
    teacher: str,
) -> dict[str, Any]:
    """Rank SR > SYN_1 > SYN_2 > SYN_3 > SYN_4 > FHR for one request.

    Args:
        pair: The request and its full harmful response.
        opener: Text before the harmful response, perhaps "".
        initial_responses: The 4 IHRs, opener included, shortest first.
        triggers: The 4 triggers, in the order of the IHRs.
        safe_response: The teacher's answer with no IHR before it.
        continuations: The teacher's 4 continuations after IHR + trigger, with the white space that they begin with.
        teacher: Who wrote them.

    Returns:
        A `ranked` row. `correction_starts[i]` is the character where the corrective part begins in `responses[i]`: the
        trigger, or the "..." before it where the initial harmful response ends inside a sentence.
    """
    begun = [join_trigger(initial, trigger) for initial, trigger in zip(initial_responses, triggers, strict=True)]
    corrected = [text + continuation.rstrip() for (text, _), continuation in zip(begun, continuations, strict=True)]
    starts = [start for _, start in begun]
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


def check_ranked_group(group: dict[str, Any], where: str) -> None:
    """Refuse a group that cannot be trained on.

    Raises:
        UsageError: If it has not six different, non-empty responses in rank order, or a correction start lies outside
            its text.
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


def ranked_table(groups: Sequence[dict[str, Any]]) -> pa.Table:
    """Return ranked groups as an Arrow table with one row a group."""
    return pa.Table.from_pylist(list(groups), schema=RANKED_SCHEMA)


def pairs_table(ranked: pa.Table) -> pa.Table:
    """Turn each ranked group into its 15 pairs, vectorised.

    Args:
        ranked: Rows in `RANKED_SCHEMA`, n of them.

    Returns:
        15 n rows in `PAIRS_SCHEMA`: groups in their order, within a group by chosen rank, then rejected rank (0 best).
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
