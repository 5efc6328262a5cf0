"""Sums over filters that add up: everything that is said of a bank, a layer or a group of models comes from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from torch import Tensor

BINS = 70  # of a coefficient's histogram, over [-1.1 k, 1.1 k]: |<v, f>| <= ||v||_1 max|f| <= k for a unit vector v
SPARSE = 0.01  # of the layer's largest weight: a filter all of whose weights are at most that is sparse
CHUNK = 32768  # filters a step: what is worked on stays in the processor's cache
MOMENTS = ("raw_sum", "raw_gram", "scaled_sum", "scaled_gram", "clean_sum", "clean_gram")
_NUDGE = 1e-4  # of a bin, upwards: 0 is an edge, and what is 0 but for rounding always falls into the bin above it


@cache
def dct(k: int) -> np.ndarray:
    """(k^2, k^2) float64: the orthonormal two-dimensional DCT-II, a filter a row, by row frequency, then column
    frequency. It is nearly the basis that PCA finds in trained networks, and needs no data."""
    place, frequency = np.arange(k), np.arange(k)[:, None]
    one = np.cos(np.pi * (2 * place + 1) * frequency / (2 * k)) * np.where(frequency == 0, np.sqrt(1 / k),
                                                                           np.sqrt(2 / k))
    made = np.kron(one, one)
    made.setflags(write=False)
    return made


def reach(k: int) -> float:
    """The end of the histograms' range for filters k x k."""
    return 1.1 * k


def edges(k: int) -> np.ndarray:
    """(BINS + 1,) the edges of the histograms of filters k x k."""
    return np.linspace(-reach(k), reach(k), BINS + 1)


@dataclass(frozen=True, eq=False)
class Sums:
    """What a set of filters k x k adds up to; `a + b` is that of both sets together.

    n filters, of them n_sparse sparse (by the largest weight of their own layer), max_abs the largest |weight|.
    raw: of the weights as they are; scaled: of each filter divided by its largest |weight| (an all-zero one stays
    zero); clean: scaled, without the sparse ones. Each a sum (k^2,) and an uncentred Gram matrix (k^2, k^2), float64.
    histogram (k^2, BINS): of the scaled filters' coefficients in the DCT basis; phase (BINS, BINS): of the first two of
    them together. Counts are int64.
    """

    k: int
    n: int
    n_sparse: int
    max_abs: float
    raw_sum: np.ndarray
    raw_gram: np.ndarray
    scaled_sum: np.ndarray
    scaled_gram: np.ndarray
    clean_sum: np.ndarray
    clean_gram: np.ndarray
    histogram: np.ndarray
    phase: np.ndarray

    @property
    def n_clean(self) -> int:
        """Filters that are not sparse."""
        return self.n - self.n_sparse

    def __add__(self, other: Sums) -> Sums:
        if self.k != other.k:
            raise ValueError(f"filters of {self.k} x {self.k} and {other.k} x {other.k} have no sum")
        parts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)[4:]}
        return Sums(self.k, self.n + other.n, self.n_sparse + other.n_sparse, max(self.max_abs, other.max_abs), **parts)


def nothing(k: int) -> Sums:
    """The sums of no filter."""
    kk = k * k
    moments = {name: np.zeros(kk if name.endswith("sum") else (kk, kk)) for name in MOMENTS}
    return Sums(k, 0, 0, 0.0, histogram=np.zeros((kk, BINS), np.int64), phase=np.zeros((BINS, BINS), np.int64),
                **moments)


def added(parts: Iterable[Sums], k: int) -> Sums:
    """The sums of all parts together."""
    total = nothing(k)
    for part in parts:
        total = total + part
    return total


def layer_sums(filters: Tensor | np.ndarray, k: int) -> Sums:
    """The sums of one layer's filters (n, k^2), row by row as they lie in the weight. One pass, and a second look at
    the sparse ones. Not finite weights give sums that are not finite, and no histogram for those filters."""
    filters = torch.as_tensor(filters).detach().reshape(-1, k * k)
    filters = filters if filters.dtype == torch.float64 else filters.float()
    tally, tops = _Tally(k, filters.dtype), []
    for rows in torch.split(filters, CHUNK):
        tops.append(tally.add(rows.t().contiguous()))
    top = torch.cat(tops) if tops else filters.new_zeros(0)
    largest = float(top.max()) if len(top) else 0.0
    few = torch.nonzero(top <= SPARSE * largest).flatten()
    lost = _Moments(k)
    for part in torch.split(few, CHUNK):
        lost.add(_scaled(filters[part].t().contiguous(), top[part]))
    return tally.sums(len(filters), len(few), largest, lost)


