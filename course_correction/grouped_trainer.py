"""A DPO trainer on ranked groups: six log-probabilities a group, all 15 pair losses from them, one forward of a tree.

Built on TRL's DPOTrainer, whose methods overridden here are private: pyproject pins TRL, and tests/test_objective.py
compares loss and gradients with stock TRL on the 15 pairs.
"""

from contextlib import nullcontext
from typing import Any

import torch
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from course_correction.generation import tokenize_benign
from course_correction.objective import (
    PackedGroup,
    accuracy_by_distance,
    ancestor_mask,
    mean_path_nll,
    pack_group,
    pair_losses,
    retention_kl,
    selected_logps,
    sum_paths,
    transition_loss,
)
from course_correction.preferences import PAIR_RANKS
from course_correction.prefixes import ends_clause
from course_correction.run_files import UsageError
from course_correction.training_loop import WatchedTraining

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


class GroupCollator:
    """Packs groups into trees and adds side rows: benign ones to stay close on, harmful ones to turn back in."""

    def __init__(
        self, pad_token_id: int, benign: list[tuple[list[int], int]], groups: Any, objective: Any, seed: int
    ) -> None:
        """Take tokenized benign rows and the tokenized groups that further harmful responses are drawn from."""
        self.pad_token_id, self.benign, self.groups, self.objective = pad_token_id, benign, groups, objective
        self.benign_draws, self.group_draws = Draws(len(benign), seed), Draws(len(groups), seed + 1)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the packed batch."""
        settings = self.objective
        groups = [pack_group(row["prompt_ids"], row["completion_ids"], row["correction_tokens"]) for row in rows]
        batch = self._pad_trees(groups)
        batch["paths"] = [group.paths for group in groups]
        batch["transitions"] = torch.zeros_like(batch["input_ids"])
        for row, (group, features) in enumerate(zip(groups, rows, strict=True)):
            batch["transitions"][row, group.paths[-1]] = torch.tensor(features["transitions"])
        batch["correction_paths"] = [
            [path[: settings.correction_nll_tokens] for path in group.correction_paths] for group in groups
        ]
        side: list[tuple[list[int], list[int]]] = []
        if self.benign:
            for ids, start in (self.benign[index] for index in self.benign_draws.take(settings.retention_rows)):
                end = len(ids) if settings.retention_tokens is None else start + settings.retention_tokens
                side.append((ids[:end], [0] * start + [RETAINED] * (len(ids[:end]) - start)))
        batch["num_benign"] = len(side)
        if settings.transition_weight and settings.transition_rows:
            for group in (self.groups[index] for index in self.group_draws.take(settings.transition_rows)):
                ids, kinds = group["completion_ids"][-1], group["transitions"]
                end = len(ids) if settings.transition_tokens is None else settings.transition_tokens
                side.append((group["prompt_ids"] + ids[:end], [0] * len(group["prompt_ids"]) + kinds[:end]))
        return batch | (self._pad_side(side) if side else {})

    def skip(self, num_batches: int) -> None:
        """Draw what `num_batches` batches would have drawn."""
        if self.benign:
            self.benign_draws.skip(num_batches * self.objective.retention_rows)
        if self.objective.transition_weight and self.objective.transition_rows:
            self.group_draws.skip(num_batches * self.objective.transition_rows)

    def _pad_trees(self, groups: list[PackedGroup]) -> dict[str, Any]:
        size = max(len(group.token_ids) for group in groups)
        ids = torch.full((len(groups), size), self.pad_token_id)
        positions = torch.zeros(len(groups), size, dtype=torch.long)
        parents = torch.zeros(len(groups), size, dtype=torch.long)
        for row, group in enumerate(groups):
            ids[row, : len(group.token_ids)] = torch.tensor(group.token_ids)
            positions[row, : len(group.token_ids)] = torch.tensor(group.positions)
            parents[row, : len(group.token_ids)] = torch.tensor(group.parents).clamp(min=0)
        mask = torch.stack([ancestor_mask(group.parents, size) for group in groups])[:, None]
        return {"input_ids": ids, "position_ids": positions, "attention_mask": mask, "parents": parents}

    def _pad_side(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
        size = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), size), self.pad_token_id)
        kinds = torch.zeros(len(rows), size, dtype=torch.long)
        for row, (tokens, row_kinds) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            # What is said of a token is said by the logits before it.
            kinds[row, : len(tokens) - 1] = torch.tensor(row_kinds[1:])
        return {"side_ids": ids, "side_kinds": kinds}


class GroupedDPOTrainer(WatchedTraining, DPOTrainer):
    """TRL's trainer on `ranked` rows: the paper's objective, with the two terms of train_dpo.py's `ObjectiveSettings`."""

    pairs_a_row = len(PAIR_RANKS)

    def __init__(self, *args: Any, objective: Any, benign_rows: list[dict[str, Any]], **kwargs: Any) -> None:
        """Prepare the retention rows.

        Raises:
            UsageError: If the retention term is on and there is no benign row.
        """
        self.objective = objective
        tokenizer, training = kwargs["processing_class"], kwargs["args"]
        if objective.retention_weight and not benign_rows:
            raise UsageError("retention_weight is set, but there is no benign row. Name some, or set it to 0.")
        benign = [tokenize_benign(tokenizer, row) for row in benign_rows] if objective.retention_weight else []
        super().__init__(*args, **kwargs, data_collator=lambda rows: rows)
        self.data_collator = GroupCollator(tokenizer.pad_token_id, benign, self.train_dataset, objective, training.seed)
        found = [pair for pairs in self.train_dataset["transition_tokens"] for pair in pairs]
        self.transition_tokens = {
            place: torch.tensor(sorted({token for kind, token in found if kind == place}))
            for place in (AFTER_CLAUSE, INSIDE_CLAUSE)
            if any(kind == place for kind, _ in found)
        }

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset.map(
            lambda row: tokenize_group(processing_class, row),
            remove_columns=dataset.column_names,
            desc=f"Tokenizing {dataset_name} groups",
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt_ids", "completion_ids", "correction_tokens", "transitions"]

    def _token_logps(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return log-probability of each packed token after its parent, [groups, tokens]; 0 for prompts and padding.

        And, for each place of the harmful responses where a correction could begin, the log-probability that it does.
        """
        completion = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for group, paths in enumerate(inputs["paths"]):
            for path in paths:
                completion[group, path] = True
        rows, places = completion.nonzero(as_tuple=True)
        parents = inputs["parents"][rows, places]
        # The LM head runs only where some completion token's parent stands.
        kept, columns = parents.unique(return_inverse=True)
        dtype = next(self.model.parameters()).dtype
        # An additive mask in the model's dtype is what every attention implementation but flash takes.
        mask = torch.zeros(inputs["attention_mask"].shape, dtype=dtype, device=kept.device)
        mask = mask.masked_fill(~inputs["attention_mask"], torch.finfo(dtype).min)
        logits = model(
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            attention_mask=mask,
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        # [groups, kept, vocabulary], as one list of positions.
        columns = columns + rows * len(kept)
        turns = self._sets(inputs["transitions"][rows, places], columns) if self.objective.transition_weight else []
        logps, *turning = selected_logps(logits.flatten(0, 1), columns, inputs["input_ids"][rows, places], turns)
        logps = torch.zeros(completion.shape, device=logps.device).index_put((rows, places), logps)
        return logps, torch.cat(turning) if turning else None

    def _side_logits(self, model: Any, inputs: dict[str, Any], num_rows: int | None = None) -> tuple[torch.Tensor, ...]:
        """Return logits [n, vocabulary] where a side row has a kind, and those kinds [n]."""
        kinds = inputs["side_kinds"][:num_rows]
        # The LM head runs only where some row's response stands.
        kept = kinds.any(0).nonzero()[:, 0]
        logits = model(
            # Padded on the right, rows need no mask beside the causal one.
            input_ids=inputs["side_ids"][:num_rows],
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        chosen = kinds[:, kept] > 0
        return logits[chosen], kinds[:, kept][chosen]

    def _sets(self, kinds: torch.Tensor, rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(rows[kinds == kind], tokens.to(kinds.device)) for kind, tokens in self.transition_tokens.items()]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        settings, mode = self.objective, "train" if self.model.training else "eval"
        num_benign = inputs["num_benign"]
        reference_model = model if self.ref_model is None else self.ref_model
        adapter_off = nullcontext()
        if self.ref_model is None:
            adapter_off = use_adapter(self.accelerator.unwrap_model(model), adapter_name=None)
        no_checkpoints = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        with torch.no_grad(), no_checkpoints, adapter_off:
            reference, _ = self._token_logps(reference_model, inputs)
            if num_benign:
                reference_logits, _ = self._side_logits(reference_model, inputs, num_benign)
        logps, turning = self._token_logps(model, inputs)
        log_ratios = sum_paths(logps - reference, inputs["paths"])
        loss, margins = pair_losses(log_ratios, self.beta, settings.pair_distance_power)
        metrics = {
            "loss/dpo": loss,
            "rewards/margins": margins.mean(),
            "rewards/accuracies": (margins > 0).float().mean(),
        }
        for distance, accuracy in accuracy_by_distance(margins).items():
            metrics[f"rewards/accuracy_distance_{distance}"] = accuracy
        corrections = inputs["correction_paths"]
        for name, weight, paths in (
            ("correction_nll", settings.correction_nll_weight, [responses[1:] for responses in corrections]),
            ("safe_nll", settings.safe_nll_weight, [responses[:1] for responses in corrections]),
        ):
            if weight:
                metrics[f"loss/{name}"] = mean_path_nll(logps, paths)
                loss = loss + weight * metrics[f"loss/{name}"]
        if "side_ids" in inputs:
            logits, kinds = self._side_logits(model, inputs)
            # Benign rows come first.
            num_retained = int((kinds == RETAINED).sum())
            if num_benign:
                retention, *directions = retention_kl(logits[:num_retained], reference_logits)
                metrics["loss/retention_kl"], metrics["loss/retention_reverse_kl"] = directions
                loss = loss + settings.retention_weight * retention
            if len(kinds) > num_retained:
                none = kinds.new_zeros(0)
                rows = torch.arange(len(kinds) - num_retained, device=kinds.device)
                _, *found = selected_logps(logits[num_retained:], none, none, self._sets(kinds[num_retained:], rows))
                turning = torch.cat([turning, *found])
        if turning is not None:
            metrics["loss/transition"] = transition_loss(turning, settings.transition_target)
            loss = loss + settings.transition_weight * metrics["loss/transition"]
        for name, value in metrics.items():
            self._metrics[mode][name].append(self.accelerator.gather(value.detach()).mean().item())
        return (loss, None) if return_outputs else loss
