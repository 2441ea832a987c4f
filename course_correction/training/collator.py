"""Batches of the grouped objective: groups packed into trees, and the side rows that go with them. No model here."""

from typing import Any

import torch

from course_correction.base.errors import UsageError
from course_correction.generation.padding import pad_rows
from course_correction.synthesis.triggers import ends_clause
from course_correction.training.tree import PackedGroup, ancestor_mask, pack_group

# Where refusals stand: the weight that retention adds at an answer's start halves every so many tokens.
START_TOKENS = 8
NO_TRANSITION, AFTER_CLAUSE, INSIDE_CLAUSE, RETAINED = range(4)


def tokenize_group(tokenizer: Any, group: dict[str, Any]) -> dict[str, Any]:
    """Tokenize a ranked row as TRL tokenizes its pairs.

    Returns:
        `prompt_ids`, six `completion_ids` and, for each, the token where its corrective part begins: 0 for the safe
        response, its length for the harmful one. `transitions` holds, for each token of the harmful response, where the
        text stands before it: `AFTER_CLAUSE`, `INSIDE_CLAUSE`, or `NO_TRANSITION` within a word or the opener. And
        `transition_tokens` the four tokens that corrective parts begin with, as pairs of place and token id.
    """

    def render(messages: list[dict[str, str]], **options: Any) -> list[int]:
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))

    turn = [{"role": "user", "content": group["request"]}]
    prompt_ids = render(turn, add_generation_prompt=True)

    def completion_ids(response: str) -> list[int]:
        ids = render([*turn, {"role": "assistant", "content": response}])
        if ids[: len(prompt_ids)] != prompt_ids:
            raise UsageError(
                "The chat template renders a prompt otherwise once an answer follows, so grouped training cannot share "
                "it. Use --objective pairwise."
            )
        return ids[len(prompt_ids) :]

    completions = [completion_ids(response) for response in group["responses"]]
    starts = []
    for response, ids, start, kind in zip(
        group["responses"], completions, group["correction_starts"], group["kinds"], strict=True
    ):
        if start >= 0:
            begun = completion_ids(response[:start].rstrip())
            # A token that straddles the border belongs to the corrective part.
            starts.append(next(n for n, pair in enumerate(zip(begun, ids, strict=False)) if pair[0] != pair[1]))
        else:
            starts.append(0 if kind == "safe" else len(ids))
    transition_tokens = [
        [AFTER_CLAUSE if ends_clause(response[:start].strip()) else INSIDE_CLAUSE, ids[first]]
        for response, start, ids, first in zip(
            group["responses"], group["correction_starts"], completions, starts, strict=True
        )
        if start >= 0
    ]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completions,
        "correction_tokens": starts,
        "transitions": find_transitions(tokenizer, completions[-1], group["responses"][-1], group["opener"]),
        "transition_tokens": transition_tokens,
    }


def find_transitions(tokenizer: Any, ids: list[int], response: str, opener: str) -> list[int]:
    """Return, for each token of a harmful response, whether a correction could begin in its place."""
    places = [NO_TRANSITION] * len(ids)
    before = tokenizer.decode(ids[:0])
    for index in range(len(ids)):
        after = tokenizer.decode(ids[: index + 1])
        if len(opener) < len(before) < len(response):
            if ends_clause(before):
                places[index] = AFTER_CLAUSE
            elif after[len(before) : len(before) + 1].isspace():
                places[index] = INSIDE_CLAUSE
        before = after
    return places


class Draws:
    """Draws indices below `size` in a seeded order, all of them before any again."""

    def __init__(self, size: int, seed: int) -> None:
        """Start at the beginning of the first order."""
        self.size, self.random_source = size, torch.Generator().manual_seed(seed)
        self.queue: list[int] = []

    def take(self, count: int) -> list[int]:
        """Return the next `count` indices."""
        while len(self.queue) < count:
            self.queue += torch.randperm(self.size, generator=self.random_source).tolist()
        drawn, self.queue = self.queue[:count], self.queue[count:]
        return drawn

    def skip(self, count: int) -> None:
        """Draw `count` indices unused."""
        for _ in range(count):
            self.take(1)


