"""Completeness: whether a map adds up to what the picture's score is above that of its baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.baselines import baseline
from xai.metric import Case, Metric, Score, Scored
from xai.model import Model


@dataclass(frozen=True)
class Completeness(Metric):
    """Completeness: how far a map that promises it is from adding up to f(x) - f(baseline).

    gap = sum of the map - (f(x) - f(b)), b the baseline that the method itself was told; relative = |gap| divided by
    |f(x) - f(b)|. f is the score that is explained, as it is (a logit where that is a class). A method that promises no
    such sum, and the controls, have no score.

    Reads     one model, images, the maps of attributions
    Yields    the gap and its relative size; none where the method promises no sum, the relative one neither where both
              scores are equal
    Raises    XaiError if the baseline is flat and the normalisation not known
    Cost      one forward a map of a method that promises the sum
    Reference Sundararajan, Taly, Yan 2017, "Axiomatic attribution for deep networks", arXiv:1703.01365, section 3
    """

    of: str = param("integrated_gradients", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")

    group: ClassVar[str] = "Axiomatic"
    scores: ClassVar[dict[str, Score]] = {
        "relative": Score("size of the gap as a share of what the score rises from the baseline", "lower"),
        "gap": Score("what the map adds up to above that rise, in units of the score"),
    }
    chance: ClassVar[bool] = False

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """The baseline."""
        return Passes(forwards=1 if promises(method) else 0)

    def score(self, case: Case) -> Scored:
        """Add up the maps of a batch."""
        batch = case.batch
        if not promises(case.method):
            none = torch.full((len(batch),), math.nan, dtype=torch.float64)
            return Scored({"relative": none, "gap": none})
        flat = baseline(batch, getattr(case.method, "baseline"), case.method.name())  # noqa: B009  # mypy: no field
        there = batch.score(flat, case.bound).cpu().double()
        rise = case.bound(batch.output()).cpu().double() - there
        gap = case.raw.double().sum((1, 2)) - rise
        return Scored({"relative": torch.where(rise == 0, math.nan, gap.abs() / rise.abs()), "gap": gap})


def promises(method: Attribution) -> bool:
    """Whether the method says that its maps add up to the rise from its own `baseline`: by `complete`, or, where it has
    none, by the completeness gap that it yields."""
    said = getattr(type(method), "complete", "completeness gap" in type(method).section("Yields"))
    return bool(said) and hasattr(method, "baseline")
