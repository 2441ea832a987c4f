"""Render prefills token-exactly and let a model go on after them. Knows nothing of judges, triggers or files.

Two ways of computing the same thing. `continue_prefills` runs rows that differ, padded on the left. `continue_forks` runs
rows that fork from one trunk (the prefills of one request): the trunk is prefilled once and its keys and values are
shared by all forks, never copied.
"""

import hashlib
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from course_correction.run_files import UsageError

# Top-p looks at this many candidates first and at the whole vocabulary only where they do not hold enough probability.
_NUCLEUS_CANDIDATES = 256
_SHARED = "c2_shared_trunk"
# Architectures whose attention is plain causal attention by the library's attention interface, verified by the tests.
_SHARED_MODEL_TYPES = frozenset({"llama", "qwen2", "qwen3", "mistral"})


@dataclass(frozen=True)
class SamplingSettings:
    """How paths are sampled. Defaults: the reference's `eval_data.py` at 44da12c and, for m, the paper.

    Attributes:
        max_new_tokens: Tokens a path (m).
        temperature: 0 is greedy.
        top_p: Nucleus; 1 samples from the whole distribution.
        seed: Seed of every path's own random numbers.
    """

    max_new_tokens: int = 32
    temperature: float = 0.8
    top_p: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"max_new_tokens must be at least 1 (is {self.max_new_tokens}), temperature at least 0 "
                f"(is {self.temperature}) and top_p in (0, 1] (is {self.top_p})."
            )


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prefill: token ids without the end token, and whether it ended by itself."""

    token_ids: tuple[int, ...]
    ended: bool


def tokenize_benign(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], int]:
    """Return the ids of a benign prompt with its answer, and where the answer begins."""
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    return list(whole), len(prompt)


def render_prompt(tokenizer: Any, request: str) -> list[int]:
    """Return the ids of the chat prompt up to where the assistant's answer begins (contract 5).

    Raises:
        UsageError: If the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UsageError(f"The tokenizer {tokenizer.name_or_path} has no chat template; use a chat model.")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def encode_answer(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of (the beginning of) an assistant's answer, with no special token added."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def decode_continuation(tokenizer: Any, answer_ids: Sequence[int], continuation_ids: Sequence[int]) -> str:
    """Return the text that the continuation adds to the answer begun, its leading space included.

    SentencePiece tokenizers drop the leading space of a text decoded alone, so both are decoded together.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    begun = tokenizer.decode(list(answer_ids), **options)
    whole = tokenizer.decode([*answer_ids, *continuation_ids], **options)
    if whole.startswith(begun):
        return whole[len(begun) :]
    # The prefill ended inside a character of several tokens.
    return tokenizer.decode(list(continuation_ids), **options)


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every id that ends an answer, by the tokenizer and by the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return frozenset(token_id for token_id in [tokenizer.eos_token_id, *configured] if token_id is not None)


def path_uniforms(seed: int, draw_key: str, count: int) -> np.ndarray:
    """Return the numbers in [0, 1) that one path draws: they depend on `seed` and `draw_key` alone. Shape [count]."""
    digest = hashlib.sha256(f"{seed}\x1f{draw_key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(count)


def sample_tokens(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Draw one token a row from the nucleus: the fewest most likely tokens that hold `top_p` of the probability.

    Args:
        logits: [rows, vocabulary].
        uniforms: [rows], in [0, 1); the token is found by inverting the cumulative distribution.
        temperature: 0 takes the most likely token.
        top_p: In (0, 1].

    Returns:
        Token ids, [rows].
    """
    if temperature == 0:
        return logits.argmax(-1)
    scaled = logits.float() / temperature
    log_total = scaled.logsumexp(-1, keepdim=True)
    candidates = min(_NUCLEUS_CANDIDATES, scaled.shape[-1])
    while True:
        top, indices = scaled.topk(candidates, -1)
        probabilities = (top - log_total).exp().double()
        cumulative = probabilities.cumsum(-1)
        if candidates == scaled.shape[-1] or bool((cumulative[:, -1] > top_p).all()):
            break
        candidates = scaled.shape[-1]
    # A token is in while what stands before it holds less than top_p: the first one always is.
    kept = probabilities * (cumulative - probabilities < top_p)
    cumulative = kept.cumsum(-1)
    targets = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, targets, right=True)
    last = (kept > 0).sum(-1, keepdim=True) - 1
    return indices.gather(-1, choice.clamp(max=last)).squeeze(-1)


