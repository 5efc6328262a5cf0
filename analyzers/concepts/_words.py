"""Segments of many pictures as vectors, and groups of them that the model answers alike: visual words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAME = 1e-9  # unit vectors whose cosine is this near to 1 are one point
ROUNDS = 100  # of k-means, where it has not come to rest before
AT_ONCE = 32  # segments whose masks are held at a time


def raster(labels: Tensor) -> Tensor:
    """The same segments of labels (H, W), numbered in the order of their first pixels, row by row: so that nothing
    that is drawn for them, or grouped in their order, depends on how they were numbered."""
    flat = labels.flatten()
    place = torch.arange(len(flat))
    first = torch.full((int(flat.max()) + 1,), len(flat)).scatter_reduce_(0, flat, place, "amin")
    return first.argsort().argsort()[flat].view_as(labels)


def pooled(features: Tensor, labels: Tensor) -> Tensor:
    """(n, K) float64 on the CPU: the mean of features (K, h, w) over each segment of labels (H, W).

    Each cell of the grid counts by the area of the segment that lies in it, borders within a cell included: the same
    as the mean over the segment's pixels of the map with every cell spread over its own pixels.
    """
    values = features.detach().cpu().double()
    rows, columns = (overlap(cells, pixels) for cells, pixels in zip(values.shape[1:], labels.shape, strict=True))
    parts, n = [], int(labels.max()) + 1
    for first in range(0, n, AT_ONCE):
        ids = torch.arange(first, min(first + AT_ONCE, n))
        mask = (labels == ids[:, None, None]).double()
        area = (rows @ mask @ columns.T).flatten(1)
        parts.append(area @ values.flatten(1).T / area.sum(1, keepdim=True))
    return torch.cat(parts)


def overlap(cells: int, pixels: int) -> Tensor:
    """(cells, pixels) float64: how much of each pixel lies in each of as many equal cells; a column adds up to 1."""
    edge = torch.arange(cells + 1, dtype=torch.float64) * pixels / cells
    start = torch.arange(pixels, dtype=torch.float64)
    ends = torch.minimum(edge[1:, None], start + 1) - torch.maximum(edge[:-1, None], start)
    return ends.clamp_min(0)


def unit(vectors: Tensor) -> Tensor:
    """vectors (P, K) of length 1; one of length 0 stays as it is."""
    length = vectors.norm(dim=1, keepdim=True)
    return torch.where(length > 0, vectors / length, vectors)


@dataclass(frozen=True)
class Words:
    """Groups of unit vectors: `centres` (k, K) of length 1; `of` (P,): each vector's group; `likeness` (P,): its cosine
    to its own centre, `other` (P,): to the nearest other one (-1 where there is none)."""

    centres: Tensor
    of: Tensor
    likeness: Tensor
    other: Tensor


def group(vectors: Tensor, count: int, generator: torch.Generator, restarts: int = 10) -> Words:
    """Spherical k-means: the best of `restarts` runs of it on vectors (P, K) at length 1, P at least 1, in float64.

    max over groups and centres of sum_i cos(v_i, c(i)); a centre is the mean of its group at length 1. Starts are drawn
    as k-means++ does, with 1 - cos for the squared distance. Fewer than `count` groups come where there are fewer
    distinct vectors. The draws depend on the order of the vectors, on nothing else.
    Source: Dhillon and Modha 2001, doi:10.1023/A:1007612920971; Arthur and Vassilvitskii 2007, "k-means++".
    """
    points, best, most = unit(vectors.double()), None, -torch.inf
    for _ in range(restarts):
        found = _settled(points, _starts(points, count, generator))
        told = float(found.likeness.sum())
        if told > most + SAME * len(points):  # of runs that are equal but for rounding the first
            best, most = found, told
    assert best is not None
    return best


def _starts(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    far = (1 - points @ points[chosen[0]]).clamp_min(0)
    while len(chosen) < count:
        far = torch.where(far > SAME, far, 0)
        total = far.cumsum(0)
        drawn = torch.rand(1, generator=generator, dtype=torch.float64)
        if float(total[-1]) <= 0:
            break
        # right: a point without distance is never drawn, not even by a zero; the last edge is only reached by rounding
        chosen.append(min(int(torch.searchsorted(total, drawn * total[-1], right=True)), int(far.nonzero()[-1])))
        far = torch.minimum(far, (1 - points @ points[chosen[-1]]).clamp_min(0))
    return points[chosen]


def _settled(points: Tensor, centres: Tensor) -> Words:
    """k-means from these centres until no point changes its group; a group that lost all its points takes the point
    that is least like its own centre."""
    of = torch.full((len(points),), -1)
    for _ in range(ROUNDS):
        cosine = points @ centres.T
        likeness, now = cosine.max(1)
        lonely = [j for j, size in enumerate(now.bincount(minlength=len(centres)).tolist()) if not size]
        for j, i in zip(lonely, likeness.argsort(stable=True).tolist(), strict=False):
            now[i] = j
        if torch.equal(now, of):
            break
        of = now
        centres = unit(torch.zeros_like(centres).index_add_(0, of, points))
    cosine = points @ centres.T
    own = cosine.gather(1, of[:, None])[:, 0]
    rest = cosine.scatter(1, of[:, None], -1.0).amax(1)
    return Words(centres, of, own, rest)
