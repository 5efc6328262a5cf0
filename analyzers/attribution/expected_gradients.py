"""Expected gradients: integrated gradients averaged over many baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from analyzers.attribution._backgrounds import drawn_from
from analyzers.attribution._gradients import REDUCTIONS, Running, as_map, gradients, wide
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.targets import Bound


@dataclass(frozen=True)
class ExpectedGradients(Attribution):
    """Expected gradients: what each pixel adds, on average over baselines and places on the way from them.

    M = mean over k of sum over channels of (x - b_k) * dS/dx at b_k + a_k (x - b_k), a_k ~ U[0, 1], b_k a random
    baseline. The paper draws baselines from the training data. A map must not depend on what else is in the batch, so
    here they have a distribution of their own: "colours", a flat picture of one colour drawn uniformly (no single
    colour goes unseen, as black does for integrated gradients), "noise", every pixel drawn uniformly, or your own
    pictures, drawn with replacement. It is expected to add up to S(x) - mean S(b). Where reduce is sum the standard
    error over the samples stands beside it.

    Reads     one model, images, and the baseline pictures if a source of them is named
    Yields    one signed map an image, at the input's size, in units of the score, and its standard error
    Raises    XaiError if no gradient reaches the input, the normalisation is not known, or a baseline of another size
    Cost      `samples` forwards and backwards
    Reference Erion et al. 2021, "Improving performance of deep learning models with axiomatic attribution priors and
              expected gradients", arXiv:1906.10670, definition of expected gradients
    """

    baselines: str = param("colours", "colours (flat, random), noise (random pixels), black, grey, white, zero, blur, "
                                      "or pictures: a folder or pattern")
    samples: int = param(50, "draws of a baseline and a place on the way, for each picture", low=1)
    reduce: str = param("sum", "what becomes of the channels: sum (signed), max_abs or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "images"})

    def passes(self, model: Model) -> Passes:
        """One forward and one backward a sample."""
        return Passes(forwards=self.samples, backwards=self.samples)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size, with standard errors where reduce is sum."""
        ways: dict[tuple[int, int], Tensor] = {}
        draw = [drawn_from(batch, i, self.baselines, self.name()) for i in range(len(batch))]
        generators = [batch.generator(i, self.name()) for i in range(len(batch))]
        totals = [Running() for _ in batch.hashes]

        def point(i: int, k: int) -> Tensor:
            start = draw[i](generators[i]).to(batch.inputs)
            place = torch.rand((), generator=generators[i]).to(start)
            ways[i, k] = batch.inputs[i] - start
            return start + place * ways[i, k]

        for i, k, found in gradients(batch, target, point, self.samples):
            part = wide(ways.pop((i, k))) * found
            totals[i].add(part.sum(0, keepdim=True) if self.reduce == "sum" else part)
        values = as_map(torch.stack([t.mean for t in totals]), self.reduce, batch)
        if self.reduce != "sum" or self.samples == 1:
            return Maps(values)
        return Maps(values, torch.stack([t.standard_error()[0] for t in totals]))
