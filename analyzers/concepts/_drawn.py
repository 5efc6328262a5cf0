"""Pictures that are kept small until a few of them are drawn: with words outlined, or cut out side by side."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as Pil
from PIL import ImageDraw, ImageFont

from xai.panels import Mark
from xai.segments import lined, outlines

Array = np.ndarray[Any, np.dtype[Any]]
KEPT = 320  # pixels of the longer side that are kept of a picture at most
LEAST = 192  # pixels of the shorter side that a picture is drawn with at least
CRUMB = 500  # a part that covers less than this part of the picture bears no name
TILE, GAP, GREY = 72, 6, 128  # of a strip: pixels of a cut-out and between two, the level around them
FADED = 0.35  # of a cut-out's own level outside its segment


@dataclass(frozen=True)
class Packed:
    """An array, compressed without loss: a label map shrinks to a few kilobytes."""

    data: bytes
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, values: Array) -> Packed:
        """`values` (h, w, ...), of the longer side every second, third, ... pixel where it is more than 320."""
        step = -(-max(values.shape[:2]) // KEPT)
        small = np.ascontiguousarray(values[::step, ::step])
        return cls(zlib.compress(small.tobytes(), 1), small.shape, small.dtype.str)

    def array(self) -> Array:
        """The pixels or labels."""
        return np.frombuffer(zlib.decompress(self.data), self.dtype).reshape(self.shape)


def numbered(seen: Array, labels: Array, words: Sequence[tuple[str, Sequence[int]]]) -> tuple[Array, tuple[Mark, ...]]:
    """What is shown of seen (h, w, 3) uint8 with labels (h, w), and its marks: each of the words (its name, the ids of
    its segments) outlined, with its name on each part but crumbs. Small pictures are drawn larger, pixel by pixel."""
    from scipy import ndimage

    scale = -(-LEAST // min(seen.shape[:2]))
    tensor = torch.from_numpy(labels.astype(np.int64))
    large = lined(seen, tensor).repeat(scale, 0).repeat(scale, 1)
    sheet = Pil.fromarray(large)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(max(13, min(large.shape[:2]) // 16))
    marks = []
    for name, ids in words:
        inside = np.isin(labels, list(ids))
        marks += [Mark("outline", tuple((x * scale, y * scale) for x, y in polygon), f"word {name}")
                  for polygon in outlines(torch.from_numpy(inside))]
        places, count = ndimage.label(inside)
        for part in (places == i for i in range(1, count + 1)):
            if part.sum() * CRUMB >= part.size:
                y, x = _middle(part)
                pen.text(((x + 0.5) * scale, (y + 0.5) * scale), name, (255, 255, 255), font, anchor="mm",
                         stroke_width=2, stroke_fill=(0, 0, 0))
    return np.asarray(sheet), tuple(marks)


def _middle(mask: Array) -> tuple[int, int]:
    """The pixel (y, x) of the mask that is nearest to its centre of mass."""
    places = np.argwhere(mask)
    y, x = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
    return int(y), int(x)


def strip(cuts: Sequence[tuple[Array, Array]], count: int) -> Array:
    """(h, w, 3) uint8: segments side by side, each from a picture seen (h, w, 3) and its mask (h, w) bool, in square
    surroundings, which are faded; room for `count` of them."""
    sheet = np.full((TILE, count * (TILE + GAP) - GAP, 3), GREY, dtype=np.uint8)
    for i, (seen, mask) in enumerate(cuts[:count]):
        ys, xs = np.nonzero(mask)
        side = min(max(np.ptp(ys), np.ptp(xs)) * 5 // 4 + 3, *mask.shape)
        top, left = (int(np.clip((v.min() + v.max() + 1 - side) // 2, 0, size - side))
                     for v, size in zip((ys, xs), mask.shape, strict=True))
        here = (slice(top, top + side), slice(left, left + side))
        faded = GREY + FADED * (seen[here].astype(float) - GREY)
        cut = np.where(mask[here][..., None], seen[here], faded.round()).astype(np.uint8)
        tile = Pil.fromarray(cut).resize((TILE, TILE), Pil.Resampling.BILINEAR)
        sheet[:, i * (TILE + GAP) : i * (TILE + GAP) + TILE] = np.asarray(tile)
    return sheet
