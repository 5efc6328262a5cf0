"""Rank correlation: how alike two maps order their pixels; and intervals of means."""

from __future__ import annotations

import warnings

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


def interval(values: Tensor, seed: int = 0, hits: bool = False, draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean of values (n,): Wilson's where they are hits (1) and misses (0), else the
    bootstrap's, bias-corrected and accelerated (Efron 1987). NaN where there are fewer than two."""
    n, mean = len(values), float(values.double().mean()) if len(values) else float("nan")
    if n < 2:
        return float("nan"), float("nan")
    if hits:
        return wilson(mean, n)
    if float(values.max() - values.min()) <= 1e-12 * float(values.abs().max()):
        return mean, mean
    import numpy as np
    from scipy.stats import bootstrap

    for method in ("BCa", "percentile"):  # the first is not defined where all but one value agree
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = bootstrap((values.double().numpy(),), np.mean, n_resamples=draws, rng=np.random.default_rng(seed),
                              batch=max(1, 4_000_000 // n), method=method).confidence_interval
        if found.low == found.low and found.high == found.high:
            break
    return float(found.low), float(found.high)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n."""
    z = 1.959963984540054
    middle, wide = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, (middle - wide) / (1 + z * z / n)), min(1.0, (middle + wide) / (1 + z * z / n))
