"""A map brought to another size with its sum kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def spread(values: Tensor, size: tuple[int, ...], keep_sum: bool) -> Tensor:
    """(n, h, w) -> (n, H, W), bilinear (align_corners=False); keep_sum: a cell's value is shared out, not repeated."""
    for axis, length in ((1, size[0]), (2, size[1])):
        here = values.shape[axis]
        if here != length:
            cells = torch.eye(here, dtype=values.dtype, device=values.device)[:, None]
            weights = F.interpolate(cells, size=length, mode="linear" if here < length else "area")[:, 0]
            if keep_sum:
                weights = weights / weights.sum(1, keepdim=True)
            values = torch.tensordot(values, weights, ([axis], [0])).movedim(-1, axis)
    return values
