"""How alike two representations of the same inputs are, from their Gram matrices alone.

A representation is a matrix of features (n, p): n inputs, one a row, in the same order for all. Everything here starts
from `gram`, so p may be large and may differ. Each measure is a form, an (n, n) matrix a representation, and a product
of two forms; its value is product(a, b) / sqrt(product(a, a) product(b, b)), and over blocks of inputs each of the
three is summed before the division.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS = 8192  # features that are centred and multiplied at once on a CPU: no whole activation is copied


def gram(features: Tensor) -> tuple[Tensor, Tensor]:
    """(n, n) float64 on the CPU, and a number: X X' of features (n, ...) whose mean row was taken away, and the mean
    squared norm of a row before that. Half precision is raised to float32 first: sums of rounded products drift."""
    nhwc = features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last)  # read as it lies
    x = (features.permute(0, 2, 3, 1) if nhwc else features).reshape(len(features), -1)
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if x.shape[1] < len(x):
        x = x.cpu().double()  # the matrix has no full rank: what is not there must not be rounding
    found = torch.zeros(len(x), len(x), dtype=torch.float64)
    away = torch.zeros((), dtype=torch.float64)
    for part in torch.split(x, COLUMNS if x.device.type == "cpu" else max(1, x.shape[1]), dim=1):
        mean = part.mean(0)
        centred = part - mean
        found = found + (centred @ centred.T).cpu().double()
        away = away + mean.square().sum().cpu().double()
    return found, found.diagonal().mean() + away


def ucentred(grams: Tensor) -> Tensor:
    """(..., n, n), n >= 4: the U-centred matrix, whose rows sum to 0 and whose diagonal is 0.

    The sum of products of two of them, over n (n - 3), is the unbiased HSIC of Song et al. 2012 (JMLR 13, eq. 5).
    """
    n = grams.shape[-1]
    off = grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))
    mean = off.sum(-1) / (n - 2)
    mean = mean - mean.sum(-1, keepdim=True) / (2 * (n - 1))
    found = off - mean[..., :, None] - mean[..., None, :]
    return found - torch.diag_embed(found.diagonal(dim1=-2, dim2=-1))


def centred(grams: Tensor) -> Tensor:
    """(..., n, n): H K H, whose products give the biased HSIC."""
    rows = grams.mean(-1, keepdim=True)
    return grams - rows - rows.mT + rows.mean(-2, keepdim=True)


def squared_distances(grams: Tensor) -> Tensor:
    """(..., n, n): between the rows that the Gram matrices (..., n, n) are of."""
    size = grams.diagonal(dim1=-2, dim2=-1)
    return (size[..., :, None] + size[..., None, :] - 2 * grams).clamp(min=0)


def gaussian(grams: Tensor, width: float = 1.0) -> Tensor:
    """(..., n, n): exp(-d^2 / (2 width^2 m)), m the median of the squared distances between different rows."""
    n = grams.shape[-1]
    d = squared_distances(grams)
    above = torch.triu_indices(n, n, 1)
    median = d[..., above[0], above[1]].median(-1).values[..., None, None]
    return torch.exp(-d / (2 * width**2 * median.clamp(min=torch.finfo(d.dtype).tiny)))


def distance_ranks(grams: Tensor) -> Tensor:
    """(..., n, n): the ranks of the distances between different rows (equal ones share the mean of theirs) less their
    mean; 0 on the diagonal. Two of them correlate as Spearman's."""
    from xai.statistics import ranks

    n = grams.shape[-1]
    above = torch.triu_indices(n, n, 1)
    d = squared_distances(grams)[..., above[0], above[1]].reshape(-1, above.shape[1])
    found = torch.zeros(len(d), n, n, dtype=torch.float64)
    for i, one in enumerate(d):
        own = ranks(one)
        found[i, above[0], above[1]] = own - own.mean()
    return (found + found.mT).view(grams.shape)


def neighbours(grams: Tensor, k: int) -> Tensor:
    """(..., n, n): 1 where the column is one of the k nearest of the row, itself excluded; k < n."""
    d = squared_distances(grams)
    d = d + torch.diag_embed(torch.full(d.shape[:-1], torch.inf, dtype=d.dtype))
    near = d.sort(dim=-1, stable=True).indices[..., :k]
    found: Tensor = torch.zeros_like(d).scatter_(-1, near, 1.0)
    return found


def roots(grams: Tensor) -> Tensor:
    """(..., n, n): R with R' R = K."""
    values, vectors = torch.linalg.eigh(grams)
    found: Tensor = values.clamp(min=0).sqrt()[..., :, None] * vectors.mT
    return found


def inner(one: Tensor, two: Tensor) -> Tensor:
    """(a, b): the sums of products of forms (a, n, n) and (b, n, n)."""
    return one.flatten(1) @ two.flatten(1).T


def nuclear(one: Tensor, two: Tensor) -> Tensor:
    """(a, b): the nuclear norms of X' Y from the roots (a, n, n) and (b, n, n) of their Gram matrices: what the best
    rotation reaches."""
    return torch.stack([torch.linalg.svdvals(root @ two.mT).sum(-1) for root in one])


@dataclass(frozen=True)
class Measure:
    """A measure of likeness: its name for people, what it is, and its form and product."""

    title: str
    says: str
    form: Callable[[Tensor], Tensor]
    product: Callable[[Tensor, Tensor], Tensor] = inner


def measures(k: int = 10, width: float = 1.0) -> dict[str, Measure]:
    """All measures by name; k: neighbours of mutual kNN; width: of the Gaussian kernel, in root medians."""
    return {
        "linear": Measure("Linear CKA", "debiased CKA with the linear kernel: 1 for representations that differ by a "
                          "rotation and a scale, 0 on the average for unrelated ones", ucentred),
        "rbf": Measure("RBF CKA", f"debiased CKA with a Gaussian kernel, {width:g} times the root of the median "
                       "squared distance wide", lambda grams: ucentred(gaussian(grams, width))),
        "procrustes": Measure("Procrustes similarity", "the cosine that the best rotation reaches, not debiased: for "
                              "unrelated representations above 0, as the shuffled pictures show", roots, nuclear),
        "rsa": Measure("RSA", "Spearman's correlation of the Euclidean distances between pictures", distance_ranks),
        "knn": Measure(f"Mutual {k}-nearest neighbours", f"the share of a picture's {k} nearest among the pictures of "
                       "its block that both have", lambda grams: neighbours(grams, k)),
    }


def similarity(one: Tensor, two: Tensor, measure: Measure) -> Tensor:
    """A number: the likeness of features (n, ...) and (n, ...); linear and rbf have a gradient."""
    a, b = (measure.form(gram(features)[0][None]) for features in (one, two))
    product = measure.product
    return (product(a, b) / (product(a, a) * product(b, b)).sqrt()).squeeze()
