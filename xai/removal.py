"""Pixels taken away or put back in the order of a map: what the score does, and what stands in their place."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xai.baselines import check_baseline
from xai.errors import error
from xai.sampler import Sampler
from xai.targets import Bound

OFFICIAL_BLUR, SIGMA = 11, 5.0  # RISE's: side of the kernel, and the standard deviation that it is cut from
NOISE = 0.01  # ROAD's: standard deviation of the noise on imputed pixels, in units of the input
NEIGHBOURS = tuple((dy, dx, 1 / 12 if dy and dx else 1 / 6) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)


def order(values: Tensor, generator: torch.Generator) -> Tensor:
    """(H * W,) int64: the pixels of a map (H, W) from the largest value to the least, what is no number last; equal
    ones in a random order of the generator."""
    flat = values.detach().flatten().cpu().double()
    flat = torch.where(torch.isnan(flat), -math.inf, flat)
    drawn = torch.randperm(len(flat), generator=generator)
    found = drawn[flat[drawn].argsort(descending=True, stable=True)]
    return found[torch.isnan(values.detach().flatten().cpu())[found].long().argsort(stable=True)]


def order_of_regions(values: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The pixels (H * W,) region by region, the region with the largest mean of the map (H, W) first, and the number of
    pixels (n,) in each region in that order; labels (H, W) int64, contiguous from 0."""
    flat = labels.flatten().cpu()
    sizes = flat.bincount()
    sums = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, flat, values.detach().flatten().cpu().double())
    first = order((sums / sizes)[None], generator)
    place = torch.empty_like(first)
    place[first] = torch.arange(len(first))
    return place[flat].argsort(stable=True), sizes[first]


def in_steps(pixels: int, step: int) -> tuple[int, ...]:
    """0, step, 2 step, ... pixels: how many are changed at each point of a curve; the last step may be smaller."""
    return *range(0, pixels, step), pixels


@dataclass(frozen=True)
class Course:
    """A way from one picture to another: with k pixels changed, the first k of `order` show `end`, the rest `start`.

    order (H * W,) int64; start, end (C, H, W); counts: the k that are asked about.
    """

    order: Tensor
    start: Tensor
    end: Tensor
    counts: tuple[int, ...]


def walked(sampler: Sampler, courses: Sequence[Course]) -> list[Tensor]:
    """The scores (len(counts), T) float64 on each course; all of them go through the network together.

    One forward for each count, except where the picture is as it was (`sampler.x`, 0 or all pixels changed): that score
    is known.
    """
    ranks = [_ranks(one.order, sampler.x) for one in courses]
    codes = torch.tensor([(p, k) for p, one in enumerate(courses) for k in one.counts if not _known(sampler, one, k)],
                         dtype=torch.int64).view(-1, 2)

    def paint(asked: Tensor, out: Tensor) -> None:
        first = 0
        for p, count in enumerate(asked[:, 0].bincount(minlength=len(courses)).tolist()):  # one course after the other
            rows = slice(first, first + count)
            changed = asked[rows, 1].to(sampler.x.device, torch.int32).view(-1, 1, 1, 1)
            torch.where(ranks[p] < changed, courses[p].end, courses[p].start, out=out[rows])
            first += count

    parts = [answer.scores for answer in sampler.ask([codes], paint, len(codes))] if len(codes) else []
    told = iter(torch.cat(parts) if parts else ())
    return [torch.stack([sampler.here if _known(sampler, one, k) else next(told) for k in one.counts])
            for one in courses]


def curves(sampler: Sampler, orders: Sequence[Tensor], fill: Tensor, counts: Sequence[int],
           insert: bool = False) -> list[Tensor]:
    """The scores (len(counts), T) as pixels are removed in each order: the first k of it show the fill (C, H, W), for k
    in counts. insert: they are put back instead, the picture shows in them and the fill elsewhere."""
    there = fill.to(sampler.x)
    start, end = (there, sampler.x) if insert else (sampler.x, there)
    return walked(sampler, [Course(one, start, end, tuple(counts)) for one in orders])


def area(scores: Tensor) -> Tensor:
    """The area under curves (..., k), by trapezoids of equal width that make 1 together."""
    return (scores[..., 1:] + scores[..., :-1]).mean(-1) / 2


def _known(sampler: Sampler, course: Course, count: int) -> bool:
    return (count == 0 and course.start is sampler.x) or (count == len(course.order) and course.end is sampler.x)


def _ranks(first: Tensor, x: Tensor) -> Tensor:
    """(H, W) int32 on the picture's device: when each pixel's turn comes."""
    ranks = torch.empty(len(first), dtype=torch.int32)
    ranks[first] = torch.arange(len(first), dtype=torch.int32)
    return ranks.view(x.shape[-2:]).to(x.device)


