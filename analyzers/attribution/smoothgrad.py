"""SmoothGrad: the mean gradient of many noisy copies of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from analyzers.attribution._gradients import REDUCTIONS, Running, as_map, gradients, noisy
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.panels import View
from xai.targets import Bound


@dataclass(frozen=True)
class SmoothGrad(Attribution):
    """SmoothGrad: saliency with its noise averaged away.

    M = mean over k of dS/dx at x + e_k, e_k ~ N(0, s^2), s = noise * (max x - min x) of the normalised input; the
    signed mean is taken before the channels are merged. squared: the mean of the squares instead. View: abs.

    Reads     one model, images
    Yields    one map an image, at the input's size, in units of the score per unit of the normalised input
    Raises    XaiError if no gradient reaches the input
    Cost      `samples` forwards and backwards
    Reference Smilkov et al. 2017, "SmoothGrad", arXiv:1706.03825, section 3; squared: Hooker et al. 2019, "A benchmark
              for interpretability methods in deep neural networks", arXiv:1806.10758
    """

    samples: int = param(50, "noisy copies of each picture", low=1)
    noise: float = param(0.15, "standard deviation of the noise, as a share of the input's max - min", low=0)
    squared: bool = param(False, "average the squares of the gradients (SmoothGrad-Squared)")
    reduce: str = param("max_abs", "what becomes of the channels: max_abs, sum (signed) or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "images"})
    view: ClassVar[View] = "abs"

    def passes(self, model: Model) -> Passes:
        """One forward and one backward a noisy copy."""
        return Passes(forwards=self.samples, backwards=self.samples)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size; not negative unless reduce is sum."""
        totals = [Running() for _ in batch.hashes]
        for i, _, found in gradients(batch, target, noisy(batch, "smoothgrad", self.noise), self.samples):
            totals[i].add(found**2 if self.squared else found)
        return Maps(as_map(torch.stack([t.mean for t in totals]), self.reduce, batch))
