"""Maps and photographs as image files: the colour scale of a map, its palette PNG, its overlay, JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from reports.colours import LEVELS, MISSING, palette
from xai.panels import Heatmap, Matrix, Picture, View, shown

OPACITY = 0.6
"""Opacity of a map over its photograph where nobody chose another."""
_FINE = 64 * 64
_KEPT = 0.995
_HUGE = 1e300


@dataclass(frozen=True)
class Scale:
    """The colour scale of a map: its ends, its kind, how many cells lie beyond its ends and how many are not finite."""

    low: float
    high: float
    kind: Literal["sequential", "diverging"]
    beyond: int = 0
    missing: int = 0
    constant: bool = False


def scale_of(values: np.ndarray, view: View, given: tuple[float, float] | None = None) -> Scale:
    """The scale on which `values` are shown in `view`: from 0 up, or symmetric about 0 where a shown value is negative.

    `given` ends are used as they are (made symmetric where the lower is negative). Else a map of up to 64 x 64 cells
    spans its whole range; a finer one ends at the 99.5 % quantile of its absolute values, since a few extreme pixels of
    a gradient would leave the rest black, and `beyond` counts the cells past it.
    """
    seen = _view(values, view)
    finite = seen[np.isfinite(seen)]
    missing = int(seen.size - finite.size)
    constant = bool(finite.size == 0 or finite.min() == finite.max())
    low, high = given if given is not None else (float(finite.min(initial=0)), _top(finite))
    if low < 0:
        high = max(-low, high) if given is not None else high
        beyond = int((np.abs(finite) > high).sum())
        return Scale(-high, high, "diverging", beyond, missing, constant)
    start = low if given is not None else 0.0
    beyond = int((finite > high).sum() + (finite < start).sum())
    return Scale(start, high, "sequential", beyond, missing, constant)


def _view(values: np.ndarray, view: View) -> np.ndarray:
    """What the view shows, float64; finite values end where the difference of two would overflow."""
    seen = shown(np.asarray(values, np.float64), view)
    return np.where(np.isfinite(seen), np.clip(seen, -_HUGE, _HUGE), seen)


def _top(finite: np.ndarray) -> float:
    size = np.abs(finite)
    top = float(size.max(initial=0))
    if size.size <= _FINE:
        return top
    return float(np.quantile(size, _KEPT)) or top


def indices(values: np.ndarray, view: View, scale: Scale) -> np.ndarray:
    """The palette index of each value, uint8, the shape of `values`; one that is not finite gets the reserved index."""
    seen = _view(values, view)
    known = np.isfinite(seen)
    span = scale.high - scale.low
    if not span > 0:
        level = np.full(seen.shape, LEVELS // 2 if scale.kind == "diverging" else 0.0)
    else:
        level = np.clip((np.where(known, seen, 0.0) - scale.low) / span, 0, 1) * (LEVELS - 1)
    return np.where(known, np.rint(level), MISSING).astype(np.uint8)


def resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear (align_corners=False) resampling of a map (h, w) to (height, width), float64.

    Values that are not finite stay where they are (nearest cell, NaN) and do not bleed into their neighbours.
    """
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    rows, columns = _weights(values.shape[0], height), _weights(values.shape[1], width)
    if known.all():
        return np.asarray(rows @ values @ columns.T)
    weight = rows @ known.astype(np.float64) @ columns.T
    total = rows @ np.where(known, values, 0) @ columns.T
    nearest = known[_nearest(values.shape[0], height)][:, _nearest(values.shape[1], width)]
    return np.asarray(np.where(nearest & (weight > 0), total / np.where(weight > 0, weight, 1), np.nan))


def _weights(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix of bilinear weights with pixel centres at half steps and edges repeated."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    first = np.floor(at).astype(int)
    second = np.minimum(first + 1, old - 1)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), first), 1 - (at - first))
    np.add.at(matrix, (np.arange(new), second), at - first)
    return matrix


def _nearest(old: int, new: int) -> np.ndarray:
    return np.asarray(np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1))


def heatmap_png(panel: Heatmap | Matrix, least: int = 0) -> bytes:
    """The map as an 8-bit palette PNG, at its own size, one pixel a cell.

    With `least` a coarser map is first magnified by a whole factor until its shorter side has that many pixels: who
    enlarges the PNG then blends colours that are neighbours on the scale, and sees no colour that is not on it.
    """
    values = np.asarray(panel.values) if np.size(panel.values) else np.full((1, 1), np.nan)
    scale = scale_of(values, panel.view, getattr(panel, "scale", None))
    factor = -(-least // min(values.shape)) if least and min(values.shape) else 1
    if factor > 1:
        height, width = values.shape
        values = resize(shown(np.asarray(values, np.float64), panel.view), height * factor, width * factor)
    image = Image.fromarray(indices(values, panel.view, scale))
    image.putpalette(palette(scale.kind))
    return _file(image, "PNG", optimize=True)


def overlay_png(panel: Heatmap, picture: Picture, opacity: float = OPACITY) -> bytes:
    """The map, resampled to the picture's size, over the picture in grey, as the page shows it at that opacity."""
    height, width = picture.pixels.shape[:2]
    scale = scale_of(panel.values, panel.view, panel.scale)
    seen = resize(shown(np.asarray(panel.values, np.float64), panel.view), height, width)
    table = np.frombuffer(palette(scale.kind), np.uint8).reshape(-1, 3).astype(np.float64)
    mixed = opacity * table[indices(seen, panel.view, scale)] + (1 - opacity) * grey(picture.pixels)[..., None]
    return _file(Image.fromarray(np.rint(mixed).astype(np.uint8)), "PNG")


def grey(pixels: np.ndarray) -> np.ndarray:
    """The luma of a uint8 picture (h, w, 3) or (h, w), float64 in [0, 255], as the CSS grayscale filter weighs it."""
    if pixels.ndim == 2:
        return pixels.astype(np.float64)
    return np.asarray(pixels[..., :3].astype(np.float64) @ np.array([0.2126, 0.7152, 0.0722]))


def photograph(pixels: np.ndarray) -> bytes:
    """A uint8 picture as JPEG of quality 85, or as PNG where JPEG would blur the few pixels it has."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if min(image.size) < 32:
        return _file(image, "PNG", optimize=True)
    return _file(image, "JPEG", quality=85, optimize=True)


def _file(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
