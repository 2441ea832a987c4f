"""A DPO trainer on ranked groups: one forward pass of a tree per group, six log-probabilities, 15 pair losses from them.

It builds on TRL's DPOTrainer and overrides private methods of it, so pyproject.toml pins TRL. tests/training/test_losses.py
compares loss and gradients with those of stock TRL on the 15 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from course_correction.base.errors import UsageError
from course_correction.base.files import text_digest
from course_correction.generation.chat_format import render_prompt, tokenize_benign
from course_correction.synthesis.ranked_groups import PAIR_RANKS
from course_correction.training.callbacks import ResumeDraws
from course_correction.training.collator import AFTER_CLAUSE, INSIDE_CLAUSE, Draws, GroupCollator, tokenize_group
from course_correction.training.forward import Batch, FirstTokens, side_correction_logps, side_logits, tree_logps
from course_correction.training.frozen_layers import find_frozen_layers, recorded, replayed
from course_correction.training.losses import (
    accuracy_by_distance,
    mean_path_nll,
    pair_losses,
    retention_kl,
    transition_loss,
)
from course_correction.training.reference import answer_greedily, compute_once, model_identity
from course_correction.training.settings import ObjectiveSettings
from course_correction.training.tree import sum_paths
from course_correction.training.watched_trainer import WatchedDPOTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import DPOConfig

Metrics = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _ReferencePasses:
    """What a step needs of the reference model.

    Attributes:
        sums: [groups, 6], log-probability of each response.
        benign_logits: [tokens, vocabulary] at the retained tokens; None without benign rows.
        shared_layers: Layers whose output policy and reference share.
        tree_states: Their output in the pass over the trees, if there was one.
        benign_states: Their output in the passes over benign rows.
    """

    sums: torch.Tensor
    benign_logits: torch.Tensor | None
    shared_layers: Sequence[torch.nn.Module]
    tree_states: list[torch.Tensor]
    benign_states: list[torch.Tensor]


class GroupedDPOTrainer(WatchedDPOTrainer):
    """TRL's trainer on `ranked` rows: the paper's objective, with the further terms of `ObjectiveSettings`."""

    pairs_per_row = len(PAIR_RANKS)
    train_dataset: Any
    ref_model: Any

    def __init__(
        self, *args: Any, objective: ObjectiveSettings, benign_rows: Sequence[dict[str, Any]], **kwargs: Any
    ) -> None:
        """Tokenize groups and benign rows, and let the reference compute what it computes once.

        Args:
            *args: As for TRL's DPOTrainer.
            objective: The minimised terms.
            benign_rows: `prompt` and `response` of the retention term.
            **kwargs: As for TRL's DPOTrainer, with `args`, `train_dataset` and `processing_class`.

        Raises:
            UsageError: If the retention term has no benign row, or a setting does not work with DeepSpeed or FSDP.
        """
        self.objective = objective
        tokenizer, training = kwargs["processing_class"], kwargs["args"]
        if objective.retention_weight and not benign_rows:
            raise UsageError("retention_weight is set, but there is no benign row. Name some, or set it to 0.")
        benign = [tokenize_benign(tokenizer, row) for row in benign_rows] if objective.retention_weight else []
        # TRL's own precomputation reads pairs, not groups.
        precompute, training.precompute_ref_log_probs = training.precompute_ref_log_probs, False
        super().__init__(*args, **kwargs, data_collator=lambda rows: rows)
        if self.ref_model is None and training.gradient_checkpointing and is_deepspeed_zero3_enabled():
            # TRL makes the checkpoints reentrant there. Each nested backward pass then counts as one of the gradient.
            raise UsageError(
                "An adapter under ZeRO-3 takes no activation checkpoints. Set activation_checkpointing false, or use "
                "recipes/accelerate/fsdp2.yaml."
            )
        if objective.retention_weight and objective.retention_own_answers:
            self._refuse_sharded("retention_own_answers")
            benign += self._own_answers([row["prompt"] for row in benign_rows])
        # Each process draws side rows of its own.
        seed = training.seed + 1000 * self.accelerator.process_index
        self.data_collator = GroupCollator(tokenizer.pad_token_id, benign, self.train_dataset, objective, seed)
        self.add_callback(ResumeDraws(self))
        self.first_tokens = self._first_tokens() if objective.transition_weight else {}
        if precompute:
            self._refuse_sharded("precompute_ref_log_probs")
            self.train_dataset = self.train_dataset.add_column("reference_sums", self._precomputed_sums())

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: PreTrainedTokenizerBase, args: DPOConfig, dataset_name: str
    ) -> Dataset:
        return dataset.map(
            lambda row: tokenize_group(processing_class, row),
            remove_columns=dataset.column_names,
            desc=f"Tokenizing {dataset_name} groups",
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt_ids", "completion_ids", "correction_tokens", "transitions", "reference_sums"]

    def _first_tokens(self) -> FirstTokens:
        pairs = [pair for row_pairs in self.train_dataset["transition_tokens"] for pair in row_pairs]
        return {
            place: torch.tensor(sorted({token for kind, token in pairs if kind == place}))
            for place in (AFTER_CLAUSE, INSIDE_CLAUSE)
            if any(kind == place for kind, _ in pairs)
        }

    def _refuse_sharded(self, setting: str) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise UsageError(f"{setting} needs a whole model in one process, and this one is sharded. Set it to 0.")

    # --- The reference ------------------------------------------------------------------------------------------------

    def _reference(self) -> tuple[PreTrainedModel, AbstractContextManager[Any]]:
        """Return the reference model, and the context in which it is the reference: the adapter off where there is one."""
        if self.ref_model is None:
            return self.model, use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None)
        return self.ref_model, nullcontext()

    def _model_identity(self) -> str:
        return f"{model_identity(self.model)} {self.args.bf16}"

    def _precomputed_sums(self) -> list[list[float]]:
        """Return the reference's log-probability of the six responses of each group, from disk if it was computed before."""
        groups = self.train_dataset

        def compute() -> list[list[float]]:
            model, adapter_off = self._reference()
            self.model.eval()
            sums: list[list[float]] = []
            with torch.no_grad(), adapter_off, self.compute_loss_context_manager():
                for group in tqdm(groups, desc="reference", unit="group", mininterval=1):
                    inputs = self._prepare_inputs(self.data_collator.pack([group]))
                    sums += sum_paths(self._tree_logps(model, inputs)[0].double(), inputs["paths"]).tolist()
            return sums

        ids = (str([group["prompt_ids"], group["completion_ids"]]) for group in groups)
        digest = text_digest(self._model_identity(), *ids)
        return compute_once("reference_logps", digest, "reference_sums", compute, self.accelerator)

    def _own_answers(self, requests: list[str]) -> list[tuple[list[int], int]]:
        """Return benign requests with the start of the reference's own greedy answer, from disk if made before.

        A small model departs from its own answers where it stays close on written ones, so it is trained on both.
        """
        count, length = self.objective.retention_own_answers, self.objective.retention_own_tokens
        drawn = [requests[index] for index in Draws(len(requests), self.args.seed).take(min(count, len(requests)))]
        prefills = [render_prompt(self.processing_class, request) for request in drawn]

        def compute() -> list[list[int]]:
            model, adapter_off = self._reference()
            with adapter_off:
                return answer_greedily(model, self.processing_class, drawn, prefills, length, self.args.seed)

        digest = text_digest(self._model_identity(), str(length), str(prefills))
        answers = compute_once("own_answers", digest, "answers", compute, self.accelerator)
        return [(prompt + answer, len(prompt)) for prompt, answer in zip(prefills, answers, strict=True) if answer]

    def _shared_layers(self) -> list[torch.nn.Module]:
        """Return the layers whose output policy and reference share; none where each has layers of its own."""
        if self.ref_model is not None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return []
        return find_frozen_layers(self.accelerator.unwrap_model(self.model))

    def _run_reference(self, inputs: Batch) -> _ReferencePasses:
        layers = self._shared_layers()
        tree_states: list[torch.Tensor] = []
        benign_states: list[torch.Tensor] = []
        sums, benign_logits = inputs.get("reference_sums"), None
        if inputs["benign"] or sums is None:
            model, adapter_off = self._reference()
            no_checkpoints = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
            with torch.no_grad(), no_checkpoints, adapter_off:
                if sums is None:
                    with recorded(layers, tree_states):
                        sums = sum_paths(self._tree_logps(model, inputs)[0].double(), inputs["paths"])
                if inputs["benign"]:
                    with recorded(layers, benign_states):
                        benign_logits, _ = self._side_logits(model, inputs["benign"])
        return _ReferencePasses(sums, benign_logits, layers, tree_states, benign_states)

    # --- The loss -----------------------------------------------------------------------------------------------------

    def _tree_logps(self, model: PreTrainedModel, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        return tree_logps(model, inputs, self.first_tokens, next(self.model.parameters()).dtype)

    def _side_logits(self, model: PreTrainedModel, batches: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        return side_logits(model, self.accelerator.unwrap_model(model).get_output_embeddings(), batches)

    def _compute_loss(self, model: PreTrainedModel, inputs: Batch, return_outputs: bool = False) -> Any:
        # The reference runs first, so that the policy can reuse the output of the layers that both share.
        reference = self._run_reference(inputs)
        with replayed(reference.shared_layers, reference.tree_states):
            logps, correction_logps = self._tree_logps(model, inputs)
        # The difference of sums of hundreds of nats is small; float32 would keep few of its digits.
        log_ratios = (sum_paths(logps.double(), inputs["paths"]) - reference.sums).float()
        metrics: Metrics = {}
        loss = self.objective.dpo_weight * self._dpo_term(log_ratios, metrics)
        loss = self._add_nll_terms(loss, logps, inputs["correction_paths"], metrics)
        if inputs["benign"]:
            loss = loss + self.objective.retention_weight * self._retention_term(model, inputs, reference, metrics)
        if inputs["harmful"]:
            side_logps = side_correction_logps(*self._side_logits(model, inputs["harmful"]), self.first_tokens)
            correction_logps = torch.cat([*([] if correction_logps is None else [correction_logps]), *side_logps])
        if correction_logps is not None:
            metrics["loss/transition"] = transition_loss(correction_logps, self.objective.transition_target)
            loss = loss + self.objective.transition_weight * metrics["loss/transition"]
        mode = "train" if self.model.training else "eval"
        for name, value in metrics.items():
            self._metrics[mode][name].append(self.accelerator.gather(value.detach()).mean().item())
        return (loss, None) if return_outputs else loss

    def _dpo_term(self, log_ratios: torch.Tensor, metrics: Metrics) -> torch.Tensor:
        loss, margins = pair_losses(log_ratios, self.beta)
        metrics["loss/dpo"] = loss.detach()
        metrics["rewards/margins"] = margins.mean()
        metrics["rewards/accuracies"] = (margins > 0).float().mean()
        for distance, accuracy in accuracy_by_distance(margins).items():
            metrics[f"rewards/accuracy_distance_{distance}"] = accuracy
        return loss

    def _add_nll_terms(
        self, loss: torch.Tensor, logps: torch.Tensor, correction_paths: list[list[list[int]]], metrics: Metrics
    ) -> torch.Tensor:
        for name, weight, paths in (
            ("correction_nll", self.objective.correction_nll_weight, [paths[1:] for paths in correction_paths]),
            ("safe_nll", self.objective.safe_nll_weight, [paths[:1] for paths in correction_paths]),
        ):
            if weight:
                metrics[f"loss/{name}"] = mean_path_nll(logps, paths)
                loss = loss + weight * metrics[f"loss/{name}"]
        return loss

    def _retention_term(
        self, model: PreTrainedModel, inputs: Batch, reference: _ReferencePasses, metrics: Metrics
    ) -> torch.Tensor:
        with replayed(reference.shared_layers, reference.benign_states):
            logits, _ = self._side_logits(model, inputs["benign"])
        assert reference.benign_logits is not None
        retention, *directions = retention_kl(logits, reference.benign_logits, inputs["retention_weights"])
        metrics["loss/retention_kl"], metrics["loss/retention_reverse_kl"] = directions
        return retention