def shares_prefixes(model: Any) -> bool:
    """Whether `continue_forks` can share a trunk's keys and values in this architecture."""
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config.model_type in _SHARED_MODEL_TYPES
        and layer_types == {"full_attention"}
        and not getattr(config, "sliding_window", None)
    )


@torch.inference_mode()
def continue_prefills(
    model: Any, tokenizer: Any, prefills: Sequence[Sequence[int]], draw_keys: Sequence[str], settings: SamplingSettings
) -> list[Continuation]:
    """Continue prefills that share nothing, in one batch padded on the left.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prefills: Token ids a row, prompt included.
        draw_keys: Names each row's random numbers.
        settings: Sampling.

    Returns:
        One continuation a row, in order.
    """
    device = model.device
    longest = max(map(len, prefills))
    ids = torch.full((len(prefills), longest), tokenizer.pad_token_id)
    mask = torch.zeros((len(prefills), longest + settings.max_new_tokens), dtype=torch.long)
    for row, prefill in enumerate(prefills):
        ids[row, longest - len(prefill) :] = torch.tensor(prefill)
        mask[row, longest - len(prefill) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    cache = _preallocated_cache(settings.max_new_tokens)
    lengths = torch.tensor([len(prefill) for prefill in prefills], device=device)
    positions = (mask[:, :longest].cumsum(-1) - 1).clamp(min=0)
    output = model(
        input_ids=ids, attention_mask=mask[:, :longest], position_ids=positions, past_key_values=cache, logits_to_keep=1
    )
    alive = torch.arange(len(prefills), device=device)

    def forward(tokens: torch.Tensor, step: int) -> torch.Tensor:
        return model(
            input_ids=tokens[alive, None],
            attention_mask=mask[alive, : longest + step],
            position_ids=(lengths[alive] + step - 1)[:, None],
            past_key_values=cache,
        ).logits[:, -1]

    def keep(rows: torch.Tensor) -> None:
        nonlocal alive
        cache.batch_select_indices((alive[None] == rows[:, None]).nonzero()[:, 1])
        alive = rows

    return _decode(output.logits[:, -1], forward, keep, draw_keys, end_token_ids(model, tokenizer), settings)


@torch.inference_mode()
def continue_forks(
    model: Any,
    tokenizer: Any,
    trunk: Sequence[int],
    fork_lengths: Sequence[int],
    draw_keys: Sequence[str],
    settings: SamplingSettings,
) -> list[Continuation]:
    """Continue prefills that are all prefixes of one trunk; its keys and values are computed once and not copied.

    The trunk and a fork's own tokens are attended to separately and joined under one softmax (as in Hydragen, arXiv
    2402.05099). Needs `shares_prefixes(model)`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        trunk: Token ids of the longest prefill.
        fork_lengths: A row goes on after this many tokens of the trunk.
        draw_keys: Names each row's random numbers.
        settings: Sampling.

    Returns:
        One continuation a row, in order.
    """
    device = model.device
    cache = _preallocated_cache(0)
    lengths = torch.tensor(fork_lengths, device=device)
    distinct, which = lengths.unique(return_inverse=True)
    output = model(input_ids=torch.tensor([trunk], device=device), past_key_values=cache, logits_to_keep=distinct - 1)
    hidden = torch.arange(len(trunk), device=device)[None] >= lengths[:, None]
    shared = _SharedTrunk(
        keys=[layer.keys for layer in cache.layers],
        values=[layer.values for layer in cache.layers],
        bias=torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf")),
    )
    own = _preallocated_cache(settings.max_new_tokens)
    alive = torch.arange(len(fork_lengths), device=device)

    def forward(tokens: torch.Tensor, step: int) -> torch.Tensor:
        return model(
            input_ids=tokens[alive, None],
            position_ids=(lengths[alive] + step - 1)[:, None],
            past_key_values=own,
            shared_trunk=shared,
        ).logits[:, -1]

    def keep(rows: torch.Tensor) -> None:
        nonlocal alive
        chosen = (alive[None] == rows[:, None]).nonzero()[:, 1]
        own.batch_select_indices(chosen)
        shared.bias = shared.bias[chosen]
        alive = rows

    with _attention(model, _SHARED):
        return _decode(output.logits[0, which], forward, keep, draw_keys, end_token_ids(model, tokenizer), settings)


def _decode(
    logits: torch.Tensor,
    forward: Any,
    keep: Any,
    draw_keys: Sequence[str],
    end_ids: frozenset[int],
    settings: SamplingSettings,
) -> list[Continuation]:
    """Sample until every row ended or has its tokens; rows that ended leave the batch when half of it did."""
    num_rows, device = len(draw_keys), logits.device
    uniforms = torch.tensor(
        np.stack([path_uniforms(settings.seed, key, settings.max_new_tokens) for key in draw_keys]), device=device
    )
    ends = torch.tensor(sorted(end_ids), device=device)
    tokens = torch.zeros(num_rows, settings.max_new_tokens, dtype=torch.long, device=device)
    counts = torch.full((num_rows,), settings.max_new_tokens, device=device)
    alive = torch.arange(num_rows, device=device)
    for step in range(settings.max_new_tokens):
        tokens[alive, step] = sample_tokens(logits, uniforms[alive, step], settings.temperature, settings.top_p)
        ended = torch.isin(tokens[alive, step], ends) & (counts[alive] == settings.max_new_tokens)
        counts[alive[ended]] = step
        running = alive[counts[alive] == settings.max_new_tokens]
        if len(running) == 0 or step + 1 == settings.max_new_tokens:
            break
        if len(running) <= len(alive) // 2:
            keep(running)
            alive = running
        logits = forward(tokens[:, step], step + 1)
    return [
        Continuation(tuple(row[:count]), count < settings.max_new_tokens)
        for row, count in zip(tokens.tolist(), counts.tolist(), strict=True)
    ]


def _preallocated_cache(room: int) -> Any:
    """Return a cache that writes new keys and values in place, where the library's own one copies all of them a step."""
    from transformers.cache_utils import Cache, DynamicLayer

    class PreallocatedLayer(DynamicLayer):
        """A layer with `room` places beyond its first input."""

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
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

        def batch_select_indices(self, indices: Any) -> None:
            self._buffers = tuple(buffer[indices] for buffer in self._buffers)
            self.keys, self.values = (buffer[..., : self._used, :] for buffer in self._buffers)

    return Cache(layer_class_to_replicate=PreallocatedLayer)


@dataclass
class _SharedTrunk:
    """Keys and values of a trunk, a layer each [1, kv heads, trunk, size], and what each fork may not see [forks, trunk]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    bias: torch.Tensor


def _shared_trunk_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float,
    shared_trunk: _SharedTrunk,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to the shared trunk and to a fork's own tokens, under one softmax. query: [forks, heads, 1, size]."""
    trunk_key, trunk_value = shared_trunk.keys[module.layer_idx][0], shared_trunk.values[module.layer_idx][0]
    forks, heads, _, size = query.shape
    kv_heads, trunk_length, _ = trunk_key.shape
    group = heads // kv_heads
    query = query.reshape(forks, kv_heads, group, size) * scaling
    by_head = query.transpose(0, 1).reshape(kv_heads, forks * group, size)
    trunk_scores = (by_head @ trunk_key.transpose(-1, -2)).view(kv_heads, forks, group, trunk_length).float()
    trunk_scores = trunk_scores + shared_trunk.bias[None, :, None]
    own_scores = (query @ key.transpose(-1, -2)).float().transpose(0, 1)
    weights = torch.cat([trunk_scores, own_scores], -1).softmax(-1).to(query.dtype)
    trunk_weights, own_weights = weights.split([trunk_length, key.shape[-2]], -1)
    mixed = (trunk_weights.reshape(kv_heads, forks * group, trunk_length) @ trunk_value).view(
        kv_heads, forks, group, size
    ).transpose(0, 1) + own_weights.transpose(0, 1) @ value
    return mixed.reshape(forks, 1, heads, size), None


@contextmanager
def _attention(model: Any, implementation: str) -> Any:
    """Run the block under another attention implementation."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_SHARED, _shared_trunk_attention)
    AttentionMaskInterface.register(_SHARED, lambda *args, **kwargs: None)
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before