def split_by_length(rows: list[tuple[list[int], list[int]]]) -> list[list[tuple[list[int], list[int]]]]:
    """Return the rows by length, in the two parts that are padded least.

    One row makes one part. The number of parts depends on that of the rows alone: processes that share a model must run it
    equally often.
    """
    if len(rows) < 2:
        return [rows] if rows else []
    rows = sorted(rows, key=lambda row: len(row[0]))

    def padded(cut: int) -> int:
        return cut * len(rows[cut - 1][0]) + (len(rows) - cut) * len(rows[-1][0])

    cut = min(range(1, len(rows)), key=padded)
    return [rows[:cut], rows[cut:]]


class GroupCollator:
    """Packs groups into trees and adds side rows: benign ones to stay close on, harmful ones to turn back in."""

    def __init__(
        self, pad_token_id: int, benign: list[tuple[list[int], int]], groups: Any, objective: Any, seed: int
    ) -> None:
        """Take tokenized benign rows and the tokenized groups that further harmful responses are drawn from."""
        self.pad_token_id, self.benign, self.groups, self.objective = pad_token_id, benign, groups, objective
        self.benign_draws, self.group_draws = Draws(len(benign), seed), Draws(len(groups), seed + 1)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the packed groups with their side rows."""
        settings = self.objective
        batch = self.pack(rows)
        benign: list[tuple[list[int], list[int]]] = []
        turning: list[tuple[list[int], list[int]]] = []
        if self.benign:
            for ids, start in (self.benign[index] for index in self.benign_draws.take(settings.retention_rows)):
                end = len(ids) if settings.retention_tokens is None else start + settings.retention_tokens
                benign.append((ids[:end], [0] * start + [RETAINED] * (len(ids[:end]) - start)))
        if settings.transition_weight and settings.transition_rows:
            for group in (self.groups[index] for index in self.group_draws.take(settings.transition_rows)):
                ids, kinds = group["completion_ids"][-1], group["transitions"]
                end = len(ids) if settings.transition_tokens is None else settings.transition_tokens
                turning.append((group["prompt_ids"] + ids[:end], [0] * len(group["prompt_ids"]) + kinds[:end]))
        batch["benign"] = [self._pad_side(rows) for rows in split_by_length(benign)]
        batch["turning"] = [self._pad_side(rows) for rows in split_by_length(turning)]
        if benign:
            # How far into its answer each retained token stands, in the order in which a mask picks them.
            kept = [rows["side_kinds"] == RETAINED for rows in batch["benign"]]
            place = torch.cat([mask.cumsum(1)[mask] - 1 for mask in kept])
            batch["retention_weights"] = 1 + settings.retention_start_boost * 0.5 ** (place / START_TOKENS)
        return batch

    def pack(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return groups packed into trees."""
        groups = [pack_group(row["prompt_ids"], row["completion_ids"], row["correction_tokens"]) for row in rows]
        batch = self._pad_trees(groups)
        if "reference_sums" in rows[0]:
            batch["reference_sums"] = torch.tensor([row["reference_sums"] for row in rows], dtype=torch.float64)
        batch["paths"] = [group.paths for group in groups]
        batch["transitions"] = torch.zeros_like(batch["input_ids"])
        for row, (group, features) in enumerate(zip(groups, rows, strict=True)):
            batch["transitions"][row, group.paths[-1]] = torch.tensor(features["transitions"])
        batch["correction_paths"] = [
            [path[: self.objective.correction_nll_tokens] for path in group.correction_paths] for group in groups
        ]
        return batch

    def skip(self, num_batches: int) -> None:
        """Draw what `num_batches` batches would have drawn."""
        if self.benign:
            self.benign_draws.skip(num_batches * self.objective.retention_rows)
        if self.objective.transition_weight and self.objective.transition_rows:
            self.group_draws.skip(num_batches * self.objective.transition_rows)

    def _pad_trees(self, groups: list[PackedGroup]) -> dict[str, Any]:
        size = max(len(group.token_ids) for group in groups)
        ids = pad_rows([group.token_ids for group in groups], self.pad_token_id)
        positions = pad_rows([group.positions for group in groups])
        parents = pad_rows([group.parents for group in groups]).clamp(min=0)
        mask = torch.stack([ancestor_mask(group.parents, size) for group in groups])[:, None]
        return {"input_ids": ids, "position_ids": positions, "attention_mask": mask, "parents": parents}

    def _pad_side(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
        ids = pad_rows([tokens for tokens, _ in rows], self.pad_token_id)
        # The logits before a token predict it.
        kinds = pad_rows([[*row_kinds[1:], 0] for _, row_kinds in rows])
        return {"side_ids": ids, "side_kinds": kinds}
