"""A DPO trainer on ranked groups: six log-probabilities a group, all 15 pair losses from them, one forward of a tree.

Built on TRL's DPOTrainer, whose methods overridden here are private: pyproject pins TRL, and tests/test_objective.py
compares loss and gradients with stock TRL on the 15 pairs.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from course_correction.base.errors import UsageError
from course_correction.base.files import cache_folder, chunked, text_digest, write_json
from course_correction.generation.chat_format import render_prompt, tokenize_benign
from course_correction.generation.decoding import SamplingSettings, continue_prefills
from course_correction.generation.loading import weights_identity
from course_correction.synthesis.ranked_groups import PAIR_RANKS
from course_correction.training.callbacks import ResumeDraws, WatchedTraining
from course_correction.training.collator import AFTER_CLAUSE, INSIDE_CLAUSE, Draws, GroupCollator, tokenize_group
from course_correction.training.frozen_layers import find_frozen_layers, recorded, replayed
from course_correction.training.losses import (
    accuracy_by_distance,
    mean_path_nll,
    pair_losses,
    retention_kl,
    selected_logps,
    transition_loss,
)
from course_correction.training.tree import additive_mask, sum_paths

# A weight is read once for all rows of a batch: on a CPU few rows cost nearly what many do.
_ANSWERS_AT_ONCE = 100


class GroupedDPOTrainer(WatchedTraining, DPOTrainer):
    """TRL's trainer on `ranked` rows: the paper's objective, with the terms of train_dpo.py's `ObjectiveSettings`."""

    pairs_a_row = len(PAIR_RANKS)

    def __init__(self, *args: Any, objective: Any, benign_rows: list[dict[str, Any]], **kwargs: Any) -> None:
        """Prepare the retention rows.

        Raises:
            UsageError: If the retention term is on and there is no benign row, or DeepSpeed cannot do what is asked for.
        """
        self.objective = objective
        tokenizer, training = kwargs["processing_class"], kwargs["args"]
        if objective.retention_weight and not benign_rows:
            raise UsageError("retention_weight is set, but there is no benign row. Name some, or set it to 0.")
        benign = [tokenize_benign(tokenizer, row) for row in benign_rows] if objective.retention_weight else []
        # TRL's own precomputation knows pairs only.
        precompute, training.precompute_ref_log_probs = training.precompute_ref_log_probs, False
        super().__init__(*args, **kwargs, data_collator=lambda rows: rows)
        if self.ref_model is None and training.gradient_checkpointing and is_deepspeed_zero3_enabled():
            # TRL makes them reentrant there: nested backward passes, each of which DeepSpeed takes for the gradient.
            raise UsageError(
                "An adapter under ZeRO-3 takes no activation checkpoints. Set activation_checkpointing false, or use "
                "recipes/accelerate/fsdp2.yaml."
            )
        if objective.retention_weight and objective.retention_own_answers:
            self._refuse_sharded("retention_own_answers")
            benign += self._own_answers([row["prompt"] for row in benign_rows])
        # Processes draw apart from each other.
        seed = training.seed + 1000 * self.accelerator.process_index
        self.data_collator = GroupCollator(tokenizer.pad_token_id, benign, self.train_dataset, objective, seed)
        self.add_callback(ResumeDraws(self))
        found = [pair for pairs in self.train_dataset["transition_tokens"] for pair in pairs]
        self.transition_tokens = {
            place: torch.tensor(sorted({token for kind, token in found if kind == place}))
            for place in (AFTER_CLAUSE, INSIDE_CLAUSE)
            if any(kind == place for kind, _ in found)
        }
        if precompute:
            self._refuse_sharded("precompute_ref_log_probs")
            self.train_dataset = self.train_dataset.add_column("reference_sums", self._precomputed_reference())

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset.map(
            lambda row: tokenize_group(processing_class, row),
            remove_columns=dataset.column_names,
            desc=f"Tokenizing {dataset_name} groups",
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt_ids", "completion_ids", "correction_tokens", "transitions", "reference_sums"]

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
        logits = model(
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            attention_mask=additive_mask(inputs["attention_mask"], dtype),
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        # [groups, kept, vocabulary], as one list of positions.
        columns = columns + rows * len(kept)
        turns = self._sets(inputs["transitions"][rows, places], columns) if self.objective.transition_weight else []
        logps, *turning = selected_logps(logits.flatten(0, 1), columns, inputs["input_ids"][rows, places], turns)
        logps = torch.zeros(completion.shape, device=logps.device).index_put((rows, places), logps)
        return logps, torch.cat(turning) if turning else None

    def _refuse_sharded(self, setting: str) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise UsageError(f"{setting} needs a whole model in one process, and this one is sharded. Set it to 0.")

    def _precomputed_reference(self) -> list[list[float]]:
        """Return the reference's log-probability of each group's six responses, from disk if they were computed before."""
        groups = self.train_dataset
        ids = (str([group["prompt_ids"], group["completion_ids"]]) for group in groups)
        digest = text_digest(self._model_identity(), *ids)
        path = cache_folder() / "reference_logps" / f"{digest}.json"
        if not path.exists() and self.accelerator.is_main_process:
            model, adapter_off = self._reference()
            self.model.eval()
            sums = []
            with torch.no_grad(), adapter_off, self.compute_loss_context_manager():
                for group in tqdm(groups, desc="reference", unit="group", mininterval=1):
                    inputs = self._prepare_inputs(self.data_collator.pack([group]))
                    sums += sum_paths(self._token_logps(model, inputs)[0].double(), inputs["paths"]).tolist()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"reference_sums": sums})
        self.accelerator.wait_for_everyone()
        return json.loads(path.read_text())["reference_sums"]

    def _own_answers(self, prompts: list[str]) -> list[tuple[list[int], int]]:
        """Return benign prompts with how the reference itself begins to answer them, greedily; kept on disk.

        In its own words a small model wanders off where a written answer does not, and there too it must stay as it was.
        """
        count, length = self.objective.retention_own_answers, self.objective.retention_own_tokens
        chosen = [prompts[index] for index in Draws(len(prompts), self.args.seed).take(min(count, len(prompts)))]
        prefills = [render_prompt(self.processing_class, prompt) for prompt in chosen]
        path = cache_folder() / "own_answers" / f"{text_digest(self._model_identity(), str(length), str(prefills))}.json"
        if not path.exists() and self.accelerator.is_main_process:
            order = sorted(range(len(prefills)), key=lambda index: len(prefills[index]))
            answers: list[list[int]] = [[]] * len(prefills)
            model, adapter_off = self._reference()
            model.eval()
            with adapter_off:
                for batch in tqdm(chunked(order, _ANSWERS_AT_ONCE), desc="own benign answers", unit="batch"):
                    rows, keys = [prefills[index] for index in batch], [chosen[index] for index in batch]
                    greedy = SamplingSettings(length, temperature=0, seed=self.args.seed)
                    written = continue_prefills(model, self.processing_class, rows, keys, greedy)
                    for index, continuation in zip(batch, written, strict=True):
                        answers[index] = continuation.token_ids
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"answers": answers})
        self.accelerator.wait_for_everyone()
        answers = json.loads(path.read_text())["answers"]
        return [(prompt + answer, len(prompt)) for prompt, answer in zip(prefills, answers, strict=True) if answer]

    def _model_identity(self) -> str:
        config = self.model.config
        name = str(config._name_or_path)
        weights = weights_identity(Path(name)) if Path(name).is_dir() else f"{name} {config._commit_hash}"
        return f"{weights} {config.dtype} {config._attn_implementation} {self.args.bf16}"

    def _reference(self) -> tuple[Any, Any]:
        """Return the reference model, and the context in which it is the reference: the adapter off where there is one."""
        if self.ref_model is None:
            return self.model, use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None)
        return self.ref_model, nullcontext()

    def _frozen_layers(self) -> list[Any]:
        """Return the layers that policy and reference share; none where they are not the same ones."""
        if self.ref_model is not None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return []
        return find_frozen_layers(self.accelerator.unwrap_model(self.model))

    def _side_logits(self, model: Any, batches: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [n, vocabulary] where a side row has a kind, and those kinds [n]."""
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        found, kinds = [], []
        for batch in batches:
            chosen = batch["side_kinds"] > 0
            # The LM head runs only there; `logits_to_keep` could name columns alone.
            hook = head.register_forward_pre_hook(lambda module, states, chosen=chosen: (states[0][chosen],))
            try:
                # Padded on the right, rows need no mask beside the causal one.
                found.append(model(input_ids=batch["side_ids"], use_cache=False).logits)
            finally:
                hook.remove()
            kinds.append(batch["side_kinds"][chosen])
        return torch.cat(found), torch.cat(kinds)

    def _sets(self, kinds: torch.Tensor, rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(rows[kinds == kind], tokens.to(kinds.device)) for kind, tokens in self.transition_tokens.items()]

    def _weight(self, name: str) -> float:
        """Return a term's weight at this step: on the line to its `_end`, if it has one."""
        start, end = getattr(self.objective, name), getattr(self.objective, f"{name}_end", None)
        if end is None:
            return start
        return start + min(1.0, self.state.global_step / max(1, self.state.max_steps - 1)) * (end - start)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        settings, mode = self.objective, "train" if self.model.training else "eval"
        no_checkpoints = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        # What stands below the adapter is the same for the reference, whose passes come first.
        below, tree_states, benign_states = self._frozen_layers(), [], []
        if inputs["benign"] or "reference_sums" not in inputs:
            reference_model, adapter_off = self._reference()
            with torch.no_grad(), no_checkpoints, adapter_off:
                if "reference_sums" not in inputs:
                    with recorded(below, tree_states):
                        reference_logps = self._token_logps(reference_model, inputs)[0].double()
                    inputs["reference_sums"] = sum_paths(reference_logps, inputs["paths"])
                if inputs["benign"]:
                    with recorded(below, benign_states):
                        reference_logits, _ = self._side_logits(reference_model, inputs["benign"])
        with replayed(below, tree_states):
            logps, turning = self._token_logps(model, inputs)
        # Sums of hundreds of nats whose difference is small: in float32 it would keep few digits.
        log_ratios = (sum_paths(logps.double(), inputs["paths"]) - inputs["reference_sums"]).float()
        loss, margins = pair_losses(log_ratios, self.beta, settings.pair_distance_power)
        metrics = {
            "loss/dpo": loss.detach(),
            "rewards/margins": margins.mean(),
            "rewards/accuracies": (margins > 0).float().mean(),
        }
        for distance, accuracy in accuracy_by_distance(margins).items():
            metrics[f"rewards/accuracy_distance_{distance}"] = accuracy
        loss = settings.dpo_weight * loss
        corrections = inputs["correction_paths"]
        for name, weight, paths in (
            ("correction_nll", self._weight("correction_nll_weight"), [responses[1:] for responses in corrections]),
            ("safe_nll", self._weight("safe_nll_weight"), [responses[:1] for responses in corrections]),
        ):
            if weight:
                metrics[f"loss/{name}"] = mean_path_nll(logps, paths)
                loss = loss + weight * metrics[f"loss/{name}"]
        if inputs["benign"]:
            with replayed(below, benign_states):
                logits, _ = self._side_logits(model, inputs["benign"])
            retention, *directions = retention_kl(logits, reference_logits, inputs["retention_weights"])
            metrics["loss/retention_kl"], metrics["loss/retention_reverse_kl"] = directions
            loss = loss + self._weight("retention_weight") * retention
        if inputs["turning"]:
            logits, kinds = self._side_logits(model, inputs["turning"])
            none = kinds.new_zeros(0)
            _, *found = selected_logps(logits, none, none, self._sets(kinds, torch.arange(len(kinds), device=kinds.device)))
            turning = torch.cat([turning, *found])
        if turning is not None:
            metrics["loss/transition"] = transition_loss(turning, settings.transition_target)
            loss = loss + self._weight("transition_weight") * metrics["loss/transition"]
        for name, value in metrics.items():
            self._metrics[mode][name].append(self.accelerator.gather(value.detach()).mean().item())
        return (loss, None) if return_outputs else loss
