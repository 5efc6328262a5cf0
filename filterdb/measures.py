"""What sums say: basis, entropy and its random reference, drift and its floor, spectra, orthogonality, degeneration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from filterdb.sums import Sums, dct, reach
from xai import seeds

EPS = float(np.finfo(np.float32).eps)  # stands in an empty bin, on the scale of densities
NEAR_RANDOM, LOW_ENTROPY, MANY_SPARSE = 0.02, 0.5, 0.14  # the rule for degenerate layers, for 3 x 3 alone
FLAT = 1e-12  # of the mean square: a variance below is rounding
_SIGMOID = (1.2618047, 0.88767525, 2.30436435, -0.31050834)


# --- basis ---
@dataclass(frozen=True, eq=False)
class Basis:
    """Principal components: `vectors` (k^2, k^2), one a row, the largest entry of each positive; `variances` (k^2,),
    falling, their shares in `explained`; `mean` (k^2,)."""

    mean: np.ndarray
    vectors: np.ndarray
    variances: np.ndarray

    @property
    def explained(self) -> np.ndarray:
        """(k^2,) shares of the variance, which add up to 1 (all 0 where there is none)."""
        return _shares(self.variances)


def covariance(n: int, total: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """(k^2, k^2) from n filters' sum and uncentred Gram matrix; NaN where n < 2."""
    if n < 2:
        return np.full_like(gram, np.nan)
    mean = total / n
    found: np.ndarray = (gram - n * np.outer(mean, mean)) / (n - 1)
    return found


def pca(sums: Sums) -> Basis:
    """The components of the scaled filters, as the CNN Filter DB takes them (Gavrikov and Keuper 2022): centred, not
    whitened."""
    n = sums.n
    if n < 2:
        return Basis(sums.scaled_sum / max(n, 1), dct(sums.k).copy(), np.zeros(sums.k**2))
    values, vectors = np.linalg.eigh(covariance(n, sums.scaled_sum, sums.scaled_gram))
    rows = vectors.T[::-1].copy()
    largest = np.abs(rows).argmax(1)
    rows *= np.sign(rows[np.arange(len(rows)), largest])[:, None]
    return Basis(sums.scaled_sum / n, rows, np.clip(values[::-1], 0, None))


def dct_explained(sums: Sums) -> np.ndarray:
    """(k^2,) the share of each DCT coefficient in the variance of the scaled filters."""
    basis = dct(sums.k)
    if sums.n < 2:
        return np.zeros(sums.k**2)
    return _shares(np.clip(np.diag(basis @ covariance(sums.n, sums.scaled_sum, sums.scaled_gram) @ basis.T), 0, None))


def _shares(values: np.ndarray) -> np.ndarray:
    total = float(values.sum())
    found: np.ndarray = values / total if total > 0 else np.zeros_like(values)
    return found


# --- variance entropy ---
def entropy(n: int, total: np.ndarray, gram: np.ndarray) -> float | None:
    """The variance entropy H = -sum p log10 p of the eigenvalues' shares p, 0 to log10 min(k^2, n - 1); None where
    n < 2 or nothing varies. (Gavrikov and Keuper 2022; from the Gram matrix, where they take singular values.)"""
    if n < 2 or not np.isfinite(gram).all():
        return None
    found = covariance(n, total, gram)
    if np.trace(found) <= FLAT * np.trace(gram) / n:
        return None
    return float(_entropy(np.linalg.eigvalsh(found)))


def _entropy(eigenvalues: np.ndarray) -> np.ndarray:
    """(..., m) -> (...)."""
    p = np.clip(eigenvalues, 0, None)
    p = p / p.sum(-1, keepdims=True)
    found: np.ndarray = np.maximum(-(p * np.log10(np.where(p > 0, p, 1))).sum(-1), 0.0)
    return found


def raw_entropy(sums: Sums) -> float | None:
    """H of the weights as they are."""
    return entropy(sums.n, sums.raw_sum, sums.raw_gram)


def clean_entropy(sums: Sums) -> float | None:
    """H of the scaled filters that are not sparse."""
    return entropy(sums.n_clean, sums.clean_sum, sums.clean_gram)


def threshold(n: int) -> float:
    """T_H(n): about the least entropy of n random 3 x 3 filters, the sigmoid in log2 n that the CNN Filter DB fitted to
    the minimum over draws. n: filters of the layer. Meaningless below 3 (negative); a little too low at large n."""
    top, slope, middle, base = _SIGMOID
    return top / (1 + math.exp(-slope * (math.log2(n) - middle))) + base if n > 0 else base


