"""Spectra of pictures, maps and kernels: windows, rings, power laws, rounding floors, grids and peaks.

One convention throughout: values in [0, 1], the mean taken off, FFT with norm="ortho" (so that white noise of variance
v has power v at every frequency, whatever the size of the picture), power |F|^2, radius by `fftfreq` from the true
zero-frequency bin in cycles per pixel, and averages of power taken before any logarithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai.errors import error

Array = npt.NDArray[Any]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
TINY = 1e-30  # power below which a logarithm says nothing


# --- pictures ---
def unit(pixels: Array) -> Array:
    """Pixels of uint8, uint16 or float in [0, 1] as float64 in [0, 1], of the same shape."""
    full = {"uint8": 255.0, "uint16": 65535.0}.get(pixels.dtype.name, 1.0)
    return np.asarray(pixels, np.float64) / full


def grey(pixels: Array) -> Array:
    """(h, w) float64 of (C, h, w): BT.601 luma of three channels, not rounded; else the mean of the channels."""
    values = unit(pixels)
    weights = LUMA if len(values) == 3 else (1 / len(values),) * len(values)
    return np.asarray(np.tensordot(np.asarray(weights), values, 1))


def rounding_floor(dtype: str, weights: tuple[float, ...] = (1.0,)) -> float:
    """The power at every frequency that rounding to the steps of uint8 or uint16 alone gives: step^2 / 12 times the sum
    of squared channel weights (LUMA for the grey of a colour picture); 0 for floats."""
    step = {"uint8": 1 / 255, "uint16": 1 / 65535}.get(dtype, 0.0)
    return step**2 / 12 * sum(w * w for w in weights)


def window(height: int, width: int, name: str = "hann") -> Array:
    """(height, width) with a mean square of 1, so that white noise keeps its power: hann (periodic) or none."""
    if name not in ("hann", "none"):
        raise error("the window", "hann or none", repr(name), "Name one of them")
    if name == "none" or min(height, width) < 2:
        return np.ones((height, width))
    rows, columns = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) for n in (height, width))
    both = np.outer(rows, columns)
    return np.asarray(both / math.sqrt(float(np.mean(both**2))))


def power(values: Array, weights: Array | None = None) -> Array:
    """|FFT|^2 / (h w) of (..., h, w), each picture's mean taken off first and then `weights` applied (see `window`).

    Without weights its sum is that of the squared deviations from the mean (Parseval). The zero-frequency bin is
    [..., 0, 0]; rows are vertical frequencies.
    """
    centred = values - values.mean((-2, -1), keepdims=True)
    found = np.fft.fft2(centred if weights is None else centred * weights, norm="ortho")
    return np.asarray(found.real**2 + found.imag**2)


# --- rings ---
@dataclass(frozen=True)
class Rings:
    """Rings of frequencies, each 1 / min(h, w) cycles per pixel wide, the first one zero frequency alone.

    index: (h, w) the ring of each bin, -1 outside the last; frequency: (k,) mean radius of a ring's bins in cycles per
    pixel; counts: (k,) its bins.
    """

    index: Array
    frequency: Array
    counts: Array

    def sums(self, values: Array) -> Array:
        """(..., k) summed over the bins of each ring."""
        flat, inside = values.reshape(-1, self.index.size), self.index.ravel() >= 0
        found = [np.bincount(self.index.ravel()[inside], one[inside], len(self.counts)) for one in flat]
        return np.stack(found).reshape(*values.shape[:-2], len(self.counts))

    def means(self, values: Array) -> Array:
        """(..., k) azimuthal means."""
        return np.asarray(self.sums(values) / self.counts)


def radii(height: int, width: int) -> Array:
    """(height, width) distance from zero frequency in cycles per pixel, in the order of the FFT."""
    return np.asarray(np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)))


def rings(height: int, width: int, corners: bool = False) -> Rings:
    """The rings of a picture of any shape, up to 0.5 cycles per pixel, or with `corners` to the last bin."""
    radius = radii(height, width)
    index = np.rint(radius * min(height, width)).astype(np.int64)
    index[(index == 0) & (radius > 0)] = 1  # a longer side has bins closer to zero than half a ring
    index[(radius > 0.5 + 1e-12) & (not corners)] = -1
    inside = index >= 0
    counts = np.bincount(index[inside])
    used = np.flatnonzero(counts)
    new = np.full(len(counts), -1)
    new[used] = np.arange(len(used))
    mean = np.bincount(index[inside], radius[inside])[used] / counts[used]
    return Rings(np.where(inside, new[index.clip(0)], -1), mean, counts[used])


def shares(values: Array, on: Rings) -> Array:
    """(k,) each ring's share of all power in (h, w) but that of zero frequency, summed and not averaged; 0 where there
    is none."""
    found = on.sums(values)
    found[..., 0] = 0
    total = found.sum(-1, keepdims=True)
    return np.asarray(np.divide(found, total, out=np.zeros_like(found), where=total > TINY))


def decibels(values: Array) -> Array:
    """10 log10 of power, no less than -300."""
    return np.asarray(10 * np.log10(np.maximum(values, TINY)))


def relief(values: Array, depth: float = 80.0) -> Array:
    """Power in dB above its least value, 0 or more, for pictures: what lies more than `depth` dB under the largest is
    0; nothing but 0 where there is no power."""
    top = float(values.max())
    if not top > TINY:
        return np.zeros_like(values)
    level = np.maximum(decibels(values), float(decibels(np.asarray(top))) - depth)
    return np.asarray(level - level.min())


# --- power law ---
@dataclass(frozen=True)
class Decay:
    """Power ~ level * f^-exponent over `rings` rings, with the 95 % interval of the exponent by Student's t; NaN where
    fewer than three rings have power."""

    exponent: float
    level: float
    low: float
    high: float
    rings: int


def decay(frequency: Array, mean: Array, counts: Array, start: float = 0.25, stop: float = 0.5) -> Decay:
    """The power law of ring means between two frequencies: least squares of log power on log f.

    A ring weighs as much as it has bins, as the variance of the logarithm of a mean of n exponential variables is about
    1 / n. Raises XaiError where start is not below stop.
    """
    from scipy.stats import t

    if not 0 <= start < stop:
        raise error("the tail", "from a lower to a higher frequency", f"{start:g} to {stop:g}", "Exchange them")
    used = (frequency >= start) & (frequency <= stop) & (mean > TINY) & (frequency > 0)
    n = int(used.sum())
    if n < 3:
        return Decay(math.nan, math.nan, math.nan, math.nan, n)
    x, y, w = np.log(frequency[used]), np.log(mean[used]), counts[used].astype(np.float64)
    w = w / w.sum()
    x0, y0 = float(w @ x), float(w @ y)
    spread = float(w @ (x - x0) ** 2)
    slope = float(w @ ((x - x0) * (y - y0))) / spread
    rest = float(w @ (y - y0 - slope * (x - x0)) ** 2) / (n - 2)
    half = float(t.ppf(0.975, n - 2)) * math.sqrt(rest / spread)
    return Decay(-slope, math.exp(y0 - slope * x0), -slope - half, -slope + half, n)


# --- grids and peaks ---
def phases(values: Array, step: int) -> Array:
    """(m, step^2): the pixels of (h, w) by their place in a step x step cell; the rest of the last rows and columns is
    cut off."""
    h, w = (n // step * step for n in values.shape)
    cells = values[:h, :w].reshape(h // step, step, w // step, step).transpose(0, 2, 1, 3)
    return np.asarray(cells.reshape(-1, step * step))


def grid_f(values: Array, step: int) -> float:
    """The F of an analysis of variance of (h, w) by place in a step x step cell; about 1 for white noise, NaN where
    fewer than two cells fit or nothing varies."""
    found = phases(values, step)
    m, k = found.shape
    if m < 2 or k < 2:
        return math.nan
    means = found.mean(0)
    within = float(((found - means) ** 2).sum()) / (k * (m - 1))
    between = m * float(((means - means.mean()) ** 2).sum()) / (k - 1)
    return between / within if within > TINY else math.inf if between > TINY else math.nan


def comb(values: Array, step: int) -> float:
    """Power (h, w) at the multiples of 1 / step cycles per pixel but zero, relative to the median around each, in dB.

    Around: 9 x 9 bins without the inner 3 x 3, where a Hann window spreads a line. Where a side is no multiple of
    `step` the nearest bins are taken. NaN where the sides are too short for that.
    """
    h, w = values.shape
    if min(h, w) < 10 * step // 2:
        return math.nan
    offsets = [(a, b) for a in range(-4, 5) for b in range(-4, 5) if max(abs(a), abs(b)) > 1]
    a, b = (np.array(side) for side in zip(*offsets, strict=True))
    at = there = 0.0
    for i in range(step):
        for j in range(step):
            if i or j:
                y, x = round(i * h / step), round(j * w / step)
                at += float(values[y % h, x % w])
                there += float(np.median(values[(y + a) % h, (x + b) % w]))
    return 10 * math.log10(max(at, TINY) / max(there, TINY))


@dataclass(frozen=True)
class Peak:
    """A frequency (cycles per pixel, fx >= 0) that stands out by `excess` dB over the median around it, `z` robust
    standard deviations of that excess over the whole plane."""

    fy: float
    fx: float
    excess: float
    z: float


def peaks(values: Array, z: float = 6.0, excess: float = 3.0, most: int = 12) -> list[Peak]:
    """The lines of a power spectrum (h, w), the strongest first; one of each mirrored pair.

    Excess is the level in dB over the median of the 9 x 9 bins around, the plane taken as periodic; its spread is the
    median absolute deviation x 1.4826. The three bins around zero frequency are passed over. Empty where a side is
    below 16 pixels or nothing stands out.
    """
    from scipy.ndimage import maximum_filter, median_filter

    h, w = values.shape
    if min(h, w) < 16 or not float(values.max()) > TINY:
        return []
    level = decibels(np.maximum(values, 1e-12 * float(values.max())))  # rounding of the FFT is no line
    over = level - median_filter(level, 9, mode="wrap")
    spread = max(1.4826 * float(np.median(np.abs(over - np.median(over)))), 1e-3)
    best = (over >= maximum_filter(over, 3, mode="wrap")) & (over >= excess) & (over >= z * spread)
    best[np.ix_(np.abs(np.fft.fftfreq(h) * h) < 4, np.abs(np.fft.fftfreq(w) * w) < 4)] = False  # the fall from zero
    found = {}
    for y, x in np.argwhere(best):
        place = _canonical(float(np.fft.fftfreq(h)[y]), float(np.fft.fftfreq(w)[x]))
        found[place] = Peak(*place, float(over[y, x]), float(over[y, x]) / spread)
    return sorted(found.values(), key=lambda p: -p.excess)[:most]


def _canonical(fy: float, fx: float) -> tuple[float, float]:
    """A frequency or its mirror image, whichever has fx > 0, or fx = 0 and fy >= 0; Nyquist is +0.5."""
    if fx < 0 or (fx == 0 and fy < 0):
        fy, fx = -fy, -fx
    return (abs(fy) if fx == 0.5 or fy == -0.5 else fy) + 0.0, fx + 0.0  # no negative zero


def plane(values: Array, most: int = 64) -> tuple[Array, Array, Array]:
    """Power (h, w) with zero frequency in the middle, for a picture: (rows, columns) of at most `most` cells a side,
    each the mean power of its bins, and the middle frequencies of rows and columns in cycles per pixel."""
    sides = []
    for n in values.shape:
        step = -(-n // most)
        sides.append((np.rint(np.fft.fftshift(np.fft.fftfreq(n)) * n / step)).astype(np.int64))
    shifted = np.fft.fftshift(values)
    rows, columns = (np.unique(side, return_inverse=True) for side in sides)
    total = np.zeros((len(rows[0]), len(columns[0])))
    count = np.zeros_like(total)
    np.add.at(total, (rows[1][:, None], columns[1][None]), shifted)
    np.add.at(count, (rows[1][:, None], columns[1][None]), 1)
    steps = [-(-n // most) / n for n in values.shape]
    return total / count, rows[0] * steps[0], columns[0] * steps[1]


# --- kernels ---
def autocorrelation(kernels: Array) -> Array:
    """(2h - 1, 2w - 1): the mean autocorrelation of kernels (n, h, w), zero lag in the middle. It is what the uncentred
    Gram matrix of the taps holds: the sum of its entries of equal difference of place."""
    n, h, w = kernels.shape
    flat = np.asarray(kernels, np.float64).reshape(n, -1)
    gram = (flat.T @ flat / n).reshape(h, w, h, w)
    found = np.zeros((2 * h - 1, 2 * w - 1))
    for y in range(h):
        for x in range(w):
            found[h - 1 - y : 2 * h - 1 - y, w - 1 - x : 2 * w - 1 - x] += gram[y, x]
    return found


def kernel_power(lags: Array, fy: Array, fx: Array) -> Array:
    """(len(fy), len(fx)): mean |frequency response|^2 of the kernels whose autocorrelation is given, in closed form:
    P(w) = sum over lags d of R(d) cos(w . d); frequencies in cycles per sample. Its mean over all is R(0)."""
    dy, dx = (np.arange(n) - n // 2 for n in lags.shape)
    rows = np.exp(-2j * np.pi * np.outer(fy, dy))
    columns = np.exp(-2j * np.pi * np.outer(dx, fx))
    return np.asarray((rows @ lags @ columns).real)


def kernel_share(lags: Array, cut: float) -> float:
    """The share of the kernels' power in |fx|, |fy| < cut (cycles per sample), in closed form: the lags weighted with
    (2c)^2 sinc(2c dy) sinc(2c dx). 1 minus that at 1 / (2 stride) is what a strided convolution aliases."""
    dy, dx = (np.arange(n) - n // 2 for n in lags.shape)
    weights = (2 * cut) ** 2 * np.outer(np.sinc(2 * cut * dy), np.sinc(2 * cut * dx))
    middle = float(lags[lags.shape[0] // 2, lags.shape[1] // 2])
    return float((weights * lags).sum()) / middle if middle > TINY else math.nan


# --- filters ---
def low_pass(height: int, width: int, cut: float, order: int = 0) -> Array:
    """(height, width) in the order of the FFT: 1 up to `cut` cycles per pixel and 0 beyond, or with an order
    Butterworth's 1 / sqrt(1 + (r / cut)^(2 order)); zero frequency is always 1."""
    radius = radii(height, width)
    if order and cut > 0:
        return np.asarray(1 / np.sqrt(1 + (radius / cut) ** (2 * order)))
    return (radius <= cut + 1e-12).astype(np.float64)
