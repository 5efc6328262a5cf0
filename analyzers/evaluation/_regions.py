"""Where the object lies: what the localisation metrics share."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from xai.images import Image
from xai.metric import Case


def regions(case: Case) -> list[Tensor | None]:
    """For each picture the object's region (H, W) bool in the input's frame; None where nothing is known of it or none
    of it is left in the frame."""
    size = case.shown.shape[1:]
    found: list[Tensor | None] = []
    for i in range(len(case.raw)):
        region = case.batch.region(i)
        left_out = region is None or case.batch.images[i].all_difficult
        known = None if left_out else torch.as_tensor(np.asarray(region)).bool()
        found.append(known if known is not None and known.shape == size and bool(known.any()) else None)
    return found


def share(values: Tensor, region: Tensor) -> float:
    """How much of the positive values (H, W) lies inside the region; 0 where nothing is positive."""
    positive = values.double().clamp_min(0)
    total = float(positive.sum())
    return float(positive[region].sum()) / total if total > 0 else 0.0


def original_region(image: Image) -> np.ndarray | None:
    """(h, w) bool on the original's pixels: the mask, else the union of the boxes, each with every pixel that it
    touches; None where nothing is known, nothing is marked, or all boxes are ones that benchmarks do not count."""
    if image.all_difficult:
        return None
    if image.mask is not None:
        region = np.asarray(image.mask, dtype=bool)
    elif image.boxes is not None:
        region = np.zeros(image.size, dtype=bool)
        for x0, y0, x1, y1 in np.asarray(image.boxes, dtype=np.float64).clip(0):
            region[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
    else:
        return None
    return region if region.any() else None