def null_entropies(n: int, k: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws,) sorted entropies of n filters of independent Gaussian weights: from Wishart matrices with n - 1 degrees
    of freedom (Bartlett 1933), whose cost does not depend on n. Empty for n < 2."""
    kk, freedom = k * k, n - 1
    if freedom < 1:
        return np.empty(0)
    if freedom < kk:
        root = rng.standard_normal((draws, freedom, kk))
    else:
        root = np.tril(rng.standard_normal((draws, kk, kk)), -1)
        root[:, np.arange(kk), np.arange(kk)] = np.sqrt(rng.chisquare(freedom - np.arange(kk), (draws, kk)))
        root = root.transpose(0, 2, 1)
    return np.sort(_entropy(np.linalg.eigvalsh(root.transpose(0, 2, 1) @ root)))


# --- layers ---
def sparsity(sums: Sums) -> float | None:
    """The share of sparse filters; None of no filter."""
    return sums.n_sparse / sums.n if sums.n else None


def orthogonality(weight: Tensor) -> float | None:
    """O = 1 - mean |cosine| between the kernels of different output channels, weight (c_out, ...); 1 where all are
    orthogonal. Zero rows are left out; None for fewer than two others. (After Gavrikov's torchconvquality, whose value
    falls with every zero row.)"""
    rows = weight.detach().flatten(1).float()
    size = rows.norm(dim=1)
    rows = rows[size > 0] / size[size > 0, None]
    m = len(rows)
    if m < 2:
        return None
    total = (rows @ rows.t()).abs().sum().double() - rows.square().sum().double()
    return float(min(1.0, max(0.0, 1 - float(total) / (m * (m - 1)))))


def findings(k: int, n: int, h: float | None, share_sparse: float | None) -> tuple[str, ...]:
    """What is seen in a layer: "random-like" (H >= T_H - 0.02), "low entropy" (H < 0.5), "sparse" (S >= 0.14). For
    3 x 3 alone: the thresholds hold for no other size."""
    found = []
    if k == 3 and h is not None and n > 9:
        found += ["random-like"] if h >= threshold(n) - NEAR_RANDOM else ["low entropy"] if h < LOW_ENTROPY else []
    if share_sparse is not None and share_sparse >= MANY_SPARSE:
        found.append("sparse")
    return tuple(found)


def degenerate(k: int, n: int, h: float | None, share_sparse: float | None) -> bool | None:
    """The published rule (supplement of Gavrikov and Keuper 2022): random-like, or low entropy and sparse. None where
    it cannot be asked: another size than 3 x 3, no entropy, or fewer filters than 10."""
    if k != 3 or h is None or share_sparse is None or n <= 9:
        return None
    seen = findings(k, n, h, share_sparse)
    return "random-like" in seen or ("low entropy" in seen and "sparse" in seen)


# --- drift ---
def probabilities(histogram: np.ndarray, k: int) -> np.ndarray:
    """(..., BINS) counts as probabilities, empty bins at EPS on the scale of densities, each row's sum 1."""
    counts = np.asarray(histogram, np.float64)
    width = 2 * reach(k) / counts.shape[-1]
    density = counts / (np.maximum(counts.sum(-1, keepdims=True), 1e-300) * width)
    density = np.where(density > 0, density, EPS)
    found: np.ndarray = density / density.sum(-1, keepdims=True)
    return found


def divergences(one: np.ndarray, two: np.ndarray, k: int) -> np.ndarray:
    """(...,) symmetric Kullback-Leibler divergences (their sum, natural logarithm) of histograms (..., BINS)."""
    p, q = probabilities(one, k), probabilities(two, k)
    found: np.ndarray = ((p - q) * np.log(p / q)).sum(-1)
    return found


def drift(one: np.ndarray, two: np.ndarray, explained: np.ndarray, k: int) -> float:
    """D(P, Q) = sum_i explained_i KLsym(P_i, Q_i) over coefficients i; histograms (k^2, BINS) over one range (Gavrikov
    and Keuper 2022)."""
    return float(divergences(one, two, k) @ explained)


def drift_floor(pooled: np.ndarray, n_one: int, n_two: int, explained: np.ndarray, k: int, rng: np.random.Generator,
                draws: int = 100) -> np.ndarray:
    """(draws,) sorted drifts between two samples of so many independent filters of one and the same distribution, whose
    histograms are `pooled` (k^2, BINS): what the number of filters alone gives."""
    p = np.asarray(pooled, np.float64)
    p = p / np.maximum(p.sum(-1, keepdims=True), 1)
    ones, twos = (np.stack([rng.multinomial(n, row, draws) for row in p], 1) for n in (n_one, n_two))
    return np.sort(divergences(ones, twos, k) @ explained)


# --- spectra ---
def power(gram: np.ndarray, k: int, side: int = 32) -> np.ndarray:
    """(side, side) the power spectrum, summed over filters with that uncentred Gram matrix, zero frequency in the
    middle; its mean over all frequencies is the Gram matrix' trace."""
    lags = np.zeros((2 * k - 1, 2 * k - 1))
    y, x = np.divmod(np.arange(k * k), k)
    np.add.at(lags, (y[:, None] - y + k - 1, x[:, None] - x + k - 1), gram)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(side) - side // 2, np.arange(1 - k, k)) / side)
    found: np.ndarray = (waves @ lags @ waves.T).real
    return found


def below(gram: np.ndarray, k: int, down: float, across: float) -> float | None:
    """The share of the filters' energy at |f_y| < down and |f_x| < across, in cycles a sample (0 to 0.5); None where
    there is none, or weights are no numbers."""
    total = float(np.trace(gram)) if np.isfinite(gram).all() else 0.0
    if not total > 0:
        return None
    y, x = np.divmod(np.arange(k * k), k)
    within = 4 * down * across * np.sinc(2 * down * (y[:, None] - y)) * np.sinc(2 * across * (x[:, None] - x))
    return float((within * gram).sum() / total)


def aliasing(gram: np.ndarray, k: int, stride: tuple[int, int]) -> float | None:
    """The share of energy above what an output on every stride-th place can hold; 0 at stride 1."""
    share = below(gram, k, 0.5 / stride[0], 0.5 / stride[1])
    return None if share is None else 1 - share if share < 1 - FLAT else 0.0


def bands(gram: np.ndarray, k: int, count: int = 4) -> np.ndarray | None:
    """(count,) shares of energy in square rings of equal width from 0 to 0.5 cycles a sample; None without energy."""
    limits = [below(gram, k, 0.5 * i / count, 0.5 * i / count) for i in range(count + 1)]
    return None if limits[0] is None else np.diff(np.array(limits, dtype=np.float64))


def generator(seed: int, *parts: str) -> np.random.Generator:
    """numpy random numbers that depend on these names alone."""
    drawn = torch.randint(0, 2**62, (1,), generator=seeds.generator(seed, *parts))
    return np.random.default_rng(int(drawn))
