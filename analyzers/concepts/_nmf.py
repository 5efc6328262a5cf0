"""Non-negative factors of activations, how far they depend on the seed, and a picture's place among them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from xai.errors import error

STEPS = 1000
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Factors:
    """A (n, K) ~ U (n, k) W (k, K), none negative, each row of W of length 1; `error` is |A - U W| / |A|; `ended`
    whether the steps sufficed."""

    u: Array
    w: Array
    error: float
    ended: bool


def need_positive(values: Tensor, layer: str) -> None:
    """Raise XaiError where activations are negative somewhere or zero everywhere."""
    if float(values.min()) < 0:
        raise error(f"the activations of {layer}", "nowhere negative for this factorisation",
                    f"{float(values.min()):.3g}", "Name a layer after a ReLU with --layer (`xai models info` lists "
                    "them); clipping would throw half of it away")
    if not values.any():
        raise error(f"the activations of {layer}", "not zero everywhere", "0 for every crop", "Name another with "
                    "--layer, or take other weights")


def factorise(values: Tensor, count: int, seed: int, start: str = "nndsvda") -> Factors:
    """Of values (n, K) at most `count` factors, fewer where n or K is less. Lee and Seung's problem, by scikit-learn's
    coordinate descent; a seed gives one answer."""
    from sklearn.decomposition import NMF

    a = values.double().numpy()
    found = NMF(min(count, *a.shape), init=start, random_state=seed % 2**32, max_iter=STEPS, tol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that did not suffice: `ended` says so
        u, w = found.fit_transform(a), found.components_
    size = np.linalg.norm(w, axis=1)
    size[size == 0] = 1
    u, w = u * size, w / size[:, None]
    return Factors(u, w, float(np.linalg.norm(a - u @ w) / np.linalg.norm(a)), int(found.n_iter_) < STEPS)


def agreement(one: Array, two: Array) -> float:
    """The mean cosine of the rows of two banks (k, K), matched one to one as well as can be."""
    from scipy.optimize import linear_sum_assignment

    cosines = one @ two.T / np.maximum(np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(two, axis=1), 1e-300)
    rows, columns = linear_sum_assignment(-cosines)
    return float(cosines[rows, columns].mean())


def coefficients(maps: Tensor, w: Array) -> Array:
    """(k, h, w): at each place of maps (K, h, w) the non-negative u with u W nearest to the activations."""
    from scipy.optimize import nnls

    columns = maps.flatten(1).double().cpu().numpy().T
    found = np.stack([nnls(w.T, column)[0] for column in columns], 1)
    return np.asarray(found.reshape(len(w), *maps.shape[1:]))
