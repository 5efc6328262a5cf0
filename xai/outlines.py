"""Regions of a picture as (h, w) bool: run lengths and polygons of COCO, boxes, and how EXIF turns them.

Everywhere a pixel belongs to a region if its centre lies inside: column c has its centre at x = c + 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xai.errors import error

Mask = npt.NDArray[np.bool_]
EDGES = 1024  # of a polygon at once: what bounds the memory for one with very many
LONGEST = 12  # characters of one number in a compressed run: 60 bits

# EXIF orientation -> what the picture as shown is of the picture as stored (w, h: the stored size).
TURNS: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: a[::-1].T, 7: lambda a: a[::-1, ::-1].T, 8: lambda a: a[:, ::-1].T,
}  # fmt: skip


def turned_mask(mask: Mask, orientation: int) -> Mask:
    """A mask (h, w) of the stored pixels as the mask of the picture as shown: (h, w), or (w, h) from orientation 5."""
    return np.ascontiguousarray(TURNS[orientation](mask))


def turned_boxes(boxes: npt.NDArray[np.float32], orientation: int, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Boxes (k, 4) on the stored pixels of `size` (h, w) as boxes on the picture as shown."""
    h, w = size
    x, y = boxes[:, 0::2], boxes[:, 1::2]
    if orientation in (2, 3, 7, 8):
        x = w - x
    if orientation in (3, 4, 6, 7):
        y = h - y
    if orientation >= 5:
        x, y = y, x
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1).astype(np.float32)


def boxes_mask(boxes: npt.NDArray[Any], xs: npt.NDArray[Any], ys: npt.NDArray[Any]) -> Mask:
    """(len(ys), len(xs)): which points lie in one of the boxes (k, 4), left and upper edges belonging to them."""
    across = (boxes[:, 0, None] <= xs) & (xs < boxes[:, 2, None])  # (k, W)
    down = (boxes[:, 1, None] <= ys) & (ys < boxes[:, 3, None])  # (k, H)
    return np.asarray(down.T.astype(np.float32) @ across.astype(np.float32) > 0)


def box_mask(boxes: npt.NDArray[Any], size: tuple[int, int]) -> Mask:
    """The pixels of a picture of `size` (h, w) that lie in one of the boxes (k, 4)."""
    return boxes_mask(boxes, np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)


def segmentation_mask(value: Any, size: tuple[int, int], what: str) -> Mask:
    """COCO's `segmentation`: a list of polygons (their union), or run lengths {"counts", "size"}; for `size` (h, w).

    Source: the format's description at cocodataset.org. Raises XaiError; `what` names the object there.
    """
    if isinstance(value, list):
        mask = np.zeros(size, dtype=bool)
        for polygon in value:
            fill_polygon(mask, _points(polygon, what))
        return mask
    if not (isinstance(value, dict) and {"counts", "size"} <= value.keys()):
        raise error(f"The segmentation of {what}", "a list of polygons, or run lengths with `counts` and `size`",
                    short(value), "Export it again as COCO instances")
    if value["size"] != list(size):
        raise error(f"The segmentation of {what}", f"of the picture's size {list(size)} (h, w)", short(value["size"]),
                    "Export it again for these pictures")
    return run_mask(run_lengths(value["counts"], what), size, what)


