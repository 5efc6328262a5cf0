"""What the methods share that cut the input into a square grid of cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def side(grid: int, size: Sequence[int]) -> int:
    """Cells a side: `grid`, but no more than an input of that (height, width) has pixels on its short side."""
    return min(grid, *size)


def cells(x: Tensor, grid: int) -> Tensor:
    """(H, W) long: the cell of each pixel of x (C, H, W), row by row from 0 to grid^2 - 1."""
    height, width = x.shape[-2:]
    return (torch.arange(height) * grid // height)[:, None] * grid + torch.arange(width) * grid // width
