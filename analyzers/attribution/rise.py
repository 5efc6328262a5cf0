"""RISE: the mean of random masks, each weighed by the score of what it leaves to see."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from xai.analyzer import Passes, param
from xai.baselines import check_baseline
from xai.model import Model
from xai.panels import Axis, Curve, Number
from xai.perturbation import Found, Perturbation
from xai.sampler import VALUES, Sampler
from xai.statistics import spearman

LOOK = 56  # places a side at which the halves are compared
BLOCK = 256  # masks that are drawn at a time, whatever the chunk; after each comes a look at how well the halves agree


@dataclass(frozen=True)
class RISE(Perturbation):
    """RISE: where a random mask must leave the picture to see for the class to keep its score.

    S = 1 / (N p) sum_i (y_i - mean y) M_i, y_i the score of b + M_i (x - b); M_i a grid of cells that are 1 with
    probability p, enlarged bilinearly and shifted at random. estimator "paper" leaves the mean of y in, which adds to
    the map only how often each pixel was shown. By default each mask also shows the same number of cells, so that this
    number cannot move the score; what no score depends on then lies a constant below zero, which is no evidence against
    the class. The map is made from the even and from the odd masks too: when both halves together
    are expected to rank the pixels as another run would (Spearman's correlation r of the halves, 2 r / (1 + r) of the
    whole, as Spearman and Brown have it) up to `agree`, no more masks are asked. estimator "paper" asks all of them.

    Reads     one model, images
    Yields    one map an image, at the input's size, in units of the score, its standard error at every pixel, and how
              well its halves agree
    Raises    XaiError if the baseline is flat and the normalisation not known
    Cost      at most `samples` forwards, whatever the number of targets
    Reference Petsiuk, Das, Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
              arXiv:1806.07421, eq. 6 and section 3.2
    """

    samples: int = param(4000, "masks, at most", low=16)
    estimator: str = param("centred", "centred (and stratified), or paper", choices=("centred", "paper"))
    grid: int = param(7, "cells a side of a mask, at most the pixels of the input's short side", low=1)
    probability: float = param(0.5, "share of the cells that a mask shows", low=0.01, high=0.99)
    agree: float = param(0.95, "expected rank correlation with another run at which it stops; 1 = never", low=0, high=1)
    baseline: str = param("zero", "what is seen instead: zero (the mean colour), black, grey, white, a level, or blur")
    value: str = param("probability", "the score of a class: logit, probability or log_odds", choices=VALUES)

    upper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.name())

    def passes(self, model: Model) -> Passes:
        """One forward a mask."""
        return Passes(forwards=self.samples)

    def least(self, model: Model) -> float:
        """The masks before the first look at the halves."""
        return self.samples if self.estimator == "paper" or self.agree >= 1 else min(self.samples, BLOCK)

    def picture(self, sampler: Sampler) -> list[Found]:
        """(H, W) at the input's size for each target."""
        grid = min(self.grid, *sampler.x.shape[-2:])
        masks = Masks(sampler.x, grid, sampler.baseline(self.baseline, self.name()))
        moments: _Moments | None = None
        done, found = 0, dict[int, Found]()
        looks: list[list[tuple[int, float]]] = [[] for _ in sampler.owners]
        stops = self.estimator != "paper" and self.agree < 1
        for answer in sampler.ask(self._blocks(sampler, grid), masks.paint, self.samples):
            moments = moments or _Moments(answer.scores.mean(0), self.probability, answer.made)
            moments.add(answer.made, answer.scores, done)
            done += len(answer.codes)
            if done % BLOCK and done < self.samples:
                continue
            moments.gather()
            for t in (t for t in range(len(looks)) if t not in found):
                looks[t].append((done, self._agreement(moments, t)))
            settled = [t for t, look in enumerate(looks) if stops and look[-1][1] >= self.agree]
            for t, owner in enumerate(sampler.owners):
                if t not in found and (owner in settled or done >= self.samples):
                    found[t] = self._found(sampler, moments, t, looks[t])
            if len(found) == len(looks):
                break
        return [found[t] for t in range(len(looks))]

    def _blocks(self, sampler: Sampler, grid: int) -> Iterator[Tensor]:
        """Cells and shifts (k, grid^2 + 2) of each mask, drawn in blocks of one size, so that fewer masks are the first
        of more; cut where a look at the halves is due."""
        generator, cells = sampler.generator(self.name()), grid**2
        for first in range(0, self.samples, BLOCK):
            places = torch.rand(BLOCK, cells, generator=generator)
            shifts = torch.rand(BLOCK, 2, generator=generator)
            if self.estimator == "paper":
                on = places < self.probability
            else:
                count = cells * self.probability
                more = torch.rand(BLOCK, 1, generator=generator) < count - math.floor(count)
                on = places.argsort(1).argsort(1) < math.floor(count) + more.long()
            yield torch.cat([on.float(), shifts], 1)[: self.samples - first]

    def _agreement(self, moments: _Moments, t: int) -> float:
        """The expected rank correlation of the whole with another run of as many masks; masks are smooth, so a coarse
        grid of places tells it."""
        coarse = [F.adaptive_avg_pool2d(moments.estimate(t, half, self.estimator == "centred")[None, None], LOOK)
                  for half in (0, 1)]
        r = spearman(*coarse)
        return 2 * r / (1 + r) if r > 0 else r

    def _found(self, sampler: Sampler, moments: _Moments, t: int, looks: list[tuple[int, float]]) -> Found:
        centred = self.estimator == "centred"
        count, last = looks[-1]
        title = "Expected rank correlation with another run"
        said = f"{count} of at most {self.samples} masks; from how well the maps of its even and odd masks agree."
        panels: list[Any] = [Number(key="agreement", title=title, picture=sampler.picture, note=said,
                                   value=None if math.isnan(last) else last)]
        if len(looks) > 1:
            panels.append(Curve(key="agreement_curve", title="Agreement against masks", picture=sampler.picture,
                                x=torch.tensor([float(n) for n, _ in looks]).numpy(),
                                y=torch.tensor([[a for _, a in looks]]).numpy(), names=("agreement",),
                                axes=(Axis("masks"), Axis("expected rank correlation"))))
        return Found(moments.estimate(t, None, centred) / self.probability,
                     moments.error(t, centred) / self.probability, tuple(panels))


