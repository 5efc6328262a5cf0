"""What a classifier is asked about frequencies: Fourier waves on pictures, its gradient's spectrum, filters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from xai import spectrum
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.model import Model
from xai.targets import Bound, Target

Array = npt.NDArray[Any]
Cell = tuple[int, int]  # whole numbers of cycles a picture, down and across
CUTS = (1 / 64, 1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)  # cycles per pixel
NORMS = ((32, 4.0), (224, 15.7))  # side in pixels and the norm used there: Yin et al.'s CIFAR-10 and ImageNet
BUTTERWORTH = 4  # order of a smooth filter


# --- Fourier basis ---
@dataclass(frozen=True)
class Grid:
    """The half plane of frequencies that is asked about: `rows` (down, ascending) by `columns` (across, from 0), and
    the `cells` that differ; `place` (rows, columns) says which cell each is (a frequency and its mirror are one)."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    cells: tuple[Cell, ...]
    place: Array

    def laid(self, values: Array) -> Array:
        """(rows, columns) of values by cell."""
        return np.asarray(values[self.place])


def grid(height: int, width: int, side: int, span: str) -> Grid:
    """At most `side` frequencies an axis: `whole`, evenly from Nyquist to Nyquist, or `centre`, the lowest ones."""
    down, across = (_axis(n, side, span) for n in (height, width))
    columns = tuple(f for f in across if f >= 0)
    found: dict[Cell, int] = {}
    place = np.zeros((len(down), len(columns)), np.int64)
    for i, fy in enumerate(down):
        for j, fx in enumerate(columns):
            one, other = (fy % height, fx % width), (-fy % height, -fx % width)
            place[i, j] = found.setdefault(min(one, other), len(found))
    return Grid(down, columns, tuple(found), place)


def _axis(n: int, side: int, span: str) -> tuple[int, ...]:
    half, most = n // 2, (side - 1) // 2
    if half <= most:
        return tuple(range(-half, half + 1))
    if span == "centre":
        return tuple(range(-most, most + 1))
    steps = [round(k * half / most) for k in range(most + 1)]
    return (*(-f for f in reversed(steps[1:])), *steps)


def basis(height: int, width: int, cells: Sequence[Cell]) -> Tensor:
    """(len(cells), height, width) float32: cos(2 pi (fy y / h + fx x / w)), each of L2 norm 1; from tables of one side
    each, cos(a + b) = cos a cos b - sin a sin b."""
    fy, fx = (torch.tensor([c[k] for c in cells], dtype=torch.float64) for k in (0, 1))
    down = 2 * math.pi * torch.outer(fy, torch.arange(height, dtype=torch.float64) / height)
    across = 2 * math.pi * torch.outer(fx, torch.arange(width, dtype=torch.float64) / width)
    own = torch.tensor([2 * a % height == 0 and 2 * b % width == 0 for a, b in cells])
    scale = torch.where(own, 1.0, math.sqrt(2)) / math.sqrt(height * width)
    rows = torch.stack([down.cos() * scale[:, None], -down.sin() * scale[:, None]], 2).float()
    columns = torch.stack([across.cos(), across.sin()], 1).float()
    return torch.bmm(rows, columns)


def norm_for(height: int, width: int) -> float:
    """The norm a channel for pictures of that size: 4 at 32 x 32, 15.7 at 224 x 224, the power law through both
    elsewhere."""
    (a, low), (b, high) = NORMS
    return float(low * (math.sqrt(height * width) / a) ** (math.log(high / low) / math.log(b / a)))


@dataclass(frozen=True)
class Scale:
    """A model's inputs in terms of [0, 1]: `unit` (C, 1, 1) what 1 is there, `low` and `high` (C, 1, 1) 0 and 1."""

    unit: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, model: Model) -> Scale:
        """Raises XaiError where the preprocessing is not known."""
        low, high = (model.preprocessing.constant(level).to(model.device, model.dtype) for level in (0.0, 1.0))
        return cls(high - low, low, high)


def signs(batch: Batch, method: str) -> Tensor:
    """(n, C, 1, 1) of +-1: each picture's own for each channel, the same at all frequencies and in any batch."""
    n, c = batch.inputs.shape[:2]
    drawn = [torch.randint(2, (c,), generator=batch.generator(i, method)) * 2 - 1 for i in range(n)]
    return torch.stack(drawn)[..., None, None].to(batch.inputs)


