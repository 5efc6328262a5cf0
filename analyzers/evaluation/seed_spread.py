"""Seed spread: how much of a map is the luck of its random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from analyzers.evaluation._likeness import MEASURES, VALUES, again, alike, asks, distance, valued
from xai import seeds
from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.metric import Case, Metric, Score, Scored
from xai.model import Model


@dataclass(frozen=True)
class SeedSpread(Metric):
    """Seed spread: how much the map changes when the method draws other random numbers.

    mean over k of |M_k - M| / |M|, Euclidean norms over the pixels, M_k the map with another seed; `likeness` compares
    the same maps by rank. Exactly 0, and a likeness of exactly 1: the method draws nothing, and only then. For a mean
    of n independent draws it falls as 1 / sqrt(n).

    Reads     one model, images
    Yields    the mean relative change of the map between seeds, and the likeness of the two maps
    Raises    XaiError where the method does
    Cost      the method and one forward, for each of `seeds` other seeds
    Reference Slack et al. 2021, "Reliable post hoc explanations: modeling uncertainty in explainability",
              arXiv:2008.05030 (why a map needs to be asked twice)
    """

    of: str = param("smoothgrad", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")
    seeds: int = param(3, "other seeds", low=1)
    measure: str = param("spearman", "spearman (ranks), pearson, ssim (structure) or hog (histograms of gradients)",
                         choices=MEASURES)
    values: str = param("raw", "what is compared: shown (the method's view), absolute or raw (signed) values",
                        choices=VALUES)

    group: ClassVar[str] = "Robustness"
    again: ClassVar[bool] = True
    chance: ClassVar[bool] = False
    scores: ClassVar[dict[str, Score]] = {
        "spread": Score("the mean relative change of the map with another seed; 0: it draws nothing", "lower"),
        "likeness": Score("the likeness of the maps of two seeds", "higher")}

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """The method once more for each seed, each with a forward of its own."""
        own = method.passes(model)
        return Passes(self.seeds * (1 + own.forwards), self.seeds * own.backwards) if asks(method) else Passes()

    def score(self, case: Case) -> Scored:
        """The change from the map to that of every other seed."""
        batch, view = case.batch, case.method.view
        before = valued(case.raw, self.values, view)
        others = [seeds.derive(batch.seed, self.name(), str(k)) for k in range(self.seeds)]
        after = [valued(again(case.method, batch.like(seed=other), case.bound), self.values, view) for other in others]
        return Scored({"spread": torch.stack([distance(before, one) for one in after], 1).mean(1),
                       "likeness": torch.stack([alike(before, one, self.measure) for one in after], 1).mean(1)})
