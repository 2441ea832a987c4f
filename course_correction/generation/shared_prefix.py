"""Attention of many short rows to a few long shared prefixes, whose keys and values are computed once and never copied.

The trunk and a row's own tokens are attended to separately and joined under one softmax, as in Hydragen (arXiv 2402.05099).
Knows nothing of token ids or sampling.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from course_correction.generation.protocol import Model

_SHARED = "c2_shared_trunk"
# Architectures with plain causal attention through the library's attention interface, verified by the tests.
PLAIN_MODEL_TYPES = frozenset({"llama", "qwen2", "qwen3", "mistral"})


def shares_prefixes(model: Model) -> bool:
    """Whether trunks can be shared in this architecture: full attention in every layer, through the attention interface."""
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config.model_type in PLAIN_MODEL_TYPES
        and layer_types == {"full_attention"}
        and not getattr(config, "sliding_window", None)
    )


@dataclass
class SharedTrunks:
    """Keys and values of several trunks, and which rows read them.

    Attributes:
        keys: A tensor per layer, [trunks, kv heads, trunk tokens, size].
        values: Like `keys`.
        trunk_of_row: Index of each row's trunk, [rows].
        hidden: True where a row may not see its trunk: [rows, trunk tokens].
        own_hidden: True where a row may not see its own first tokens, the padding before them: [rows, own tokens].
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    trunk_of_row: torch.Tensor
    hidden: torch.Tensor
    own_hidden: torch.Tensor

    def __post_init__(self) -> None:
        """Lay the rows out by trunk: `slots` is each row's place in a table [trunks, width]."""
        trunks = self.keys[0].shape[0]
        order = self.trunk_of_row.argsort(stable=True)
        counts = self.trunk_of_row.bincount(minlength=trunks)
        starts = counts.cumsum(0) - counts
        within = torch.empty_like(order)
        within[order] = torch.arange(len(order), device=order.device) - starts[self.trunk_of_row[order]]
        self.width = int(counts.max())
        self.slots = self.trunk_of_row * self.width + within
        everyone = torch.arange(trunks * self.width, device=order.device)
        self.is_dense = len(everyone) == len(order) and bool((self.slots == everyone).all())
        self.bias = torch.zeros(self.hidden.shape, device=self.hidden.device).masked_fill_(self.hidden, float("-inf"))

    def select(self, rows: torch.Tensor) -> "SharedTrunks":
        """Return the table for these rows only; the trunks stay as they are."""
        return SharedTrunks(self.keys, self.values, self.trunk_of_row[rows], self.hidden[rows], self.own_hidden[rows])

    def by_trunk(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [rows, kv heads, n, size] as [trunks, kv heads, width * n, size], empty places at 0."""
        trunks = self.keys[0].shape[0]
        if not self.is_dense:
            table = rows.new_zeros(trunks * self.width, *rows.shape[1:])
            table[self.slots] = rows
            rows = table
        rows = rows.reshape(trunks, self.width, *rows.shape[1:]).transpose(1, 2)
        return rows.reshape(trunks, rows.shape[1], -1, rows.shape[-1])

    def by_row(self, table: torch.Tensor) -> torch.Tensor:
        """Undo `by_trunk`."""
        trunks, kv_heads, _, size = table.shape
        rows = table.reshape(trunks, kv_heads, self.width, -1, size).transpose(1, 2)
        rows = rows.reshape(trunks * self.width, kv_heads, -1, size)
        return rows if self.is_dense else rows[self.slots]


def _shared_trunk_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    shared_trunks: SharedTrunks,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to the shared trunk and to a row's own tokens, under one softmax. query: [rows, heads, new tokens, size]."""
    trunk_key, trunk_value = shared_trunks.keys[module.layer_idx], shared_trunks.values[module.layer_idx]
    rows, heads, new, size = query.shape
    kv_heads, trunk_tokens, own_tokens = trunk_key.shape[1], trunk_key.shape[2], key.shape[2]
    query = query.reshape(rows, kv_heads, heads // kv_heads * new, size) * scaling
    trunk_scores = shared_trunks.by_row(shared_trunks.by_trunk(query) @ trunk_key.transpose(-1, -2)).float()
    trunk_scores = trunk_scores + shared_trunks.bias[:, None, None]
    own_scores = (query @ key.transpose(-1, -2)).float().view(rows, kv_heads, -1, new, own_tokens)
    if new > 1:
        later = torch.ones(new, own_tokens, dtype=torch.bool, device=query.device).triu(own_tokens - new + 1)
        own_scores = own_scores.masked_fill(later, float("-inf"))
    if shared_trunks.own_hidden.shape[1]:
        padding = shared_trunks.own_hidden[:, None, None, None]
        own_scores[..., : padding.shape[-1]] = own_scores[..., : padding.shape[-1]].masked_fill(padding, float("-inf"))
    weights = torch.cat([trunk_scores, own_scores.flatten(2, 3)], -1).softmax(-1).to(query.dtype)
    if new > 1:
        # Padding that sees no token must not spread NaN to the rows that do not see it.
        weights = weights.nan_to_num(0.0)
    trunk_weights, own_weights = weights.split([trunk_tokens, own_tokens], -1)
    mixed = shared_trunks.by_row(shared_trunks.by_trunk(trunk_weights) @ trunk_value) + own_weights @ value
    return mixed.reshape(rows, heads, new, size).transpose(1, 2), None


@contextmanager
def shared_trunk_attention(model: Model) -> Iterator[None]:
    """Let the model's forward passes take `shared_trunks` and attend to them, inside the block."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_SHARED, _shared_trunk_attention)
    AttentionMaskInterface.register(_SHARED, lambda *args, **kwargs: None)
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _SHARED
    try:
        yield
    finally:
        config._attn_implementation = before


def preallocated_cache(room: int) -> Any:
    """Return a cache that writes new keys and values in place; the library's own copies all of them at each step."""
    from transformers.cache_utils import Cache, DynamicLayer

    class PreallocatedLayer(DynamicLayer):
        """A layer with `room` places beyond its first input."""

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                shape = (*key_states.shape[:-2], key_states.shape[-2] + room, key_states.shape[-1])
                self._buffers = (
                    key_states.new_empty(shape),
                    value_states.new_empty((*shape[:-1], value_states.shape[-1])),
                )
                self._used = 0
            start, self._used = self._used, self._used + key_states.shape[-2]
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[..., start : self._used, :] = states
            self.keys, self.values = (buffer[..., : self._used, :] for buffer in self._buffers)
            return self.keys, self.values

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            keys, values = self._buffers
            self._buffers = (keys[indices], values[indices])
            self.keys, self.values = (buffer[..., : self._used, :] for buffer in self._buffers)

    return Cache(layer_class_to_replicate=PreallocatedLayer)
