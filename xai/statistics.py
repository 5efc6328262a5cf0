"""Rank correlation: how alike two maps order their pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """1 to n of values (n,), equal ones sharing the mean of their ranks; float64."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    found: Tensor = (last - (counts - 1) / 2)[place]
    return found


def spearman(one: Tensor, two: Tensor) -> float:
    """Spearman's rank correlation of two tensors of one shape, -1 to 1; NaN where one is constant or not finite."""
    a, b = one.flatten(), two.flatten()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("nan")
    a, b = ranks(a), ranks(b)
    a, b = a - a.mean(), b - b.mean()
    size = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / size) if size > 0 else float("nan")
