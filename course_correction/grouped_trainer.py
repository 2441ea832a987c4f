"""A DPO trainer on ranked groups: six log-probabilities a group, all 15 pair losses from them, one forward of a tree.

Built on TRL's DPOTrainer, whose methods overridden here are private: pyproject pins TRL, and tests/test_objective.py
compares loss and gradients with stock TRL on the 15 pairs.
"""

from typing import Any

import torch
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from course_correction.objective import (
    PackedGroup,
    ancestor_mask,
    mean_corrective_nll,
    pack_group,
    pair_losses,
    retention_kl,
    selected_logps,
    sum_paths,
)
from course_correction.prefixes import ends_clause
from course_correction.run_files import UsageError

NO_TRANSITION, AFTER_CLAUSE, INSIDE_CLAUSE = range(3)


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


def tokenize_benign(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], int]:
    """Return the ids of a benign prompt with its answer, and where the answer begins."""
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    return list(whole), len(prompt)


class GroupCollator:
    """Packs groups into trees, and adds the next benign rows."""

    def __init__(
        self,
        pad_token_id: int,
        benign: list[tuple[list[int], int]],
        retention_rows: int,
        correction_tokens: int | None,
        seed: int,
    ) -> None:
        """Take tokenized benign rows; they are drawn from in a seeded order, all before any again."""
        self.pad_token_id, self.benign, self.retention_rows = pad_token_id, benign, retention_rows
        self.correction_tokens = correction_tokens
        self.random_source = torch.Generator().manual_seed(seed)
        self.queue: list[int] = []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the packed batch."""
        groups = [pack_group(row["prompt_ids"], row["completion_ids"], row["correction_tokens"]) for row in rows]
        batch = self._pad_trees(groups)
        batch["paths"] = [group.paths for group in groups]
        batch["transitions"] = torch.zeros_like(batch["input_ids"])
        for row, (group, features) in enumerate(zip(groups, rows, strict=True)):
            batch["transitions"][row, group.paths[-1]] = torch.tensor(features["transitions"])
        batch["correction_paths"] = [[path[: self.correction_tokens] for path in group.correction_paths] for group in groups]
        if self.benign and self.retention_rows:
            batch |= self._pad_benign([self.benign[index] for index in self._draw(self.retention_rows)])
        return batch

    def _draw(self, count: int) -> list[int]:
        while len(self.queue) < count:
            self.queue += torch.randperm(len(self.benign), generator=self.random_source).tolist()
        drawn, self.queue = self.queue[:count], self.queue[count:]
        return drawn

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

    def _pad_benign(self, rows: list[tuple[list[int], int]]) -> dict[str, Any]:
        size = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), size), self.pad_token_id)
        mask, answer = torch.zeros(len(rows), size, dtype=torch.long), torch.zeros(len(rows), size, dtype=torch.bool)
        for row, (tokens, start) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            # The logits before an answer's token say it.
            answer[row, start - 1 : len(tokens) - 1] = True
        return {"benign_ids": ids, "benign_mask": mask, "benign_answer": answer}


class GroupedDPOTrainer(DPOTrainer):
    """TRL's trainer on `ranked` rows: the paper's objective, with the two terms of train_dpo.py's `ObjectiveSettings`."""

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
        kwargs["data_collator"] = GroupCollator(
            tokenizer.pad_token_id, benign, objective.retention_rows, objective.correction_nll_tokens, training.seed
        )
        super().__init__(*args, **kwargs)
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
        kinds = inputs["transitions"][rows, places]
        turns = [(columns[kinds == kind], tokens.to(kinds.device)) for kind, tokens in self.transition_tokens.items()]
        if not self.objective.transition_weight:
            turns = []
        logps, *turning = selected_logps(logits.flatten(0, 1), columns, inputs["input_ids"][rows, places], turns)
        logps = torch.zeros(completion.shape, device=logps.device).index_put((rows, places), logps)
        return logps, torch.cat(turning) if turning else None

    def _benign_logits(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        answer = inputs["benign_answer"]
        # The LM head runs only where some row's answer stands.
        kept = answer.any(0).nonzero()[:, 0]
        logits = model(
            input_ids=inputs["benign_ids"], attention_mask=inputs["benign_mask"], use_cache=False, logits_to_keep=kept
        ).logits
        return logits[answer[:, kept]]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        settings, mode = self.objective, "train" if self.model.training else "eval"
        has_benign = "benign_ids" in inputs
        reference_model = model if self.ref_model is None else self.ref_model
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            if self.ref_model is None:
                with use_adapter(self.accelerator.unwrap_model(model), adapter_name=None):
                    reference, _ = self._token_logps(model, inputs)
                    reference_logits = self._benign_logits(model, inputs) if has_benign else None
            else:
                reference, _ = self._token_logps(reference_model, inputs)
                reference_logits = self._benign_logits(reference_model, inputs) if has_benign else None
        logps, turning = self._token_logps(model, inputs)
        log_ratios = sum_paths(logps - reference, inputs["paths"])
        loss, margins = pair_losses(log_ratios, self.beta, settings.pair_distance_power)
        metrics = {
            "loss/dpo": loss,
            "rewards/margins": margins.mean(),
            "rewards/accuracies": (margins > 0).float().mean(),
        }
        if settings.correction_nll_weight:
            metrics["loss/correction_nll"] = mean_corrective_nll(logps, inputs["correction_paths"])
            loss = loss + settings.correction_nll_weight * metrics["loss/correction_nll"]
        if turning is not None and len(turning):
            metrics["loss/transition_nll"] = -turning.mean()
            loss = loss + settings.transition_weight * metrics["loss/transition_nll"]
        if has_benign:
            retention, *directions = retention_kl(self._benign_logits(model, inputs), reference_logits)
            metrics["loss/retention_kl"], metrics["loss/retention_reverse_kl"] = directions
            loss = loss + settings.retention_weight * retention
        for name, value in metrics.items():
            self._metrics[mode][name].append(self.accelerator.gather(value.detach()).mean().item())
        return (loss, None) if return_outputs else loss