class Masks:
    """Turns codes into masks (m, H, W) in [0, 1], 1 = shown, and into what the network sees.

    The grid is enlarged to (grid + 1) cells a side, bilinearly and mirrored at its border, and a window of the input's
    size is cut out at the mask's own shift, less than a cell: two small matrix products a mask.
    """

    def __init__(self, x: Tensor, grid: int, fill: Tensor) -> None:
        self.grid, self.shape = grid, (int(x.shape[-2]), int(x.shape[-1]))
        self._ways = [_windows(size, grid).to(x) for size in self.shape]
        self._fill, self._gap = fill.to(x), x - fill.to(x)

    def __call__(self, codes: Tensor) -> Tensor:
        """(m, H, W) for codes (m, grid^2 + 2): the cells, and two shifts in [0, 1) of a cell."""
        codes = codes.to(self._gap)
        cells = codes[:, :-2].view(-1, self.grid, self.grid)
        rows, columns = (way[(codes[:, k - 2] * len(way)).long().clamp_max(len(way) - 1)]
                         for k, way in enumerate(self._ways))
        return rows @ cells @ columns.mT

    def paint(self, codes: Tensor, out: Tensor) -> Tensor:
        """b + M (x - b) into out (m, C, H, W); gives M."""
        masks = self(codes)
        torch.addcmul(self._fill, masks[:, None], self._gap, out=out)
        return masks


