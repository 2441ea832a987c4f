"""Ranked groups packed as trees: six responses to one prompt in one sequence. Knows nothing of models or losses.

The six responses of a group share the prompt and their beginnings. The packed sequence holds every distinct beginning once:
a tree, in which a token attends to its ancestors alone. Its log-probabilities equal those of the six responses run one by
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedGroup:
    """Responses to one prompt, packed as a tree of n tokens.

    Attributes:
        token_ids: [n], the prompt first.
        positions: [n], the position of each token in the sequence of prompt and response.
        parents: [n], the index of each token's predecessor; -1 for the first.
        paths: For each response, the indices of its tokens, in order, without the prompt's.
        correction_paths: For each response, the indices of the tokens of its corrective part.
    """

    token_ids: list[int]
    positions: list[int]
    parents: list[int]
    paths: list[list[int]]
    correction_paths: list[list[int]]


def pack_group(
    prompt_ids: Sequence[int], completions: Sequence[Sequence[int]], correction_starts: Sequence[int]
) -> PackedGroup:
    """Pack completions of one prompt into a tree that holds every distinct beginning once.

    Args:
        prompt_ids: Token ids of the prompt.
        completions: Token ids of each response.
        correction_starts: For each response, the index of the first token of its corrective part; its length if it has
            none.
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
    """Return [size, size], true where the token of a row may attend to that of a column: itself or an ancestor.

    Rows after the last token are padding. They attend to themselves, because attention to nothing is NaN.
    """
    mask = torch.eye(size, dtype=torch.bool)
    for index, parent in enumerate(parents):
        if parent >= 0:
            mask[index] |= mask[parent]
    return mask


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask that is added to attention scores: 0 where allowed, else the lowest number of `dtype`.

    Every attention implementation of transformers except flash attention accepts it.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


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
