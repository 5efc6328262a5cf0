"""The sums over pictures of what models answered, and the panels that say them, several models on one page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from analyzers.spectrum._probes import CUTS, Grid, losses
from xai import spectrum
from xai.attribution import Attribution
from xai.controls import named
from xai.model import Model
from xai.panels import AnyPanel, Axis, Column, Curve, Matrix, Table
from xai.statistics import spearman, wilson

Array = npt.NDArray[Any]
RESPONSE = 65  # frequencies along each axis of a drawn kernel response
FREQUENCY = Axis("frequency", "cycles/pixel")


@dataclass
class MapSums:
    """Of one attribution: pictures with a map that varies, and sums over them of the mean frequency in cycles per pixel
    of the input, the share of power above a quarter cycle per cell of the map, and F of a grid of two cells."""

    n: int = 0
    size: tuple[int, int] = (0, 0)
    frequency: float = 0.0
    fine: float = 0.0
    grid: float = 0.0

    def add(self, values: Array, shape: tuple[int, int]) -> None:
        """One more map (h, w) over a picture of that shape."""
        self.size = values.shape
        if not np.isfinite(values).all() or min(values.shape) < 4 or np.ptp(values) <= 1e-12 * np.abs(values).max():
            return
        on = spectrum.rings(values.shape[0], values.shape[1], corners=True)
        share = spectrum.shares(spectrum.power(values), on)
        self.n += 1
        self.frequency += float(share @ on.frequency) * min(values.shape) / min(shape)
        self.fine += float(share[on.frequency > 0.25].sum())
        f = spectrum.grid_f(values, 2)
        self.grid += f if math.isfinite(f) else 0.0


@dataclass
class Asked:
    """What one model answered, summed over n pictures. hits[0]: wrong ones by cell (of those with a known label),
    hits[1]: changed predictions; loss: their mean cross entropy's sum; rest: right and unchanged ones by filter
    (2, low or high, cut); power: mean normalised gradient power by bin; share, shares: by ring, and squared."""

    model: Model
    grid: Grid
    shape: tuple[int, int]
    norm: float
    rings: spectrum.Rings
    hits: Array
    loss: Array
    rest: Array
    power: Array
    share: Array
    shares: Array
    n: int = 0
    known: int = 0
    wrong: int = 0
    clean_loss: float = 0.0
    sloped: int = 0
    maps: dict[Attribution, MapSums] = field(default_factory=dict)

    @classmethod
    def none(cls, model: Model, grid: Grid, shape: tuple[int, int], norm: float) -> Asked:
        """Of no picture."""
        on = spectrum.rings(*shape, corners=True)
        return cls(model, grid, shape, norm, on, np.zeros((2, len(grid.cells))), np.zeros(len(grid.cells)),
                   np.zeros((2, 2, len(CUTS))), np.zeros(shape), np.zeros(len(on.counts)), np.zeros(len(on.counts)))

    def clean(self, predicted: Tensor, labels: Tensor, loss: Tensor) -> None:
        """A batch of unperturbed pictures; labels -1: not known."""
        self.n += len(predicted)
        self.known += int((labels >= 0).sum())
        self.wrong += int(((predicted != labels) & (labels >= 0)).sum())
        self.clean_loss += float(loss.sum())

    def waves(self, first: int, outputs: Tensor, predicted: Tensor, label: Tensor, truth: Tensor) -> None:
        """One picture under the waves from a cell on."""
        said, rows = outputs.argmax(1).cpu(), slice(first, first + len(outputs))
        self.hits[0, rows] += (said != label).numpy() & bool(label >= 0)
        self.hits[1, rows] += (said != predicted).numpy()
        self.loss[rows] += losses(outputs, truth.expand(len(outputs))).cpu().numpy()

    def filters(self, k: int, high: bool, outputs: Tensor, predicted: Tensor, labels: Tensor) -> None:
        """A batch through one filter."""
        said = outputs.argmax(1).cpu()
        self.rest[0, int(high), k] += int(((said == labels) & (labels >= 0)).sum())
        self.rest[1, int(high), k] += int((said == predicted).sum())

    def gradient(self, power: Array) -> None:
        """Gradient power (m, h, w) of a batch; pictures whose gradient is zero are left out."""
        total = power.sum((1, 2), keepdims=True)
        used = np.isfinite(total[:, 0, 0]) & (total[:, 0, 0] > 0)
        if not used.any():
            return
        share = spectrum.shares(power[used], self.rings)
        self.power += (power[used] / total[used]).sum(0)
        self.share += share.sum(0)
        self.shares += (share**2).sum(0)
        self.sloped += int(used.sum())

    # --- what they say ---
    @property
    def name(self) -> str:
        """The model as it was named."""
        return self.model.spec

    def rate(self, labelled: bool) -> Array:
        """(cells,) error rate, or share of changed predictions."""
        return np.asarray(self.hits[0 if labelled else 1] / self.n)

    def at_cells(self) -> Array:
        """(cells,) root of the gradient's power at the cells: the size of the first-order change."""
        rows = [a for a, _ in self.grid.cells]
        columns = [b for _, b in self.grid.cells]
        return np.asarray(np.sqrt(self.power[rows, columns]))

    def still(self) -> Array:
        """(cells,) the gradient's power, at zero frequency, which was taken off, the least of the others."""
        found = self.at_cells() ** 2
        zero = np.array([cell == (0, 0) for cell in self.grid.cells])
        found[zero] = found[~zero].min(initial=float(found.max()))
        return np.asarray(found)

    def agreement(self, values: Array) -> float:
        """Spearman's correlation of values by cell with the gradient's, without the cell of zero frequency."""
        used = np.array([cell != (0, 0) for cell in self.grid.cells])
        if not self.sloped:
            return math.nan
        return spearman(torch.from_numpy(values[used]), torch.from_numpy(self.at_cells()[used]))

    def radius(self) -> Array:
        """(cells,) cycles per pixel."""
        return np.array([math.hypot(*(min(f, n - f) / n for f, n in zip(cell, self.shape, strict=True)))
                         for cell in self.grid.cells])


