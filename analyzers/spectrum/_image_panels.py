"""What the sums over pictures say: spectra, decay, lines, grids, and the difference of two groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai import spectrum
from xai.panels import AnyPanel, Axis, Column, Curve, Matrix, Number, Table, Text
from xai.spectrum import Decay, Rings, decibels

Array = npt.NDArray[Any]
GRIDS = (2, 4, 8)
LINES = ("grey", "red", "green", "blue")
NEAR = 2.0  # times the rounding floor: a ring below that is called near it
FREQUENCY, LEVEL = Axis("frequency", "cycles/pixel"), Axis("power", "dB")
READING = ("These are indicators, not verdicts. A spectrum shows what made the pixels last: an upsampling, a resize, a "
           "JPEG grid, the rounding to 8 bits. A difference between two folders may be any of these, and its absence "
           "proves nothing: changing the last upsampling layer of a generator moves or removes it (Chandrasegaran et "
           "al. 2021; reproduced small by examples/fourier_upsampling.py). Power is that of values in [0, 1], 0 dB = "
           "white noise of variance 1.")


@dataclass
class Sums:
    """Sums over the pictures of a group. mean, square: (lines, rings) of the ring means and of their squares; log,
    logs: (lines, rings) of their dB and its squares; plane: (h, w) of grey power; exponent: sum, sum of squares and
    number of those known; grids: (2, grids) sum of F and number of those known."""

    name: str
    rings: Rings
    mean: Array
    square: Array
    log: Array
    logs: Array
    plane: Array
    exponent: Array
    grids: Array
    floor: float = 0.0
    n: int = 0
    last: Decay | None = None

    @classmethod
    def none(cls, name: str, on: Rings, lines: int) -> Sums:
        """Of no picture."""
        def zeros() -> Array:
            return np.zeros((lines, len(on.counts)))

        return cls(name, on, zeros(), zeros(), zeros(), zeros(), np.zeros(on.index.shape), np.zeros(3),
                   np.zeros((2, len(GRIDS))))

    def add(self, means: Array, plane: Array, fit: Decay, floor: float, grids: Sequence[float]) -> None:
        """One more picture."""
        level = decibels(means)
        self.mean += means
        self.square += means**2
        self.log += level
        self.logs += level**2
        self.plane += plane
        self.floor += floor
        self.n += 1
        self.last = fit
        if math.isfinite(fit.exponent):
            self.exponent += (fit.exponent, fit.exponent**2, 1)
        known = np.isfinite(grids)
        self.grids += (np.where(known, grids, 0), known)

    def band(self) -> tuple[Array, Array, Array]:
        """(lines, rings) in dB: the mean power, and its 95 % interval over pictures (of one picture: itself)."""
        mean = self.mean / self.n
        half = quantile(self.n - 1) * spread(self.mean, self.square, self.n) / math.sqrt(self.n)
        low = np.maximum(mean - half, mean * 1e-3)  # where an interval would reach zero power: 30 dB
        return decibels(mean), decibels(low), decibels(mean + half)


def spread(total: Array, squares: Array, n: float) -> Array:
    """The standard deviation from a sum and a sum of squares; 0 of fewer than two."""
    if n < 2:
        return np.zeros_like(total)
    return np.asarray(np.sqrt(np.maximum(squares - total**2 / n, 0) / (n - 1)))


def quantile(freedom: float) -> float:
    """Student's t at 97.5 %, 0 without a degree of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom)) if freedom > 0 else 0.0


