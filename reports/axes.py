"""The frame of a chart: linear axes with round ticks, drawn as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from reports.wording import number
from xai.panels import Axis

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 14, 46


@dataclass(frozen=True)
class Frame:
    """The plot area: data ranges (low, high) of both axes, and the room that labels take on the right."""

    x: tuple[float, float]
    y: tuple[float, float]
    right: int = RIGHT

    def across(self, values: np.ndarray) -> np.ndarray:
        """Data x to drawing x."""
        return LEFT + (values - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - self.right)

    def down(self, values: np.ndarray) -> np.ndarray:
        """Data y to drawing y."""
        return HEIGHT - BOTTOM - (values - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)


def span(values: np.ndarray, zero: bool = False, margin: float = 0.04) -> tuple[float, float]:
    """A range that holds all finite values, with a margin, and zero where asked for; never empty."""
    finite = np.clip(np.asarray(values, np.float64)[np.isfinite(values)], -1e300, 1e300)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * margin if high > low else abs(high) * 0.1 or 0.5
    return (low - (0.0 if zero and low == 0 else room), high + (0.0 if zero and high == 0 else room))


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high]."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12 - math.floor(math.log10(step))) + 0.0 for k in range(first, last + 1)]


def chart(frame: Frame, axes: tuple[Axis, Axis], body: Markup, label: str) -> Markup:
    """The SVG of a chart: grid lines, tick numbers, axis names, `body` inside; `label` is what a screen reader says."""
    lines = []
    for y in ticks(*frame.y):
        at = _round(frame.down(np.asarray(y)))
        lines.append(
            Markup('<path class="grid" d="M{} {}H{}"/><text class="tick end" x="{}" y="{}">{}</text>').format(
                LEFT, at, WIDTH - frame.right, LEFT - 8, at + 4, number(y, 4)
            )
        )
    for x in ticks(*frame.x, 6):
        at = _round(frame.across(np.asarray(x)))
        lines.append(
            Markup('<path class="grid" d="M{} {}V{}"/><text class="tick middle" x="{}" y="{}">{}</text>').format(
                at, TOP, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 17, number(x, 4)
            )
        )
    middle = (LEFT + WIDTH - frame.right) / 2
    names = Markup(
        '<text class="axis middle" x="{}" y="{}">{}</text>'
        '<text class="axis middle" transform="translate(14 {}) rotate(-90)">{}</text>'
    ).format(middle, HEIGHT - 8, axis_name(axes[0]), (TOP + HEIGHT - BOTTOM) / 2, axis_name(axes[1]))
    base = Markup('<path class="base" d="M{} {}H{}"/>').format(LEFT, HEIGHT - BOTTOM, WIDTH - frame.right)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(lines), body, base, names
    )


def axis_name(axis: Axis) -> str:
    """`frequency (cycles/px)`."""
    return f"{axis.name} ({axis.unit})" if axis.unit else axis.name


def path(x: np.ndarray, y: np.ndarray) -> str:
    """An SVG path through drawing coordinates, broken where a value is not finite."""
    parts, pen = [], "M"
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(a) and math.isfinite(b):
            parts.append(f"{pen}{_round(a):g} {_round(b):g}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _round(value: float | np.ndarray) -> float:
    return round(float(value), 1)
