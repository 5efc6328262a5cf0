"""What natural pictures have in common, as penalties: a bounded range and little variation from pixel to pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MIDDLE = 0.5  # of the range 0 to 1: what a picture's values are counted from
TYPICAL = 0.226  # standard deviation of ImageNet's values, 0 to 1
LEAST = 1e-12  # squared differences below this have no gradient: that of their root is infinite at 0


def total_variation(x: Tensor, beta: float = 2.0) -> Tensor:
    """(n,): sum over c, i, j of ((x[i,j+1] - x[i,j])^2 + (x[i+1,j] - x[i,j])^2)^(beta/2) of x (n, C, H, W), forward
    differences with the edge repeated."""
    right = F.pad(x.diff(dim=-1), (0, 1)).square()
    down = F.pad(x.diff(dim=-2), (0, 0, 0, 1)).square()
    squares = right + down
    if beta != 2:
        squares = torch.where(squares > LEAST, squares.clamp_min(LEAST).pow(beta / 2), 0)
    return squares.flatten(1).sum(1)


def alpha_norm(x: Tensor, alpha: float = 6.0) -> Tensor:
    """(n,): sum of |x|^alpha of x (n, C, H, W)."""
    return x.abs().pow(alpha).flatten(1).sum(1)


def natural(x: Tensor, bound: float, alpha: float, smooth: float, beta: float) -> Tensor:
    """(n,): (smooth/2 TV_beta + bound/2 sum |x|^alpha) / sigma^2 for pictures x (n, C, H, W) in [0, 1].

    `bound` and `smooth` are in the paper's units, pictures of 0 to 255 less their mean, and brought to these; sigma is
    the norm of a typical picture of that size.
    """
    values = x[0].numel() * TYPICAL**2  # sigma^2
    found: Tensor = smooth / 2 * 255 ** (beta - 2) / values * total_variation(x, beta)
    found += bound / 2 * 255 ** (alpha - 2) / values * alpha_norm(x - MIDDLE, alpha)
    return found
