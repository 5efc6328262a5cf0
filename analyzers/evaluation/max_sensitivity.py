"""Max-sensitivity: how far a map moves when the picture moves a little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.evaluation._likeness import VALUES, again, asks, distance, valued
from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.metric import Case, Metric, Score, Scored
from xai.model import Model


@dataclass(frozen=True)
class MaxSensitivity(Metric):
    """Max-sensitivity: how much a map changes under small noise on the picture.

    max over k of |M(x + e_k) - M(x)| / |M(x)|, Euclidean norms over the pixels, e_k uniform in [-radius, radius] in
    the units of the normalised input, a number for each value; `mean` is the mean over k instead. The class explained
    stays that of x, and the method draws the same random numbers for x + e_k as for x. Low is not good by itself: a map
    that never asks the network does not change at all.

    Reads     one model, images
    Yields    the largest and the mean relative change of the map
    Raises    XaiError where the method does
    Cost      the method and one forward, for each of `samples` noisy pictures
    Reference Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations", arXiv:1901.09392, section 4
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")
    radius: float = param(0.2, "the noise is uniform between -radius and radius, in units of the normalised input",
                          low=0)
    samples: int = param(10, "noisy copies of each picture", low=1)
    values: str = param("raw", "what is compared: shown (the method's view), absolute or raw (signed) values",
                        choices=VALUES)

    group: ClassVar[str] = "Robustness"
    again: ClassVar[bool] = True
    chance: ClassVar[bool] = False
    scores: ClassVar[dict[str, Score]] = {
        "max": Score("the largest relative change of the map under the noise", "lower"),
        "mean": Score("the mean relative change of the map under the noise", "lower")}

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """The method on every noisy picture, each with a forward of its own."""
        own = method.passes(model)
        return Passes(self.samples * (1 + own.forwards), self.samples * own.backwards) if asks(method) else Passes()

    def score(self, case: Case) -> Scored:
        """The relative change for every draw, its maximum and mean."""
        batch, view = case.batch, case.method.view
        before = valued(case.raw, self.values, view)
        noise, changes = [batch.generator(i, self.name()) for i in range(len(batch))], []
        for _ in range(self.samples):
            moved = again(case.method, batch.like(inputs=self.noisy(batch, noise)), case.bound)
            changes.append(distance(before, valued(moved, self.values, view)))
        line = torch.stack(changes, 1)
        return Scored({"max": line.amax(1), "mean": line.mean(1)}, {"changes": line})

    def noisy(self, batch: Batch, generators: list[torch.Generator]) -> Tensor:
        """(n, C, H, W): the inputs with the next noise of each picture."""
        x = batch.inputs
        drawn = torch.stack([torch.rand(x.shape[1:], generator=one) for one in generators])
        return x + self.radius * (2 * drawn - 1).to(x)
