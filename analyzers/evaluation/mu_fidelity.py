"""mu-fidelity: whether what a map gives to random sets of cells goes with what the score loses without them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.metric import Case, Metric, Score, Scored
from xai.model import Model
from xai.removal import check_fill, filled
from xai.sampler import VALUES, Sampler, shown
from xai.statistics import spearman


@dataclass(frozen=True)
class MuFidelity(Metric):
    """mu-fidelity: the correlation of a map's sums over random sets of cells with what the score loses without them.

    corr over sets S of (sum_S a, f(x) - f(x without S)); every S holds the same share of the grid's cells. The ranks'
    correlation (Spearman's) is the first score, the one of the definition (Pearson's) stands beside it. A linear score
    with its own contributions has 1.

    Reads     one model, images, the maps of attributions
    Yields    both correlations of each method and control; none where the score or the sums never change
    Raises    XaiError if the fill is flat and the normalisation not known
    Cost      `samples` forwards a map
    Reference Bhatt, Weller, Moura 2020, "Evaluating and aggregating feature-based model explanations",
              arXiv:2005.00631, definition 3
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")
    samples: int = param(200, "sets of cells", low=8)
    grid: int = param(9, "cells a side, at most the pixels of the short side", low=2)
    subset: float = param(0.2, "share of the cells that is hidden", low=0, high=1)
    fill: str = param("zero", "what hidden cells show: zero (the mean colour), black, grey, white, a level, blur, or "
                      "rise_blur (a box of 11 x 11)")
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)

    group: ClassVar[str] = "Faithfulness"
    scores: ClassVar[dict[str, Score]] = {
        "spearman": Score("rank correlation of the map's sums with the losses", "higher"),
        "pearson": Score("linear correlation of the map's sums with the losses", "higher"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fill(self.fill, self.name())

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """One forward a set."""
        return Passes(forwards=self.samples)

    def score(self, case: Case) -> Scored:
        """Hide sets of cells of every picture."""
        asked = [self._asked(case, i) for i in range(len(case.batch))]
        return Scored({"spearman": torch.tensor([spearman(*one) for one in asked], dtype=torch.float64),
                       "pearson": torch.tensor([pearson(*one) for one in asked], dtype=torch.float64)})

    def _asked(self, case: Case, i: int) -> tuple[Tensor, Tensor]:
        """The map's sum over each set, and what the score loses: (samples,), float64."""
        sampler = Sampler(case.batch, i, [case.bound], self.value)
        labels = cells(sampler.x.shape[-2:], min(self.grid, *sampler.x.shape[-2:]))
        count = int(labels.max()) + 1
        hidden = min(max(1, round(self.subset * count)), count - 1) if count > 1 else 1
        places = torch.rand(self.samples, count, generator=case.batch.generator(i, self.name()), dtype=torch.float64)
        gone = places.argsort(1).argsort(1) < hidden
        paint = shown(sampler.x, filled(sampler, self.fill, self.name()), labels)
        scores = torch.cat([answer.scores[:, 0] for answer in sampler.ask([(~gone).float()], paint, self.samples)])
        sums = torch.zeros(count, dtype=torch.float64).index_add_(0, labels.flatten(), case.shown[i].flatten().double())
        return gone.double() @ sums, sampler.here[0] - scores


def cells(size: tuple[int, ...] | torch.Size, grid: int) -> Tensor:
    """(H, W) int64: the cell of each pixel, grid x grid of them, row by row."""
    rows, columns = (torch.arange(side) * grid // side for side in size)
    return rows[:, None] * grid + columns


def pearson(one: Tensor, two: Tensor) -> float:
    """The linear correlation of two tensors (m,), -1 to 1; NaN where one is constant up to rounding."""
    a, b = one - one.mean(), two - two.mean()
    flat = any(float(c.abs().max()) <= 1e-12 * float(d.abs().max()) for c, d in ((a, one), (b, two)))
    return math.nan if flat else float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())
