"""How alike two maps are, and the map that a method makes again: what the tests of randomness and robustness share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xai.attribution import Attribution
from xai.batch import Batch
from xai.controls import Control
from xai.metric import as_stored
from xai.panels import View, shown
from xai.statistics import spearman
from xai.targets import Bound

MEASURES = ("spearman", "pearson", "ssim", "hog")
VALUES = ("shown", "absolute", "raw")
WINDOW = 7  # pixels: the side of SSIM's window; a smaller map is enlarged first



def asks(method: Attribution) -> bool:
    """Whether the method asks the network at all."""
    return not isinstance(method, Control)


def again(method: Attribution, batch: Batch, bound: Bound) -> Tensor:
    """(n, h, w), float32 on the CPU: the maps of a batch, rounded as a record stores them; with the batch's common
    forward where the method asks the network, so that its price is the same for all methods."""
    if asks(method):
        batch.want(*method.layers())
        batch.output()
    return as_stored(method.maps(batch, bound).values.detach().float().cpu())


def valued(raw: Tensor, values: str, view: View) -> Tensor:
    """Raw maps as one of VALUES; NaN stays."""
    if values == "raw":
        return raw
    return torch.from_numpy(shown(raw.numpy(), "abs" if values == "absolute" else view)).float()


def alike(one: Tensor, two: Tensor, measure: str) -> Tensor:
    """(n,) float64: how alike the maps (n, h, w) of two sets are, picture by picture, at most 1.

    1 where both are the same to the bit. Otherwise 0 where one of the two is flat or not finite: a map that says
    nothing is like no other.
    """
    return torch.tensor([_alike(a, b, measure) for a, b in zip(one, two, strict=True)], dtype=torch.float64)


def _alike(a: Tensor, b: Tensor, measure: str) -> float:
    if torch.equal(a, b):
        return 1.0
    if not all(bool(torch.isfinite(m).all()) and float(m.max()) > float(m.min()) for m in (a, b)):
        return 0.0
    found = {"spearman": spearman, "pearson": _pearson, "ssim": _ssim, "hog": _hog}[measure](a, b)
    return found if np.isfinite(found) else 0.0


def _pearson(a: Tensor, b: Tensor) -> float:
    a, b = (m.flatten().double() - m.double().mean() for m in (a, b))
    size = a.norm() * b.norm()
    return float(a @ b / size) if size > 0 else float("nan")


def _ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of both maps over their largest absolute value; data range: joint max - min."""
    from skimage.metrics import structural_similarity

    one, two = (_large(m.double() / m.abs().max().double()) for m in (a, b))
    reach = max(one.max(), two.max()) - min(one.min(), two.min())
    return float(structural_similarity(one, two, win_size=WINDOW, data_range=reach))  # type: ignore[no-untyped-call]  # its gap


def _hog(a: Tensor, b: Tensor) -> float:
    """Correlation of the histograms of oriented gradients: 9 orientations, cells of a fourteenth of the shorter side
    and at least 4 pixels (16 of 224), blocks of 3 x 3 cells."""
    from skimage.feature import hog

    one, two = (_large(m.double() / m.abs().max().double(), 12) for m in (a, b))
    cell = max(4, min(one.shape) // 14)
    blocks = min(3, *(side // cell for side in one.shape))
    told: dict[str, Any] = {"orientations": 9, "pixels_per_cell": (cell, cell), "cells_per_block": (blocks, blocks)}
    return _pearson(*(torch.from_numpy(hog(m, **told)) for m in (one, two)))


def _large(values: Tensor, least: int = WINDOW) -> np.ndarray:
    """As an array; a map with a side below `least` is enlarged bilinearly."""
    scale = -(-least // min(values.shape))
    if scale > 1:
        values = F.interpolate(values[None, None], scale_factor=scale, mode="bilinear", align_corners=False)[0, 0]
    found: np.ndarray = values.numpy()
    return found


def distance(one: Tensor, two: Tensor) -> Tensor:
    """(n,) float64: |two - one| / |one|, Euclidean norms of maps (n, h, w); NaN where `one` is zero everywhere."""
    gap, size = (m.double().flatten(1).norm(dim=1) for m in (two - one, one))
    return torch.where(size > 0, gap / size, torch.full_like(size, float("nan")))
