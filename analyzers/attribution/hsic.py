"""HSIC attribution: how strongly the score depends on whether a cell of the picture is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.attribution._cells import cells, side
from xai.analyzer import Passes, param
from xai.baselines import check_baseline
from xai.model import Model
from xai.panels import Number, View
from xai.perturbation import Found, Perturbation
from xai.sampler import VALUES, Sampler, shown


@dataclass(frozen=True)
class HSIC(Perturbation):
    """HSIC: the dependence between a cell being shown and the score, whatever the form of that dependence.

    S_j = tr(K_j H L H) / n^2, the Hilbert-Schmidt independence criterion between cell j (K_j = 1.5 - (m - m')^2 of its
    zeros and ones in n masks) and the score (L = exp(-(y - y')^2 / (2 w^2))), H = 1 - 1/n. As H takes constants away,
    S_j = 2 / n^2 c' H L H c with c the centred column of the cell, so no n x n matrix a cell is needed. w is the median
    distance of two scores (the reference code takes the median score, with which the map would change when a constant
    is added to the score). Each cell is shown in half of the masks. Never negative: it says that a cell matters, not
    for or against what.

    Reads     one model, images
    Yields    one map an image, one value a cell, unitless, and what a cell that does not matter is expected to get
    Raises    XaiError if the baseline is flat and the normalisation not known
    Cost      `samples` forwards, whatever the number of targets
    Reference Novello, Fel, Vigouroux 2022, "Making Sense of Dependence: Efficient Black-box Explanations Using
              Dependence Measure", arXiv:2206.06219, section 3; the criterion: Gretton et al. 2005,
              doi:10.1007/11564089_7, eq. 9
    """

    samples: int = param(512, "masks, each cell shown in half of them", low=16, high=4096)
    grid: int = param(8, "cells a side of the picture (of a smaller one: its pixels)", low=2)
    baseline: str = param("zero", "what is seen instead: zero (the mean colour), black, grey, white, a level, or blur")
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)

    view: ClassVar[View] = "abs"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.name())

    def passes(self, model: Model) -> Passes:
        """One forward a mask."""
        return Passes(forwards=self.samples)

    def picture(self, sampler: Sampler) -> list[Found]:
        """(grid, grid) for each target."""
        grid = side(self.grid, sampler.x.shape[-2:])
        labels = cells(sampler.x, grid)
        paint = shown(sampler.x, sampler.baseline(self.baseline, self.name()), labels)
        draws = torch.rand(self.samples, grid**2, generator=sampler.generator(self.name()))
        masks = (draws.argsort(0).argsort(0) < self.samples // 2).double()
        scores = torch.cat([answer.scores for answer in sampler.ask([masks.float()], paint)])
        return [self._found(sampler, masks, own, grid) for own in scores.T]

    def _found(self, sampler: Sampler, masks: Tensor, scores: Tensor, grid: int) -> Found:
        kernel, n = centred_kernel(scores), len(scores)
        centred = masks - masks.mean(0)
        found = 2 / n**2 * (centred * (kernel @ centred)).sum(0)
        if not torch.isfinite(scores).all():
            found = found * torch.nan
        # the mean over all orders of a cell's column: what its value would be if it did not matter
        chance = float(2 / n**2 * centred[:, 0].square().mean() * kernel.trace() * n / (n - 1))
        said = "A cell that does not matter is expected to get this much, as the estimate is biased."
        number = Number(key="chance", title="Expected where nothing depends on the cell", picture=sampler.picture,
                        value=chance if math.isfinite(chance) else None, note=said)
        return Found(found.clamp_min(0).view(grid, grid), panels=(number,))


def centred_kernel(scores: Tensor) -> Tensor:
    """H L H (n, n) of scores (n,), float64; zero where all scores are equal."""
    gaps = (scores[:, None] - scores).abs()
    pairs = gaps[torch.triu_indices(len(scores), len(scores), 1).unbind()]
    width = pairs.median()
    width = width if width > 0 else pairs.mean()  # more than half of the pairs are equal
    if not width > 0:
        return torch.zeros_like(gaps)
    kernel = torch.exp(-gaps.square() / (2 * width**2))
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