# --- each group ---
def spectra(sums: Sequence[Sums], tail: float) -> Iterator[AnyPanel]:
    """Profiles with their bands, the plane of power, and the decay."""
    on = sums[0].rings
    used = on.frequency > 0
    names: list[str] = []
    y, low, high = list[Array](), list[Array](), list[Array]()
    for one in sums:
        for line, what in zip(zip(*one.band(), strict=True), LINES, strict=False):
            names.append(one.name if len(one.mean) == 1 else what if len(sums) == 1 else f"{one.name} {what}")
            for into, values in zip((y, low, high), line, strict=True):
                into.append(values[used])
        if one.floor > 0:
            level = float(decibels(np.asarray(one.floor / one.n)))
            names.append("rounding" if len(sums) == 1 else f"{one.name} rounding")
            for into in (y, low, high):
                into.append(np.full(int(used.sum()), level))
    yield Curve(key="profile", title="Power by frequency", x=on.frequency[used], y=np.stack(y), names=tuple(names),
                low=np.stack(low), high=np.stack(high), axes=(FREQUENCY, LEVEL),
                note="Mean power over the pictures, then dB; bands: its 95 % interval over pictures by Student's t. "
                     "rounding: what the steps of the pixel format alone give (of the grey), a floor that no scene is "
                     "seen below.")
    yield Table(key="decay", title="Decay of the tail", columns=tuple(map(Column, (
        "group", "pictures", "exponent a of f^-a", "low", "high", "spread", "last ring, dB", "rounding, dB",
        "rings near rounding"))), rows=tuple(_decay_row(one, tail) for one in sums),
        note=f"Fitted to each picture's grey power from {tail:g} to 0.5 cycles per pixel; mean, 95 % interval of the "
             "mean by Student's t (of one picture: of its own fit) and spread over the pictures. Amplitudes fall with "
             "half of that exponent. Rings below twice the rounding floor are near it: there the exponent tends to 0 "
             "whatever the scene.")
    for k, one in enumerate(sums):
        values, rows, columns = spectrum.plane(one.plane / one.n)
        yield Matrix(key=f"plane-{k}", title=f"Power in the plane: {one.name}", unit="dB",
                     values=spectrum.relief(values), rows=tuple(f"{f:+.3f}" for f in rows),
                     columns=tuple(f"{f:+.3f}" for f in columns),
                     axes=(Axis("vertical frequency", "cycles/pixel"), Axis("horizontal frequency", "cycles/pixel")),
                     note=f"Grey, mean over {one.n} pictures, zero frequency in the middle; a cell is the mean over "
                          "its bins. Above the least cell, which is at most 80 dB under the largest.")


def exponent(one: Sums) -> tuple[float, float, float, float]:
    """Mean exponent of a group, the 95 % interval, and the spread over pictures."""
    total, squares, n = (float(v) for v in one.exponent)
    if n < 2:
        assert one.last is not None
        return (one.last.exponent, one.last.low, one.last.high, 0.0) if one.n == 1 else (
            total / n if n else math.nan, math.nan, math.nan, 0.0)
    sd = float(spread(np.asarray(total), np.asarray(squares), n))
    half = quantile(n - 1) * sd / math.sqrt(n)
    return total / n, total / n - half, total / n + half, sd


def _decay_row(one: Sums, tail: float) -> tuple[str | int | float | None, ...]:
    mean, floor = one.mean[0] / one.n, one.floor / one.n
    rings = one.rings.frequency >= tail
    near = int((mean[rings] < NEAR * floor).sum())
    numbers = (known(round(v, 4)) for v in exponent(one))
    return (one.name, one.n, *numbers, round(float(decibels(mean[-1:])[0]), 2),
            round(float(decibels(np.asarray(floor))), 2) if floor else None, f"{near} of {int(rings.sum())}")


def known(value: float) -> float | None:
    """The number, or None where it is none."""
    return value if math.isfinite(value) else None


# --- lines and grids ---
def lines(sums: Sequence[Sums]) -> Iterator[AnyPanel]:
    """Frequencies that stand out in the mean power, and grids of 2, 4 and 8 pixels."""
    rows = [(one.name, round(p.fx, 4), round(p.fy, 4), round(p.excess, 1), round(p.z, 1), period(p.fy, p.fx))
            for one in sums for p in spectrum.peaks(one.plane / one.n)]
    note = ("Frequencies of the mean power at least 3 dB and six robust standard deviations over the median around, of "
            "mirrored pairs one. Multiples of 1/8 are the grid of JPEG's blocks; 1/2 and 1/4 are left by upsampling.")
    if rows:
        yield Table(key="lines", title="Lines in the spectrum", rows=tuple(rows), note=note, columns=(
            Column("group"), Column("horizontal", "cycles/pixel"), Column("vertical", "cycles/pixel"),
            Column("over its surroundings", "dB"), Column("robust z"), Column("repeats every", "pixels")))
    else:
        yield Text(key="lines", title="Lines in the spectrum", text="No frequency stands out.", note=note)
    yield Table(key="grids", title="Grids", rows=tuple(_grid_row(one, k) for one in sums for k in range(len(GRIDS))),
                columns=(Column("group"), Column("grid", "pixels"), Column("comb", "dB"), Column("mean F")),
                note="Comb: the mean power at the multiples of 1 / grid over the median around each; 0 dB is none. F: "
                     "variance between the places of a grid cell over that within, of each picture, 1 for white noise "
                     "and less for smooth pictures; only a grid that keeps its place raises it.")


