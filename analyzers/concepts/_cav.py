"""Concept activation vectors of many pairs of picture sets at once, and what random sets in a concept's place score.

A linear classifier's weights are a sum over its pictures, v = sum_i a_i x_i, so a fit, its accuracy and its
sensitivities need products of activations alone: none of what is here grows with the layer.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

TEST = 0.2  # of each set: what the classifier is judged by and not fitted on
RIDGE = 0.01  # of the mean square of the centred activations: the penalty
AT_ONCE = 256  # fits


@dataclass(frozen=True)
class Fits:
    """Of n pairs of sets: `scores` (n, pictures) are S = gradient . v / |v|; on the held-out pictures `accuracy` (n,)
    and how far the sets are `apart` (n,) along v / |v|, in units of the activations."""

    scores: Tensor
    accuracy: Tensor
    apart: Tensor


def fit(gram: Tensor, products: Tensor, one: Tensor, two: Tensor) -> Fits:
    """Ridge classifiers of sets `one` (n, s) against `two` (n, s), rows of gram (N, N) = x x'.

    products (N, m) = x g' of the gradients g of m pictures. The direction points from `two` to `one`. The last fifth
    of each set, at least one picture, is held out.
    """
    held = max(1, round(TEST * one.shape[1]))
    parts = [_some(gram, products, a, b, held)
             for a, b in zip(torch.split(one, AT_ONCE), torch.split(two, AT_ONCE), strict=True)]
    return Fits(*(torch.cat(own) for own in zip(*((p.scores, p.accuracy, p.apart) for p in parts), strict=True)))


def _some(gram: Tensor, products: Tensor, one: Tensor, two: Tensor, held: int) -> Fits:
    rows = torch.cat([one[:, :-held], two[:, :-held]], 1)  # (n, 2 t)
    t = one.shape[1] - held
    k = gram[rows[:, :, None], rows[:, None]]
    mean = k.mean(2)
    whole = mean.mean(1)
    centred = k - mean[:, :, None] - mean[:, None] + whole[:, None, None]
    y = torch.cat([torch.ones(t), -torch.ones(t)]).to(gram)
    penalty = RIDGE * centred.diagonal(0, 1, 2).mean(1).clamp_min(1e-300) * 2 * t
    eye = torch.eye(2 * t, dtype=gram.dtype)
    a = torch.linalg.solve(centred + penalty[:, None, None] * eye, y.expand(len(rows), -1))
    a = a - a.mean(1, keepdim=True)  # so that v = sum a x needs no centring
    size = torch.einsum("ni,nij,nj->n", a, k, a).clamp_min(0).sqrt()
    size = torch.where(size > 0, size, 1)
    scores = torch.einsum("ni,nim->nm", a, products[rows]) / size[:, None]
    offset = (a * mean).sum(1)  # v . mean of the fitted pictures: the classifier's border, as both sets are as large
    test = torch.cat([one[:, -held:], two[:, -held:]], 1)
    said = torch.einsum("ni,nij->nj", a, gram[rows[:, :, None], test[:, None]]) - offset[:, None]
    right = torch.cat([said[:, :held] > 0, said[:, held:] < 0], 1)
    return Fits(scores, right.double().mean(1), (said[:, :held].mean(1) - said[:, held:].mean(1)) / size)


def share(scores: Tensor) -> Tensor:
    """TCAV (n,): the share of pictures with S > 0, of scores (n, m)."""
    return (scores > 0).double().mean(1)


@dataclass(frozen=True)
class Tested:
    """A concept beside random ones. `tcav`: the mean over the runs, `each` (runs,) what they are; `accuracy`: held out,
    in the mean; `null` (B,): what random sets in its place score; `p`: of the set-level test; `published`: of the
    t-test over runs."""

    tcav: float
    each: Tensor
    accuracy: float
    null: Tensor
    p: float
    published: float


def pairs(pool: int, count: int, size: int, nulls: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Counter-sets (count, size) of a concept; random sets (nulls, size) in its place; the counter-sets of those,
    (nulls * count, size), which share no picture with them. Numbers of pool pictures, each set without repeats."""
    def drawn(among: int, take: int) -> Tensor:
        return torch.rand(among, pool, generator=generator).argsort(1)[:, :take]

    counter = drawn(count, size)
    sets = drawn(nulls, size)
    keys = torch.rand(nulls, count, pool, generator=generator)
    keys.scatter_(2, sets[:, None].expand(-1, count, -1), 2.0)  # its own pictures come last
    return counter, sets, keys.argsort(2)[..., :size].flatten(0, 1)


def tested(own: Fits, null: Fits, nulls: int) -> Tested:
    """The concept's runs `own` (R fits) beside those of B random sets, `null` (B * R fits, a set's runs in a row).

    The unit is the set, not the run: the runs of one set share its pictures and are no independent trials. p is the
    rank of the concept among the random sets by |TCAV - 1/2|, equal ones by |the mean of S times how far apart the sets
    are|, which is what a linear network's score changes by from one to the other: (1 + how many are as far) / (B + 1).
    It holds whatever the distribution, if the concept's pictures are as good as one more random set.
    """
    from scipy.stats import ttest_ind

    mine = share(own.scores)
    theirs = share(null.scores).view(nulls, -1)
    level = torch.cat([mine.mean()[None], theirs.mean(1)])
    change = torch.cat([(one.scores.mean(1) * one.apart).view(sets, -1).mean(1)
                        for one, sets in ((own, 1), (null, nulls))]).abs()
    far = (level - 0.5).abs()
    as_far = (far[1:] > far[0] + 1e-12) | (((far[1:] - far[0]).abs() <= 1e-12) & (change[1:] >= change[0]))
    first = theirs[:, 0]
    published = float(mine[0] == first[0])  # where all runs agree there is no t
    if float(mine.std()) > 1e-9 or float(first.std()) > 1e-9:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of runs that nearly agree
            published = float(ttest_ind(mine.numpy(), first.numpy(), equal_var=False).pvalue)
    return Tested(float(level[0]), mine, float(own.accuracy.mean()), level[1:],
                  float(1 + as_far.sum()) / (nulls + 1), published)