def what(labelled: bool) -> str:
    """What a cell counts."""
    return "error rate" if labelled else "share of changed predictions"


def summary(asked: Sequence[Asked], labelled: bool) -> Iterator[AnyPanel]:
    """A row a model."""
    rows = []
    for one in asked:
        rate = one.rate(labelled)
        worst = int(rate.argmax())
        low, high = wilson(float(rate[worst]), one.n)
        rows.append((one.name, one.n, one.wrong / one.n if labelled else None, float(rate.mean()), float(rate[worst]),
                     low, high, round(float(one.radius()[worst]), 4), one.norm,
                     known(one.agreement(rate)), known(one.agreement(one.loss))))
    yield Table(key="summary", title="Each model in numbers", rows=tuple(rows), columns=(
        Column("model"), Column("pictures"), Column("clean error"), Column(f"mean {what(labelled)}"),
        Column("worst wave"), Column("low"), Column("high"), Column("its frequency", "cycles/pixel"),
        Column("norm a channel"), Column("Spearman, gradient and rate"), Column("Spearman, gradient and loss")),
        note=("Labels are known for all pictures: errors are counted." if labelled else
              "Labels are not known for all pictures (or not as classes of every model): changed predictions are "
              "counted, which says nothing about right and wrong.") +
             " Low and high: 95 % interval of the worst wave by Wilson, as if it had been chosen beforehand. Spearman: "
             "how alike the gradient's amplitude and the heat map order the waves, without zero frequency.")