# --- further targets of one picture ---
def lead(classes: Tensor, i: int) -> Bound:
    """How far the class of picture i is ahead: its logit minus the largest of the others'."""
    c = int(classes[i])

    def score(output: Tensor) -> Tensor:
        others = output.clone()
        others[:, c] = -math.inf
        return output[:, c] - others.amax(1)

    return Bound(score, (f"lead of class {c}",) * len(classes))


def kept(classes: Tensor, i: int) -> Bound:
    """1 where the class of picture i is still the likeliest, else 0."""
    c = int(classes[i])
    return Bound(lambda output: (output.argmax(1) == c).to(output), (f"class {c} kept",) * len(classes))


# --- what stands in place of the pixels ---
def check_fill(which: str, name: str) -> None:
    """Raise XaiError for what `filled` does not know; name: that of the parameter's metric."""
    if which != "rise_blur":
        check_baseline(which, name)


def filled(sampler: Sampler, which: str, name: str) -> Tensor:
    """(C, H, W): "rise_blur", or one of `xai.baselines`: zero, black, grey, white, a level, blur."""
    return rise_blur(sampler.x) if which == "rise_blur" else sampler.baseline(which, name)


@functools.cache
def rise_kernel() -> np.ndarray[Any, np.dtype[np.float64]]:
    """(11, 11) float64, sums to 1: a point blurred by scipy's Gaussian of sigma 5, mirrored at the border of the 11
    pixels, which makes it nearly flat."""
    from scipy.ndimage import gaussian_filter

    point = np.zeros((OFFICIAL_BLUR, OFFICIAL_BLUR))
    point[OFFICIAL_BLUR // 2, OFFICIAL_BLUR // 2] = 1
    return np.asarray(gaussian_filter(point, SIGMA))


def rise_blur(x: Tensor) -> Tensor:
    """x (C, H, W) as the authors of RISE blur it: each channel by `rise_kernel`, zeros (after normalisation, the mean
    colour) beyond the border."""
    kernel = torch.from_numpy(rise_kernel()).to(x)[None, None]
    return F.conv2d(x[:, None], kernel, padding=OFFICIAL_BLUR // 2)[:, 0]


def imputed(x: Tensor, missing: Tensor, noise: float = NOISE, generator: torch.Generator | None = None) -> Tensor:
    """x (C, H, W) with its missing pixels (H, W) bool filled as ROAD does (Rong et al. 2022, section 5).

    Each missing pixel is the mean of its neighbours, those beside it counting 1/6 and the diagonal ones 1/12; those
    beyond the border do not count. All of them together are one sparse linear system. Then come Gaussian numbers of
    standard deviation `noise`, drawn from the generator for all pixels, whichever are missing (none without one). Where
    every pixel is missing the system has no solution: all show the mean of their channel. Raises XaiError for a mask of
    another shape.
    """
    if missing.shape != x.shape[-2:]:
        raise error("the mask of missing pixels", f"of shape {tuple(x.shape[-2:])}", tuple(missing.shape),
                    "Give one value a pixel")
    holes = missing.cpu().numpy().astype(bool)
    picture = x.detach().cpu().double().numpy()
    found = picture.copy()
    found[:, holes] = picture.mean((1, 2))[:, None] if holes.all() else _solved(picture, holes).T
    whole = torch.from_numpy(found)
    if noise and generator is not None:
        whole[:, missing.cpu()] += noise * torch.randn(x.shape, generator=generator).double()[:, missing.cpu()]
    return torch.where(missing.to(x.device), whole.to(x), x)


def _solved(picture: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """(holes, C): what the missing pixels of picture (C, H, W) show."""
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import splu

    ys, xs = np.nonzero(holes)
    if not len(ys):
        return np.zeros((0, len(picture)))
    number = np.full(holes.shape, -1)
    number[holes] = np.arange(len(ys))
    own_weight, right = np.zeros(len(ys)), np.zeros((len(ys), len(picture)))
    links: list[tuple[np.ndarray, np.ndarray, float]] = []
    for dy, dx, weight in NEIGHBOURS:
        v, u = ys + dy, xs + dx
        own = np.flatnonzero((v >= 0) & (v < holes.shape[0]) & (u >= 0) & (u < holes.shape[1]))
        v, u = v[own], u[own]
        own_weight[own] += weight
        other = number[v, u]
        seen = other < 0
        right[own[seen]] += weight * picture[:, v[seen], u[seen]].T
        links.append((own[~seen], other[~seen], weight))
    rows, columns = (np.concatenate([link[k] for link in links]) for k in (0, 1))
    weights = np.concatenate([np.full(len(link[0]), link[2]) for link in links])
    matrix = diags_array(own_weight) - coo_array((weights, (rows, columns)), shape=(len(ys), len(ys)))
    # symmetric and diagonally dominant: no pivoting, and an ordering for symmetric patterns
    factors = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return np.asarray(factors.solve(right))
