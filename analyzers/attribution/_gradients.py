"""What the gradient methods share: channel reduction, seeded noise, moments, the loop over many inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from xai.batch import Batch
from xai.panels import Number
from xai.targets import Bound

REDUCTIONS = ("max_abs", "sum", "sum_abs")
Point = Callable[[int, int], Tensor]


def wide(values: Tensor) -> Tensor:
    """The same values in float64, where the device has it: sums over many steps then lose nothing."""
    return values if values.device.type == "mps" else values.double()


def as_map(values: Tensor, reduce: str, batch: Batch) -> Tensor:
    """One value a pixel: (n, C, H, W) -> (n, H, W), float32, or float64 where the model runs in it.

    reduce: "max_abs", the largest absolute value of the channels; "sum", their signed sum; "sum_abs", the sum of their
    absolute values.
    """
    if reduce == "sum":
        merged = values.sum(1)
    else:
        merged = values.abs().amax(1) if reduce == "max_abs" else values.abs().sum(1)
    return merged.to(torch.float64 if batch.inputs.dtype == torch.float64 else torch.float32)


def gradient(batch: Batch, target: Bound) -> Tensor:
    """dS/dx (n, C, H, W) at the pictures themselves."""
    return wide(batch.input_gradient(batch.inputs, target)[1])


def gradients(batch: Batch, target: Bound, point: Point, count: int) -> Iterator[tuple[int, int, Tensor]]:
    """(i, k, dS/dx (C, H, W)) at point(i, k), the k-th of `count` inputs for picture i; for each picture k ascends.

    A forward holds as many inputs of one picture as the batch's chunk takes and nothing of another, so that rounding,
    which may tip a ReLU over, is the same whatever else is in the batch. They are yielded one by one, never held all
    together.
    """
    for i in range(len(batch)):
        for first in range(0, count, batch.chunk):
            ks = range(first, min(count, first + batch.chunk))
            inputs = torch.stack([point(i, k) for k in ks])
            found = batch.input_gradient(inputs, target.take([i] * len(ks)))[1]
            yield from ((i, k, g) for k, g in zip(ks, wide(found), strict=True))


def noisy(batch: Batch, method: str, share: float) -> Point:
    """point(i, k): picture i with normal noise of standard deviation `share` times its (max - min).

    Drawn on the CPU in float32 from each picture's own generator: the same whatever the batch, chunk, device or
    precision. To be called with k ascending for each picture.
    """
    generators = [batch.generator(i, method) for i in range(len(batch))]
    deviations = [share * float(x.max() - x.min()) for x in batch.inputs]

    def point(i: int, k: int) -> Tensor:
        x = batch.inputs[i]
        return x + deviations[i] * torch.randn(x.shape, generator=generators[i]).to(x)

    return point


class Running:
    """Mean and variance of tensors that come one by one (Welford 1962): exactly zero variance where all are equal."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, value: Tensor) -> None:
        """One more tensor, of the shape of all others."""
        self.count += 1
        if self.count == 1:
            self.mean, self._squares = value.clone(), torch.zeros_like(value)
            return
        gap = value - self.mean
        self.mean = self.mean + gap / self.count
        self._squares += gap * (value - self.mean)

    def variance(self, *, unbiased: bool = False) -> Tensor:
        """The mean squared distance from the mean; unbiased: over count - 1."""
        return self._squares / max(1, self.count - unbiased)

    def standard_error(self) -> Tensor:
        """Of the mean; zero where one tensor tells nothing about it."""
        return (self.variance(unbiased=True) / self.count).sqrt()


def completeness(batch: Batch, values: Tensor, here: Tensor, there: Tensor) -> tuple[Number, ...]:
    """How far attributions (n, C, H, W) are from adding up to S(x) - S(b): relative and absolute, for each picture.

    here, there (n,): the scores of the picture and of its baseline.
    """
    total, rise = wide(values).sum((1, 2, 3)), wide(here) - wide(there)
    panels: list[Number] = []
    for digest, t, r in zip(batch.hashes, total.tolist(), rise.tolist(), strict=True):
        gap = t - r
        said = f"The attributions add up to {t:.6g}; from the baseline to the picture the score rises by {r:.6g}."
        panels.append(Number(key="completeness", title="Completeness gap", picture=digest, note=said,
                             value=abs(gap / r) if r else None, unit="of the rise"))
        panels.append(Number(key="completeness_gap", title="Completeness gap, absolute", picture=digest, value=gap,
                             unit="score"))
    return tuple(panels)
