"""Pad lists of unequal length to one tensor. Knows nothing of tokens or models."""

from collections.abc import Sequence

import torch


def pad_rows(rows: Sequence[Sequence[int]], value: int = 0, *, left: bool = False) -> torch.Tensor:
    """Return the rows as one tensor [rows, longest row], with `value` behind them, or before them if `left`."""
    longest = max(map(len, rows))
    padded = torch.full((len(rows), longest), value)
    for padded_row, row in zip(padded, rows, strict=True):
        start = longest - len(row) if left else 0
        padded_row[start : start + len(row)] = torch.tensor(row)
    return padded
