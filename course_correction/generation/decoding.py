"""Continue prefills with a model in this process. Knows nothing of texts, judges, triggers or files.

Two ways to compute the same continuations. `continue_prefills` runs rows that share nothing, padded on the left.
`continue_trees` runs rows that leave common trunks: each trunk is computed once and read by all rows that leave it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from course_correction.generation.padding import pad_rows
from course_correction.generation.protocol import Model, SamplingSettings, Tokenizer
from course_correction.generation.shared_prefix import SharedTrunks, preallocated_cache, shared_trunk_attention

# Top-p looks at this many candidates of a row, at more where they hold too little probability, and finally at all.
_NUCLEUS_CANDIDATES = (256, 4096)
# Rows drawn at a time on a CPU, where larger temporaries over a whole vocabulary cost more than their arithmetic.
_ROWS_AT_A_TIME = 16


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prefill: token ids without the end token, and whether the model ended it."""

    token_ids: tuple[int, ...]
    ended: bool


def end_token_ids(model: Model, tokenizer: Tokenizer) -> frozenset[int]:
    """Return every id that ends an answer according to the tokenizer or the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return frozenset(token_id for token_id in [tokenizer.eos_token_id, *configured] if token_id is not None)


def path_uniforms(seed: int, draw_key: str, count: int) -> np.ndarray:
    """Return the random numbers in [0, 1) of one path, [count]. They depend on `seed` and `draw_key` alone."""
    digest = hashlib.sha256(f"{seed}\x1f{draw_key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(count)


def sample_tokens(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Draw one token per row from the nucleus: the fewest most likely tokens that hold `top_p` of the probability.

    Args:
        logits: [rows, vocabulary].
        uniforms: [rows], in [0, 1); they select tokens by inverting the cumulative distribution.
        temperature: 0 takes the most likely token.
        top_p: In (0, 1].

    Returns:
        Token ids, [rows].
    """
    if temperature == 0:
        return logits.argmax(-1)
    count = _ROWS_AT_A_TIME if logits.device.type == "cpu" else len(logits)
    parts = zip(logits.split(count), uniforms.split(count), strict=True)
    return torch.cat([_sample_rows(rows.float() / temperature, numbers, top_p) for rows, numbers in parts])


def _sample_rows(scaled: torch.Tensor, uniforms: torch.Tensor, top_p: float) -> torch.Tensor:
    vocabulary = scaled.shape[-1]
    log_totals = scaled.logsumexp(-1, keepdim=True)
    drawn = torch.empty(len(scaled), dtype=torch.long, device=scaled.device)
    left = torch.arange(len(scaled), device=scaled.device)
    # Each row has its own number of candidates: a longer list may order equal logits differently.
    for count in [*(number for number in _NUCLEUS_CANDIDATES if number < vocabulary), vocabulary]:
        top, indices = scaled.topk(count, -1)
        probabilities = (top - log_totals).exp().double()
        cumulative = probabilities.cumsum(-1)
        held = cumulative[:, -1] > top_p if count < vocabulary else torch.ones_like(left, dtype=torch.bool)
        # A token is in while what stands before it holds less than top_p: the first one always is.
        kept = (probabilities * (cumulative - probabilities < top_p))[held]
        cumulative = kept.cumsum(-1)
        targets = uniforms[held].to(cumulative)[:, None] * cumulative[:, -1:]
        choice = torch.searchsorted(cumulative, targets, right=True)
        last = (kept > 0).sum(-1, keepdim=True) - 1
        drawn[left[held]] = indices[held].gather(-1, choice.clamp(max=last)).squeeze(-1)
        left, scaled, log_totals, uniforms = (values[~held] for values in (left, scaled, log_totals, uniforms))
        if not len(left):
            break
    return drawn


