"""What the gradient methods share: channel reduction, baselines, seeded noise, moments, the loop over many inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from xai.batch import Batch
from xai.errors import XaiError, error
from xai.panels import Number
from xai.targets import Bound

REDUCTIONS = ("max_abs", "sum", "sum_abs")
LEVELS = {"black": 0.0, "grey": 0.5, "white": 1.0}
BLUR = 0.1  # standard deviation of the blurred baseline, as a share of the short side


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


def gradients(batch: Batch, target: Bound, point: Callable[[int], Tensor], count: int) -> Iterator[tuple[int, Tensor]]:
    """(k, dS/dx (n, C, H, W)) at point(0), ..., point(count - 1), each (n, C, H, W), in order.

    As many as the batch's chunk takes share one forward; they are yielded one by one and never held all together.
    """
    n = len(batch)
    together = max(1, batch.chunk // n) if repeatable(target, n) else 1
    for first in range(0, count, together):
        ks = range(first, min(count, first + together))
        inputs = torch.cat([point(k) for k in ks])
        bound = target if len(ks) == 1 else target.take(list(range(n)) * len(ks))
        found = batch.input_gradient(inputs, bound)[1]
        yield from zip(ks, wide(found).view(len(ks), n, *found.shape[1:]), strict=True)


def repeatable(target: Bound, n: int) -> bool:
    """Whether the target can speak of one picture several times; where not (a mask), a forward holds each once."""
    try:
        target.take(range(n))
    except XaiError:
        return False
    return True


def normal_noise(batch: Batch, method: str) -> Callable[[], Tensor]:
    """A function whose k-th call gives the k-th standard normal draw of each picture, (n, C, H, W).

    Drawn on the CPU in float32 from each picture's own generator: the same whatever the batch, chunk, device or
    precision.
    """
    generators = [batch.generator(i, method) for i in range(len(batch))]
    shape = batch.inputs.shape[1:]
    return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(batch.inputs)


def noisy(batch: Batch, method: str, share: float) -> Callable[[int], Tensor]:
    """point(k) for `gradients`: each picture with normal noise of standard deviation `share` times its (max - min)."""
    x, draw = batch.inputs, normal_noise(batch, method)
    spread = x.amax((1, 2, 3), True) - x.amin((1, 2, 3), True)
    return lambda k: x + share * spread * draw()


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


def check_baseline(which: str | float, name: str) -> float | None:
    """The level 0 to 1 of a flat baseline, None for "zero" and "blur". Raises XaiError for anything else."""
    if which in ("zero", "blur"):
        return None
    try:
        level = LEVELS[which] if isinstance(which, str) and which in LEVELS else float(which)
    except ValueError:
        level = -1.0
    if not 0 <= level <= 1:
        raise error(f"{name}.baseline", "black, zero, grey, white, blur or a number from 0 to 1", repr(which),
                    "It is the picture that stands for nothing to see; black is 0 and white 1")
    return level


def baseline(batch: Batch, which: str | float, name: str) -> Tensor:
    """The baseline of each picture as the network takes it, (n, C, H, W).

    "black", "grey", "white" or a level from 0 to 1: a flat picture; "zero": 0 after normalisation, which is the mean
    colour; "blur": the picture itself, blurred by a Gaussian of a tenth of its short side. Raises XaiError where a
    level is asked for and the normalisation is not known.
    """
    level = check_baseline(which, name)
    if which == "zero":
        return torch.zeros_like(batch.inputs)
    if which == "blur":
        return blurred(batch.inputs, BLUR * min(batch.inputs.shape[-2:]))
    assert level is not None
    return batch.model.preprocessing.constant(level).to(batch.inputs).expand_as(batch.inputs).contiguous()


def blurred(x: Tensor, sigma: float) -> Tensor:
    """(n, C, H, W) after a Gaussian of standard deviation sigma in pixels, cut at 3 sigma, borders continued."""
    radius = max(1, round(3 * sigma))
    place = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (place / max(sigma, 1e-6)) ** 2)
    kernel = (kernel / kernel.sum()).to(x)
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return flat.view_as(x)


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
