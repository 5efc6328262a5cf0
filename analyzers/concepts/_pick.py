"""SP-LIME's pick: rows of a sparse matrix that between them cover the columns that count most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def sparsified(w: Tensor, kept: int) -> Tensor:
    """w (m, d) with only the `kept` largest absolute entries of each row, of equal ones the first; zeros elsewhere.

    Without it every row of a dense matrix has something in every column, and one pick covers all there is.
    """
    order = w.abs().sort(dim=1, descending=True, stable=True).indices[:, :kept]
    return torch.zeros_like(w).scatter(1, order, w.gather(1, order))


def importance(w: Tensor) -> Tensor:
    """(d,): I_j = sqrt(sum_i |w_ij|) of w (m, d)."""
    return w.abs().sum(0).sqrt()


@dataclass(frozen=True)
class Pick:
    """`rows` in the order in which they were picked; `gains`: what each added to the coverage, as a share of what all
    rows cover together; `new`: the columns that it added."""

    rows: tuple[int, ...]
    gains: tuple[float, ...]
    new: tuple[tuple[int, ...], ...]


class Coverage:
    """c(V) = sum over groups g and columns j of I_gj where some row of V in group g has something in column j.

    w (m, d) is sparse; groups (m,): the group of each row, 0 to G - 1; I_gj is the `importance` in the rows of g. With
    one group it is the coverage of the paper. All is told as a share of c(all rows).
    """

    def __init__(self, w: Tensor, groups: Tensor) -> None:
        self.there, self.groups = w != 0, groups
        self.count = int(groups.max()) + 1
        self.worth = torch.stack([importance(w[groups == g]) for g in range(self.count)])
        self.total = float(self.worth.sum())

    def none(self) -> Tensor:
        """(G, d) bool: what is covered without any row."""
        return torch.zeros_like(self.worth, dtype=torch.bool)

    def gains(self, covered: Tensor) -> Tensor:
        """(m,): what each row would add to what is covered (G, d)."""
        return ((self.there & ~covered[self.groups]) * self.worth[self.groups]).sum(1) / self.total

    def of(self, rows: Sequence[int]) -> list[float]:
        """The coverage of the first 0, 1, 2, ... of the rows."""
        covered, found = self.none(), [0.0]
        for row in rows:
            covered[self.groups[row]] |= self.there[row]
            found.append(float((self.worth * covered).sum()) / self.total)
        return found

    def greedy(self, budgets: Sequence[int]) -> Pick:
        """Rows one by one, each the one that adds most, of equal ones the first; at most budgets[g] of group g. It ends
        early where nothing is left to be covered.

        Within one group the coverage is at least 1 - 1/e, about 63 %, of the best that as many rows can have; over
        several, as no group has a say in another, so it is of each. Source: Nemhauser, Wolsey, Fisher 1978,
        doi:10.1007/BF01588971.
        """
        left, covered = list(budgets), self.none()
        rows: list[int] = []
        gains: list[float] = []
        new: list[tuple[int, ...]] = []
        while sum(left):
            open_ = torch.tensor([left[g] > 0 for g in self.groups.tolist()])
            gain = torch.where(open_, self.gains(covered), -1.0)
            gain[rows] = -1.0
            best = float(gain.max())
            if best <= 0:
                break
            row = int((gain == best).nonzero()[0])
            g = int(self.groups[row])
            rows.append(row)
            gains.append(min([best, *gains[-1:]]))  # a sum in another order may be larger by rounding
            new.append(tuple((self.there[row] & ~covered[g]).nonzero().flatten().tolist()))
            covered[g] |= self.there[row]
            left[g] -= 1
        return Pick(tuple(rows), tuple(gains), tuple(new))

    def chance(self, budgets: Sequence[int], first: Sequence[int], draws: int, generator: torch.Generator
               ) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows drawn at random, as many of each group, the mean coverage of the first 0, 1, ... and the 2.5 % and
        97.5 % quantiles, each (B + 1,). first: rows in whose groups' order they are drawn (those of the pick)."""
        order = [int(self.groups[row]) for row in first]
        order += [g for g, budget in enumerate(budgets) for _ in range(budget - order.count(g))]
        members = [(self.groups == g).nonzero().flatten() for g in range(self.count)]
        found = []
        for _ in range(draws):
            decks = [iter(rows[torch.randperm(len(rows), generator=generator)].tolist()) for rows in members]
            found.append(self.of([next(decks[g]) for g in order]))
        curves = torch.tensor(found, dtype=torch.float64)
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = curves.quantile(ends, dim=0)
        return curves.mean(0), low, high


def shared_out(budget: int, counts: Sequence[int]) -> list[int]:
    """A budget shared out among groups of so many rows, in proportion to the square roots of the counts: seat by seat
    to the largest sqrt(count) / (seats + 1/2), to every group one before any has a second, to none more than it has."""
    seats = [0] * len(counts)
    for _ in range(min(budget, sum(counts))):
        want = [(s == 0, math.sqrt(n) / (s + 0.5)) if s < n else (False, -1.0)
                for s, n in zip(seats, counts, strict=True)]
        seats[want.index(max(want))] += 1
    return seats


def jaccard(one: Sequence[int], two: Sequence[int]) -> float | None:
    """How many of the rows in either are in both; None where both are empty."""
    either = set(one) | set(two)
    return len(set(one) & set(two)) / len(either) if either else None


def expected_jaccard(one: Sequence[int], two: Sequence[int], sizes: Sequence[int]) -> float:
    """What `jaccard` is on average for one[g] and two[g] rows drawn at random from each group's sizes[g]."""
    odds = [1.0]  # of 0, 1, 2, ... rows in both
    for a, b, m in zip(one, two, sizes, strict=True):
        own = [math.comb(a, t) * math.comb(m - a, b - t) / math.comb(m, b) for t in range(min(a, b) + 1)]
        odds = [sum(odds[i] * own[t - i] for i in range(len(odds)) if 0 <= t - i < len(own))
                for t in range(len(odds) + len(own) - 1)]
    picked = sum(one) + sum(two)
    return sum(p * t / (picked - t) for t, p in enumerate(odds) if picked > t)
