"""Numbers, amounts and counts as a reader wants them: few digits, true minus signs, plain words."""

from __future__ import annotations

import math
from datetime import datetime

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | int | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, as a power of ten where it is tiny or huge; "unknown" for None."""
    if value is None:
        return "unknown"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f").replace("-", "−")
    if not math.isfinite(value):
        return "not finite"
    if value != 0 and not 1e-3 <= abs(value) < 10 ** max(digits + 1, 4):
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{_trim(mantissa)} × 10{str(int(exponent)).translate(_RAISED)}".replace("-", "−")
    rounded = float(f"{value:.{digits}g}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    return _trim(f"{rounded:.{places}f}").replace("-", "−")


def percent(share: float) -> str:
    """A share of 1 in per cent with one decimal; what is not 0 or 1 is never rounded to it."""
    if not math.isfinite(share):
        return "not finite"
    if 0 < share < 0.0005:
        return "<\u00a00.1\u00a0%"
    if 0.9995 <= share < 1:
        return ">\u00a099.9\u00a0%"
    return f"{100 * share:.1f}\u00a0%".replace("-", "−")


def memory(size: int | None) -> str:
    """Bytes as kB, MB or GB (powers of 1000)."""
    if size is None:
        return "unknown"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{number(size / factor)} {unit}"
    return f"{size} bytes"


def duration(seconds: float) -> str:
    """Seconds as milliseconds, seconds, minutes or hours."""
    if seconds < 1:
        return f"{number(seconds * 1000, 2)} ms"
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(stamp: str) -> str:
    """An ISO 8601 time as `2025-11-24 03:07 UTC`; what is none stays as it is."""
    try:
        time = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    zone = "" if time.tzinfo is None else " UTC" if not time.utcoffset() else f" {time:%z}"
    return f"{time:%Y-%m-%d %H:%M}{zone}"


def count(many: int, noun: str, plural: str = "") -> str:
    """`3 maps`, `1 map`."""
    return f"{number(int(many))} {noun if many == 1 else plural or noun + 's'}"


def _trim(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
