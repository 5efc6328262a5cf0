"""Windows of maps: where they lie, what of a sliding step's output they reach, how they are cut out and pasted in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Spot:
    """Where m values of a step differ from the picture's own: windows of one size, each at its place."""

    top: np.ndarray
    left: np.ndarray
    height: int
    width: int


@dataclass(frozen=True)
class Slide:
    """A step that slides over a map: each output reads a grid of inputs. Per axis: size, stride, padding, dilation."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    fill: float
    call: Callable[[Tensor], Tensor]  # without padding

    def reached(self, spot: Spot, shape: Sequence[int]) -> Spot:
        """The outputs of a map (H, W) = shape that read what has changed, and perhaps a few more."""
        top, height = self._axis(0, spot.top, spot.height, shape[0])
        left, width = self._axis(1, spot.left, spot.width, shape[1])
        return Spot(top, left, height, width)

    def _axis(self, axis: int, start: np.ndarray, length: int, out: int) -> tuple[np.ndarray, int]:
        stride, padded = self.stride[axis], start + self.padding[axis]
        first = -((self.dilation[axis] * (self.size[axis] - 1) - padded) // stride)  # rounded up
        first, last = first.clip(0, out - 1), ((padded + length - 1) // stride).clip(0, out - 1)
        count = max(1, int((last - first).max()) + 1)
        return first.clip(0, out - count), count

    def read(self, spot: Spot) -> Spot:
        """The inputs that those outputs read; they may lie outside the map."""
        ends = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(
            (spot.height, spot.width), self.stride, self.dilation, self.size, strict=True)]
        return Spot(spot.top * self.stride[0] - self.padding[0], spot.left * self.stride[1] - self.padding[1], *ends)


def crop(base: Tensor, spot: Spot, fill: float, values: Tensor | None = None, held: Spot | None = None) -> Tensor:
    """Windows (m, ..., h, w) of one picture's map (1, ..., H, W), each with its `values` at `held` pasted in.

    What lies outside the map is `fill`.
    """
    m, (rows, columns) = len(spot.top), base.shape[-2:]
    shape = (m, *base.shape[1:-2], spot.height, spot.width)
    out = torch.empty(shape, dtype=base.dtype, device=base.device,
                      memory_format=torch.channels_last if base.ndim == 4 else torch.contiguous_format)
    top, left = spot.top.tolist(), spot.left.tolist()
    if min(top) < 0 or min(left) < 0 or max(top) + spot.height > rows or max(left) + spot.width > columns:
        out.fill_(fill)
    picture = base[0]
    for j, corner in enumerate(zip(top, left, strict=True)):
        _paste(out[j], *corner, picture, 0, 0)
    if values is not None and held is not None:
        for j, corners in enumerate(zip(top, left, held.top.tolist(), held.left.tolist(), strict=True)):
            _paste(out[j], *corners[:2], values[j], *corners[2:])
    return out


def _paste(out: Tensor, top: int, left: int, values: Tensor, y: int, x: int) -> None:
    """Write `values`, which stand at (y, x) of a map, into `out`, which stands at (top, left), where they meet."""
    a, b = max(top, y), min(top + out.shape[-2], y + values.shape[-2])
    c, d = max(left, x), min(left + out.shape[-1], x + values.shape[-1])
    if a < b and c < d:
        out[..., a - top : b - top, c - left : d - left] = values[..., a - y : b - y, c - x : d - x]


def union(spots: Sequence[Spot], shape: Sequence[int]) -> Spot:
    """The smallest windows of one size that hold all of those, in a map (H, W) = shape."""
    if len(spots) == 1:
        return spots[0]
    top, height = _hull([(spot.top, spot.height) for spot in spots], shape[0])
    left, width = _hull([(spot.left, spot.width) for spot in spots], shape[1])
    return Spot(top, left, height, width)


def _hull(parts: Iterable[tuple[np.ndarray, int]], size: int) -> tuple[np.ndarray, int]:
    parts = list(parts)
    first = np.min([start for start, _ in parts], axis=0)
    length = int((np.max([start + count for start, count in parts], axis=0) - first).max())
    return first.clip(0, size - length), length
