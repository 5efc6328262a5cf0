"""Pixel flipping: regions taken away, the most relevant first and the least relevant first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.metric import Case, Metric, Score, Scored
from xai.model import Model
from xai.panels import Axis
from xai.removal import Course, check_fill, filled, order_of_regions, walked
from xai.sampler import VALUES, Sampler
from xai.segments import METHODS, segment

PATCHES = 28  # patches along the short side where no side is given: 8 pixels of 224
AXES = (Axis("share of the pixels removed"), Axis("score"))
REGIONS = ("pixels", "patches", *(how for how in METHODS if how != "grid"))


@dataclass(frozen=True)
class PixelFlipping(Metric):
    """Pixel flipping: what the score does as regions are removed, most relevant first (MoRF) and least (LeRF).

    morf and lerf are areas under the score over the share of the pixels that are gone (trapezoids); the area between
    them is lerf - morf. aopc = mean over all points k = 0 ... L of f(x) - f(x_k), most relevant first. A region's rank
    is that of its mean in the map, ties in a seeded random order. Single pixels reward speckle, to which networks react
    as to noise; patches and superpixels do not.

    Reads     one model, images, the maps of attributions
    Yields    the areas of each method and control, and the mean curves
    Raises    XaiError if the fill is flat and the normalisation not known
    Cost      two forwards a step and map
    Reference Samek, Binder, Montavon, Lapuschkin, Mueller 2017, "Evaluating the visualization of what a deep neural
              network has learned", arXiv:1509.06321, section III
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")
    regions: str = param("patches", "what is removed at once: pixels, patches, or superpixels (slic, ...)",
                         choices=REGIONS)
    side: int = param(0, "side of a patch in pixels; 0: a 28th of the short side", low=0)
    segments: int = param(196, "superpixels, about", low=2)
    steps: int = param(28, "steps of a curve, at most; each removes equally many regions", low=1)
    fill: str = param("zero", "what removed pixels show: zero (the mean colour), black, grey, white, a level, blur, or "
                      "rise_blur (a box of 11 x 11)")
    value: str = param("probability", "the score of a class: logit, probability or log_odds", choices=VALUES)

    group: ClassVar[str] = "Faithfulness"
    scores: ClassVar[dict[str, Score]] = {
        "between": Score("area between the two curves, lerf - morf", "higher"),
        "morf": Score("area under the score, most relevant first", "lower"),
        "lerf": Score("area under the score, least relevant first", "higher"),
        "aopc": Score("mean loss of score, most relevant first", "higher"),
    }
    curves: ClassVar[dict[str, tuple[Axis, Axis]]] = {"morf": AXES, "lerf": AXES}
    upper: ClassVar[bool] = True  # there may be fewer superpixels than steps

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fill(self.fill, self.name())

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """Both curves, but for the picture itself."""
        height, width = model.preprocessing.size
        side = self._side(height, width)
        regions = {"pixels": height * width, "patches": math.ceil(height / side) * math.ceil(width / side)}
        return Passes(forwards=2 * min(self.steps, regions.get(self.regions, self.steps)))

    def score(self, case: Case) -> Scored:
        """Remove the regions of every picture in both orders."""
        walks = [self._walk(case, i) for i in range(len(case.batch))]
        morf, lerf = (torch.stack([torch.trapezoid(y, x) for x, y in (walk[k] for walk in walks)]) for k in (0, 1))
        aopc = torch.stack([y[0] - y.mean() for _, y in (walk[0] for walk in walks)])
        grid = np.linspace(0, 1, self.steps + 1)
        traces = {name: torch.from_numpy(np.stack([np.interp(grid, x.numpy(), y.numpy())
                                                   for x, y in (walk[k] for walk in walks)]))
                  for k, name in ((0, "morf"), (1, "lerf"))}
        return Scored({"between": lerf - morf, "morf": morf, "lerf": lerf, "aopc": aopc}, traces)

    def _walk(self, case: Case, i: int) -> list[tuple[Tensor, Tensor]]:
        """(share of the pixels that are gone, score), most relevant first and least relevant first."""
        sampler = Sampler(case.batch, i, [case.bound], self.value)
        fill, generator = filled(sampler, self.fill, self.name()), case.batch.generator(i, self.name())
        order, sizes = order_of_regions(case.shown[i], self._labels(case, i), generator)
        ways = [(order, self._counts(sizes)), (order.flip(0), self._counts(sizes.flip(0)))]
        found = walked(sampler, [Course(first, sampler.x, fill, counts) for first, counts in ways])
        return [(torch.tensor(counts, dtype=torch.float64) / len(order), scores[:, 0])
                for (_, counts), scores in zip(ways, found, strict=True)]

    def _counts(self, sizes: Tensor) -> tuple[int, ...]:
        steps = min(self.steps, len(sizes))
        gone = [0, *sizes.cumsum(0).tolist()]
        return tuple(gone[round(k * len(sizes) / steps)] for k in range(steps + 1))

    def _side(self, height: int, width: int) -> int:
        return min(self.side or max(1, round(min(height, width) / PATCHES)), height, width)

    def _labels(self, case: Case, i: int) -> Tensor:
        """(H, W): each pixel's region."""
        height, width = (int(side) for side in case.shown.shape[1:])
        if self.regions == "pixels":
            return torch.arange(height * width).view(height, width)
        if self.regions == "patches":
            side = self._side(height, width)
            rows, columns = torch.arange(height) // side, torch.arange(width) // side
            return rows[:, None] * (int(columns[-1]) + 1) + columns
        return segment(case.batch.seen[i], self.regions, self.segments)
