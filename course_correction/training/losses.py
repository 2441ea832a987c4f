"""The losses of the grouped objective: 15 pair losses from 6 responses, and the terms beside them. Pure tensors."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional

from course_correction.synthesis.ranked_groups import PAIR_RANKS
from course_correction.training.tree import sum_paths


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
