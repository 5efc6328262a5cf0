"""Crops of pictures as a network sees them: where they lie, what layers make of them, how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xai.batch import Batch
from xai.images import Images
from xai.layers import Capture, LayerView
from xai.model import Model

AT_ONCE = 32  # crops a forward


@dataclass(frozen=True)
class Grid:
    """Square crops of `side` pixels every `step`, from the corner on, of inputs (height, width)."""

    side: int
    step: int
    height: int
    width: int

    @classmethod
    def of(cls, size: tuple[int, int], side: int) -> Grid:
        """The step is 80 % of the side, which is at most that of the input; 0: 2/7 of its shorter side (64 of 224)."""
        whole = min(size)
        side = min(whole, side or max(2, round(whole * 2 / 7)))
        return cls(side, max(1, int(0.8 * side)), *size)

    @property
    def places(self) -> list[tuple[int, int]]:
        """The upper left corners (y, x)."""
        return [(y, x) for y in range(0, self.height - self.side + 1, self.step)
                for x in range(0, self.width - self.side + 1, self.step)]

    def crops(self, x: Tensor) -> Tensor:
        """(crops, C, H, W) of an input (C, H, W), each as large as the input (bilinear)."""
        cut = torch.stack([x[:, a : a + self.side, b : b + self.side] for a, b in self.places])
        return F.interpolate(cut, (self.height, self.width), mode="bilinear", align_corners=False)


@dataclass
class Crops:
    """Of all crops the picture's number and the corner, and for each layer their mean activations (n, K)."""

    where: list[tuple[int, int, int]] = field(default_factory=list)
    values: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, batch: Batch, numbers: Sequence[int], grid: Grid, views: Sequence[LayerView]) -> None:
        """The crops of a batch of pictures with these numbers: one forward each."""
        for x, number in zip(batch.inputs, numbers, strict=True):
            self.where += [(number, y, x0) for y, x0 in grid.places]
            for part in torch.split(grid.crops(x), AT_ONCE):
                for view, maps in zip(views, layers_of(batch.model, views, part), strict=True):
                    self.values.setdefault(view.name, []).append(maps.mean((2, 3)).float().cpu())

    def of(self, view: LayerView) -> Tensor:
        """(n, K) of a layer."""
        return torch.cat(self.values[view.name])


def layers_of(model: Model, views: Sequence[LayerView], x: Tensor) -> list[Tensor]:
    """(n, K, h, w) of each layer, of one counted forward of inputs."""
    module = model.runner([view.name for view in views])
    with torch.no_grad(), Capture(module, views, cut=False) as capture:
        model.run(x, module)
        return [view.to_map(capture.values[view].detach()) for view in views]


def looks(model: Model, images: Images, where: Sequence[tuple[int, int, int]], side: int
          ) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """The crops (side, side, 3) uint8, cut out of what the network sees of their pictures, which are read again."""
    found = []
    for number, y, x in where:
        seen = next(model.prepare(images[number : number + 1])).seen[0]
        found.append(seen[y : y + side, x : x + side])
    return found


def nearest_crops(weights: np.ndarray[Any, np.dtype[Any]], where: Sequence[tuple[int, int, int]], count: int
                  ) -> list[int]:
    """Numbers of the crops with the largest weights (n,), one a picture first, then others."""
    order = np.argsort(-weights, kind="stable").tolist()
    order = [i for i in order if weights[i] > 0]
    firsts: dict[int, int] = {}
    for i in order:
        firsts.setdefault(where[i][0], i)
    chosen = list(firsts.values())
    return (chosen + [i for i in order if i not in set(chosen)])[:count]