def heat_maps(asked: Sequence[Asked], labelled: bool) -> Iterator[AnyPanel]:
    """The half planes of each model, and of two models their difference."""
    for k, one in enumerate(asked):
        half = wilson(0.5, one.n)
        yield _plane(one, f"heat-{k}", f"{what(labelled).capitalize()} by wave: {one.name}", one.rate(labelled), "",
                     f"{one.n} pictures, L2 norm {one.norm:.3g} a channel; 95 % intervals are at most "
                     f"{half[1] - half[0]:.2f} wide. Only the half plane is asked: a wave and its mirror image are the "
                     "same. The middle of the left column is zero frequency, a change of brightness.")
        yield _plane(one, f"loss-{k}", f"Mean loss by wave: {one.name}", one.loss / one.n, "nats",
                     f"Cross entropy of {'the label' if labelled else 'the label where known, else the prediction'}; "
                     f"{one.clean_loss / one.n:.3g} without a wave.")
        if one.sloped:
            yield _plane(one, f"gradient-{k}", f"Gradient by wave: {one.name}", spectrum.relief(one.still()), "dB",
                         f"Power of the loss's gradient at the same waves, each picture's normalised to 1, mean "
                         f"over {one.sloped}: what a small wave changes to first order, for one backward. Above "
                         "the least; zero frequency is left out.")
    if len(asked) == 2 and (asked[0].shape, asked[0].grid.cells) == (asked[1].shape, asked[1].grid.cells):
        a, b = asked
        yield _plane(a, "difference", f"{b.name} minus {a.name}", b.rate(labelled) - a.rate(labelled), "",
                     f"Difference of the {what(labelled)}; above 0: {b.name} suffers more.")


def _plane(one: Asked, key: str, title: str, values: Array, unit: str, note: str) -> Matrix:
    return Matrix(key=key, title=title, values=one.grid.laid(values), unit=unit, note=note,
                  rows=tuple(f"{f:+d}" for f in one.grid.rows), columns=tuple(str(f) for f in one.grid.columns),
                  axes=(Axis("down", "cycles/picture"), Axis("across", "cycles/picture")))


def by_frequency(asked: Sequence[Asked], labelled: bool) -> Iterator[AnyPanel]:
    """The heat maps and the gradients' spectra by distance from zero frequency, all models in one chart."""
    edges = np.linspace(0, math.sqrt(0.5), 15)
    middle = (edges[1:] + edges[:-1]) / 2
    lines = []
    for one in asked:
        bin_of = np.clip(np.digitize(one.radius(), edges) - 1, 0, len(middle) - 1)
        with np.errstate(invalid="ignore"):
            lines.append(np.bincount(bin_of, one.rate(labelled), len(middle)) / np.bincount(bin_of,
                                                                                            minlength=len(middle)))
    names = tuple(one.name for one in asked)
    there = np.isfinite(np.stack(lines)).all(0)
    yield Curve(key="rate", title=f"{what(labelled).capitalize()} by frequency", x=middle[there],
                y=np.stack(lines)[:, there], names=names, axes=(FREQUENCY, Axis(what(labelled))),
                note="Mean over the waves of a ring; beyond 0.5 only diagonals.")
    for k, one in enumerate(asked):
        if not one.sloped:
            continue
        used, mean = one.rings.frequency > 0, one.share / one.sloped
        sd = np.sqrt(np.maximum(one.shares / one.sloped - mean**2, 0))
        flat = one.rings.counts / one.rings.counts[used].sum()
        yield Curve(key=f"share-{k}", title=f"The gradient's power by frequency: {one.name}",
                    x=one.rings.frequency[used], y=np.stack([mean[used], flat[used]]), names=("share", "white noise"),
                    low=np.stack([np.maximum(mean - sd, 0)[used], flat[used]]),
                    high=np.stack([(mean + sd)[used], flat[used]]), axes=(FREQUENCY, Axis("share of power")),
                    note="Summed over each ring, of all but zero frequency; band: one standard deviation over the "
                         "pictures. White noise: a model that is as sensitive everywhere.")


def filtered(asked: Sequence[Asked], labelled: bool, edge: str) -> Iterator[AnyPanel]:
    """Accuracy by cut, low pass and high pass."""
    row = 0 if labelled else 1
    for high, title in ((0, "Only frequencies up to the cut"), (1, "Only frequencies above the cut")):
        share = np.stack([one.rest[row, high] / one.n for one in asked])
        bounds = np.array([[wilson(float(v), one.n) for v in line] for one, line in zip(asked, share, strict=True)])
        yield Curve(key=("low-pass", "high-pass")[high], title=title, x=np.array(CUTS), y=share,
                    names=tuple(one.name for one in asked), low=bounds[..., 0], high=bounds[..., 1],
                    axes=(Axis("cut", "cycles/pixel"), Axis("accuracy" if labelled else "share of same predictions")),
                    note=f"{edge.capitalize()} edge, clipped to [0, 1]; bands: 95 % intervals by Wilson. "
                         + ("The mean colour is kept." if high else "At 0.5 only the corners of the plane are missing.")
                         + (" Hard edges ring." if edge == "hard" else ""))


