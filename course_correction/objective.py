"""The training objective on ranked groups: 15 pair losses from 6 responses, and the terms beside them. Pure tensors.

A group's six responses share the prompt and their beginnings, so they are packed into one sequence that holds every
distinct beginning once: a tree, in which a token attends to its ancestors alone. Its log-probabilities are those of the
six responses run one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional

from course_correction.synthesis.ranked_groups import PAIR_RANKS


@dataclass(frozen=True)
class PackedGroup:
    """Responses to one prompt, packed as a tree of n tokens.

    Attributes:
        token_ids: [n], the prompt first.
        positions: [n], the place of each token in its own response's sequence.
        parents: [n], index of the token before it; -1 for the first.
        paths: For each response, the indices of its tokens, in order, without the prompt's.
        correction_paths: For each response, those of its tokens that belong to the corrective part.
    """

    token_ids: list[int]
    positions: list[int]
    parents: list[int]
    paths: list[list[int]]
    correction_paths: list[list[int]]


def pack_group(
    prompt_ids: Sequence[int], completions: Sequence[Sequence[int]], correction_starts: Sequence[int]
) -> PackedGroup:
    """Pack completions of one prompt so that every distinct beginning is there once.

    Args:
        prompt_ids: Token ids of the prompt.
        completions: Token ids of each response.
        correction_starts: For each response, the first of its tokens in the corrective part; its length for none.
    """
    token_ids, parents = list(prompt_ids), list(range(-1, len(prompt_ids) - 1))
    positions = list(range(len(prompt_ids)))
    children: dict[tuple[int, int], int] = {}
    paths = []
    for completion in completions:
        place, path = len(prompt_ids) - 1, []
        for token_id in completion:
            child = children.get((place, token_id))
            if child is None:
                child = len(token_ids)
                children[place, token_id] = child
                token_ids.append(token_id)
                parents.append(place)
                positions.append(positions[place] + 1)
            path.append(child)
            place = child
        paths.append(path)
    correction_paths = [path[start:] for path, start in zip(paths, correction_starts, strict=True)]
    return PackedGroup(token_ids, positions, parents, paths, correction_paths)


def ancestor_mask(parents: Sequence[int], size: int) -> torch.Tensor:
    """Return [size, size], true where a row's token may attend to a column's: itself and its ancestors.

    Rows behind the last token are padding and attend to themselves, so that no row is empty.
    """
    mask = torch.eye(size, dtype=torch.bool)
    for index, parent in enumerate(parents):
        if parent >= 0:
            mask[index] |= mask[parent]
    return mask


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 0 where attention is allowed and the least number where not: what every implementation but flash takes."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def pair_losses(log_ratios: torch.Tensor, beta: float, distance_power: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute DPO's loss of all 15 pairs of each group from six log-ratios.

    Args:
        log_ratios: [groups, 6], log π(y|x) - log π_ref(y|x), best response first.
        beta: DPO's β.
        distance_power: Weight of a pair: (rejected rank - chosen rank) to this power, scaled to mean 1. 0 weighs alike.

    Returns:
        The mean weighted loss (a scalar; Eq. 7 of DPO, arXiv 2305.18290) and the margins [groups, 15].
    """
    chosen, rejected = (torch.tensor(ranks, device=log_ratios.device) for ranks in zip(*PAIR_RANKS, strict=True))
    margins = beta * (log_ratios[:, chosen] - log_ratios[:, rejected])
    weights = (rejected - chosen).to(margins) ** distance_power
    weights = weights / weights.mean()
    return (-functional.logsigmoid(margins) * weights).mean(), margins


def accuracy_by_distance(margins: torch.Tensor) -> dict[int, torch.Tensor]:
    """Return, for each rank distance from 1 to 5, the share of pairs whose margin is positive.

    Args:
        margins: [groups, 15], in the order of `PAIR_RANKS`.
    """
    distances = torch.tensor([rejected - chosen for chosen, rejected in PAIR_RANKS], device=margins.device)
    return {int(value): (margins[:, distances == value] > 0).float().mean() for value in distances.unique()}


