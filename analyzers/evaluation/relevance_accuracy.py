"""Mass and rank accuracy: how much of a map, and of its most relevant pixels, lies on the object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.evaluation._regions import regions, share
from xai.analyzer import param
from xai.metric import Case, Metric, Score, Scored


@dataclass(frozen=True)
class RelevanceAccuracy(Metric):
    """Mass and rank accuracy: the share of a map's relevance, and of its top pixels, that lies on the object.

    G is the object's region in the input's frame (its mask, else the union of its boxes), K its number of pixels.
    Mass: sum of max(M, 0) inside G / sum of max(M, 0). Rank: the share of the K most relevant pixels that lie inside G;
    of pixels that tie at the K-th place the expected number over a random order counts, so that no chance decides.
    Chance, what a map scores on average that knows nothing: K / (H W). M is the method's view (relu, abs or signed),
    enlarged bilinearly to the input's size. A map with nothing positive scores 0, as does one that is not finite or the
    same everywhere; a picture without a region in the frame has no score.

    Quantus calls them RelevanceMassAccuracy and RelevanceRankAccuracy (group Localisation). The numbers agree for maps
    that are not negative and do not tie; on signed maps its mass sums negative relevance too and may leave [0, 1], and
    its ties fall as numpy's sort leaves them.

    Reads     one model, images, their masks or boxes; explained is the label unless a target is named
    Yields    mass, rank and chance of every map, from 0 to 1
    Raises    XaiError if a label is not known and no target is named
    Cost      no pass beyond the map
    Reference Arras, Osman, Samek 2022, "CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural
              network explanations", arXiv:2003.07258
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                               "smoothgrad(samples=20)")

    needs = frozenset({"forward", "images", "labels", "boxes"})
    group: ClassVar[str] = "Localisation"
    scores: ClassVar[dict[str, Score]] = {
        "mass": Score("share of the positive relevance that lies on the object", "higher"),
        "rank": Score("share of the K most relevant pixels that lie on the object, K its pixels", "higher"),
        "chance": Score("share of the picture that the object covers, what a blind map scores")}
    worst: ClassVar[float] = 0.0
    explains: ClassVar[str] = "label"

    def score(self, case: Case) -> Scored:
        """Three numbers a picture, NaN where no region is known or left."""
        values = {name: torch.full((len(case.raw),), torch.nan, dtype=torch.float64) for name in self.scores}
        good = case.sound()
        for i, region in enumerate(regions(case)):
            if region is None:
                continue
            values["mass"][i] = share(case.shown[i], region) if good[i] else 0.0
            values["rank"][i] = ranked(case.shown[i], region) if good[i] else 0.0
            values["chance"][i] = float(region.double().mean())
        return Scored(values)


def ranked(shown: Tensor, region: Tensor) -> float:
    """The share of the K top values (H, W) inside the region of K pixels; 0 where nothing is positive."""
    if not bool((shown > 0).any()):
        return 0.0
    count = int(region.sum())
    edge = shown.flatten().topk(count).values[-1]
    above, ties = shown > edge, shown == edge
    left = count - int(above.sum())
    expected = left * int((ties & region).sum()) / int(ties.sum())
    return (int((above & region).sum()) + expected) / count
