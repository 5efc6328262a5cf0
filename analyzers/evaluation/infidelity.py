"""Infidelity: how far a map's sums over squares are from what the score loses without them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.metric import Case, Metric, Score, Scored
from xai.model import Model
from xai.removal import check_fill, filled
from xai.sampler import VALUES, Sampler

SIDES = (1 / 16, 1 / 2)  # of the squares, as shares of the short side: drawn evenly between these


@dataclass(frozen=True)
class Infidelity(Metric):
    """Infidelity: the mean squared error of a map as a prediction of what the score loses when squares are hidden.

    INFD = mean over squares S of (sum_S a - (f(x) - f(x without S)))^2, a the map as contributions to the score. Where
    the map holds sensitivities (a gradient), a is the map times sum over the channels of (x - fill). scaled: the same
    for beta a, with the beta >= 0 that fits best, so that the map's unit does not matter. unexplained: scaled divided
    by the scaled error of a flat map, which knows only that larger squares cost more; a map that tells nothing else, or
    the contrary, has 1 or more. The squares' sides are drawn evenly between a 16th and a half of the short side, their
    places evenly.

    Reads     one model, images, the maps of attributions
    Yields    the three errors of each method and control; no unexplained part where a flat map explains all
    Raises    XaiError if the fill is flat and the normalisation not known
    Cost      `samples` forwards a map
    Reference Yeh, Hsieh, Suggala, Inouye, Ravikumar 2019, "On the (in)fidelity and sensitivity of explanations",
              arXiv:1901.09392, definition 2.1 and section 4 (square removal)
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")
    samples: int = param(128, "squares that are hidden, one at a time", low=8)
    holds: str = param("contributions", "what the map holds: contributions to the score, or sensitivities (of a "
                       "gradient), which are multiplied by what is taken away",
                       choices=("contributions", "sensitivities"))
    fill: str = param("zero", "what hidden pixels show: zero (the mean colour), black, grey, white, a level, blur, or "
                      "rise_blur (a box of 11 x 11)")
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)

    group: ClassVar[str] = "Faithfulness"
    scores: ClassVar[dict[str, Score]] = {
        "unexplained": Score("error of the map scaled as fits best, in that of a flat map", "lower"),
        "infidelity": Score("mean squared error, in squares of the score's unit", "lower"),
        "scaled": Score("mean squared error of the map scaled as fits best", "lower"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fill(self.fill, self.name())

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """One forward a square."""
        return Passes(forwards=self.samples)

    def score(self, case: Case) -> Scored:
        """Hide squares of every picture."""
        found = torch.stack([errors(*self._asked(case, i)) for i in range(len(case.batch))])
        return Scored(dict(zip(("infidelity", "scaled", "unexplained"), found.T, strict=True)))

    def _asked(self, case: Case, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """The map's sum over each square, what the score loses, the square's pixels: (samples,), float64."""
        sampler = Sampler(case.batch, i, [case.bound], self.value)
        fill = filled(sampler, self.fill, self.name())
        squares = drawn(sampler.x.shape[-2:], self.samples, case.batch.generator(i, self.name()))

        def paint(codes: Tensor, out: Tensor) -> None:
            out.copy_(sampler.x)
            for one, (top, left, side) in zip(out, codes.tolist(), strict=True):
                place = (slice(None), slice(top, top + side), slice(left, left + side))
                one[place] = fill[place]

        scores = torch.cat([answer.scores[:, 0] for answer in sampler.ask([squares], paint, self.samples)])
        a = case.shown[i].double()
        if self.holds == "sensitivities":
            a = a * (sampler.x - fill).double().sum(0).cpu()
        return sums(a, squares), sampler.here[0] - scores, squares[:, 2].double().square()


def drawn(size: tuple[int, ...] | torch.Size, count: int, generator: torch.Generator) -> Tensor:
    """(count, 3) int64: top, left and side of squares that lie wholly in a picture of that size (H, W)."""
    short = min(size)
    least = max(1, round(short * SIDES[0]))
    most = max(least, round(short * SIDES[1]))
    u = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    side = least + (u[:, 2] * (most - least + 1)).long()
    return torch.stack([*((u[:, k] * (size[k] - side + 1)).long() for k in (0, 1)), side], 1)


def sums(values: Tensor, squares: Tensor) -> Tensor:
    """(m,) float64: the sums of values (H, W) over squares (m, 3)."""
    whole = torch.zeros(values.shape[0] + 1, values.shape[1] + 1, dtype=torch.float64)
    whole[1:, 1:] = values.double().cumsum(0).cumsum(1)
    top, left, side = squares.T
    return (whole[top + side, left + side] - whole[top, left + side] - whole[top + side, left] + whole[top, left])


def errors(said: Tensor, lost: Tensor, flat: Tensor) -> Tensor:
    """(3,) infidelity, scaled, unexplained: of what a map and what a flat one say about the losses; (m,) each."""
    mine, other = scaled(said, lost), scaled(flat, lost)
    return torch.stack([(said - lost).square().mean(), mine, torch.where(other > 0, mine / other, math.nan)])


def scaled(said: Tensor, lost: Tensor) -> Tensor:
    """The mean of (beta said - lost)^2, with the beta >= 0 that makes it least."""
    size = said.square().sum()
    beta = ((said * lost).sum() / size).clamp_min(0) if size > 0 else torch.zeros_like(size)
    return (beta * said - lost).square().mean()
