"""Total Sobol indices: the share of a function's variance that an input has a part in, alone or with others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 256  # points that are made ready at a time
MOST = torch.quasirandom.SobolEngine.MAXDIM // 2  # inputs


def designs(count: int, samples: int, seed: int) -> Iterator[Tensor]:
    """Points in [0, 1]^count at which the function is asked, (m, count) at a time, samples * (count + 2) in all.

    First A and B, of `samples` points each (a power of two), cut from one scrambled Sobol sequence; then A with each
    column in turn from B. At most 10,600 inputs.
    """
    engine = torch.quasirandom.SobolEngine(2 * count, scramble=True, seed=seed)  # type: ignore[no-untyped-call]  # torch's own gap
    a, b = engine.draw(samples).chunk(2, 1)
    yield torch.cat([a, b])
    for columns in torch.split(torch.arange(count), max(1, BLOCK // samples)):
        mixed = a.repeat(len(columns), 1, 1)
        for own, i in zip(mixed, columns.tolist(), strict=True):
            own[:, i] = b[:, i]
        yield mixed.flatten(0, 1)


def jansen(scores: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """(totals (count, T), standard errors (count, T), variance (T,)) of the T scores at all points of `designs`.

    S_i = sum_k (f(A_k) - f(C_ik))^2 / (2 n Var f), Jansen 1999, doi:10.1016/S0010-4655(98)00154-4; Var f is that of
    f(A) and f(B) together. Where it is 0 indices and errors are 0. The errors are those of independent points.
    """
    a, b, *c = scores.view(-1, samples, scores.shape[1])
    variance = torch.cat([a, b]).var(0, unbiased=False)
    halves = (torch.stack(c) - a).square() / 2
    scale = torch.where(variance == 0, 1, variance)  # not 0 where a score is no number: the indices say so
    total = torch.where(variance == 0, 0, halves.mean(1) / scale)
    spread = torch.where(variance == 0, 0, halves.std(1) / samples**0.5 / scale)
    return total, spread, variance
