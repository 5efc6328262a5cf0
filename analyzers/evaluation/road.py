"""ROAD: pixels are removed and guessed from their neighbours, so that the hole's shape tells nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.metric import Case, Metric, Score, Scored
from xai.model import Model
from xai.panels import Axis
from xai.removal import imputed, kept
from xai.sampler import VALUES, Sampler

SHARES = {"1-99": tuple(range(1, 100, 2)), "10-90": tuple(range(10, 100, 10))}  # percentages of the pixels
AXES = (Axis("pixels removed", "%"), Axis("score"))
BLOCK = 32  # imputed pictures that are held at a time


@dataclass(frozen=True)
class ROAD(Metric):
    """ROAD: what the score does when a map's pixels are removed and imputed from what is left around them.

    A removed pixel becomes the mean of its neighbours, those beside it counting twice as much as the diagonal ones: one
    sparse linear system for each share that is removed, then a little Gaussian noise. The scores are means over the
    shares, most relevant first (morf) and least relevant first (lerf); combined = (lerf - morf) / 2. The kept forms ask
    instead for how many of the shares the class is still the likeliest. int(share * pixels) pixels are removed.

    Reads     one model, images, the maps of attributions
    Yields    the scores of each method and control, and the mean curves; kept forms only where the target is a class
    Raises    XaiError if the model cannot be run
    Cost      two forwards and two sparse systems a share and map: 100 with 1-99, 18 with 10-90
    Reference Rong, Leemann, Borisov, Kasneci, Kasneci 2022, "A consistent and efficient evaluation strategy for
              attribution methods", arXiv:2202.00449, section 5
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")
    percentages: str = param("1-99", "shares of the pixels: 1-99 (1, 3, ... 99) or 10-90 (10, 20, ... 90)",
                             choices=tuple(SHARES))
    noise: float = param(0.01, "standard deviation of the noise on imputed pixels, in units of the input", low=0)
    value: str = param("probability", "the score of a class: logit, probability or log_odds", choices=VALUES)

    group: ClassVar[str] = "Faithfulness"
    scores: ClassVar[dict[str, Score]] = {
        "combined": Score("half of what lerf is above morf", "higher"),
        "morf": Score("mean score, most relevant pixels removed first", "lower"),
        "lerf": Score("mean score, least relevant pixels removed first", "higher"),
        "morf_kept": Score("share of the removals after which the class is the likeliest, most relevant first",
                           "lower"),
        "lerf_kept": Score("share of the removals after which the class is the likeliest, least relevant first",
                           "higher"),
    }
    curves: ClassVar[dict[str, tuple[Axis, Axis]]] = {"morf": AXES, "lerf": AXES}

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """One forward a share and direction."""
        return Passes(forwards=2 * len(SHARES[self.percentages]))

    def places(self, name: str, count: int) -> Tensor:
        """The percentages."""
        return torch.tensor(SHARES[self.percentages], dtype=torch.float64)

    def score(self, case: Case) -> Scored:
        """Remove pixels of every picture in both orders."""
        found = torch.stack([self._walk(case, i) for i in range(len(case.batch))])  # picture, direction, share, target
        morf, lerf = found[:, 0, :, 0], found[:, 1, :, 0]
        values = {"combined": (lerf - morf).mean(1) / 2, "morf": morf.mean(1), "lerf": lerf.mean(1)}
        for k, name in enumerate(("morf_kept", "lerf_kept")):
            values[name] = found[:, k, :, 1].mean(1) if found.shape[3] > 1 else torch.full_like(morf[:, 0], math.nan)
        return Scored(values, {"morf": morf, "lerf": lerf})

    def _walk(self, case: Case, i: int) -> Tensor:
        """(2, shares, targets) of picture i."""
        classes, shares = case.bound.classes, SHARES[self.percentages]
        more = [kept(classes, i)] if classes is not None and case.batch.model.head.kind == "classes" else []
        sampler = Sampler(case.batch, i, [case.bound, *more], self.value)
        asked = sampler.ask(self._blocks(case, i), lambda codes, out: out.copy_(codes), 2 * len(shares))
        return torch.cat([answer.scores for answer in asked]).view(2, len(shares), -1)

    def _blocks(self, case: Case, i: int) -> Iterator[Tensor]:
        """The imputed pictures, (k, C, H, W): most relevant first, then least relevant first."""
        x, first = case.batch.inputs[i], case.order(i, self.name())
        generator = case.batch.generator(i, f"{self.name()} noise") if self.noise else None
        made: list[Tensor] = []
        for order in (first, first.flip(0)):
            for percentage in SHARES[self.percentages]:
                missing = torch.zeros(len(order), dtype=torch.bool)
                missing[order[: int(len(order) * percentage / 100)]] = True
                made.append(imputed(x, missing.view(x.shape[-2:]), self.noise, generator))
                if len(made) == BLOCK:
                    yield torch.stack(made)
                    made = []
        if made:
            yield torch.stack(made)
