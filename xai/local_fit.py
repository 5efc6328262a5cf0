"""Asks a model about segments of one picture, shown and hidden, and fits the local surrogate to what it says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xai.errors import error
from xai.sampler import Paint, Sampler, shown
from xai.surrogate import Fit, bootstrap, fit

BLOCK = 256  # masks that are drawn at a time, whatever the chunk
APART = 2.0  # standard errors between the top segments and the others at which they are settled


@dataclass(frozen=True)
class Local:
    """What came of one target: the surrogate's fit, the weights (draws, n) of its bootstrap, and the target's scores
    with `all` segments shown and with `none`."""

    fit: Fit
    resampled: Tensor
    all: float
    none: float

    def interval(self) -> tuple[Tensor, Tensor] | None:
        """(low, high), each (n,): the middle 95 % of the weights over the bootstrap's draws; None without draws."""
        if not len(self.resampled):
            return None
        low, high = self.resampled.quantile(torch.tensor([0.025, 0.975], dtype=self.resampled.dtype), dim=0)
        return low, high

    def held(self, count: int) -> tuple[Tensor, float] | None:
        """Over the draws of the bootstrap: the share of them (n,) in which each segment has one of the `count` largest
        absolute weights, and the share in which all of them are those of the fit. None without draws."""
        if not len(self.resampled):
            return None
        order = self.resampled.abs().argsort(stable=True, dim=1, descending=True)[:, :count]
        member = torch.zeros_like(self.resampled).scatter_(1, order, 1.0)
        return member.mean(0), float(member[:, self.fit.top(count)].all(1).double().mean())


def forwards(samples: int, paired: bool) -> int:
    """What `explain_segments` asks of the model at most: the picture itself is known; none is a mask only where
    masks come in pairs."""
    return samples - 1 if paired else samples


def masks(n: int, count: int, paired: bool, generator: torch.Generator) -> Iterator[Tensor]:
    """`count` masks (k, n) uint8 of n segments, 1 = shown, in blocks of 256: each segment with probability 1/2.

    Row 0 shows all. paired: rows 2k and 2k + 1 show what the other hides, so row 1 shows none. Fewer masks are the
    first of more.
    """
    for first in range(0, count, BLOCK):
        drawn = torch.randint(2, (BLOCK // 2 if paired else BLOCK, n), generator=generator, dtype=torch.uint8)
        if first == 0:
            drawn[0] = 1
        block = torch.stack([drawn, 1 - drawn], 1).flatten(0, 1) if paired else drawn
        yield block[: count - first]


def explain_segments(sampler: Sampler, labels: Tensor, fill: Tensor, method: str, *, samples: int = 1000,
                     paired: bool = True, width: float = 0.25, alpha: float = 1.0, draws: int = 0, settle: int = 0,
                     given: Iterable[Tensor] | None = None) -> list[Local]:
    """The local surrogate of one picture for each of the sampler's targets; all share the masks and their forwards.

    labels (H, W) int64, contiguous from 0; fill (C, H, W): what is seen in place of a hidden segment; method: whose
    random numbers they are; width, alpha: see `xai.surrogate.fit`; draws: of the bootstrap. settle: 0, or a number of
    top segments: after 256, 512, 1024, ... masks it stops where they are two standard errors apart from the others; a
    target with an owner stops with it. given: masks (k, n) in blocks to use instead, the first row all ones.

    Raises XaiError for fewer than two segments, or as many as there are draws of masks (pairs, where paired).
    """
    n = int(labels.max()) + 1
    most = samples // 2 if paired else samples
    if n < 2:
        raise error("the number of segments", "at least 2", n, "Take another segmentation, or ask for more segments")
    if given is None and n >= most:
        raise error("the number of segments", f"less than the {most} {'pairs of masks' if paired else 'masks'}", n,
                    f"Ask for at least {(n + 1) * (2 if paired else 1)} masks, or for fewer or larger segments")
    blocks = masks(n, samples, paired, sampler.generator(method)) if given is None else given
    asked, scores, stops = _ask(sampler, blocks, shown(sampler.x, fill, labels), settle, samples,
                                 (width, alpha, paired))
    none = scores[1] if paired else sampler.scores(fill[None])[0]
    found: dict[int, Local] = {}
    for count in sorted(set(stops)):
        mine = [t for t, stop in enumerate(stops) if stop == count]
        z, y = asked[:count], scores[:count, mine]
        fits = fit(z, y, width, alpha, paired)
        again = (bootstrap(z, y, draws, sampler.generator(f"{method} bootstrap"), width, alpha, paired)
                 if draws else y.new_empty((0, len(mine), n)))
        for k, t in enumerate(mine):
            found[t] = Local(fits[k], again[:, k], float(scores[0, t]), float(none[t]))
    return [found[t] for t in range(len(stops))]


def _ask(sampler: Sampler, blocks: Iterable[Tensor], paint: Paint, settle: int, total: int,
         how: tuple[float, float, bool]) -> tuple[Tensor, Tensor, list[int]]:
    """The masks (N, n), the scores (N, T), and for each target how many of the masks are its own."""
    asked: list[Tensor] = []
    scores = [sampler.here[None]]  # the first mask shows all
    settled: dict[int, int] = {}
    look, done = BLOCK, 0
    for block in blocks:
        scores += [a.scores for a in sampler.ask([block[1:] if not asked else block], paint, max(0, total - done))]
        asked.append(block)
        done += len(block)
        if settle and done == look:
            look *= 2
            left = [t for t in sorted(set(sampler.owners)) if t not in settled]
            fits = fit(torch.cat(asked), torch.cat(scores)[:, left], *how)
            settled |= {t: done for t, one in zip(left, fits, strict=True) if bool((one.apart(settle) > APART).all())}
            if len(settled) == len(set(sampler.owners)):
                break
    return torch.cat(asked), torch.cat(scores), [settled.get(owner, done) for owner in sampler.owners]
