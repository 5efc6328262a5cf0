"""Sobol attribution: how much of the score's variance each cell of the picture has a part in."""

from __future__ import annotations

import math
from collections.abc import Iterator
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

BLOCK = 256  # points that are made ready at a time


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
        most = math.isqrt(torch.quasirandom.SobolEngine.MAXDIM // 2)
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
        paint = shown(sampler.x, sampler.baseline(self.baseline, self.name()), labels)
        scores = torch.cat([answer.scores for answer in sampler.ask(self._designs(sampler, grid**2), paint,
                                                                      self.samples * (grid**2 + 2))])
        a, b, *c = scores.view(-1, self.samples, scores.shape[1])
        variance = torch.cat([a, b]).var(0, unbiased=False)
        halves = (torch.stack(c) - a).square() / 2  # (cells, samples, T)
        scale = torch.where(variance == 0, 1, variance)  # not 0 where a score is no number: the map says so
        total = torch.where(variance == 0, 0, halves.mean(1) / scale)
        spread = torch.where(variance == 0, 0, halves.std(1) / self.samples**0.5 / scale)
        return [self._found(sampler, own.view(grid, grid), error.view(grid, grid))
                for own, error in zip(total.T, spread.T, strict=True)]

    def _designs(self, sampler: Sampler, count: int) -> Iterator[Tensor]:
        """A and B, then A with each column in turn from B: (samples, cells) each, some at a time."""
        seed = int(torch.randint(2**31, (), generator=sampler.generator(self.name())))
        engine = torch.quasirandom.SobolEngine(2 * count, scramble=True, seed=seed)  # type: ignore[no-untyped-call]  # torch's own gap
        a, b = engine.draw(self.samples).chunk(2, 1)
        yield torch.cat([a, b])
        for columns in torch.split(torch.arange(count), max(1, BLOCK // self.samples)):
            mixed = a.repeat(len(columns), 1, 1)
            for own, i in zip(mixed, columns.tolist(), strict=True):
                own[:, i] = b[:, i]
            yield mixed.flatten(0, 1)

    def _found(self, sampler: Sampler, total: Tensor, spread: Tensor) -> Found:
        said = "1 where every cell acts alone; more, where cells act together."
        number = Number(key="sum", title="Sum of the total indices", picture=sampler.picture, note=said,
                        value=float(total.sum()))
        return Found(total, spread, (number,))
