"""Layers below the first that an adapter changes, whose output policy and reference share: they run once for both.

Knows nothing of the objective.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from course_correction.generation.shared_prefix import PLAIN_MODEL_TYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_frozen_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the decoder layers, from the first, below which and in which nothing is trained.

    Empty for architectures outside `PLAIN_MODEL_TYPES`, where a layer may read more than the output of the one before it.
    """
    if model.config.get_text_config().model_type not in PLAIN_MODEL_TYPES:
        return []
    if any(weights.requires_grad for weights in model.get_input_embeddings().parameters()):
        return []
    count = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count)
    layers = list(next(lists, []))
    trained = (index for index, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
    return layers[: next(trained, 0)]


@contextmanager
def recorded(layers: Sequence[torch.nn.Module], states: list[torch.Tensor]) -> Iterator[None]:
    """Append the output of the last of these layers to `states`, at each pass within the block.

    Outputs that are more than hidden states are not recorded, so `replayed` then runs the layers.
    """

    def keep(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            states.append(output)

    hooks = [layer.register_forward_hook(keep) for layer in layers[-1:]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replayed(layers: Sequence[torch.nn.Module], states: list[torch.Tensor]) -> Iterator[None]:
    """Skip these layers in the passes within the block: each pass removes the first of `states` and uses it instead.

    The passes must have the inputs of the recorded ones, in the same order. Without states the layers run.
    """
    if not layers or not states:
        yield
        return
    for layer in layers:
        layer.forward = lambda hidden, *_, **__: hidden
    layers[-1].forward = lambda *_, **__: states.pop(0)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
