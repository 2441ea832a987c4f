"""Forward passes on packed groups and on side rows. Knows nothing of references, weights of terms or trainers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from course_correction.training.losses import selected_logps
from course_correction.training.tree import additive_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, Any]
# For each kind of place, the ids of the tokens that begin a correction there.
FirstTokens = Mapping[int, torch.Tensor]


def tree_logps(
    model: PreTrainedModel, inputs: Batch, first_tokens: FirstTokens, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run a model on packed groups.

    Args:
        model: The model.
        inputs: A batch of `GroupCollator`.
        first_tokens: The tokens that begin a correction; empty without the transition term.
        dtype: Of the attention mask.

    Returns:
        Log-probability of each packed token after its parent, [groups, tokens]; 0 for prompts and padding. With
        `first_tokens`, also the log-probability that a correction begins, at each place of the harmful responses where one
        could, [places].
    """
    completion = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for group, paths in enumerate(inputs["paths"]):
        for path in paths:
            completion[group, path] = True
    rows, places = completion.nonzero(as_tuple=True)
    # The LM head runs only at parents of completion tokens.
    kept, columns = inputs["parents"][rows, places].unique(return_inverse=True)
    logits = model(
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        attention_mask=additive_mask(inputs["attention_mask"], dtype),
        use_cache=False,
        logits_to_keep=kept,
    ).logits
    # [groups, kept, vocabulary], as one list of positions.
    columns = columns + rows * len(kept)
    sets = _token_sets(inputs["transitions"][rows, places], columns, first_tokens)
    selected, *correction_logps = selected_logps(logits.flatten(0, 1), columns, inputs["input_ids"][rows, places], sets)
    logps = torch.zeros(completion.shape, device=selected.device).index_put((rows, places), selected)
    return logps, torch.cat(correction_logps) if correction_logps else None


def side_logits(
    model: PreTrainedModel, head: torch.nn.Module, batches: Sequence[Batch]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a model on side rows.

    Args:
        model: The model.
        head: Its LM head.
        batches: Side rows of `GroupCollator`.

    Returns:
        Logits [n, vocabulary] at the positions that have a kind, and these kinds [n].
    """
    logits, kinds = [], []
    for batch in batches:
        chosen = batch["side_kinds"] > 0
        # The LM head runs only there; `logits_to_keep` would select the same columns in every row.
        hook = head.register_forward_pre_hook(lambda module, states, chosen=chosen: (states[0][chosen],))
        try:
            # Padded on the right, rows need no mask but the causal one.
            logits.append(model(input_ids=batch["side_ids"], use_cache=False).logits)
        finally:
            hook.remove()
        kinds.append(batch["side_kinds"][chosen])
    return torch.cat(logits), torch.cat(kinds)


def side_correction_logps(logits: torch.Tensor, kinds: torch.Tensor, first_tokens: FirstTokens) -> list[torch.Tensor]:
    """Return, for each kind of place, the log-probability that a correction begins there, [places].

    Args:
        logits: [n, vocabulary] of harmful side rows.
        kinds: [n], the kind of each position.
        first_tokens: The tokens that begin a correction.
    """
    none = kinds.new_zeros(0)
    sets = _token_sets(kinds, torch.arange(len(kinds), device=kinds.device), first_tokens)
    return list(selected_logps(logits, none, none, sets)[1:])


def _token_sets(
    kinds: torch.Tensor, positions: torch.Tensor, first_tokens: FirstTokens
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(positions[kinds == kind], tokens.to(kinds.device)) for kind, tokens in first_tokens.items()]
