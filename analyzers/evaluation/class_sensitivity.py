"""Class sensitivity: does a map change when another class is explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.evaluation._likeness import MEASURES, VALUES, alike, asks, valued
from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import error
from xai.metric import Case, Metric, Score, Scored, as_stored
from xai.model import Model
from xai.targets import Bound, of_classes

RIVALS = ("random", "second", "lowest")


@dataclass(frozen=True)
class ClassSensitivity(Metric):
    """Class sensitivity: how like the map is to the map for another class.

    alike(M_c(x), M_d(x)), c the class explained, d another one: drawn at random with equal chance, the best other one,
    or the one with the lowest score. A method that shares its passes among targets makes all three maps of one set. 1:
    the map is the same whatever is explained; a map for d that is flat or not finite counts as 0.

    Reads     one model with at least two classes, images
    Yields    likeness to the maps for a random, the second and the lowest class
    Raises    XaiError if what is explained is no class, or there is no other
    Cost      the method three times more, or once where it shares its passes
    Reference Sixt, Granz & Landgraf 2020, "When explanations lie: why many modified BP attributions fail",
              arXiv:1912.09818, section 4 (the random class)
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")
    measure: str = param("spearman", "spearman (ranks), pearson, ssim (structure) or hog (histograms of gradients)",
                         choices=MEASURES)
    values: str = param("shown", "what is compared: shown (the method's view), absolute or raw (signed) values",
                        choices=VALUES)

    group: ClassVar[str] = "Randomisation"
    again: ClassVar[bool] = True
    scores: ClassVar[dict[str, Score]] = {
        "random": Score("likeness to the map for a class drawn at random", "lower"),
        "second": Score("likeness to the map for the best other class", "lower"),
        "lowest": Score("likeness to the map for the class with the lowest score", "lower")}

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """Three more maps; of a method that shares its passes, one set."""
        own, times = method.passes(model), 1 if method.shares else len(RIVALS)
        return Passes(times * own.forwards, times * own.backwards) if asks(method) else Passes()

    def score(self, case: Case) -> Scored:
        """Likeness to the maps for three other classes."""
        batch, view = case.batch, case.method.view
        others = rivals(batch, case.bound, self.name())
        before = valued(case.raw, self.values, view)
        batch.want(*case.method.layers())
        maps = case.method.maps_for(batch, [others[name] for name in RIVALS])
        after = [valued(as_stored(one.values.detach().float().cpu()), self.values, view) for one in maps]
        return Scored({name: alike(before, one, self.measure) for name, one in zip(RIVALS, after, strict=True)})


def rivals(batch: Batch, bound: Bound, name: str) -> dict[str, Bound]:
    """The targets of RIVALS; of a contrast the other side stays, and is no rival."""
    output = batch.output()
    taken = [] if bound.classes is None else [bound.classes, *([bound.versus] if bound.versus is not None else [])]
    if not taken or output.ndim != 2 or output.shape[1] <= len(taken):
        raise error("what is explained", "one class of several", bound.names[0] if not taken else
                    f"{output.shape[1]} classes", "Name a class with --target on a model that tells classes apart")
    barred = torch.zeros_like(output, dtype=torch.bool).scatter(1, torch.stack(taken, 1), True)
    drawn = torch.stack([_drawn(~barred[i].cpu(), batch.generator(i, name)) for i in range(len(batch))])
    known = output.float().nan_to_num(0.0)
    found = {"random": drawn.to(output.device), "second": known.masked_fill(barred, -torch.inf).argmax(1),
             "lowest": known.masked_fill(barred, torch.inf).argmin(1)}
    return {which: of_classes(classes, _names(batch, classes.tolist()), bound.versus)
            for which, classes in found.items()}


def _drawn(free: Tensor, generator: torch.Generator) -> Tensor:
    places = free.nonzero()[:, 0]
    return places[torch.randint(len(places), (1,), generator=generator)[0]]


def _names(batch: Batch, classes: Sequence[int]) -> tuple[str, ...]:
    return tuple(batch.model.class_name(c) for c in classes)
