"""What a picture (n, C, H, W) in [0, 1] pays for being far from grey, uneven or sharp: one number each, (n,)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from xai.baselines import blurred

SIGMA = 1.0  # of the blur, in pixels
EPS = 1e-8  # under the root: at a flat place its slope is 0 and not without bound


def squares(x: Tensor) -> Tensor:
    """Mean of (x - 0.5)^2 (Simonyan et al. 2014)."""
    return (x - 0.5).square().mean((1, 2, 3))


def variation(x: Tensor) -> Tensor:
    """Total variation, the mean over the values of sqrt(dx^2 + dy^2), forward differences, the last row and column
    repeated (Mahendran and Vedaldi 2015, beta = 1)."""
    right = F.pad(x[..., 1:] - x[..., :-1], (0, 1))
    down = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    size: Tensor = (right.square() + down.square() + EPS).sqrt() - EPS**0.5
    return size.mean((1, 2, 3))


def sharpness(x: Tensor) -> Tensor:
    """Mean of (x - x blurred by a Gaussian of one pixel)^2 (Yosinski et al. 2015 blur instead of charging for it)."""
    return (x - blurred(x, SIGMA)).square().mean((1, 2, 3))


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"l2": squares, "tv": variation, "blur": sharpness}
