"""Exact quantiles of many units over data that come block by block: only the values that can still matter are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
EXTRA = 1024  # places of a unit's buffer beyond twice what must be kept


def above(quantile: float, count: int) -> int:
    """How many of `count` values lie above the threshold where none are equal: floor(quantile * count)."""
    return int(np.floor(quantile * count * (1 + 1e-12)))


def held(shape: tuple[int, ...], dtype: type, budget: int) -> Array:
    """An array of zeros: in memory, or, where it is larger than `budget` bytes, in a file that is gone when it is."""
    if int(np.prod(shape)) * np.dtype(dtype).itemsize <= budget:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:  # the mapping keeps it open
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def start(units: int, most: int, budget: int) -> dict[str, Array]:
    """Buffers for thresholds with at most `most` values above them.

    `kept` (units, places) float32, its first `filled` (units,) of each row in use; `floor` (units,): what is not above
    it cannot matter any more; `positions` (1,): values seen of each unit.
    """
    return {"kept": held((units, 2 * (most + 1) + EXTRA), np.float32, budget),
            "filled": np.zeros(units, np.int64), "floor": np.full(units, -np.inf, np.float32),
            "positions": np.zeros(1, np.int64), "most": np.array([most], np.int64)}


def add(tops: dict[str, Array], values: Array) -> None:
    """Take values (units, m) float32 in, in place; all must be finite."""
    kept, filled, floor = tops["kept"], tops["filled"], tops["floor"]
    need = int(tops["most"][0]) + 1
    tops["positions"] += values.shape[1]
    for first in range(0, values.shape[1], kept.shape[1] - need):
        piece = values[:, first : first + kept.shape[1] - need]
        counts = (piece > floor[:, None]).sum(1)
        _compact(tops, np.flatnonzero(filled + counts > kept.shape[1]))
        rows, columns = np.nonzero(piece > floor[:, None])
        starts = np.searchsorted(rows, np.arange(len(kept)))
        kept[rows, filled[rows] + np.arange(len(rows)) - starts[rows]] = piece[rows, columns]
        filled += np.bincount(rows, minlength=len(kept))


def _compact(tops: dict[str, Array], rows: Array) -> None:
    """Keep of these units only the largest values that can matter."""
    need = int(tops["most"][0]) + 1
    for row in rows:
        part = tops["kept"][row, : tops["filled"][row]]
        if len(part) > need:
            best = np.partition(part, len(part) - need)[len(part) - need :]
            tops["kept"][row, :need] = best
            tops["filled"][row], tops["floor"][row] = need, best[0]


def found(tops: dict[str, Array], quantile: float) -> Array:
    """(units,) float32: of each unit's n values the (floor(quantile * n) + 1)-th largest, so that strictly above it lie
    floor(quantile * n) of them where none are equal. numpy calls it quantile(1 - quantile, method="inverted_cdf")."""
    rank = above(quantile, int(tops["positions"][0])) + 1
    thresholds = np.empty(len(tops["kept"]), np.float32)
    for row, filled in enumerate(tops["filled"]):
        thresholds[row] = np.partition(tops["kept"][row, :filled], filled - rank)[filled - rank]
    return thresholds


def merged(parts: Sequence[dict[str, Array]], budget: int) -> dict[str, Array]:
    """The buffers of several parts of the data as one."""
    whole = start(len(parts[0]["kept"]), int(parts[0]["most"][0]), budget)
    for part in parts:
        for row, filled in enumerate(part["filled"]):
            one = {name: whole[name][row : row + 1] for name in ("kept", "filled", "floor")}
            own = {**one, "positions": np.zeros(1, np.int64), "most": whole["most"]}
            add(own, part["kept"][row : row + 1, :filled])
        whole["positions"] += part["positions"]
    return whole