@torch.inference_mode()
def next_token_probabilities(model: Model, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the distribution of the token after each prompt, [prompts, vocabulary], on the model's device."""
    ids = pad_rows(prompts, tokenizer.pad_token_id, left=True).to(model.device)
    mask = pad_rows([[1] * len(prompt) for prompt in prompts], left=True).to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
    return output.logits[:, -1].float().softmax(-1)


@torch.inference_mode()
def continue_prefills(
    model: Model,
    tokenizer: Tokenizer,
    prefills: Sequence[Sequence[int]],
    draw_keys: Sequence[str],
    settings: SamplingSettings,
) -> list[Continuation]:
    """Continue prefills that share nothing, in one batch padded on the left.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prefills: Token ids of each row, prompt included.
        draw_keys: Names each row's random numbers.
        settings: Sampling.

    Returns:
        One continuation per row, in order.
    """
    device = model.device
    longest = max(map(len, prefills))
    ids = pad_rows(prefills, tokenizer.pad_token_id, left=True).to(device)
    mask = pad_rows([[1] * (len(prefill) + settings.max_new_tokens) for prefill in prefills], left=True).to(device)
    cache = preallocated_cache(settings.max_new_tokens)
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
        cache.batch_select_indices(torch.isin(alive, rows).nonzero()[:, 0])
        alive = rows

    return _decode(output.logits[:, -1], forward, keep, draw_keys, end_token_ids(model, tokenizer), settings)


@dataclass(frozen=True)
class Tree:
    """Prefills with a common beginning. Each row leaves the trunk after some of its tokens and continues with its own.

    Attributes:
        trunk: Token ids.
        trunk_tokens: How many of the trunk's tokens each row begins with, at least 1.
        own_ids: Token ids of each row after those.
    """

    trunk: tuple[int, ...]
    trunk_tokens: tuple[int, ...]
    own_ids: tuple[tuple[int, ...], ...]


def grow_tree(prefills: Sequence[Sequence[int]]) -> Tree:
    """Make the longest prefill the trunk; the others leave it where they first differ from it."""
    longest = max(prefills, key=len)
    trunk = tuple(longest)
    lengths = [
        next((n for n, (one, other) in enumerate(zip(prefill, trunk, strict=False)) if one != other), len(prefill))
        for prefill in prefills
    ]
    return Tree(trunk, tuple(lengths), tuple(tuple(p[n:]) for p, n in zip(prefills, lengths, strict=True)))


@torch.inference_mode()
def continue_trees(
    model: Model, tokenizer: Tokenizer, trees: Sequence[Tree], draw_keys: Sequence[str], settings: SamplingSettings
) -> list[Continuation]:
    """Continue rows that leave common trunks. Needs `shares_prefixes(model)`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        trees: Trunks with the rows that leave them.
        draw_keys: Names each row's random numbers, rows in the order of the trees.
        settings: Sampling.

    Returns:
        One continuation per row, in order.
    """
    device = model.device
    rows = [
        (number, length, own)
        for number, tree in enumerate(trees)
        for length, own in zip(tree.trunk_tokens, tree.own_ids, strict=True)
    ]
    longest = max(len(tree.trunk) for tree in trees)
    # Padding follows the trunk, where causal attention hides it from the trunk, and `hidden` hides it from the rows.
    trunks = pad_rows([tree.trunk for tree in trees], tokenizer.pad_token_id)
    trunk_cache = preallocated_cache(0)
    model(input_ids=trunks.to(device), past_key_values=trunk_cache, logits_to_keep=1)

    # Equal rows (the paths of one prefill) are computed once until they draw. A row begins with its last token from the
    # trunk, so that there is one token to compute logits from.
    distinct = list(dict.fromkeys(rows))
    own = [(trees[number].trunk[length - 1], *ids) for number, length, ids in distinct]
    width = max(map(len, own))
    ids = pad_rows(own, tokenizer.pad_token_id, left=True)
    seen = torch.tensor([length - 1 for _, length, _ in distinct])
    padding = torch.tensor([width - len(values) for values in own])
    own_hidden = torch.arange(width)[None] < padding[:, None] if bool(padding.any()) else torch.zeros(len(own), 0)
    shared = SharedTrunks(
        keys=[layer.keys for layer in trunk_cache.layers],
        values=[layer.values for layer in trunk_cache.layers],
        trunk_of_row=torch.tensor([number for number, _, _ in distinct], device=device),
        hidden=(torch.arange(longest)[None] >= seen[:, None]).to(device),
        own_hidden=own_hidden.bool().to(device),
    )
    cache = preallocated_cache(settings.max_new_tokens)
    positions = (seen[:, None] + torch.arange(width)[None] - padding[:, None]).clamp(min=0)
    lengths = torch.tensor([length + len(ids) for _, length, ids in rows], device=device)
    place = {row: index for index, row in enumerate(distinct)}
    which = torch.tensor([place[row] for row in rows], device=device)

    alive = torch.arange(len(rows), device=device)

    def forward(tokens: torch.Tensor, step: int) -> torch.Tensor:
        return model(
            input_ids=tokens[alive, None],
            position_ids=(lengths[alive] + step - 1)[:, None],
            past_key_values=cache,
            shared_trunks=shared,
        ).logits[:, -1]

    def keep(kept: torch.Tensor) -> None:
        nonlocal alive, shared
        chosen = torch.isin(alive, kept).nonzero()[:, 0]
        cache.batch_select_indices(chosen)
        shared = shared.select(chosen)
        alive = kept

    with shared_trunk_attention(model):
        logits = model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            shared_trunks=shared,
            logits_to_keep=1,
        ).logits[:, -1]
        cache.batch_select_indices(which)
        shared = shared.select(which)
        return _decode(logits[which], forward, keep, draw_keys, end_token_ids(model, tokenizer), settings)


def _decode(
    logits: torch.Tensor,
    forward: Callable[[torch.Tensor, int], torch.Tensor],
    keep: Callable[[torch.Tensor], None],
    draw_keys: Sequence[str],
    end_ids: frozenset[int],
    settings: SamplingSettings,
) -> list[Continuation]:
    """Sample until every row has ended or is full; ended rows leave the batch once half of it has ended."""
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
