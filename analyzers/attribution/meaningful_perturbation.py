"""Meaningful perturbation: the smallest, smoothest mask whose blurring destroys the class."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from analyzers.attribution._gradients import wide
from analyzers.attribution._learned import course, softened, told, worth
from xai.analyzer import Maps, Passes, param
from xai.attribution import FEW, Attribution
from xai.baselines import blurred
from xai.batch import Batch
from xai.model import Model
from xai.panels import AnyPanel, Number, Text, View
from xai.perturbation import Found, stacked
from xai.sampler import VALUES, unit_of
from xai.targets import Bound

STARTS = ("disc", "ones")
DISCS = 20  # sizes of the first disc that are tried
DESTROYED = 0.01  # of what blurring the whole picture takes, what the first disc may leave


@dataclass(frozen=True)
class MeaningfulPerturbation(Attribution):
    """Meaningful perturbation: what must be blurred to destroy the class, as a mask learned by gradient descent.

    min over m in [0, 1] of score * p_c(m x + (1 - m) blur(x)) + l1 * sum |1 - m| + tv * sum |differences of
    neighbours|^beta by Adam, m clamped after each step; the map is 1 - m. It starts from the smallest soft disc in the
    middle that takes 99 % of what blurring everything takes (or from m = 1, where a saturated score has no slope). The
    sums are over the mask's cells: the weights fit a mask of about 224 x 224. In every step but the last the picture is
    shifted under the mask by up to jitter / 2 pixels at random, so that no mask is built on single pixels. Where the
    blur changes nothing (a flat picture) or the score has no gradient, the map is 0. View: relu.

    Reads     one model, images
    Yields    one map an image, 0 (left as it is) to 1 (blurred), at the mask's size; the objective over the steps; the
              score of the picture, of the masked one and of the blurred one; the share that is blurred
    Raises    XaiError if no gradient reaches the input
    Cost      `steps` forwards and one backward less, one forward of the blurred picture, and 20 of discs
    Reference Fong and Vedaldi 2017, "Interpretable explanations of black boxes by meaningful perturbation",
              arXiv:1704.03296, section 4; the mask at the input's size and the weights as in Bansal, Agarwal, Nguyen
              2020, "SAM: The sensitivity of attribution methods to hyperparameters", arXiv:2003.08754
    """

    steps: int = param(300, "looks at the masked picture; between each two the mask changes once", low=2)
    start: str = param("disc", "the first mask: disc (in the middle, as small as will do) or ones", choices=STARTS)
    value: str = param("probability", "what of the class is to vanish: logit, probability or log_odds", choices=VALUES)
    score: float = param(1.0, "weight of the class's value", low=0)
    l1: float = param(1e-4, "weight of the mask's size", low=0)
    tv: float = param(1e-2, "weight of the mask's roughness", low=0)
    beta: float = param(3.0, "power of the differences in the roughness", low=1)
    rate: float = param(0.1, "learning rate of Adam", low=0)
    cells: int = param(0, "cells of the mask along the picture's short side, enlarged; 0: a cell a pixel", low=0)
    blur: float = param(0.0446, "standard deviation of the blur, in short sides of the picture (10 px of 224), at "
                        "least one pixel", low=0.001)
    jitter: int = param(4, "places, in pixels, to which the picture is shifted along each axis", low=1)

    needs = frozenset({"gradients", "images"})
    view: ClassVar[View] = "relu"

    lessens: ClassVar[bool] = False

    def passes(self, model: Model) -> Passes:
        """A forward and a backward a step; the last one only looks, beside the blurred picture; the discs."""
        return Passes(forwards=self.steps + 1 + (DISCS if self.start == "disc" else 0), backwards=self.steps - 1)

    def divided(self, by: int) -> Attribution:
        """Few steps from a mask of ones: after them a disc would still be one."""
        return self if by == 1 else dataclasses.replace(self, steps=min(self.steps, FEW), start="ones")

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, h, w), 0 to 1, at the mask's size."""
        return stacked([self._picture(batch, i, target) for i in range(len(batch))], batch)

    def _picture(self, batch: Batch, i: int, target: Bound) -> Found:
        x, one = batch.inputs[i], worth(batch, target, i, 1, self.value)
        both = torch.stack([x, softened(x, max(1.0, self.blur * min(x.shape[1:])))])
        mask = self._first(batch, i, target, both).requires_grad_()
        adam = torch.optim.Adam([mask], lr=self.rate)
        generator = batch.generator(i, self.name()) if self.jitter > 1 else None
        rows: list[tuple[float, float, float]] = []
        touched = False
        for step in range(self.steps):
            last = step == self.steps - 1
            with torch.enable_grad():
                painted = masked(both if last or generator is None else self._shifted(both, generator), mask)
                price = self.l1 * (1 - mask).abs().sum() + self.tv * roughness(mask, self.beta)
            if last:
                shown = torch.stack([painted.detach(), both[1]])
                scores = batch.score(shown, worth(batch, target, i, 2, self.value)).tolist()
            else:
                found, slope = batch.input_gradient(painted[None], one)
                scores = found.tolist()
                (pull,) = torch.autograd.grad(painted, mask, slope[0])
                touched = touched or bool((pull != 0).any())
                mask.grad = self.score * pull + torch.autograd.grad(price, mask)[0]
                adam.step()
                with torch.no_grad():
                    mask.clamp_(0, 1)
            worthy, paid = self.score * scores[0], price.item()
            rows.append((worthy + paid, worthy, paid))
        values = 1 - mask.detach() if touched else torch.zeros_like(mask)
        return Found(values, panels=tuple(self._panels(batch, i, target, values, rows, scores)))

    def _first(self, batch: Batch, i: int, target: Bound, both: Tensor) -> Tensor:
        """(h, w): the mask at the start."""
        sides = tuple(both.shape[2:])
        share = self.cells / min(sides) if self.cells else 1
        h, w = (max(1, round(side * share)) for side in sides)
        like = wide(both[0])
        if self.start == "ones":
            return torch.ones((h, w), dtype=like.dtype, device=like.device)
        tried = 1 - discs(h, w, max(1.0, self.blur * min(h, w))).to(like)
        scores: list[float] = []
        for k in range(0, DISCS, 4):  # not by the batch's chunk, so that the choice does not depend on it
            bound = worth(batch, target, i, 4, self.value)
            scores += batch.score(torch.stack([masked(both, one) for one in tried[k : k + 4]]), bound).tolist()
        left = [(score - scores[-1]) / (scores[0] - scores[-1]) if scores[0] != scores[-1] else 0.0 for score in scores]
        return tried[next((k for k, rest in enumerate(left) if rest < DESTROYED), len(left) - 1)].clone()

    def _shifted(self, both: Tensor, generator: torch.Generator) -> Tensor:
        """Moved by a random number of pixels along each axis, borders continued."""
        down, right = torch.randint(self.jitter, (2,), generator=generator).tolist()
        (h, w), before = both.shape[2:], self.jitter // 2
        larger = F.pad(both, (before, self.jitter, before, self.jitter), mode="replicate")
        return larger[:, :, down : down + h, right : right + w]

    def _panels(self, batch: Batch, i: int, target: Bound, values: Tensor, rows: list[tuple[float, float, float]],
                scores: list[float]) -> list[AnyPanel]:
        name, area = unit_of(target, batch.model.head.kind, self.value), values.mean().item()
        here = worth(batch, target, i, 1, self.value)(batch.output()[i : i + 1]).item()
        forms = [("the picture itself", 1.0, here), ("the picture, blurred where the map is", 1 - area, scores[0]),
                 ("the picture, blurred as a whole", 0.0, scores[1])]
        drawn: list[AnyPanel] = []
        if self.value == "probability" and (scores[1] > here / 2 or scores[0] < scores[1] - 0.02):
            said = (f"Blurred as a whole the picture keeps a probability of {scores[1]:.0%}, blurred where the map is "
                    f"{scores[0]:.0%}: part of the mask's effect is a pattern that it draws, not what it hides. Take a "
                    "stronger blur, or another method.")
            drawn = [Text(key="pattern", title="Read with care", picture=batch.hashes[i], text=said, tone="warning")]
        return [*drawn, course(batch, i, rows, ("objective", f"of it {name}", "of it size and roughness")),
                told(batch, i, forms, name),
                Number(key="area", title="Share of the picture that is blurred", picture=batch.hashes[i], value=area)]


