"""Shapes of a cell of a rendered scene: glyphs of ten classes, shapes of no class, and textures, drawn analytically.

A shape is a signed distance in pixels (negative inside); a pixel's share of it is 1/2 less that distance, cut to
[0, 1], so that edges are smooth and nothing reaches farther than half a pixel beyond the shape. Numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

SIDE, CELL = 64, 16  # pixels of a scene and of one of its cells
OCTAVES = (5, 9, 17)  # knots a side of the noise that is drawn at three scales

# Lines through points (x, y), in units of the shape's reach, y downwards.
LINES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "cross": (((-1, 0), (1, 0)), ((0, -1), (0, 1))),
    "triangle": (((0, -1), (1, 0.8), (-1, 0.8), (0, -1)),),
    "square": (((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9), (-0.9, -0.9)),),
    "ell": (((-0.7, -1), (-0.7, 1), (0.7, 1)),),
    "tee": (((-1, -1), (1, -1)), ((0, -1), (0, 1))),
    "bars": (((-1, -0.65), (1, -0.65)), ((-1, 0.65), (1, 0.65))),
    "zed": (((-1, -1), (1, -1), (-1, 1), (1, 1)),),
    "cup": (((-0.9, -1), (-0.9, 1), (0.9, 1), (0.9, -1)),),
    "chevron": (((-1, -0.9), (0, 0.9), (1, -0.9)),),
    "dash": (((-1, 0), (1, 0)),),
    "wave": (((-1, -0.5), (-0.5, 0.5), (0, -0.5), (0.5, 0.5), (1, -0.5)),),
}
CLASSES = ("cross", "ring", "triangle", "square", "ell", "tee", "bars", "zed", "cup", "chevron")
NO_CLASS = ("dash", "wave", "disc", "diamond", "crescent", "dots", "half", "blob")
NULL = ("noise", "stripes", "checks")


def _segments(lines: tuple[tuple[tuple[float, float], ...], ...]) -> Values:
    """(s, 2, 2): the two ends of every segment."""
    return np.array([pair for line in lines for pair in pairwise(line)], dtype=np.float64)


SEGMENTS = {name: _segments(lines) for name, lines in LINES.items()}


def _to_lines(segments: Values, u: Values, v: Values) -> Values:
    """Distance of points to the nearest of the segments (s, 2, 2)."""
    start, along = segments[:, 0, :, None, None], (segments[:, 1] - segments[:, 0])[:, :, None, None]
    du, dv = u - start[:, 0], v - start[:, 1]
    share = np.clip((du * along[:, 0] + dv * along[:, 1]) / (along**2).sum(1), 0, 1)
    nearest: Values = np.sqrt(((du - share * along[:, 0]) ** 2 + (dv - share * along[:, 1]) ** 2).min(0))
    return nearest


def _crescent(u: Values, v: Values, r: float) -> Values:
    cut: Values = np.maximum(np.hypot(u, v) - r, 0.75 * r - np.hypot(u - 0.5 * r, v))
    return cut


def _dots(u: Values, v: Values, r: float) -> Values:
    left, right, top = (np.hypot(u - x * r, v - y * r) for x, y in ((-0.6, 0.45), (0.6, 0.45), (0.0, -0.6)))
    return np.minimum(np.minimum(left, right), top) - 0.36 * r


AREAS: dict[str, Callable[[Values, Values, float], Values]] = {
    "disc": lambda u, v, r: np.hypot(u, v) - 0.85 * r,
    "diamond": lambda u, v, r: (np.abs(u) + np.abs(v) - r) / math.sqrt(2),
    "crescent": _crescent,
    "dots": _dots,
    "half": lambda u, v, r: np.maximum(np.hypot(u, v) - r, v),
}


def coverage(kind: str, x: float, y: float, reach: float, stroke: float, angle: float) -> Values:
    """(16, 16) in [0, 1]: each pixel's share of a shape.

    kind: of CLASSES or NO_CLASS. x, y: its centre, in pixels from the cell's corner. reach: half its extent with the
    stroke, stroke: the width of its lines, both in pixels. angle: radians.
    """
    grid = np.arange(CELL) + 0.5
    across, down = grid[None, :] - x, grid[:, None] - y
    u = across * math.cos(angle) + down * math.sin(angle)
    v = down * math.cos(angle) - across * math.sin(angle)
    if kind == "blob":
        soft: Values = np.clip(1.1 * np.exp(-2 * (u**2 + v**2) / reach**2) - 0.1, 0, 1)
        return soft
    if kind in AREAS:
        distance = AREAS[kind](u, v, reach)
    elif kind == "ring":
        distance = np.abs(np.hypot(u, v) - (reach - stroke / 2)) - stroke / 2
    else:
        distance = _to_lines(SEGMENTS[kind] * (reach - stroke / 2), u, v) - stroke / 2
    return np.clip(0.5 - distance, 0, 1)


def null_patch(kind: str, generator: np.random.Generator) -> Values:
    """(14, 14, 3) in [0, 1]: what catches the eye and says nothing; kind: of NULL."""
    side = CELL - 2
    if kind == "noise":
        return generator.random((side, side, 3))
    dark, light = 0.25 * generator.random(3), 0.75 + 0.25 * generator.random(3)
    period = int(generator.integers(2, 4))
    place = np.arange(side) // period % 2
    if kind == "checks":
        bright = place[:, None] ^ place[None, :]
    else:
        bright = np.repeat(place[None, :], side, axis=0)
        bright = bright.T if generator.random() < 0.5 else bright
    patch: Values = dark + (light - dark) * bright[:, :, None]
    return patch


def _knots(count: int) -> Values:
    """(64, count): linear interpolation from knots spread evenly over the side."""
    place = (np.arange(SIDE) + 0.5) / SIDE * (count - 1)
    weights: Values = np.clip(1 - np.abs(place[:, None] - np.arange(count)), 0, 1)
    return weights


KNOTS = {count: _knots(count) for count in OCTAVES}


def _noise(generator: np.random.Generator, count: int) -> Values:
    values: Values = KNOTS[count] @ generator.random((count, count)) @ KNOTS[count].T
    return values


def texture(generator: np.random.Generator) -> Values:
    """(64, 64) in [0, 1]: a ramp, waves, or noise at three scales, with or without edges; one as likely as another."""
    kind = int(generator.integers(4))
    angle, grid = generator.uniform(0, 2 * math.pi), (np.arange(SIDE) + 0.5) / SIDE - 0.5
    along = grid[None, :] * math.cos(angle) + grid[:, None] * math.sin(angle)
    if kind == 0:
        return np.clip(0.5 + along / math.sqrt(2) + 0.3 * (_noise(generator, OCTAVES[2]) - 0.5), 0, 1)
    if kind == 1:
        waves, phase = generator.uniform(4, 20), generator.uniform(0, 2 * math.pi)
        return 0.5 + 0.5 * np.sin(2 * math.pi * waves * along + phase)
    if kind == 2:
        coarse, middle, fine = (_noise(generator, count) for count in OCTAVES)
        return 0.4 * coarse + 0.3 * middle + 0.3 * fine
    return np.clip(0.5 + 12 * (_noise(generator, OCTAVES[int(generator.integers(3))]) - 0.5), 0, 1)
