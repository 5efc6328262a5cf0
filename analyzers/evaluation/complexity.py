"""Sparseness and complexity: on how few pixels a map puts its relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xai.analyzer import param
from xai.metric import Case, Metric, Score, Scored


@dataclass(frozen=True)
class Complexity(Metric):
    """Sparseness and complexity: on how few pixels a map puts its relevance.

    a = |M| of the method's view at the input's size, n pixels, p = a / sum a. Sparseness is the Gini index,
    sum over i of (2 i - n - 1) a_(i) / (n sum a), a_(i) in rising order: 0 for a flat map, 1 - 1/n for one pixel.
    Complexity is the entropy -sum p ln p in nats: ln n for a flat map, 0 for one pixel. Effective complexity is the
    share of pixels with a > eps max a. None of them asks whether the map is right: an edge detector scores well.

    Quantus calls them Sparseness, Complexity and EffectiveComplexity (group Complexity). It adds 1e-7 to each value
    before the Gini index and 1e-12 inside the logarithm, which is left out here; its effective complexity is a number
    of pixels, ours times n, and compares with the largest value of the whole batch, so that it depends on what else is
    in there. Coarse maps are enlarged here before they are judged, so that all methods are compared at one resolution.

    Reads     one model, images
    Yields    sparseness (0 to 1), complexity (nats, 0 to ln n) and effective complexity (0 to 1) of every map
    Raises    XaiError if no method that is named can judge this model
    Cost      no pass beyond the map
    Reference Chalasani et al. 2020, "Concise explanations of neural networks using adversarial training" (Gini); Bhatt,
              Weller, Moura 2020, arXiv:2005.00631 (entropy); Nguyen and Martinez 2020, arXiv:2007.07584 (effective)
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                               "smoothgrad(samples=20)")
    eps: float = param(1e-5, "share of the maximum above which a pixel counts for the effective complexity", low=0,
                       high=1)

    group: ClassVar[str] = "Complexity"
    scores: ClassVar[dict[str, Score]] = {
        "sparseness": Score("Gini index of the map's absolute values, 0 (flat) to almost 1 (one pixel)", "higher"),
        "complexity": Score("entropy of the map's shares in nats, 0 (one pixel) to ln n (flat)", "lower"),
        "effective_complexity": Score("share of pixels that are not practically zero", "lower")}
    chance: ClassVar[bool] = False  # a blind map may well be sparse

    def score(self, case: Case) -> Scored:
        """Three numbers a picture, NaN for a map that is zero everywhere."""
        flat = case.shown.flatten(1).double().abs()
        top = flat.amax(1, keepdim=True)
        flat = flat / torch.where(top > 0, top, torch.nan)
        return Scored({"sparseness": gini(flat), "complexity": entropy(flat),
                       "effective_complexity": (flat > self.eps).double().mean(1).where(top[:, 0] > 0, torch.nan)})


def gini(values: Tensor) -> Tensor:
    """(n,) the Gini index of each row of values (n, k), not negative."""
    count = values.shape[1]
    weight = 2 * torch.arange(1, count + 1, dtype=torch.float64) - count - 1
    found: Tensor = (values.sort(1).values * weight).sum(1) / (count * values.sum(1))
    return found


def entropy(values: Tensor) -> Tensor:
    """(n,) in nats, of each row of values (n, k), not negative, as shares of their sum."""
    found: Tensor = torch.special.entr(values / values.sum(1, keepdim=True)).sum(1)
    return found
