"""Small pictures side by side in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

GAP = 2  # white pixels between two


def tiles(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (h, w, 3) uint8 of any sizes, row by row in a square as nearly as they fill one; what is smaller than
    the largest stands at the top left of its place. (H, W, 3) uint8."""
    across = math.ceil(math.sqrt(len(pictures)))
    down = math.ceil(len(pictures) / across)
    h, w = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    made = np.full((down * (h + GAP) - GAP, across * (w + GAP) - GAP, 3), 255, np.uint8)
    for n, picture in enumerate(pictures):
        y, x = n // across * (h + GAP), n % across * (w + GAP)
        made[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return made


def drawn_tile(values: np.ndarray) -> np.ndarray:
    """Signed values (C, h, w) as (h, w, 3) uint8: grey is zero, the largest size is black or white."""
    shown = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
    top = float(np.abs(shown).max()) or 1.0
    return np.ascontiguousarray(np.rint(127.5 + 127.5 * shown / top).astype(np.uint8).transpose(1, 2, 0))
