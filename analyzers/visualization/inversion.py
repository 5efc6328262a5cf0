"""Network inversion: a picture made anew from what each layer holds of it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from analyzers.visualization._prior import MIDDLE, natural
from analyzers.visualization._until import until
from xai.analyzer import Analyzer, Passes, param
from xai.batch import Batch
from xai.errors import error
from xai.layers import LayerView
from xai.model import Model
from xai.panels import AnyPanel, Axis, Column, Curve, Heatmap, Picture, Table, Text
from xai.preprocessing import Preprocessing
from xai.streaming import Left
from xai.subject import Subject

START = 0.05  # standard deviation of the start's noise: what of it no layer sees stays in the picture
EDGE = 0.02  # the start keeps this far from black and white, where the sigmoid's slope ends
BLOCK = 0.5  # of all layers: what holds more of them is looked into
VALUES, PICTURE = "error of the layer's values", "error of the picture"

Encode = Callable[[Tensor], Tensor]
_BLOCKS: weakref.WeakKeyDictionary[Model, tuple[LayerView, ...]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Inverted:
    """What became of one picture at one layer: `pictures` (restarts, C, H, W) in [0, 1]; `code` and `pixels`, the
    errors (restarts,) of the layer's values and of the picture."""

    view: LayerView
    pictures: Tensor
    code: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Inversion(Analyzer):
    """Network inversion: pictures that a layer cannot tell from the one that was shown.

    x* = argmin |Phi(x) - Phi0|^2 / |Phi0|^2 + (l_tv/2 TV_b(x) + l_a/2 sum |x|^a) / sigma^2, for each of several layers
    Phi from starts of noise; TV_b sums ((x[i,j+1] - x[i,j])^2 + (x[i+1,j] - x[i,j])^2)^(b/2). What x* shows the layer
    holds; where x* differs between starts, the layer leaves the picture open. The error is |Phi(x*) - Phi0| / |Phi0|.
    That of the picture is the distance to it, over that of its own mean colour: 1 is no better than a flat picture.

    Not the paper's optimiser: x is the sigmoid of what is optimised, so its range is kept by itself; the start is
    fainter noise; Adam with a rate that falls to 0 as a cosine takes the place of gradient descent with momentum. l_tv
    and l_a have the paper's meaning (pictures of 0 to 255 less their mean); sigma is the norm of a typical picture. One
    strength serves all layers, else an error that rises with depth could be the penalty's; and a weak one, else it sets
    the error of shallow layers.

    Reads     one model, images
    Yields    for each picture and layer the best x*, where the starts differ, and both errors; their course over depth
    Raises    XaiError if the layers have no finite value other than zero for any picture, or a name is no spatial layer
    Cost      a picture and layer: 1 + restarts * (steps + 1) forwards and restarts * steps backwards, which end at the
              layer
    Reference Mahendran and Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them",
              arXiv:1412.0035, eq. 1-5
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "hooks", "images"})
    shares: ClassVar[bool] = True  # no target is read
    upper: ClassVar[bool] = True  # a dead layer is not inverted

    layers: str = param("auto", "names, separated by commas; auto: some of the blocks, evenly from first to last")
    count: int = param(4, "how many layers auto takes", low=2)
    steps: int = param(200, "steps from each start", low=1)
    restarts: int = param(2, "starts of noise for each layer", low=1)
    rate: float = param(0.15, "Adam's rate at the first step", low=1e-6)
    smooth: float = param(0.1, "l_tv, strength of the total variation (the paper: 1, 10 and 100, stronger for deeper "
                               "layers)", low=0)
    beta: float = param(2.0, "b: 2 blurs edges, 1 keeps them and allows spikes", low=0.5)
    bound: float = param(8e-10, "l_a, strength of the alpha-norm", low=0)
    alpha: float = param(6.0, "a of the alpha-norm, on values counted from middle grey", low=1)

    def passes(self, model: Model) -> Passes:
        """Of one picture, one forward less: no layer needs a common one."""
        n = len(self.views(model))
        return Passes(forwards=n * (1 + self.restarts * (self.steps + 1)) - 1, backwards=n * self.restarts * self.steps)

    def views(self, model: Model) -> tuple[LayerView, ...]:
        """The layers that are inverted, the shallowest first. Raises XaiError for a name that is no spatial layer."""
        if self.layers == "auto":
            found = blocks(model)
            places = np.linspace(0, len(found) - 1, min(self.count, len(found))).round().astype(int)
            return tuple(found[i] for i in dict.fromkeys(places.tolist()))
        return tuple(model.view(name.strip()) for name in self.layers.split(",") if name.strip())

    def run(self, subject: Subject) -> Iterator[AnyPanel]:
        """What is found over all pictures first, then each picture."""
        model, images = subject.one_model(), subject.images
        if images is None or not len(images):
            raise error("the pictures", "given for network inversion", "none", "Name one or a folder with --data")
        views, left, dead = self.views(model), Left(), Left()
        panels: list[AnyPanel] = []
        rows: list[list[Inverted]] = []
        for batch in model.prepare(images, seed=subject.seed, memory_bytes=subject.memory_bytes,
                                   bad=left.add):
            for i in range(len(batch)):
                found = [one for view in views if (one := self._inverted(batch, i, view, dead)) is not None]
                panels += _shown(batch, i, found)
                rows += [[replace(one, pictures=one.pictures[:0]) for one in found]] if found else []
        if not rows:
            why = next((why for one in (left, dead) for _, why in one.pictures.values()), "no picture could be used")
            raise error("the layers", "such that one can be inverted for one of the pictures", why.rstrip("."),
                        "Check the network's weights, or name other layers with --set layers=NAME,NAME")
        yield from _summary(views, rows)
        yield from (one.panel() for one in (left, dead) if one.pictures)
        yield from panels

    def _inverted(self, batch: Batch, i: int, view: LayerView, dead: Left) -> Inverted | None:
        """One picture at one layer; None, which is noted, where its values are zero or not finite."""
        model, pre = batch.model, batch.model.preprocessing
        x0 = batch.inputs[i : i + 1]
        with torch.no_grad():
            code = until(model, view, x0)
        size = float(code.double().norm())
        if not 0 < size < math.inf:
            what = "zero everywhere" if size == 0 else "no finite numbers"
            dead.add(f"{batch.images[i].name}, layer {view.name}", f"what it holds is {what}.")
            return None
        picture = pre.undo(x0)
        starts = torch.stack([torch.randn(picture[0].shape, generator=batch.generator(i, f"inversion {view.name} {k}"))
                              for k in range(self.restarts)]).to(picture)
        found = self.invert(model, lambda x: until(model, view, _input(pre, x)), code, MIDDLE + START * starts)
        if not found.isfinite().all():
            dead.add(f"{batch.images[i].name}, layer {view.name}", "its gradients are no finite numbers.")
            return None
        with torch.no_grad():
            errors = (until(model, view, _input(pre, found)) - code).flatten(1).double().norm(dim=1) / size
        flat = (picture - picture.mean((2, 3), keepdim=True)).norm()
        pixels = (found - picture).flatten(1).norm(dim=1) / flat if flat > 0 else torch.full((len(found),), math.nan)
        return Inverted(view, found.cpu(), errors.cpu(), pixels.double().cpu())

    def invert(self, model: Model, encode: Encode, code: Tensor, start: Tensor) -> Tensor:
        """Pictures (restarts, C, H, W) in [0, 1] whose `encode` comes near `code` (1, K, h, w), from `start`."""
        z = start.clamp(EDGE, 1 - EDGE).logit().requires_grad_()
        # A short memory of sizes: with Adam's own of 1,000 steps the large gradients of the start brake to the end.
        adam = torch.optim.Adam([z], lr=self.rate, betas=(0.9, 0.9), eps=1e-16)
        size = code.square().sum()
        for step in range(self.steps):
            adam.param_groups[0]["lr"] = self.rate * (1 + math.cos(math.pi * step / self.steps)) / 2
            with torch.enable_grad():
                x = z.sigmoid()
                loss = (encode(x) - code).square().flatten(1).sum(1) / size
                loss = loss + natural(x, self.bound, self.alpha, self.smooth, self.beta)
            (z.grad,) = model.told(partial(torch.autograd.grad, loss.sum(), z), z)
            model.cost.add(backwards=len(z))
            adam.step()
        return z.detach().sigmoid()


def blocks(model: Model) -> tuple[LayerView, ...]:
    """The network's blocks in order of execution: modules with a spatial output, the outermost that hold at most
    half of all such modules, so that what one gives is a stage rather than a branch of it."""
    if model not in _BLOCKS:
        listed = model.layers()
        names = {view.name for view in listed}

        def inside(name: str) -> set[str]:
            return {other for other in names if other.startswith(f"{name}.")}

        taken = {name for name in names if len(inside(name)) <= BLOCK * len(names)}
        whole = {name: view for view in listed if (name := view.name) in taken
                 and not any(name.startswith(f"{other}.") for other in taken)}  # the last call of each
        if not whole:
            raise error("the network", "one with layers of spatial extent", f"{model.spec}, which has none",
                        "Invert another network")
        _BLOCKS[model] = tuple(sorted(whole.values(), key=listed.index))
    return _BLOCKS[model]


def _input(pre: Preprocessing, x: Tensor) -> Tensor:
    """Pictures in [0, 1] as the network takes them; a gradient passes."""
    black, white = (pre.constant(level).to(x) for level in (0.0, 1.0))
    return black + (white - black) * x


# --- what is shown ---
def _pixels(x: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] as (H, W, 3) uint8."""
    shown = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
    return np.ascontiguousarray((shown * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _shown(batch: Batch, i: int, found: list[Inverted]) -> Iterator[AnyPanel]:
    digest, name = batch.hashes[i], batch.images[i].name
    yield Picture(key="seen", title=f"{name}: what the network saw", picture=digest, pixels=batch.seen[i])
    for one in found:
        best = int(one.code.argmin())
        yield Picture(key=f"inverted {one.view.name}", title=f"From layer {one.view.name}", picture=digest,
                      pixels=_pixels(one.pictures[best]),
                      note=f"{name}, the best of {len(one.code)}. Error of the layer's values "
                           f"{float(one.code[best]):.3g}, of the picture {float(one.pixels[best]):.3g}.")
    for one in found if len(found) and len(found[0].code) > 1 else []:
        spread = one.pictures.std(0, correction=0).mean(0)
        yield Heatmap(key=f"open {one.view.name}", title=f"What layer {one.view.name} leaves open", picture=digest,
                      values=spread.float().numpy(), unit="of the range", axes=(Axis("y", "px"), Axis("x", "px")),
                      note=f"{name}. Standard deviation over {len(one.code)} starts, mean of the channels.")
    if found:
        rows = tuple((one.view.name, float(one.code.mean()), float(one.code.std(correction=0)),
                      _number(one.pixels.mean())) for one in found)
        yield Table(key="layers", title=f"{name}: errors by layer", picture=digest, rows=rows,
                    columns=tuple(map(Column, ("layer", VALUES, "its deviation over starts", PICTURE))))


def _summary(views: tuple[LayerView, ...], rows: list[list[Inverted]]) -> Iterator[AnyPanel]:
    """Errors over depth, over all pictures; what fell in how many of them."""
    kept = [view for view in views if any(one.view == view for row in rows for one in row)]
    table, means = [], []
    for view in kept:
        own = [one for row in rows for one in row if one.view == view]
        code, pixels = (torch.stack([getattr(one, key).mean() for one in own]) for key in ("code", "pixels"))
        within = torch.stack([one.code.std(correction=0) for one in own]).mean()
        means.append((code, pixels))
        table.append((view.name, f"{view.channels} x {view.grid[0]} x {view.grid[1]}", float(code.mean()),
                      float(within), float(code.min()), float(code.max()), _number(pixels.nanmean())))
    yield Text(key="course", title="Does the error fall from deep to shallow?", text=_course(rows, len(kept)))
    columns = ("layer", "values", VALUES, "its deviation over starts", "least picture", "worst picture", PICTURE)
    yield Table(key="errors", title="Relative errors of reconstruction", rows=tuple(table),
                columns=tuple(map(Column, columns)), note=f"Means over pictures ({len(rows)}); layers from shallow to "
                "deep. The error of the picture is 1 where it comes no nearer than a flat picture of its mean colour.")
    if len(kept) > 1:
        values = np.array([[float(m[k].nanmean()) for m in means] for k in (0, 1)])
        low, high = (np.array([[float(pick(m[k][~m[k].isnan()])) if (~m[k].isnan()).any() else math.nan
                                for m in means] for k in (0, 1)]) for pick in (torch.min, torch.max))
        yield Curve(key="depth", title="Relative errors over depth", x=np.arange(1.0, len(kept) + 1), y=values,
                    low=low, high=high, names=("values of the layer", "picture"),
                    axes=(Axis("layer, from shallow to deep"), Axis("relative error")),
                    note="Bands: the least and the largest of a picture.")


def _number(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def _course(rows: list[list[Inverted]], layers: int) -> str:
    whole = [row for row in rows if len(row) == layers]
    if layers < 2 or not whole:
        return "One layer is no course: name several, or look at a network with more blocks."
    said = []
    for key, what in (("code", "of the layer's values"), ("pixels", "of the picture")):
        falls = sum(bool((torch.stack([getattr(one, key).mean() for one in row]).diff() > 0).all()) for row in whole)
        said.append(f"the error {what} falls at every step from deep to shallow for {falls} of {len(whole)}")
    return (f"Counting pictures, {said[0]}, {said[1]}. An error of the values is relative to another size in each "
            "layer, and what is hard to match and what is lost both raise it: with random weights it need not fall. "
            "Look at the pictures for what a layer holds, and where the starts differ for what it leaves open.")
