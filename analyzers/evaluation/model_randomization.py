"""Model parameter randomisation: does a map survive the loss of what the network learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.evaluation._likeness import MEASURES, VALUES, again, alike, asks, valued
from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.metric import Case, Metric, Score, Scored
from xai.model import Model
from xai.panels import Axis
from xai.randomized import randomized, shares_of, spread, stages

BINS = 100  # of the histogram whose entropy is taken
ORDERS = ("cascading", "independent", "last_layer")


@dataclass(frozen=True)
class ModelRandomization(Metric):
    """Model randomisation: how much of a map is left when the network's weights are drawn anew.

    s_k = alike(M(f), M(f_k)): f_k has the parameters of its first stages from the output down shuffled within each
    tensor (cascading), those of one stage alone (independent), or those of the last stage (last_layer, one map). `end`:
    where most is drawn anew, the whole network but for last_layer; `mean`: over the stages; `last_layer`: the stage
    next to the output. `entropy_rise`: (H(M(f_end)) - H(M(f))) / H(M(f)), H the entropy of the map's histogram of 100
    bins, after Hedstrom et al. 2023. A map that is flat or not finite after randomisation is like no other: 0. A map
    that never asks the network scores 1 everywhere.

    Reads     one model, images
    Yields    likeness at the random end, over the stages and at the last layer; its curve over the stages
    Raises    XaiError if the model gives no access to its layers, or the network cannot be copied
    Cost      the method again and one forward, for each of at most `stages` stages (independent: and the whole
              network); making each network takes three more forwards of one noise picture, which are not counted
    Reference Adebayo et al. 2018, "Sanity checks for saliency maps", arXiv:1810.03292; entropy: Hedstrom et al. 2023,
              "Sanity checks revisited: an exploration to repair the model parameter randomisation test",
              arXiv:2401.06465
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")
    order: str = param("cascading", "cascading (from the output down), independent (one stage at a time), last_layer "
                       "(the last stage only: one map)", choices=ORDERS)
    measure: str = param("spearman", "spearman (ranks), pearson, ssim (structure) or hog (histograms of gradients)",
                         choices=MEASURES)
    values: str = param("shown", "what is compared: shown (the method's view), absolute or raw (signed) values",
                        choices=VALUES)
    stages: int = param(8, "stages at most, evenly spaced over the network's depth, first and last among them", low=1)

    needs = frozenset({"forward", "hooks", "images"})
    group: ClassVar[str] = "Randomisation"
    again: ClassVar[bool] = True
    scores: ClassVar[dict[str, Score]] = {
        "end": Score("likeness to the map of the network with most weights drawn anew", "lower"),
        "mean": Score("likeness, mean over the stages", "lower"),
        "last_layer": Score("likeness where only the last layer's weights are drawn anew", "lower"),
        "entropy_rise": Score("rise of the map's entropy at that end, over the entropy before", "higher")}
    curves: ClassVar[dict[str, tuple[Axis, Axis]]] = {
        "likeness": (Axis("depth drawn anew, from the output (0) to the input (1)"), Axis("likeness"))}

    def steps(self, model: Model) -> list[tuple[str, ...]]:
        """What is drawn anew in each step; the last of them is the end."""
        names = stages(model)
        if self.order == "last_layer":
            return [names[:1]]
        if self.order == "cascading":
            return shares_of(names, self.stages) or [names]
        return [*(names[k - 1 : k] for k in spread(len(names), self.stages)), names]

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """The method on every randomised network, each with a forward of its own."""
        if not asks(method):
            return Passes()
        count, own = len(self.steps(model)), method.passes(model)
        return Passes(count * (1 + own.forwards), count * own.backwards)

    def score(self, case: Case) -> Scored:
        """Likeness at every step."""
        before, view = valued(case.raw, self.values, case.method.view), case.method.view
        found: list[Tensor] = []
        after, first = before, torch.full((len(before),), float("nan"), dtype=torch.float64)
        for k, raw in enumerate(self._maps(case)):
            after = valued(raw, self.values, view)
            found.append(alike(before, after, self.measure))
            first = found[0] if k == 0 else first
        line = torch.stack(found if self.order != "independent" else found[:-1], 1)
        start, end = entropy(before), entropy(after)
        return Scored({"end": found[-1], "mean": line.mean(1), "last_layer": self._last(case, first),
                       "entropy_rise": torch.where(start > 0, (end - start) / start, torch.nan)}, {"likeness": line})

    def _last(self, case: Case, first: Tensor) -> Tensor:
        """The first step is the last layer's, unless a single step took all."""
        alone = len(self.steps(case.batch.model)[0]) == 1 if asks(case.method) else True
        return first if alone else torch.full_like(first, float("nan"))

    def _maps(self, case: Case) -> Iterator[Tensor]:
        model = case.batch.model
        for names in self.steps(model):
            if not asks(case.method):
                yield case.raw  # it never looks at the weights
                continue
            twin = randomized(model, names, case.batch.seed)
            yield again(case.method, case.batch.like(model=twin), case.bound)


def entropy(maps: Tensor) -> Tensor:
    """(n,) float64, in nats: of the histogram of each map (n, h, w) between its least and largest value; 0 where it is
    flat, NaN where it is not finite."""
    found = []
    for one in maps:
        flat = one.flatten().double()
        if not torch.isfinite(flat).all():
            found.append(float("nan"))
            continue
        share = torch.histc(flat, BINS) / flat.numel() if flat.max() > flat.min() else torch.ones(1).double()
        found.append(float(-torch.xlogy(share, share).sum()))
    return torch.tensor(found, dtype=torch.float64)