def masked(both: Tensor, mask: Tensor) -> Tensor:
    """(C, H, W): m x + (1 - m) b of both = (x, b), m (h, w) enlarged where it is smaller; m = 1 gives x to the bit."""
    if mask.shape != both.shape[2:]:
        mask = F.interpolate(mask[None, None], both.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    mask = mask.to(both.dtype)
    return mask * both[0] + (1 - mask) * both[1]


def discs(h: int, w: int, sigma: float) -> Tensor:
    """(DISCS, h, w) in float64: none, then larger and larger soft discs in the middle, the last one over everything."""
    y, x = torch.arange(h, dtype=torch.float64) - (h - 1) / 2, torch.arange(w, dtype=torch.float64) - (w - 1) / 2
    distance = (y[:, None].square() + x.square()).sqrt()
    radii = torch.linspace(0, 1, DISCS, dtype=torch.float64) * (float(distance.max()) + 1e-9)
    hard = (distance <= radii[:, None, None]).double()
    hard[0] = 0
    return blurred(hard[:, None], sigma)[:, 0]


def roughness(mask: Tensor, beta: float) -> Tensor:
    """The sum of |difference|^beta over all pairs of cells that lie below or beside each other: (h, w) -> ()."""
    return (mask[1:] - mask[:-1]).abs().pow(beta).sum() + (mask[:, 1:] - mask[:, :-1]).abs().pow(beta).sum()
