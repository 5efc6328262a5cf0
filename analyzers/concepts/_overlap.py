"""Where upsampled activations exceed their thresholds, and how much of that each concept covers: exact, and fast.

The bilinear surface (align_corners=False) within a cell between grid centres is no higher than the cell's corners, so
only cells with a corner above the threshold are interpolated: a few in a hundred. What exceeds the threshold is kept as
bits, and so is every concept that a cell shows; the overlap is an AND and a count of bits. Some neighbouring cells
make a tile of about 16 pixels a side, so that fine grids do not fall apart into cells of a pixel.

Interpolation is in float32 with another order of sums than torch's: a pixel whose value lies within a few units in the
last place of the threshold may fall to the other side of it. All counts are whole numbers and exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from xai.concept_maps import NONE, ConceptMaps

Array = np.ndarray
TILE = 16  # pixels a side of a tile, about
SLICE = 8192  # tiles that are interpolated at once
JOIN = 400_000  # pairs of a unit's tile and a concept's that are compared at once


@dataclass(frozen=True)
class Side:
    """One axis: `source` (tiles, b) the grid's places that a tile's pixels lie between (the last repeated where there
    are fewer), `weight` (tiles, m, b) float32 how much each counts, `pixel` (tiles, m) with -1 beyond a tile's own."""

    source: Array
    weight: Array
    pixel: Array


