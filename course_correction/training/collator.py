"""Batches of the grouped objective: groups packed into trees, with their side rows. Knows nothing of models.

Side rows are further sequences of a batch: benign rows for the retention term, harmful responses for the transition term.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch

from course_correction.base.errors import UsageError
from course_correction.generation.padding import pad_rows
from course_correction.synthesis.triggers import ends_clause
from course_correction.training.settings import ObjectiveSettings
from course_correction.training.tree import PackedGroup, ancestor_mask, pack_group

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Refusals occur at the start of an answer. The extra retention weight there halves every so many tokens.
START_TOKENS = 8
# The kind of each token of a side row. The first three tell whether a correction could begin in place of the token.
NO_TRANSITION, AFTER_CLAUSE, INSIDE_CLAUSE, RETAINED = range(4)


# Token ids of a side row, and the kind of each.
SideRow = tuple[list[int], list[int]]


class TokenizedGroup(TypedDict):
    """A ranked row in token ids.

    Attributes:
        prompt_ids: The prompt with its generation prompt.
        completion_ids: The six responses, best first.
        correction_tokens: For each response, the index of the first token of its corrective part: 0 for the safe response,
            its length for the harmful one.
        transitions: For each token of the harmful response, whether a correction could begin in its place: `AFTER_CLAUSE`,
            `INSIDE_CLAUSE`, or `NO_TRANSITION` within a word or the opener.
        transition_tokens: The first tokens of the four corrective parts, as pairs of kind and token id.
        reference_sums: The reference's log-probability of each response, where it was precomputed.
    """

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    correction_tokens: list[int]
    transitions: list[int]
    transition_tokens: list[list[int]]
    reference_sums: NotRequired[list[float]]


def tokenize_group(tokenizer: PreTrainedTokenizerBase, group: dict[str, Any]) -> TokenizedGroup:
    """Tokenize a ranked row as TRL tokenizes its pairs.

    Raises:
        UsageError: If the chat template renders the prompt differently before an answer.
    """

    def render(messages: list[dict[str, str]], **options: Any) -> list[int]:
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))

    turn = [{"role": "user", "content": group["request"]}]
    prompt_ids = render(turn, add_generation_prompt=True)

    def completion_ids(response: str) -> list[int]:
        ids = render([*turn, {"role": "assistant", "content": response}])
        if ids[: len(prompt_ids)] != prompt_ids:
            raise UsageError(
                "The chat template renders the prompt differently before an answer, so the responses of a group cannot "
                "share it. Use --objective pairwise."
            )
        return ids[len(prompt_ids) :]

    completions = [completion_ids(response) for response in group["responses"]]
    starts = []
    for response, ids, start, kind in zip(
        group["responses"], completions, group["correction_starts"], group["kinds"], strict=True
    ):
        if start >= 0:
            initial = completion_ids(response[:start].rstrip())
            # A token that holds the end of the initial response and the start of the correction counts as corrective.
            starts.append(next(n for n, pair in enumerate(zip(initial, ids, strict=False)) if pair[0] != pair[1]))
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


def find_transitions(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], response: str, opener: str) -> list[int]:
    """Return, for each token of a harmful response, whether a correction could begin in its place.

    Args:
        tokenizer: The tokenizer of `ids`.
        ids: Token ids of the response, with what the chat template puts after it.
        response: Its text.
        opener: Its opener, in which no correction begins.
    """
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
    """Draws indices below `size` in a seeded random order; none repeats before all were drawn."""

    def __init__(self, size: int, seed: int) -> None:
        """Seed the order."""
        self.size, self.random_source = size, torch.Generator().manual_seed(seed)
        self.queue: list[int] = []

    def take(self, count: int) -> list[int]:
        """Return the next `count` indices."""
        while len(self.queue) < count:
            self.queue += torch.randperm(self.size, generator=self.random_source).tolist()
        drawn, self.queue = self.queue[:count], self.queue[count:]
        return drawn

    def skip(self, count: int) -> None:
        """Discard the next `count` indices."""
        for _ in range(count):
            self.take(1)


def split_by_length(rows: list[SideRow]) -> list[list[SideRow]]:
    """Return the rows by length, in the two parts that need the least padding.

    A single row is one part. The number of parts depends on the number of rows alone: processes that share a model must run
    it equally often.
    """
    if len(rows) < 2:
        return [rows] if rows else []
    rows = sorted(rows, key=lambda row: len(row[0]))

    def padded(cut: int) -> int:
        return cut * len(rows[cut - 1][0]) + (len(rows) - cut) * len(rows[-1][0])

    cut = min(range(1, len(rows)), key=padded)
    return [rows[:cut], rows[cut:]]


class GroupCollator:
    """Packs groups into trees and adds side rows: benign ones for retention, harmful ones for transitions."""

    def __init__(
        self,
        pad_token_id: int,
        benign: list[tuple[list[int], int]],
        groups: Dataset,
        objective: ObjectiveSettings,
        seed: int,
    ) -> None:
        """Prepare the draws of side rows.

        Args:
            pad_token_id: The token that fills short rows.
            benign: Token ids of benign prompts with their answers, and where each answer starts.
            groups: The tokenized groups, whose harmful responses are the further rows of the transition term.
            objective: How many side rows a batch has, and how many tokens of each.
            seed: Seed of the draws.
        """
        self.pad_token_id, self.benign, self.groups, self.objective = pad_token_id, benign, groups, objective
        self.benign_draws, self.group_draws = Draws(len(benign), seed), Draws(len(groups), seed + 1)

    def __call__(self, rows: list[TokenizedGroup]) -> dict[str, Any]:
        """Return the packed groups with their side rows."""
        batch = self.pack(rows)
        benign, harmful = self._draw_benign_rows(), self._draw_harmful_rows()
        batch["benign"] = [self._pad_side_rows(rows) for rows in split_by_length(benign)]
        batch["harmful"] = [self._pad_side_rows(rows) for rows in split_by_length(harmful)]
        if benign:
            # How far into its answer each retained token stands, in the order in which a mask picks them.
            kept = [rows["side_kinds"] == RETAINED for rows in batch["benign"]]
            place = torch.cat([mask.cumsum(1)[mask] - 1 for mask in kept])
            batch["retention_weights"] = 1 + self.objective.retention_start_boost * 0.5 ** (place / START_TOKENS)
        return batch

    def pack(self, rows: list[TokenizedGroup]) -> dict[str, Any]:
        """Return groups packed into trees.

        Returns:
            `input_ids`, `position_ids`, `parents` and `transitions` [groups, tokens], `attention_mask` [groups, 1, tokens,
            tokens], `reference_sums` [groups, 6] where they were precomputed, and for each group and response the indices
            of its tokens (`paths`) and of the first tokens of its corrective part (`correction_paths`).
        """
        groups = [pack_group(row["prompt_ids"], row["completion_ids"], row["correction_tokens"]) for row in rows]
        batch: dict[str, Any] = dict(self._pad_trees(groups))
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
        """Discard the draws of the next `num_batches` batches."""
        if self.benign:
            self.benign_draws.skip(num_batches * self.objective.retention_rows)
        if self.objective.transition_weight and self.objective.transition_rows:
            self.group_draws.skip(num_batches * self.objective.transition_rows)

    def _draw_benign_rows(self) -> list[SideRow]:
        if not self.benign:
            return []
        rows = []
        for ids, start in (self.benign[index] for index in self.benign_draws.take(self.objective.retention_rows)):
            length = self.objective.retention_tokens
            kept = ids if length is None else ids[: start + length]
            rows.append((kept, [NO_TRANSITION] * start + [RETAINED] * (len(kept) - start)))
        return rows

    def _draw_harmful_rows(self) -> list[SideRow]:
        if not self.objective.transition_weight or not self.objective.transition_rows:
            return []
        rows = []
        for group in (self.groups[index] for index in self.group_draws.take(self.objective.transition_rows)):
            length = self.objective.transition_tokens
            ids, kinds = group["completion_ids"][-1][:length], group["transitions"][:length]
            rows.append((group["prompt_ids"] + ids, [NO_TRANSITION] * len(group["prompt_ids"]) + kinds))
        return rows

    def _pad_trees(self, groups: list[PackedGroup]) -> dict[str, torch.Tensor]:
        size = max(len(group.token_ids) for group in groups)
        ids = pad_rows([group.token_ids for group in groups], self.pad_token_id)
        positions = pad_rows([group.positions for group in groups])
        parents = pad_rows([group.parents for group in groups]).clamp(min=0)
        mask = torch.stack([ancestor_mask(group.parents, size) for group in groups])[:, None]
        return {"input_ids": ids, "position_ids": positions, "attention_mask": mask, "parents": parents}

    def _pad_side_rows(self, rows: list[SideRow]) -> dict[str, torch.Tensor]:
        ids = pad_rows([tokens for tokens, _ in rows], self.pad_token_id)
        # The logits before a token predict it, so its kind moves to them.
        kinds = pad_rows([[*row_kinds[1:], NO_TRANSITION] for _, row_kinds in rows])
        return {"side_ids": ids, "side_kinds": kinds}