def run_lengths(counts: Any, what: str) -> npt.NDArray[np.int64]:
    """COCO's `counts` as numbers: a list as it is; a string unpacked (6 bits a character, from "0": the lowest five a
    digit to base 32, the lowest digit first, the sixth set where more follow, the fifth of the last the sign; from
    the fourth number on each is the difference to that two places before)."""
    if isinstance(counts, list):
        if not all(type(c) is int and 0 <= c < 2**40 for c in counts):
            raise error(f"The run lengths of {what}", "whole numbers from 0", short(counts), "Export them again")
        return np.array(counts, dtype=np.int64)
    if not isinstance(counts, str):
        raise error(f"The run lengths of {what}", "a list or a string", short(counts), "Export them again")
    code = np.frombuffer(counts.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    last = (code & 32) == 0
    ends = np.flatnonzero(last)
    length = np.diff(ends, prepend=-1)
    if len(code) and (code.min() < 0 or code.max() > 63 or not last[-1] or length.max() > LONGEST):
        raise error(f"The run lengths of {what}", "a string as COCO packs it", short(counts), "Export them again")
    if not len(code):
        return np.zeros(0, dtype=np.int64)
    first = ends - length + 1
    place = np.arange(len(code)) - np.repeat(first, length)
    numbers = np.add.reduceat((code & 31) << (5 * place), first)
    numbers -= np.where(code[ends] & 16, np.int64(1) << (5 * length), 0)
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers


def run_mask(counts: npt.NDArray[np.int64], size: tuple[int, int], what: str) -> Mask:
    """Run lengths, first of zeros, then of ones, ..., down the columns one after the other, as (h, w)."""
    h, w = size
    # each by itself too: a sum of huge numbers may wrap round
    within = not len(counts) or (counts.min() >= 0 and counts.max() <= h * w)
    if not within or int(counts.sum()) != h * w:
        raise error(f"The run lengths of {what}", f"numbers from 0 with the sum {h * w} of the pixels {h} x {w}",
                    f"{len(counts)} with the sum {sum(counts.tolist())}", "Export them again for these pictures")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(w, h).T)


def fill_polygon(mask: Mask, points: npt.NDArray[np.float64]) -> None:
    """Set the pixels of `mask` (h, w) whose centres lie inside the closed polygon (n, 2) of x, y (even-odd rule).

    Each edge turns over all pixels to the right of where it crosses their row of centres; edges are taken half open,
    so that a corner is counted once.
    """
    h, w = mask.shape
    low, high = np.floor(points.min(0)), np.ceil(points.max(0))
    x0, y0 = (int(v) for v in np.clip(low, 0, (w, h)))
    x1, y1 = (int(v) for v in np.clip(high, 0, (w, h)))
    if x1 <= x0 or y1 <= y0:
        return
    flips = np.zeros((y1 - y0, x1 - x0 + 1), dtype=np.int32)
    after = np.roll(points, -1, axis=0)
    for part in range(0, len(points), EDGES):
        a, b = points[part : part + EDGES], after[part : part + EDGES]
        top, bottom = np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1])
        first, end = (np.clip(np.ceil(v - 0.5), y0, y1).astype(np.int64) for v in (top, bottom))
        count = end - first
        edge = np.repeat(np.arange(len(a)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        along = (row + 0.5 - a[edge, 1]) / (b[edge, 1] - a[edge, 1])
        cross = a[edge, 0] + along * (b[edge, 0] - a[edge, 0])
        column = np.clip(np.ceil(cross - 0.5), x0, x1).astype(np.int64)
        np.add.at(flips, (row - y0, column - x0), 1)
    mask[y0:y1, x0:x1] |= (np.cumsum(flips, axis=1)[:, :-1] & 1).astype(bool)


def _points(polygon: Any, what: str) -> npt.NDArray[np.float64]:
    """[x, y, x, y, ...] as (n, 2)."""
    good = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    if not (good and all(is_number(v) for v in polygon)):
        raise error(f"A polygon of {what}", "at least three pairs of finite numbers x, y in one list", short(polygon),
                    "Export it again, or leave the object out")
    return np.array(polygon, dtype=np.float64).reshape(-1, 2)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float that a coordinate may be (below 1e9), and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # false for NaN


def as_boxes(value: Any, what: str) -> npt.NDArray[np.float32]:
    """One box or several, x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, as (k, 4) float32. Raises XaiError."""
    do = "Give x0, y0, x1, y1 in pixels for each box"
    try:
        boxes = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):  # ragged, or no numbers
        raise error(what, "boxes of four numbers each", short(value), do) from None
    if boxes.shape not in ((4,), (0,)) and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise error(what, "boxes of four numbers each", f"an array of shape {boxes.shape}", do)
    boxes = boxes.reshape(-1, 4)
    wrong = ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1))
    if wrong.any():
        raise error(what, "finite with x0 <= x1 and y0 <= y1", boxes[wrong][0].tolist(), do)
    return boxes.astype(np.float32)


def joined_masks(masks: Sequence[Mask]) -> Mask:
    """The union of at least one mask (h, w)."""
    out = masks[0].copy()
    for mask in masks[1:]:
        out |= mask
    return out


def short(value: Any) -> str:
    """A value in at most 60 characters, for a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
