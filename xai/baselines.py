"""The picture that stands for nothing to see: flat, the mean colour, or the picture itself, blurred."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xai.batch import Batch
from xai.errors import error
from xai.preprocessing import Preprocessing

LEVELS = {"black": 0.0, "grey": 0.5, "white": 1.0}
BLUR = 0.1  # standard deviation of the blurred baseline, as a share of the short side


def check_baseline(which: str | float, name: str) -> float | None:
    """The level 0 to 1 of a flat baseline, None for "zero" and "blur". Raises XaiError for anything else."""
    if which in ("zero", "blur"):
        return None
    try:
        level = LEVELS[which] if isinstance(which, str) and which in LEVELS else float(which)
    except ValueError:
        level = -1.0
    if not 0 <= level <= 1:
        raise error(f"{name}.baseline", "black, zero, grey, white, blur or a number from 0 to 1", repr(which),
                    "It is the picture that stands for nothing to see; black is 0 and white 1")
    return level


def baseline(batch: Batch, which: str | float, name: str) -> Tensor:
    """The baseline of each picture as the network takes it, (n, C, H, W).

    "black", "grey", "white" or a level from 0 to 1: a flat picture; "zero": 0 after normalisation, which is the mean
    colour; "blur": the picture itself, blurred by a Gaussian of a tenth of its short side. Raises XaiError where a
    level is asked for and the normalisation is not known.
    """
    return of_inputs(batch.inputs, batch.model.preprocessing, which, name)


def of_inputs(inputs: Tensor, preprocessing: Preprocessing, which: str | float, name: str) -> Tensor:
    """The same for prepared inputs (n, C, H, W)."""
    level = check_baseline(which, name)
    if which == "zero":
        return torch.zeros_like(inputs)
    if which == "blur":
        return blurred(inputs, BLUR * min(inputs.shape[-2:]))
    assert level is not None
    return preprocessing.constant(level).to(inputs).expand_as(inputs).contiguous()


def blurred(x: Tensor, sigma: float) -> Tensor:
    """(n, C, H, W) after a Gaussian of standard deviation sigma in pixels, cut at 3 sigma, borders continued."""
    radius = max(1, round(3 * sigma))
    place = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (place / max(sigma, 1e-6)) ** 2)
    kernel = (kernel / kernel.sum()).to(x)
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return flat.view_as(x)