@dataclass(frozen=True)
class Tiling:
    """The tiles of maps of grid (gh, gw) upsampled to size (h, w)."""

    grid: tuple[int, int]
    size: tuple[int, int]
    y: Side
    x: Side

    @property
    def tiles(self) -> int:
        """How many."""
        return len(self.y.source) * len(self.x.source)

    @property
    def words(self) -> int:
        """64-bit words that hold a tile's pixels."""
        return int(-(-self.y.pixel.shape[1] * self.x.pixel.shape[1] // 64))


@lru_cache(maxsize=32)
def tiling(grid: tuple[int, int], size: tuple[int, int]) -> Tiling:
    """How to cut maps of that grid and size into tiles."""
    return Tiling(grid, size, _side(grid[0], size[0]), _side(grid[1], size[1]))


def _side(grid: int, size: int) -> Side:
    place = (np.arange(size) + 0.5) * grid / size - 0.5
    low = np.floor(place.clip(0)).astype(np.int64)
    share = place.clip(0) - low
    high = np.minimum(low + 1, grid - 1)
    tile = (np.floor(place).astype(np.int64) + 1) // max(1, round(TILE * grid / size))
    groups = [np.flatnonzero(tile == t) for t in np.unique(tile)]
    used = [np.unique(np.concatenate([low[p], high[p][(share[p] > 0) & (high[p] > low[p])]])) for p in groups]
    most, wide = max(map(len, groups)), max(map(len, used))
    source, pixel = np.zeros((len(groups), wide), np.int64), np.full((len(groups), most), -1)
    weight = np.zeros((len(groups), most, wide), np.float32)
    for t, (pixels, sources) in enumerate(zip(groups, used, strict=True)):
        source[t] = np.pad(sources, (0, wide - len(sources)), mode="edge")
        pixel[t, : len(pixels)] = pixels
        rows = np.arange(len(pixels))
        np.add.at(weight[t], (rows, np.searchsorted(sources, low[pixels])), 1 - share[pixels])
        blended = share[pixels] > 0
        to = np.searchsorted(sources, np.where(high[pixels] > low[pixels], high[pixels], low[pixels]))
        np.add.at(weight[t], (rows[blended], to[blended]), share[pixels][blended])
    return Side(source, weight, pixel)


# --- concepts ---
@dataclass(frozen=True)
class Packed:
    """The concepts of one picture, tile by tile: `first` (tiles + 1,) where each tile's entries begin; of each entry
    the `concept` and its pixels as `bits` (words, entries) uint64. `area` (concepts,) pixels of each; `whole`: numbers
    of those that are true of the picture; `looked` (categories,) bool: for which it was annotated."""

    first: Array
    concept: Array
    bits: Array
    area: Array
    whole: Array
    looked: Array


def pack(maps: ConceptMaps, planes: Array, tiles: Tiling, numbers: dict[tuple[str, str], int],
         categories: Sequence[str]) -> Packed:
    """Concept maps, whose planes (p, h, w) were brought to the tiling's size, under the numbers of a whole data set."""
    to = np.array([*(numbers[one] for one in maps.concepts), NONE], dtype=np.int64)  # the last is that of "none"
    labels = np.pad(to[planes], ((0, 0), (0, 1), (0, 1)), constant_values=NONE)  # pixel -1 is one beyond
    ys, xs = tiles.y.pixel, tiles.x.pixel
    cut = labels[:, ys[:, None, :, None], xs[None, :, None, :]]
    cut = cut.reshape(len(labels), tiles.tiles, ys.shape[1] * xs.shape[1])
    plane, tile, pixel = np.nonzero(cut != NONE)
    key = tile * len(numbers) + cut[plane, tile, pixel]
    shown = np.zeros(tiles.tiles * len(numbers), bool)
    shown[key] = True
    entry = np.cumsum(shown) - 1
    mask = np.zeros((int(shown.sum()), 64 * tiles.words), bool)
    mask[entry[key], pixel] = True
    which = np.flatnonzero(shown)
    whole = np.unique(to[list(maps.whole)]) if maps.whole else np.zeros(0, np.int64)
    area = np.bincount(which % len(numbers), mask.sum(1), minlength=len(numbers)).astype(np.int64)
    area[whole] = planes.shape[1] * planes.shape[2]
    return Packed(np.searchsorted(which // len(numbers), np.arange(tiles.tiles + 1)), which % len(numbers), _bits(mask),
                  area, whole, np.isin(list(categories), maps.categories))


def _bits(mask: Array) -> Array:
    """(m, 64 * words) bool as (words, m) uint64."""
    return np.ascontiguousarray(np.packbits(mask, axis=1).view(np.uint64).T)


# --- units ---
@dataclass(frozen=True)
class Active:
    """Tiles in which a unit exceeds its threshold: of each the picture, the unit, the tile and the pixels as `bits`
    (words, m) uint64."""

    picture: Array
    unit: Array
    tile: Array
    bits: Array

    def areas(self, pictures: int, units: int) -> Array:
        """(pictures, units) int64: pixels of each mask."""
        flat = np.bincount(self.picture * units + self.unit, _count(self.bits), minlength=pictures * units)
        return flat.reshape(pictures, units).astype(np.int64)


def active(maps: Array, thresholds: Array, tiles: Tiling) -> Active:
    """Of activations (n, units, gh, gw) float32, upsampled bilinearly to the tiling's size, what is strictly above
    thresholds (units,). Memory: that of a few tiles in a hundred."""
    maps = np.ascontiguousarray(maps)
    rows = _largest(maps, tiles.y.source, 2)
    corners = _largest(rows, tiles.x.source, 3)
    n, units = maps.shape[:2]
    hot = corners > thresholds[:, None, None]
    tile, flat = np.nonzero(hot.reshape(n * units, -1).T)
    picture, unit = flat // units, flat % units
    ends = np.searchsorted(tile, np.arange(tiles.tiles + 1))
    bits = np.empty((tiles.words, len(tile)), np.uint64)
    for t in range(tiles.tiles):
        for first in range(ends[t], ends[t + 1], SLICE):
            here = slice(first, min(first + SLICE, ends[t + 1]))
            bits[:, here] = _exceeds(maps, picture[here], unit[here], thresholds, tiles, t)
    keep = bits.any(0)
    return Active(picture[keep], unit[keep], tile[keep], bits[:, keep])


def _largest(maps: Array, source: Array, axis: int) -> Array:
    """The largest value of each tile's sources along an axis."""
    best = maps.take(source[:, 0], axis)
    for column in source.T[1:]:
        np.maximum(best, maps.take(column, axis), out=best)
    return best


def _exceeds(maps: Array, picture: Array, unit: Array, thresholds: Array, tiles: Tiling, tile: int) -> Array:
    """(words, m) uint64: the pixels of one tile that are above the threshold, for m pairs of picture and unit."""
    down, across = divmod(tile, len(tiles.x.source))
    wy, wx = tiles.y.weight[down], tiles.x.weight[across]
    values = maps[picture[:, None, None], unit[:, None, None], tiles.y.source[down][:, None], tiles.x.source[across]]
    if wy.shape[1] * wx.shape[1] <= 16:
        surface = values.reshape(len(values), -1) @ np.kron(wy, wx).T
    else:
        along = (values.reshape(-1, wx.shape[1]) @ wx.T).reshape(len(values), wy.shape[1], -1)
        surface = np.matmul(wy, along).reshape(len(values), -1)
    inside = ((tiles.y.pixel[down] >= 0)[:, None] & (tiles.x.pixel[across] >= 0)).ravel()
    mask = np.zeros((len(values), 64 * tiles.words), bool)
    np.logical_and(surface > thresholds[unit][:, None], inside, out=mask[:, : len(inside)])
    return _bits(mask)


def _count(bits: Array) -> Array:
    """(m,) int64: the bits that are set in (words, m) uint64."""
    total = np.zeros(bits.shape[1], np.int64)
    for word in bits:
        total += np.bitwise_count(word)
    return total


@dataclass(frozen=True)
class Shelf:
    """The packed concepts of several pictures, end to end."""

    first: Array  # (pictures, tiles + 1)
    concept: Array
    bits: Array

    @classmethod
    def of(cls, packed: Sequence[Packed]) -> Shelf:
        """In the order given."""
        offsets = np.cumsum([0, *(len(one.concept) for one in packed)])
        return cls(np.stack([one.first + offset for one, offset in zip(packed, offsets, strict=False)]),
                   np.concatenate([one.concept for one in packed]),
                   np.concatenate([one.bits for one in packed], axis=1))


def overlaps(found: Active, shelf: Shelf, units: int, concepts: int, of: Array | None = None,
             row: Array | None = None, rows: int = 1) -> Array:
    """(rows, units, concepts) int64: pixels that a unit's mask and a concept share, summed over the pictures.

    of (pictures,): with whose concepts each picture's masks are compared (None: its own). row (pictures,): to which of
    the `rows` sums each picture belongs (None: to one).
    """
    picture = found.picture if of is None else of[found.picture]
    first, last = shelf.first[picture, found.tile], shelf.first[picture, found.tile + 1]
    count = last - first
    base = found.unit if row is None else row[found.picture] * units + found.unit
    ends = np.cumsum(count)
    total = np.zeros(rows * units * concepts, np.int64)
    start = 0
    while start < len(count):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + JOIN, side="right")))
        here = np.repeat(np.arange(start, stop), count[start:stop])
        entry = np.arange(len(here)) - (ends[here] - count[here] - done) + first[here]
        shared = np.zeros(len(here), np.int64)
        for mine, theirs in zip(found.bits, shelf.bits, strict=True):
            shared += np.bitwise_count(mine[here] & theirs[entry])
        key = base[here] * concepts + shelf.concept[entry]
        total += np.bincount(key, shared, minlength=len(total)).astype(np.int64)
        start = stop
    return total.reshape(rows, units, concepts)


def unpacked(bits: Array, tile: Array, tiles: Tiling) -> Array:
    """(h, w) bool: one mask from its tiles' bits (words, m)."""
    mask = np.zeros((tiles.size[0] + 1, tiles.size[1] + 1), bool)
    pixels = np.unpackbits(np.ascontiguousarray(bits.T).view(np.uint8), axis=1).astype(bool)
    my, mx = tiles.y.pixel.shape[1], tiles.x.pixel.shape[1]
    for one, values in zip(tile, pixels, strict=True):
        down, across = divmod(int(one), len(tiles.x.source))
        mask[tiles.y.pixel[down][:, None], tiles.x.pixel[across]] = values[: my * mx].reshape(my, mx)
    return mask[:-1, :-1]