def _grid_row(one: Sums, k: int) -> tuple[str | int | float | None, ...]:
    score, (total, n) = spectrum.comb(one.plane / one.n, GRIDS[k]), one.grids[:, k]
    return one.name, GRIDS[k], known(round(score, 2)), round(float(total / n), 3) if n else None


def period(fy: float, fx: float) -> float:
    """Pixels from crest to crest."""
    return round(1 / math.hypot(fy, fx), 2)


# --- two groups ---
def compared(a: Sums, b: Sums) -> Iterator[AnyPanel]:
    """The difference by frequency with its 95 % band, Welch's test of each ring with Holm's correction, exponents."""
    if min(a.n, b.n) < 2:
        yield Text(key="compared", title="No test", tone="warning",
                   text=f"A test needs two pictures in each group; there are {a.n} in {a.name} and {b.n} in {b.name}.")
        return
    used = a.rings.frequency > 0
    difference, half, p = welch(a.log[0], a.logs[0], a.n, b.log[0], b.logs[0], b.n)
    adjusted = holm(p[used])
    yield Curve(key="difference", title=f"{b.name} minus {a.name}", x=a.rings.frequency[used], y=difference[used][None],
                names=("difference",), low=(difference - half)[used][None], high=(difference + half)[used][None],
                axes=(FREQUENCY, Axis("difference", "dB")),
                note="Of the mean over pictures of the dB of each ring, grey; band: 95 % interval by Welch, each ring "
                     "by itself.")
    yield Number(key="p", title="Least p of a ring, corrected", value=float(adjusted.min()),
                 note=f"Welch's test ring by ring, Holm's correction over {int(used.sum())} rings, {a.n} and {b.n} "
                      "pictures: the chance of so clear a difference somewhere if the two folders were alike.")
    at = int(np.argmax(np.abs(difference[used])))
    found, gap, ps = welch(*(np.asarray(v) for one in (a, b) for v in one.exponent))
    yield Table(key="test", title="The comparison in numbers", columns=(Column("what"), Column("value"), Column("low"),
                                                                         Column("high"), Column("p")), rows=(
        (f"rings that differ, of {int(used.sum())} (p < 0.05 after Holm)", int((adjusted < 0.05).sum()), None, None,
         float(adjusted.min())),
        (f"largest difference, dB, at {a.rings.frequency[used][at]:.3f} cycles/pixel", float(difference[used][at]),
         float((difference - half)[used][at]), float((difference + half)[used][at]), float(adjusted[at])),
        ("difference of the decay exponents", known(float(found)), known(float(found - gap)), known(float(found + gap)),
         known(float(ps)))))


def welch(total_a: Array, squares_a: Array, n_a: Any, total_b: Array, squares_b: Array,
          n_b: Any) -> tuple[Array, Array, Array]:
    """(b - a, half of its 95 % interval, two-sided p) of two means from sums and sums of squares; Welch 1947. p is 1
    where neither varies and they are equal, NaN where a group has fewer than two."""
    from scipy.stats import t

    n_a, n_b = float(n_a), float(n_b)
    if min(n_a, n_b) < 2:
        nothing = np.full(np.shape(total_a), math.nan)
        return nothing, nothing, nothing
    va, vb = spread(total_a, squares_a, n_a) ** 2 / n_a, spread(total_b, squares_b, n_b) ** 2 / n_b
    difference, error = total_b / n_b - total_a / n_a, np.sqrt(va + vb)
    safe = np.maximum(error, 1e-300)
    freedom = np.maximum(safe**4 / np.maximum(va**2 / (n_a - 1) + vb**2 / (n_b - 1), 1e-300), 1.0)
    p = np.where(error > 0, 2 * t.sf(np.abs(difference) / safe, freedom), np.where(np.abs(difference) > 0, 0.0, 1.0))
    return np.asarray(difference), np.asarray(t.ppf(0.975, freedom) * error), np.asarray(p)


def holm(p: Array) -> Array:
    """p corrected for being one of many, valid whatever the dependence between them (Holm 1979)."""
    order, n = np.argsort(p, kind="stable"), len(p)
    found = np.empty(n)
    found[order] = np.minimum(np.maximum.accumulate(p[order] * (n - np.arange(n))), 1.0)
    return found
