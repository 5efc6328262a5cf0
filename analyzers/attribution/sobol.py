"""Sobol attribution: how much of the score's variance each cell of the picture has a part in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.attribution._cells import cells, side
from xai.analyzer import Passes, param
from xai.baselines import check_baseline
from xai.errors import error
from xai.model import Model
from xai.panels import Number, View
from xai.perturbation import Found, Perturbation
from xai.sampler import VALUES, Sampler, shown
from xai.sobol_indices import MOST, designs, jansen


@dataclass(frozen=True)
class Sobol(Perturbation):
    """Sobol: the share of the score's variance that a cell has a part in, alone and together with others.

    S_i = sum_k (f(A_k) - f(C_ik))^2 / (2 n Var f), Jansen's estimator of the total index of cell i. A and B are two
    designs of n points in [0, 1]^cells, cut from one scrambled Sobol sequence; C_i is A with the column of cell i taken
    from B; f(z) is the score of b + z (x - b), z spread over the pixels of the cells. Var f is that of f(A) and f(B)
    together. Never negative: it says that a cell matters, not for or against what. The error is that of independent
    points, which a Sobol sequence as a rule stays below.

    Reads     one model, images
    Yields    one map an image, one value a cell, a share of the variance (they add up to more than 1 where cells act
              together), and the standard error of each; the sum of them
    Raises    XaiError if `samples` is no power of two, or the baseline is flat and the normalisation not known
    Cost      samples * (cells + 2) forwards, whatever the number of targets
    Reference Fel, Cadene, Chalvidal, Cord, Vigouroux, Serre 2021, "Look at the Variance! Efficient Black-box
              Explanations with Sobol-based Sensitivity Analysis", arXiv:2111.04138, section 3; the estimator: Jansen
              1999, doi:10.1016/S0010-4655(98)00154-4
    """

    samples: int = param(32, "points of each design, a power of two", low=16)
    grid: int = param(8, "cells a side of the picture (of a smaller one: its pixels)", low=2)
    baseline: str = param("zero", "what is seen instead: zero (the mean colour), black, grey, white, a level, or blur")
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)

    view: ClassVar[View] = "abs"
    effort: ClassVar[tuple[str, ...]] = ("samples", "grid")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.name())
        most = math.isqrt(MOST)
        if self.grid > most:
            raise error("sobol.grid", f"at most {most}, the longest Sobol sequence", self.grid, "Take fewer")
        if self.samples & (self.samples - 1):
            raise error("sobol.samples", "a power of two", self.samples, "A Sobol sequence is even only then; take 32")

    def passes(self, model: Model) -> Passes:
        """One forward a point of A, of B and of A with a column from B."""
        return Passes(forwards=self.samples * (side(self.grid, model.preprocessing.size) ** 2 + 2))

    def picture(self, sampler: Sampler) -> list[Found]:
        """(grid, grid) for each target."""
        grid = side(self.grid, sampler.x.shape[-2:])
        labels = cells(sampler.x, grid)
        seed = int(torch.randint(2**31, (), generator=sampler.generator(self.name())))
        paint = shown(sampler.x, sampler.baseline(self.baseline, self.name()), labels)
        scores = torch.cat([answer.scores for answer in sampler.ask(designs(grid**2, self.samples, seed), paint,
                                                                      self.samples * (grid**2 + 2))])
        total, spread, _ = jansen(scores, self.samples)
        return [self._found(sampler, own.view(grid, grid), error.view(grid, grid))
                for own, error in zip(total.T, spread.T, strict=True)]

    def _found(self, sampler: Sampler, total: Tensor, spread: Tensor) -> Found:
        said = "1 where every cell acts alone; more, where cells act together."
        number = Number(key="sum", title="Sum of the total indices", picture=sampler.picture, note=said,
                        value=float(total.sum()))
        return Found(total, spread, (number,))