# --- kernels ---
def kernels(models: Sequence[Model]) -> Iterator[AnyPanel]:
    """The response of each model's first convolution, in closed form, and what its stride aliases."""
    rows = []
    for k, model in enumerate(models):
        found = first_kernels(model)
        if found is None:
            continue
        name, weights, stride = found
        lags = spectrum.autocorrelation(weights)
        cut = 1 / (2 * stride) if stride else math.nan
        inside = spectrum.kernel_share(lags, cut) if stride else math.nan
        rows.append((model.spec, name, "x".join(map(str, weights.shape[1:])), stride or None, known(1 - inside),
                     known(1 - (2 * cut) ** 2), spectrum.kernel_share(lags, 0.25)))
        f = np.linspace(-0.5, 0.5, RESPONSE)
        yield Matrix(key=f"kernels-{k}", title=f"Response of the first kernels: {model.spec}", unit="dB",
                     values=spectrum.relief(spectrum.kernel_power(lags, f, f)), rows=tuple(f"{v:+.3f}" for v in f),
                     columns=tuple(f"{v:+.3f}" for v in f), axes=(Axis("down", "cycles/pixel"),
                                                                  Axis("across", "cycles/pixel")),
                     note=f"Mean |frequency response|^2 of the {len(weights)} kernels of {name}, all channels, exact, "
                          "above the least.")
    if rows:
        yield Table(key="kernels", title="First kernels", rows=tuple(rows), columns=(
            Column("model"), Column("layer"), Column("size"), Column("stride"), Column("aliased share"),
            Column("the same of random kernels"), Column("share in the lower half band")),
            note="Aliased: the share of the kernels' power at frequencies that the layer's stride folds back. Lower "
                 "half band: below 0.25 cycles per pixel along both axes; 0.25 for random kernels.")


def first_kernels(model: Model) -> tuple[str, Array, int] | None:
    """Name, kernels (n, h, w) and stride (0: not known) of the first convolution that reads the picture, in the
    network's own order of parts; None where there is none larger than one pixel."""
    channels = model.preprocessing.channels
    strides: dict[str, int] = {}
    if "gradients" in model.capabilities:
        with model.opened() as module:
            strides = {f"{n}.weight": int(max(m.stride)) for n, m in module.named_modules()
                       if isinstance(m, nn.Conv2d)}
    for name, weight in model.parameters():
        if weight.ndim == 4 and weight.shape[1] == channels and max(weight.shape[2:]) > 1:
            taps = weight.detach().double().cpu().numpy()
            if not np.isfinite(taps).all():
                return None
            return name.removesuffix(".weight"), taps.reshape(-1, *taps.shape[2:]), strides.get(name, 0)
    return None


# --- attribution maps ---
def maps(asked: Sequence[Asked]) -> Iterator[AnyPanel]:
    """How fine the attribution maps are."""
    rows = [(one.name, named(method), "x".join(map(str, sums.size)), sums.n,
             *((round(total / sums.n, 4) for total in (sums.frequency, sums.fine, sums.grid)) if sums.n else
               (None, None, None))) for one in asked for method, sums in one.maps.items()]
    if rows:
        yield Table(key="maps", title="Spectra of attribution maps", rows=tuple(rows), columns=(
            Column("model"), Column("method"), Column("map", "cells"), Column("maps that vary"),
            Column("mean frequency", "cycles/pixel"), Column("share in the fine half"), Column("F of a 2 x 2 grid")),
            note="Of the map as the method shows it, its mean taken off, no window. Fine half: above 0.25 cycles a "
                 "cell of the map. F: about 1 without a grid; strided convolutions leave one in gradients whatever the "
                 "picture. Maps coarser than the picture cannot hold fine frequencies by construction.")


def known(value: float) -> float | None:
    """The number, or None where it is none."""
    return float(value) if math.isfinite(value) else None
