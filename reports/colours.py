"""The two colour maps of every page: warm for evidence in favour, blue against, dark for none; colour-blind safe.

Both are built in OKLab (Ottosson 2020, "A perceptual color space for image processing"), where equal distances look
equally different: a curve of rising lightness is sampled at equal arc lengths. The diverging map joins two such curves
of equal lightness at a common dark centre; blue and orange are told apart with any of the common colour deficiencies.
"""

from __future__ import annotations

from functools import cache

import numpy as np

LEVELS = 255
"""Colours of a map: an odd number, so that zero has a colour of its own in the middle of the diverging one."""
MISSING = 255
"""The palette index of a cell that is not a finite number."""
MISSING_COLOUR = (128, 128, 128)

# OKLab to cone responses and cone responses to linear sRGB, from the paper's reference implementation.
_TO_CONES = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_DARK, _LIGHT = 0.15, 0.95


def sequential() -> np.ndarray:
    """The map for values from 0 up: (255, 3) uint8, from near black over violet and orange to pale yellow."""
    return _ramp(LEVELS, (290, 330, 380, 415, 460), (0.03, 0.12, 0.18, 0.16, 0.09))


def diverging() -> np.ndarray:
    """The map for a symmetric scale: (255, 3) uint8, blue below zero, near black at it, orange above."""
    half = LEVELS // 2 + 1
    against = _ramp(half, (275, 264, 252, 235, 210), (0, 0.11, 0.145, 0.12, 0.05))
    favour = _ramp(half, (30, 32, 45, 68, 100), (0, 0.10, 0.155, 0.155, 0.09))
    return np.concatenate([against[:0:-1], favour])


@cache
def palette(kind: str) -> bytes:
    """The 256 entries of a PNG palette for "sequential" or "diverging": 255 colours, then that of a missing value."""
    colours = diverging() if kind == "diverging" else sequential()
    return colours.tobytes() + bytes(MISSING_COLOUR)


def hexadecimal(colour: np.ndarray) -> str:
    """An (r, g, b) colour as #rrggbb."""
    return "#" + bytes(int(c) for c in colour).hex()


def stops(kind: str, count: int = 17) -> list[str]:
    """`count` colours at equal steps along a map, for a gradient."""
    colours = diverging() if kind == "diverging" else sequential()
    return [hexadecimal(colours[i]) for i in np.linspace(0, LEVELS - 1, count).round().astype(int)]


def _ramp(count: int, hues: tuple[float, ...], chromas: tuple[float, ...]) -> np.ndarray:
    """Colours (count, 3) uint8 on a smooth curve through hues (degrees) and chromas, dark to light, in equal steps."""
    fine = np.linspace(0, 1, 1025)
    lightness = _DARK + (_LIGHT - _DARK) * fine
    angle, chroma = np.deg2rad(_smooth(fine, hues)), _smooth(fine, chromas)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
    where = np.linspace(0, length[-1], count)
    return _srgb(np.stack([np.interp(where, length, lab[:, i]) for i in range(3)], axis=1))


def _smooth(at: np.ndarray, values: tuple[float, ...]) -> np.ndarray:
    """The polynomial through equally spaced values."""
    return np.polyval(np.polyfit(np.linspace(0, 1, len(values)), values, len(values) - 1), at)


def _srgb(lab: np.ndarray) -> np.ndarray:
    linear = np.clip(((lab @ _TO_CONES.T) ** 3) @ _TO_RGB.T, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray((curved * 255 + 0.5).astype(np.uint8))
