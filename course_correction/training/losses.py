"""The losses of the grouped objective: 15 pair losses from 6 responses, and the further terms. Pure tensor functions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional

from course_correction.synthesis.ranked_groups import PAIR_RANKS
from course_correction.training.tree import sum_paths


def pair_losses(log_ratios: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute DPO's loss of all 15 pairs of each group from six log-ratios.

    Source: Eq. 7 of DPO, arXiv 2305.18290.

    Args:
        log_ratios: [groups, 6], log π(y|x) - log π_ref(y|x), best response first.
        beta: DPO's β.

    Returns:
        The mean loss, a scalar, and the margins [groups, 15], in the order of `PAIR_RANKS`.
    """
    chosen, rejected = (torch.tensor(ranks, device=log_ratios.device) for ranks in zip(*PAIR_RANKS, strict=True))
    margins = beta * (log_ratios[:, chosen] - log_ratios[:, rejected])
    return -functional.logsigmoid(margins).mean(), margins


def accuracy_by_distance(margins: torch.Tensor) -> dict[int, torch.Tensor]:
    """Return, for each rank distance from 1 to 5, the share of pairs whose margin is positive.

    Args:
        margins: [groups, 15], in the order of `PAIR_RANKS`.
    """
    distances = torch.tensor([rejected - chosen for chosen, rejected in PAIR_RANKS], device=margins.device)
    return {int(value): (margins[:, distances == value] > 0).float().mean() for value in distances.unique()}


def mean_path_nll(token_logps: torch.Tensor, paths: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
    """Compute the mean negative log-likelihood per token of the parts of responses that `paths` names.

    Initial harmful responses are in no path, so the model does not imitate them.

    Args:
        token_logps: [groups, tokens], log-probability of each packed token after its parent.
        paths: For each group and part, indices of tokens. Empty parts are left out.

    Returns:
        A scalar; each part has the same weight, whatever its length.
    """
    totals = sum_paths(token_logps, paths)
    counts = torch.tensor([[len(path) for path in responses] for responses in paths]).to(totals)
    kept = counts > 0
    return -(totals[kept] / counts[kept]).mean()


# Rows of logits per operation. Over a whole vocabulary, larger temporaries cost more time than the arithmetic.
_CHUNK = 64


class _SelectedLogProbs(torch.autograd.Function):
    """Log-probabilities of single tokens and of sets of tokens; autograd would copy all logits several times."""

    @staticmethod
    def forward(
        context: Any, logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, *sets: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        totals = torch.cat([chunk.float().logsumexp(-1) for chunk in logits.split(_CHUNK)])
        context.save_for_backward(logits, totals, rows, tokens, *sets)
        logps = [logits[rows, tokens].float() - totals[rows]]
        for set_rows, members in zip(sets[::2], sets[1::2], strict=True):
            logps.append(logits[set_rows[:, None], members].float().logsumexp(-1) - totals[set_rows])
        return tuple(logps)

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
    """Return log-probabilities of tokens and of sets of tokens.

    Args:
        logits: [positions, vocabulary].
        rows: [n], the position whose logits predict each token.
        tokens: [n], the ids of the tokens.
        sets: For each set of tokens, the positions whose logits predict it, [m], and the ids in the set.

    Returns:
        [n], and for each set [m]: the log-probability that the next token is one of the set.
    """
    return _SelectedLogProbs.apply(logits, rows, tokens, *(tensor for pair in sets for tensor in pair))


def kl_by_token(logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """Return KL(reference || policy) and KL(policy || reference) of each token, [2, tokens], in nats.

    Args:
        logits: [tokens, vocabulary] of the policy.
        reference_logits: [tokens, vocabulary] of the reference.
    """
    divergences = []
    for policy, reference in zip(logits.split(_CHUNK), reference_logits.split(_CHUNK), strict=True):
        policy, reference = policy.float().log_softmax(-1), reference.float().log_softmax(-1)
        difference = policy - reference
        divergences.append(torch.stack([-(reference.exp() * difference).sum(-1), (policy.exp() * difference).sum(-1)]))
    return torch.cat(divergences, 1)


class _SymmetricKL(torch.autograd.Function):
    """Both KL divergences in one pass, with the gradient of their mean; autograd would need three times the passes."""

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
    """Compute the symmetric KL divergence between policy and reference in nats per token: the mean of both directions.

    A policy that gives 5% to a token that the reference never produces, such as the start of a refusal, barely changes
    KL(reference || policy). KL(policy || reference) grows with it.

    Args:
        logits: [tokens, vocabulary] of the policy.
        reference_logits: [tokens, vocabulary] of the reference.
        weights: [tokens], the weight of each token in the first result; 1 by default.

    Returns:
        The weighted mean of both, differentiable in `logits`; KL(reference || policy); KL(policy || reference).
    """
    weights = torch.ones(len(logits), device=logits.device) if weights is None else weights.to(logits.device)
    return _SymmetricKL.apply(logits, reference_logits, weights)


def transition_loss(correction_logps: torch.Tensor, target: float) -> torch.Tensor:
    """Compute the mean shortfall of log P(a correction begins here) below log `target`; 0 where it is reached.

    A probability p at each word leaves (1 - p)^n of the answers uncorrected after n words, so a p well below 1 suffices. A
    target near 1 moves the model far from its reference for little further correction.

    Args:
        correction_logps: [places], log-probability that a correction begins there.
        target: The probability from which a place adds no loss, in (0, 1].

    Returns:
        A scalar.
    """
    return (math.log(target) - correction_logps).clamp(min=0).mean()
