"""Integrated gradients: the gradient gathered on the way from a baseline to the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from analyzers.attribution._gradients import REDUCTIONS, as_map, completeness, gradients, wide
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.baselines import baseline, check_baseline
from xai.batch import Batch
from xai.model import Model
from xai.targets import Bound


@dataclass(frozen=True)
class IntegratedGradients(Attribution):
    """Integrated gradients: what each pixel adds on the way from a baseline to the picture.

    M = sum over channels of (x - b) * integral over a in [0, 1] of dS/dx at b + a (x - b), by Gauss-Legendre
    quadrature. The map adds up to S(x) - S(b); how far it misses stands beside it. Where the picture equals the
    baseline the map is 0: with the default, the paper's, black pixels get nothing. (captum's default is "zero", the
    mean colour.)

    Reads     one model, images
    Yields    one signed map an image, at the input's size, in units of the score, and its completeness gap
    Raises    XaiError if no gradient reaches the input, or the baseline is flat and the normalisation not known
    Cost      `steps` forwards and backwards, and one forward of the baseline
    Reference Sundararajan, Taly, Yan 2017, "Axiomatic attribution for deep networks", arXiv:1703.01365, eq. 1
    """

    baseline: str | float = param("black", "start of the way: black, zero (mean colour), grey, white, blur, or 0 to 1")
    steps: int = param(50, "points of the quadrature", low=1)
    reduce: str = param("sum", "what becomes of the channels: sum (signed), max_abs or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "images"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.name())

    def passes(self, model: Model) -> Passes:
        """One forward and backward a step, and the baseline's forward."""
        return Passes(forwards=self.steps + 1, backwards=self.steps)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size, signed unless reduce takes absolute values."""
        start = baseline(batch, self.baseline, self.name())
        way = batch.inputs - start
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        places, shares = (nodes + 1) / 2, weights / 2
        mean = torch.zeros_like(wide(way))
        for i, k, found in gradients(batch, target, lambda i, k: start[i] + float(places[k]) * way[i], self.steps):
            mean[i] += float(shares[k]) * found
        values = wide(way) * mean
        here, there = target(batch.output()), batch.score(start, target)
        return Maps(as_map(values, self.reduce, batch), panels=completeness(batch, values, here, there))
