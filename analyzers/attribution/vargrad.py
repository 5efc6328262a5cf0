"""VarGrad: how much the gradient changes under noise."""

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
class VarGrad(Attribution):
    """VarGrad: where the score's reaction to a pixel changes with small noise.

    M = variance over k of dS/dx at x + e_k (population variance: over the number of samples), with the e_k of
    SmoothGrad; zero for a linear network. The channels are merged after the variance. View: abs (it is not negative).

    Reads     one model, images
    Yields    one non-negative map an image, at the input's size, in squared units of the gradient
    Raises    XaiError if no gradient reaches the input
    Cost      `samples` forwards and backwards
    Reference Adebayo et al. 2018, "Local explanation methods for deep neural networks lack sensitivity to parameter
              values", arXiv:1810.03307, definition of VarGrad
    """

    samples: int = param(50, "noisy copies of each picture", low=2)
    noise: float = param(0.15, "standard deviation of the noise, as a share of the input's max - min", low=0)
    reduce: str = param("max_abs", "what becomes of the channels: max_abs, sum or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "images"})
    view: ClassVar[View] = "abs"

    def passes(self, model: Model) -> Passes:
        """One forward and one backward a noisy copy."""
        return Passes(forwards=self.samples, backwards=self.samples)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size, not negative."""
        totals = [Running() for _ in batch.hashes]
        for i, _, found in gradients(batch, target, noisy(batch, "smoothgrad", self.noise), self.samples):
            totals[i].add(found)
        return Maps(as_map(torch.stack([t.variance() for t in totals]), self.reduce, batch))