def _windows(size: int, grid: int) -> Tensor:
    """(cell, size, grid) float64: for each shift, how much each of the grid's cells counts at each of `size` pixels."""
    cell = -(-size // grid)
    up = (grid + 1) * cell
    place = (torch.arange(up, dtype=torch.float64) + 0.5) * grid / up - 0.5
    place = (grid - 1 - (grid - 1 - place.abs()).abs()).abs() if grid > 1 else place * 0  # mirrored at both ends
    whole = (1 - (place[:, None] - torch.arange(grid, dtype=torch.float64)).abs()).clamp_min(0)
    return torch.stack([whole[shift : shift + size] for shift in range(cell)])


class _Moments:
    """Moments of u = y - level and v = M - p, y the scores of each target and M the masks: near their means, so that
    single precision is enough for the sums of a block, which `gather` adds to those of all. Apart for the even and the
    odd masks where the halves need them."""

    def __init__(self, levels: Tensor, probability: float, masks: Tensor) -> None:
        self.levels, self.probability, self.targets = levels, probability, len(levels)
        self._shape = masks.shape[1:]
        self.count = torch.zeros(2, dtype=torch.float64)
        self.scores = torch.zeros(2, 2, self.targets, dtype=torch.float64)  # by half: sum u, sum u^2
        # rows over the pixels: v even, v odd, and for each target uv even, uv odd, u^2 v; below v^2, u v^2, u^2 v^2
        wide = torch.promote_types(masks.dtype, torch.float32)  # half precision is too coarse for sums
        self._block = [torch.zeros(rows, masks[0].numel(), device=masks.device, dtype=wide)
                       for rows in (2 + 3 * self.targets, 1 + 2 * self.targets)]
        self._all = [torch.zeros(part.shape, dtype=torch.float64) for part in self._block]

    def add(self, masks: Tensor, scores: Tensor, first: int) -> None:
        """Add masks (m, H, W), the `first`-th and on, with their scores (m, T): two products of small matrices."""
        odd = (torch.arange(first, first + len(masks)) % 2).double()
        halves, u = torch.stack([1 - odd, odd]), (scores - self.levels).T
        self.count += halves.sum(1)
        self.scores += torch.stack([halves @ u.T, halves @ u.T**2], 1)
        rows = torch.cat([halves, *(torch.cat([halves * own, own[None] ** 2]) for own in u)])
        squares = torch.cat([torch.ones_like(u[:1]), *(torch.stack([own, own**2]) for own in u)])
        flat = masks.flatten(1).to(self._block[0].dtype) - self.probability
        self._block[0].addmm_(rows.to(flat), flat)
        self._block[1].addmm_(squares.to(flat), flat.square_())

    def gather(self) -> None:
        """Add what came since the last time to the sums of all, in double precision."""
        for part, whole in zip(self._block, self._all, strict=True):
            whole += part.cpu()
            part.zero_()

    def _masks(self, *rows: int) -> Tensor:
        return self._all[0][list(rows)].view(-1, *self._shape)

    def estimate(self, t: int, half: int | None, centred: bool) -> Tensor:
        """mean((y - mean y) M), or mean(y M), of one half or of all; (H, W)."""
        halves = [0, 1] if half is None else [half]
        n, u = self.count[halves].sum(), self.scores[halves, 0, t].sum()
        v = self._masks(*halves).sum(0) / n
        uv = self._masks(*(2 + 3 * t + h for h in halves)).sum(0) / n
        u = u / n
        return uv - u * v if centred else uv + self.probability * u + self.levels[t] * (v + self.probability)

    def error(self, t: int, centred: bool) -> Tensor:
        """The standard error of the estimate, (H, W): of a covariance (to first order), or of a mean."""
        n = self.count.sum()
        u, u2 = self.scores[:, :, t].sum(0) / n
        v, u2v = self._masks(0, 1).sum(0) / n, self._masks(4 + 3 * t)[0] / n
        uv = self._masks(2 + 3 * t, 3 + 3 * t).sum(0) / n
        v2, uv2, u2v2 = self._all[1][[0, 1 + 2 * t, 2 + 2 * t]].view(3, *self._shape) / n
        # E (u + a)^2 (v + b)^2, multiplied out; a and b make them centred, or y and M again
        a, b = (-u, -v) if centred else (self.levels[t], torch.tensor(self.probability).double())
        spread = u2v2 + 2 * b * u2v + b**2 * u2 + a**2 * (v2 + 2 * b * v + b**2)
        spread = spread + 2 * a * (uv2 + 2 * b * uv + b**2 * u)
        found: Tensor = ((spread - self.estimate(t, None, centred) ** 2).clamp_min(0) / n).sqrt()
        return found
