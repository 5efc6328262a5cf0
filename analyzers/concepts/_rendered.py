"""Rendered pictures for concepts that need no file: two colours in a texture, with one of the two properties fixed."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np

from xai.images import Image, Images

Array = np.ndarray[Any, np.dtype[Any]]
TEXTURES = ("stripes", "dots", "checks", "blobs")
HUES = {"red": 0.0, "yellow": 1 / 6, "green": 1 / 3, "cyan": 1 / 2, "blue": 2 / 3, "magenta": 5 / 6}
CONCEPTS = (*TEXTURES, *HUES)
NEAR = 0.04  # of the circle of hues: how far a named colour may be from its hue


def rendered(count: int, size: tuple[int, int], seed: int, concept: str = "", first: int = 0) -> Images:
    """`count` pictures of that size, numbered from `first`; each follows from its seed and number.

    Without a concept both the texture and the two colours are drawn; a concept fixes the texture, or the hue of both
    colours, and nothing else.
    """
    return Images.of([Image.of(f"{concept or 'any'} {i}", _picture(np.random.default_rng([seed, i]), size, concept))
                      for i in range(first, first + count)])


def _picture(rng: np.random.Generator, size: tuple[int, int], concept: str) -> Array:
    """(3, h, w) uint8."""
    kind = concept if concept in TEXTURES else TEXTURES[int(rng.integers(len(TEXTURES)))]
    cover = _texture(rng, size, kind)
    one, two = (_colour(rng, HUES.get(concept), light) for light in rng.permutation([0.45, 0.95]))
    pixels = one[:, None, None] * cover + two[:, None, None] * (1 - cover)
    return np.asarray(np.rint(255 * pixels), dtype=np.uint8)


def _colour(rng: np.random.Generator, hue: float | None, light: float) -> Array:
    angle = rng.random() if hue is None else (hue + rng.uniform(-NEAR, NEAR)) % 1
    return np.array(colorsys.hsv_to_rgb(angle, rng.uniform(0.7, 1), light * rng.uniform(0.85, 1)))


def _texture(rng: np.random.Generator, size: tuple[int, int], kind: str) -> Array:
    """(h, w) in [0, 1]; the period is a fourth to an eighth of the shorter side."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    period, angle = min(size) / rng.uniform(4, 8), rng.uniform(0, np.pi)
    u, v = (2 * np.pi * (x * np.cos(a) + y * np.sin(a)) / period + rng.uniform(0, 6.3)
            for a in (angle, angle + np.pi / 2))
    if kind == "stripes":
        wave = np.sin(u)
    elif kind == "dots":
        wave = np.sin(u) + np.sin(v) - 0.9
    elif kind == "checks":
        wave = np.sin(u) * np.sin(v)
    else:
        wave = sum(np.sin((np.cos(a) * x + np.sin(a) * y) * 2 * np.pi / (period * s) + p)
                   for a, s, p in rng.uniform([0, 0.8, 0], [np.pi, 2.5, 6.3], (8, 3))) / 2
    return np.asarray(np.clip(0.5 + 3 * wave, 0, 1))