class _Moments:
    """A sum and a Gram matrix in float64."""

    def __init__(self, k: int) -> None:
        self.sum = torch.zeros(k * k, dtype=torch.float64)
        self.gram = torch.zeros(k * k, k * k, dtype=torch.float64)

    def add(self, columns: Tensor) -> None:
        """(k^2, m), a filter a column."""
        exact = columns.double()
        self.sum += exact.sum(1)
        product = exact @ exact.t()
        self.gram += torch.triu(product) + torch.triu(product, 1).t()  # symmetric to the bit


class _Tally:
    """What grows chunk by chunk."""

    def __init__(self, k: int, dtype: torch.dtype) -> None:
        kk = self._kk = k * k
        self._k, self._raw, self._scaled = k, _Moments(k), _Moments(k)
        self._basis = torch.tensor(dct(k) * (BINS / (2 * reach(k))), dtype=dtype)
        self._middle = torch.full((1, 1), BINS / 2 + _NUDGE, dtype=dtype)
        self._offset = (torch.arange(kk) * BINS)[:, None]
        self._counts = torch.zeros(kk * BINS, dtype=torch.int64)
        self._phase = torch.zeros(BINS * BINS, dtype=torch.int64)

    def add(self, columns: Tensor) -> Tensor:
        """(k^2, m), a filter a column; gives their largest absolute weights (m,)."""
        self._raw.add(columns)
        top = torch.maximum(columns.amax(0), -columns.amin(0))
        scaled = _scaled(columns, top)
        self._scaled.add(scaled)
        if not bool(top.isfinite().all()):
            scaled = scaled[:, top.isfinite()]
        bins = torch.addmm(self._middle, self._basis, scaled).to(torch.int32).long()  # all are above 0: this is floor
        self._phase += torch.bincount(bins[0] * BINS + bins[min(1, self._kk - 1)], minlength=BINS * BINS)
        self._counts += torch.bincount(bins.add_(self._offset).flatten(), minlength=self._kk * BINS)
        return top

    def sums(self, n: int, n_sparse: int, largest: float, lost: _Moments) -> Sums:
        raw, scaled = self._raw, self._scaled
        moments = (raw.sum, raw.gram, scaled.sum, scaled.gram, scaled.sum - lost.sum, scaled.gram - lost.gram)
        return Sums(self._k, n, n_sparse, largest, histogram=self._counts.numpy().reshape(self._kk, BINS),
                    phase=self._phase.numpy().reshape(BINS, BINS),
                    **{name: moment.numpy() for name, moment in zip(MOMENTS, moments, strict=True)})


def _scaled(columns: Tensor, top: Tensor) -> Tensor:
    return columns / torch.where(top > 0, top, torch.ones_like(top))


def scaled(filters: np.ndarray) -> np.ndarray:
    """Filters (n, k^2), each divided by its largest absolute weight; an all-zero one stays zero."""
    top = np.abs(filters).max(1, keepdims=True)
    made: np.ndarray = filters / np.where(top > 0, top, 1)
    return made


def basis_histogram(filters: np.ndarray, basis: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(k^2, BINS) counts of the coefficients <v_i, f / max|f| - mean> of filters (n, k^2) in another basis, a vector a
    row; with a mean of scaled filters the range holds them as long as |<v, mean>| <= 0.1 k."""
    kk = len(basis)
    k = round(kk ** 0.5)
    found = np.zeros(kk * BINS, np.int64)
    for first in range(0, len(filters), CHUNK):
        values = (scaled(filters[first : first + CHUNK]) - mean) @ basis.T
        bins = np.clip(np.floor(values * (BINS / (2 * reach(k))) + BINS / 2 + _NUDGE), 0, BINS - 1).astype(np.int64)
        found += np.bincount((bins + np.arange(kk) * BINS).ravel(), minlength=kk * BINS)
    return found.reshape(kk, BINS)
