"""Layers below the first that an adapter changes, run once for policy and reference: they give both the same.

Knows nothing of the objective.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from course_correction.generation.shared_prefix import PLAIN_MODEL_TYPES


def find_frozen_layers(model: Any) -> list[Any]:
    """Return the decoder layers, from the first, below which and in which nothing is trained.

    None of an architecture of which it is not known that each layer takes from the one before it alone.
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
def recorded(layers: list[Any], states: list[torch.Tensor]) -> Iterator[None]:
    """Append to `states` what the last of these layers puts out, at each pass within the block.

    Nothing is kept of an architecture whose layers put out more than hidden states.
    """

    def keep(module: Any, arguments: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            states.append(output)

    hooks = [layer.register_forward_hook(keep) for layer in layers[-1:]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replayed(layers: list[Any], states: list[torch.Tensor]) -> Iterator[None]:
    """Skip these layers in the passes within the block: each takes the first of `states` off in their place.

    The passes must have the inputs of those that were recorded, in their order. Without states the layers are run.
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
