"""Insertion and deletion: the score while pixels come and go, the most relevant first."""

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
from xai.panels import Axis
from xai.removal import Course, area, check_fill, filled, in_steps, lead, walked
from xai.sampler import VALUES, Sampler, unit_of

LEAST = 0.05  # a smaller difference between the picture and the fill says nothing when something is divided by it
AXES = (Axis("share of the pixels"), Axis("score"))


@dataclass(frozen=True)
class InsertionDeletion(Metric):
    """Insertion and deletion: how fast a map's pixels bring the score back, and how fast their loss lets it drop.

    With y_k the score after k of n equal steps, the area is (sum_k y_k - (y_0 + y_n) / 2) / n. Deletion goes from the
    picture to a flat one, insertion from a blurred one to the picture, in the order of the map, ties in a seeded random
    order. By default both are the authors': softmax of the class that the picture itself is given, deletion to the mean
    colour (0 after normalisation), insertion from their blur of 11 x 11 pixels with mean-coloured borders. With 224
    pixels a side, 28 steps are theirs for data sets (8 rows each) and 224 steps theirs for one picture.

    A network that is sure of itself scores higher in both: between networks compare the normalised forms, insertion
    divided by p(x), and (deletion - p(end)) / (p(x) - p(end)), p(end) the flat picture's. There is none where the
    latter's divisor is below 0.05 (`dropped`), nor for what is no probability. The leads are areas of the logit of the
    class minus the largest other one.

    Reads     one model, images, the maps of attributions
    Yields    the areas of each method and control, their normalised forms, and the mean curves
    Raises    XaiError if a fill is flat and the normalisation not known
    Cost      two forwards a step and map
    Reference Petsiuk, Das, Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
              arXiv:1806.07421, section 4.3 and its evaluation code
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                    "smoothgrad(samples=20)")
    steps: int = param(28, "steps of a curve, at most; 28 is the authors' for data sets, 224 theirs for one picture",
                       low=1)
    step: int = param(0, "pixels that change in a step; 0: as many as give `steps`", low=0)
    deletion_fill: str = param("zero", "what deleted pixels show: zero (the mean colour), black, grey, white, a level, "
                               "blur, or rise_blur")
    insertion_fill: str = param("rise_blur", "what is there before insertion: rise_blur (the authors' 11 x 11), blur "
                                "(a tenth of the short side), zero, black, grey, white or a level")
    value: str = param("probability", "the score of a class: logit, probability or log_odds", choices=VALUES)

    group: ClassVar[str] = "Faithfulness"
    scores: ClassVar[dict[str, Score]] = {
        "insertion": Score("area under the score while pixels are put back", "higher"),
        "deletion": Score("area under the score while pixels are taken away", "lower"),
        "overall": Score("insertion minus deletion", "higher"),
        "insertion_normalised": Score("insertion divided by the picture's own score", "higher"),
        "deletion_normalised": Score("deletion, 1 = the picture's own score, 0 = that of the flat picture", "lower"),
        "insertion_lead": Score("area of the lead in logits over the best other class, at insertion", "higher"),
        "deletion_lead": Score("area of the lead in logits over the best other class, at deletion", "lower"),
        "picture": Score("score of the picture itself, the same for every map"),
        "dropped": Score("share of pictures whose deletion cannot be normalised"),
    }
    curves: ClassVar[dict[str, tuple[Axis, Axis]]] = {"deletion": AXES, "insertion": AXES}

    def __post_init__(self) -> None:
        super().__post_init__()
        for fill in (self.deletion_fill, self.insertion_fill):
            check_fill(fill, self.name())

    def counts(self, pixels: int) -> tuple[int, ...]:
        """How many pixels have changed at each point of a curve, of so many."""
        return in_steps(pixels, min(pixels, self.step or -(-pixels // self.steps)))

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """Both curves, but for the picture itself."""
        return Passes(forwards=2 * (len(self.counts(math.prod(model.preprocessing.size))) - 1))

    def score(self, case: Case) -> Scored:
        """Walk both ways with every picture."""
        walks = [self._walk(case, i) for i in range(len(case.batch))]
        deletion, insertion = (torch.stack([walk[k][:, 0] for walk in walks]) for k in (0, 1))
        here, end = deletion[:, 0], deletion[:, -1]
        probable = unit_of(case.bound, case.batch.model.head.kind, self.value) == "probability"
        none = torch.full_like(here, math.nan)
        kept = (here - end >= LEAST) if probable else torch.zeros_like(here, dtype=torch.bool)
        values = {"insertion": area(insertion), "deletion": area(deletion),
                  "overall": area(insertion) - area(deletion),
                  "insertion_normalised": torch.where((here > 0) & probable, area(insertion) / here, none),
                  "deletion_normalised": torch.where(kept, (area(deletion) - end) / (here - end), none),
                  "insertion_lead": torch.stack([_lead(walk[1]) for walk in walks]),
                  "deletion_lead": torch.stack([_lead(walk[0]) for walk in walks]),
                  "picture": here, "dropped": (~kept).double()}
        return Scored(values, {"deletion": deletion, "insertion": insertion})

    def _walk(self, case: Case, i: int) -> list[Tensor]:
        """The scores of deletion and of insertion, (k, 1), or (k, 2) with the lead where the target is a class."""
        head, classes = case.batch.model.head, case.bound.classes
        leads = [lead(classes, i)] if classes is not None and head.kind == "classes" and head.size > 1 else []
        sampler = Sampler(case.batch, i, [case.bound, *leads], self.value)
        order, counts = case.order(i, self.name()), self.counts(case.shown[i].numel())
        flat, blurred = (filled(sampler, fill, self.name()) for fill in (self.deletion_fill, self.insertion_fill))
        return walked(sampler, [Course(order, sampler.x, flat, counts), Course(order, blurred, sampler.x, counts)])


def _lead(scores: Tensor) -> Tensor:
    """The area of the second target's scores (k, T); NaN where there is none."""
    return area(scores[:, 1]) if scores.shape[1] > 1 else scores.new_tensor(math.nan)
