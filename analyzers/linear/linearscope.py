"""LinearScope: which pixels vote for the score, and how much of it no pixel decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.linear import _panels as drawn
from analyzers.linear._panels import View
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.frozen import MODES
from xai.linear import DENSE, Linear
from xai.model import Model
from xai.targets import Bound

STEPS, MORE = 2, 4  # of the subspace iteration: rounds, and vectors beside those that are drawn


@dataclass(frozen=True)
class LinearScope(Attribution):
    """LinearScope: which pixels vote for the score, and how much of it no pixel decides.

    For this one input the network is the affine system y = F x + r: every decision (which ReLU is open, what a pool
    picked, gates, attention, the scale of norms) is held as it was. The map is the row of F that the target asks for,
    times the input, summed over channels: a vote for each pixel. Votes and the offset r add up to the score; r is
    found by running the frozen network on an input of zeros, never as what is left over, so that the gap tells whether
    every decision was held. `mode`: "gate" holds g(x) of f(x) = x g(x) and one factor of every product, so that r holds
    learned constants alone; "tangent" is the Jacobian (the votes are then gradient x input), whose r also holds the
    curvature. For networks of ReLU and max-pooling both are the same. A vote depends on what an input of zero is: see
    `zero`. F is local: another picture has another one.

    Reads     one model, images
    Yields    one signed map an image, at the input's size, in units of the score; the offset and its share; the votes
              and offsets of other classes; rows and columns of F as pictures; what each layer's constants add, and
              where; singular values and pictures of F; the completeness gap
    Raises    XaiError if no gradient reaches the output
    Cost      two forwards and a backward; a backward for each further class; a backward for all columns and about two,
              which are not counted, for each; for the singular pairs the number of outputs in backwards (up to
              `dense`), else 3 (k + 4), and as many products F v
    Reference Navarrete Michelini, Liu, Lu, Jiang 2019, "A Tour of Convolutional Networks Guided by Linear
              Interpreters", arXiv:1908.05168; subspace iteration: Halko et al. 2011, arXiv:0909.4061
    """

    mode: str = param("gate", "gate: decisions held as factors; tangent: the Jacobian", choices=MODES)
    zero: str = param("mean", "the input whose pixels have no vote: mean (zeros, the mean colour) or black",
                      choices=("mean", "black"))
    classes: int = param(3, "how many of the other best classes have their votes beside the target's", low=0, high=20)
    singular: int = param(3, "singular pairs of F that are drawn; 0: none", low=0, high=32)
    dense: int = param(DENSE, "outputs up to which all rows of F are asked for: then every singular value is exact and "
                              "there is an effective rank; 1000 of them take 1000 backwards and 1 GB", low=0)
    columns: int = param(2, "columns of F that are drawn, of the pixels with the largest votes", low=0, high=16)
    rows: str = param("yes", "whether the rows of F are drawn as pictures", choices=("yes", "no"))

    needs = frozenset({"gradients", "images"})
    effort: ClassVar[tuple[str, ...]] = ("classes", "singular", "columns")

    def passes(self, model: Model) -> Passes:
        """The record and the offset; rows; of products F v what goes through the network itself."""
        forwards, backwards = 2, 1 + bool(self.columns)
        kind, size = model.head.kind, model.head.size
        flat = kind not in ("map", "image")
        if kind in ("classes", "multi-label"):
            backwards += min(self.classes, size - 1)
        if self.singular and flat and size <= self.dense:
            backwards += size
        elif self.singular:
            k = min(self.singular + MORE, size) if flat else self.singular + MORE
            backwards += (k + 1) * (STEPS + 1)
        return Passes(forwards=forwards, backwards=backwards)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size: the votes."""
        found = [self._picture(batch, i, target.take([i])) for i in range(len(batch))]
        return Maps(torch.stack([view.votes for view in found]),
                    panels=tuple(panel for view in found for panel in drawn.panels(view)))

    def _picture(self, batch: Batch, i: int, bound: Bound) -> View:
        model = batch.model
        linear = Linear(model, batch.inputs[i : i + 1], self.mode)
        direction = _direction(linear.y, bound)
        row, terms = linear.terms(direction)
        zero = torch.zeros_like(linear.x[0])
        if self.zero == "black":
            zero = zero + model.preprocessing.constant(0.0).to(zero)
        others = self._others(linear, bound)
        rows = linear.transpose(torch.eye(linear.y.shape[1])[others]) if others else row[None][:0]
        votes = (row * (linear.x[0] - zero)).sum(0)
        pixels = votes.abs().flatten().topk(min(self.columns, votes.numel())).indices.tolist()
        known = bool(linear.y.isfinite().all() and row.isfinite().all())  # else the verdicts on the map say it
        return View(
            picture=batch.hashes[i], name=bound.names[0], linear=linear, direction=direction, row=row, terms=terms,
            zero=zero, votes=votes.cpu(), others=others, rows=rows, drawn=self.rows == "yes",
            labels=model.class_name, size=(int(votes.shape[0]), int(votes.shape[1])), pixels=pixels,
            columns=linear.forward(_impulses(linear.x, row, pixels)) if pixels else linear.y[:0],
            singular=(linear.singular(self.singular, steps=STEPS, more=MORE, dense=self.dense)
                      if self.singular and known else None),
            gap=linear.gap_of(direction, row, terms), exact=bound(linear.y).item())

    def _others(self, linear: Linear, bound: Bound) -> list[int]:
        """The best classes beside the target's own."""
        if linear.model.head.kind not in ("classes", "multi-label") or linear.y.ndim != 2 or not self.classes:
            return []
        own = int(bound.classes[0]) if bound.classes is not None and bound.versus is None else -1
        ranked = [c for c in linear.y[0].argsort(descending=True, stable=True).tolist() if c != own]
        return ranked[: min(self.classes, linear.y.shape[1] - 1)]


def _direction(y: Tensor, bound: Bound) -> Tensor:
    """u (1, *output) of the score <u, y>: its gradient, which for a class, a contrast, a pixel or a region is constant.
    """
    with torch.enable_grad():
        leaf = y.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(bound(leaf).sum(), leaf)
    return found


def _impulses(x: Tensor, row: Tensor, pixels: list[int]) -> Tensor:
    """(k, C, H, W): at each pixel the unit change of colour that the row answers to most."""
    made = x.new_zeros(len(pixels), *x.shape[1:])
    width = x.shape[-1]
    for k, pixel in enumerate(pixels):
        colour = row[:, pixel // width, pixel % width]
        size = colour.norm()
        made[k, :, pixel // width, pixel % width] = colour / size if size > 0 else 1 / len(colour) ** 0.5
    return made