def sum_paths(token_logps: torch.Tensor, paths: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
    """Sum token log-probabilities along each response's path.

    Args:
        token_logps: [groups, tokens], log-probability of each packed token after its parent.
        paths: For each group and response, indices of tokens.

    Returns:
        [groups, responses].
    """
    weights = token_logps.new_zeros(len(paths), len(paths[0]), token_logps.shape[1])
    for group, responses in enumerate(paths):
        for response, path in enumerate(responses):
            weights[group, response, path] = 1
    return (weights * token_logps[:, None]).sum(-1)


def mean_path_nll(token_logps: torch.Tensor, paths: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
    """Mean negative log-likelihood a token of the parts of responses that `paths` names, each part weighing alike.

    Harmful beginnings are in no path, and so are never imitated. A scalar; empty parts are left out.
    """
    totals = sum_paths(token_logps, paths)
    counts = torch.tensor([[len(path) for path in responses] for responses in paths]).to(totals)
    kept = counts > 0
    return -(totals[kept] / counts[kept]).mean()


# Rows of logits worked on at a time: over a whole vocabulary, larger temporaries cost more than the arithmetic in them.
_CHUNK = 64


class _SelectedLogProbs(torch.autograd.Function):
    """Log-probabilities of single tokens and of sets of tokens; autograd would copy all logits several times."""

    @staticmethod
    def forward(
        context: Any, logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, *sets: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        totals = torch.cat([chunk.float().logsumexp(-1) for chunk in logits.split(_CHUNK)])
        context.save_for_backward(logits, totals, rows, tokens, *sets)
        found = [logits[rows, tokens].float() - totals[rows]]
        for set_rows, members in zip(sets[::2], sets[1::2], strict=True):
            found.append(logits[set_rows[:, None], members].float().logsumexp(-1) - totals[set_rows])
        return tuple(found)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, totals, rows, tokens, *sets = context.saved_tensors
        shares = totals.new_zeros(len(logits)).index_add_(0, rows, gradients[0])
        for set_rows, gradient in zip(sets[::2], gradients[1:], strict=True):
            shares.index_add_(0, set_rows, gradient)
        result = torch.empty_like(logits)
        for start in range(0, len(logits), _CHUNK):
            part = slice(start, start + _CHUNK)
            probabilities = (logits[part].float() - totals[part, None]).exp_()
            result[part] = probabilities.mul_(-shares[part, None])
        result.index_put_((rows, tokens), gradients[0].to(result.dtype), accumulate=True)
        for set_rows, members, gradient in zip(sets[::2], sets[1::2], gradients[1:], strict=True):
            weights = logits[set_rows[:, None], members].float().softmax(-1) * gradient[:, None]
            where = (set_rows[:, None].expand_as(weights), members.expand_as(weights))
            result.index_put_(where, weights.to(result.dtype), accumulate=True)
        return result, None, None, *(None for _ in sets)


def selected_logps(
    logits: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    sets: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
) -> tuple[torch.Tensor, ...]:
    """Take log-probabilities of tokens, and of sets of tokens, from logits.

    Args:
        logits: [positions, vocabulary].
        rows: [n], position of each token.
        tokens: [n], its id.
        sets: For each set of tokens, the positions where it is asked for, [m], and its ids.

    Returns:
        [n], and for each set [m]: the log-probability that one of its tokens comes next.
    """
    return _SelectedLogProbs.apply(logits, rows, tokens, *(tensor for pair in sets for tensor in pair))


def kl_by_token(logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """Return KL(reference || policy) and KL(policy || reference) of each token, [2, tokens], in nats."""
    found = []
    for policy, reference in zip(logits.split(_CHUNK), reference_logits.split(_CHUNK), strict=True):
        policy, reference = policy.float().log_softmax(-1), reference.float().log_softmax(-1)
        difference = policy - reference
        found.append(torch.stack([-(reference.exp() * difference).sum(-1), (policy.exp() * difference).sum(-1)]))
    return torch.cat(found, 1)


class _SymmetricKL(torch.autograd.Function):
    """Both KL divergences at once, with the gradient of their mean: autograd would take three times the passes."""

    @staticmethod
    def forward(
        context: Any, logits: torch.Tensor, reference_logits: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        saved = torch.empty_like(logits)
        totals = torch.zeros(3, device=logits.device)
        for start in range(0, len(logits), _CHUNK):
            part = slice(start, start + _CHUNK)
            policy = logits[part].float().log_softmax(-1)
            reference = reference_logits[part].float().log_softmax(-1)
            difference = policy - reference
            policy, reference = policy.exp_(), reference.exp_()
            reverse_kl = (policy * difference).sum(-1, keepdim=True)
            forward_kl = -(reference * difference).sum(-1, keepdim=True)
            weight = weights[part, None]
            totals += torch.stack([(weight * (forward_kl + reverse_kl)).sum() / 2, forward_kl.sum(), reverse_kl.sum()])
            gradient = policy.mul_(difference.sub_(reverse_kl - 1)).sub_(reference)
            saved[part] = gradient.mul_(weight * (0.5 / len(logits)))
        context.save_for_backward(saved)
        weighted, forward_kl, reverse_kl = totals / len(logits)
        context.mark_non_differentiable(forward_kl, reverse_kl)
        return weighted, forward_kl, reverse_kl

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (saved,) = context.saved_tensors
        return saved * gradient, None, None


def retention_kl(
    logits: torch.Tensor, reference_logits: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Symmetric KL divergence between policy and reference in nats a token: the mean of both directions.

    KL(reference || policy) barely notices that the policy now says with 5% what the reference never says, such as a
    refusal; KL(policy || reference) does.

    Args:
        logits: [tokens, vocabulary] of the policy.
        reference_logits: [tokens, vocabulary] of the reference.
        weights: [tokens], of each token in the first result; 1 without them.

    Returns:
        The weighted mean of both, differentiable in `logits`; KL(reference || policy); KL(policy || reference).
    """
    weights = torch.ones(len(logits), device=logits.device) if weights is None else weights.to(logits.device)
    return _SymmetricKL.apply(logits, reference_logits, weights)


def transition_loss(turning_logps: torch.Tensor, target: float) -> torch.Tensor:
    """Mean shortfall of log P(turning back here) below log `target`; nothing where it is reached. A scalar.

    Turning back with probability p at every word leaves (1 - p)^n after n words uncorrected: certainty at each word is not
    needed, and asking for it drives the model further from its reference than the turn is worth.

    Args:
        turning_logps: [places], log-probability that a correction begins there.
        target: The probability that is enough.
    """
    return (math.log(target) - turning_logps).clamp(min=0).mean()