def perturbed(batch: Batch, cells: Sequence[Cell], norm: float, sign: Tensor, chunk: int) -> Iterator[tuple[int, int,
                                                                                                            Tensor]]:
    """(first cell, picture, outputs (k, classes)) of clip(x + sign norm U) for all cells, at most `chunk` a forward.
    The basis of a chunk is made once for all pictures of the batch."""
    model, scale, (height, width) = batch.model, Scale.of(batch.model), batch.inputs.shape[-2:]
    step = sign * norm * scale.unit
    buffer = batch.inputs.new_empty(min(chunk, len(cells)), *batch.inputs.shape[1:])
    for first in range(0, len(cells), chunk):
        waves = basis(height, width, cells[first : first + chunk])[:, None].to(batch.inputs)
        for i in range(len(batch)):
            inputs = torch.addcmul(batch.inputs[i], waves, step[i], out=buffer[: len(waves)])
            torch.clamp(inputs, scale.low, scale.high, out=inputs)
            yield first, i, model.infer(inputs, len(buffer))


# --- classes ---
def classes_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """(predicted (n,), known labels (n,), -1 where there is none). Raises XaiError where the model has no classes or
    gives what is no number."""
    output, model = batch.output(), batch.model
    if model.head.kind not in ("classes", "multi-label") or output.ndim != 2 or output.shape[1] < 2:
        raise error("the model", "a classifier of at least two classes for this method",
                    f"{model.spec}, {model.head.kind} ({model.head.size})", "Name another with --model")
    if not output.isfinite().all():
        raise error("the outputs of the model", "finite numbers", "others", "Check its weights and preprocessing")
    return output.argmax(1).cpu(), torch.tensor([_label(batch, i) for i in range(len(batch))])


def _label(batch: Batch, i: int) -> int:
    if batch.truth[i] is None:
        return -1
    try:
        bound = Target("label").bind(batch.output()[i : i + 1], kind=batch.model.head.kind, labels=batch.model.labels,
                                     truth=(batch.truth[i],))
    except XaiError:  # a class of another model
        return -1
    assert bound.classes is not None
    return int(bound.classes[0])


def losses(output: Tensor, classes: Tensor) -> Tensor:
    """(n,) cross entropy of outputs (n, classes) for the given classes."""
    return F.cross_entropy(output.float(), classes.to(output.device), reduction="none")


def loss_of(classes: Tensor) -> Bound:
    """The cross entropy as a target, for its gradient."""
    return Bound(lambda output: losses(output, classes), ("the loss",) * len(classes),
                 chosen=lambda rows: loss_of(classes[list(rows)]))


# --- the gradient ---
def gradient_power(batch: Batch, classes: Tensor) -> Array:
    """(n, h, w) float64: |FFT|^2 (ortho) of the gradient of the loss by the picture in [0, 1], the mean over channels;
    in the order of the FFT, 0 at zero frequency. One forward and one backward a picture."""
    _, gradient = batch.input_gradient(batch.inputs, loss_of(classes.to(batch.inputs.device)))
    scaled = (gradient * Scale.of(batch.model).unit).double().cpu().numpy()
    return np.asarray(spectrum.power(scaled).mean(1))


# --- filters ---
def filtered(batch: Batch, cut: float, high: bool, smooth: bool) -> Tensor:
    """Inputs (n, C, h, w) of the pictures with only the frequencies up to `cut` cycles per pixel left, or only those
    above and the mean colour; clipped to [0, 1]."""
    scale, (h, w) = Scale.of(batch.model), batch.inputs.shape[-2:]
    mask = spectrum.low_pass(h, w, cut, BUTTERWORTH if smooth else 0)
    if high:
        mask = 1 - mask
        mask[0, 0] = 1
    kept = torch.from_numpy(mask[:, : w // 2 + 1]).to(batch.inputs)
    values = torch.fft.irfft2(torch.fft.rfft2(batch.inputs.float()) * kept.float(), s=(h, w)).to(batch.inputs)
    return torch.clamp(values, scale.low, scale.high)
