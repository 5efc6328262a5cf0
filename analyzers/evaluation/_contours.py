"""The boxes of the contours of a map at every threshold at once, from trees of its components.

{f > t} and {f <= t} of an 8-bit picture f change only where t passes a value of f. The tree of nested components (each
a node, alive over a range of thresholds) therefore holds what tracing the contours of 255 binary pictures would find.
Components touch at corners, holes at edges, and beyond the picture's border everything is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEVELS = 255  # thresholds 0 to 254; above 254 nothing is left
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Nodes:
    """Components of all thresholds: `low` <= t < `high` is where each is seen; box x0, y0, x1, y1, all inclusive;
    `first` grows with its first pixel in reading order; `weight` the sum of the weights of its pixels."""

    low: Ints
    high: Ints
    boxes: Ints
    first: Ints
    weight: Floats


def nodes(picture: npt.NDArray[np.uint8], corners: bool, weight: Floats | None = None) -> Nodes:
    """The components of {picture > t} for all t >= 0; the picture (H, W), corners: whether those connect."""
    from skimage.morphology import max_tree

    inside = np.pad(picture, 1)  # max_tree refuses pictures of one row
    tree: Any = max_tree
    parent, order = tree(inside, connectivity=2 if corners else 1)
    values, above = inside.ravel().astype(np.int64), np.asarray(parent, dtype=np.int64).ravel()
    root = int(order[0])
    chief = (values[above] != values) | (np.arange(values.size) == root)
    home = np.where(chief, np.arange(values.size), above)
    number = np.cumsum(chief) - 1
    own, kept = number[home], np.flatnonzero(chief)
    up, height = number[home[above[kept]]], values[kept]
    y, x = np.divmod(np.arange(values.size), inside.shape[1])
    least = [_least(own, what, len(kept)) for what in (x, y, -x, -y, np.arange(values.size))]
    total = np.bincount(own, None if weight is None else np.pad(weight, 1).ravel(), len(kept)).astype(np.float64)
    for level in np.unique(height)[:0:-1]:  # a node's parts all lie higher than it does
        here = np.flatnonzero((height == level) & (kept != root))
        for what in least:
            np.minimum.at(what, up[here], what[here])
        np.add.at(total, up[here], total[here])
    low = np.where(kept == root, 0, height[up])
    seen = height > low
    x0, y0, x1, y1 = least[0], least[1], -least[2], -least[3]
    return Nodes(low[seen], height[seen], np.stack([x0, y0, x1, y1], 1)[seen] - 1, least[4][seen], total[seen])


def _least(own: Ints, what: Ints, count: int) -> Ints:
    found = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(found, own, what)
    return found


def largest(picture: npt.NDArray[np.uint8]) -> Ints:
    """(255, 4) for each threshold the box x0, y0, x1, y1 (inclusive) of the outer contour of the largest area, of equal
    ones the one that begins last in reading order; -1 where nothing is above the threshold.

    The area of a contour is that of the polygon through its pixels' centres: of each 2 x 2 block of pixels, holes
    filled, half belongs to it where three are in it, and all where four are.
    """
    filled = _filled(picture)
    found = nodes(filled, True, _area(filled))
    boxes = np.full((LEVELS, 4), -1, dtype=np.int64)
    for k in np.lexsort((found.first, found.weight)):
        boxes[found.low[k] : found.high[k]] = found.boxes[k]
    return boxes


def outlines(picture: npt.NDArray[np.uint8]) -> Nodes:
    """All contours: around components and around holes, whose boxes reach one pixel further, onto their rim."""
    outer = nodes(picture, True)
    inner = nodes(255 - np.pad(picture, 1), False)  # {f <= t} is {255 - f > 254 - t}; padded, the outside touches all
    low, high = 255 - inner.high, 255 - inner.low
    height, width = picture.shape
    boxes = inner.boxes - 1
    hole = (boxes[:, 0] >= 0) & (boxes[:, 1] >= 0) & (boxes[:, 2] < width) & (boxes[:, 3] < height)
    rim = boxes[hole] + np.array([-1, -1, 1, 1])
    return Nodes(np.concatenate([outer.low, low[hole]]), np.concatenate([outer.high, high[hole]]),
                 np.concatenate([outer.boxes, rim]), np.concatenate([outer.first, inner.first[hole]]),
                 np.concatenate([outer.weight, inner.weight[hole]]))


def best(found: Nodes, values: Floats) -> Floats:
    """(255,) for each threshold the largest of the values of the nodes that are seen there; -1 where there are none."""
    top = np.full(LEVELS, -1.0)
    for k in np.argsort(values, kind="stable"):
        top[found.low[k] : found.high[k]] = values[k]
    return top


def _filled(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The picture with the holes of every threshold filled."""
    from skimage.morphology import reconstruction

    inside = np.pad(picture, 1)
    seed = np.full_like(inside, 255)
    seed[0] = seed[-1] = 0
    seed[:, 0] = seed[:, -1] = 0
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    rebuilt: Any = reconstruction
    whole = rebuilt(seed, inside, method="erosion", footprint=cross)
    return np.asarray(whole[1:-1, 1:-1]).astype(np.uint8)


def _area(picture: npt.NDArray[np.uint8]) -> Floats:
    """(H, W) weights: of each 2 x 2 block one half at its lowest pixel (seen with all four) and one at the next."""
    weight = np.zeros(picture.size)
    height, width = picture.shape
    if height < 2 or width < 2:
        return weight.reshape(picture.shape)
    index = np.arange(picture.size).reshape(picture.shape)
    corners = [index[i : height - 1 + i, j : width - 1 + j].ravel() for i in (0, 1) for j in (0, 1)]
    block = np.stack(corners, 1)
    rank = np.take_along_axis(block, np.argsort(picture.ravel()[block], axis=1, kind="stable"), 1)
    for place in (0, 1):
        weight += 0.5 * np.bincount(rank[:, place], minlength=picture.size)
    return weight.reshape(picture.shape)
