"""Partition SHAP: the picture is halved again and again where that matters most, and each part gets its Owen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from analyzers.attribution._shap import ends, quiet_shap
from xai.analyzer import Maps, Passes, param
from xai.baselines import check_baseline
from xai.batch import Batch
from xai.model import Model
from xai.perturbation import Found, Perturbation
from xai.sampler import VALUES, Sampler
from xai.targets import Bound

AT_ONCE = 10  # masks between two looks at which part comes next, as in shap; the map depends on it, so no chunk sets it


@dataclass(frozen=True)
class ShapPartition(Perturbation):
    """Partition SHAP: what each part of the picture adds to the score, the parts being halves of halves.

    The input is cut in two across its longer side, each half likewise, down to the pixels, whatever the picture shows.
    A part's share is the mean of v(S + part) - v(S), where each part that was split off on the way is in S or not with
    equal weight: the Owen value of that tree. The part of the largest |v(S + part) - v(S)|, times its weight, is cut
    next. When `evaluations` are spent the rest of each share is spread evenly over its part, so that the map is of
    rectangles; together they give v(all) - v(none). shap itself does this, for one target at a time, since the cuts
    follow the score; it is given masks, and the pixels of a mask are hidden here. Hidden is all of a pixel at once, not
    a channel of it. The first run of a process takes seconds more, as shap compiles its loops.

    Reads     one model, images
    Yields    one signed map an image, at the input's size, in units of the score, and the score with nothing shown
    Raises    XaiError if the baseline is flat and the normalisation not known
    Cost      at most `evaluations` forwards for each target
    Reference Lundberg and Lee 2017, "A unified approach to interpreting model predictions", arXiv:1705.07874; the
              partition explainer of the package shap 0.51 (Owen values)
    """

    evaluations: int = param(500, "scores of masked pictures for each target, at most (shap's max_evals)", low=16)
    baseline: str = param("blur", "what hidden pixels show: blur, zero (mean colour), black, grey, white or a level")
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)

    shares: ClassVar[bool] = False
    upper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.name())

    def passes(self, model: Model) -> Passes:
        """One forward a mask, without that of the whole picture; fewer where all pixels are told apart before."""
        return Passes(forwards=1 + 2 * ((self.evaluations - 1) // 2))


    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size."""
        return self.maps_for(batch, [target])[0]

    def picture(self, sampler: Sampler) -> list[Found]:
        """(H, W) at the input's size for each target, in runs of their own."""
        return [self._found(sampler, t) for t in range(len(sampler.names))]

    def _found(self, sampler: Sampler, t: int) -> Found:
        x, fill = sampler.x, sampler.baseline(self.baseline, self.name())
        size = x.shape[-2:]

        def paint(codes: Tensor, out: Tensor) -> None:
            torch.where(codes.to(x.device).view(-1, 1, *size), x, fill, out=out)

        def score(masks: np.ndarray) -> np.ndarray:
            values = np.full((len(masks), 1), float(sampler.here[t]))
            asked = np.flatnonzero(~masks.all(1))
            answers = [answer.scores[:, t] for answer in sampler.ask([torch.from_numpy(masks[asked])], paint)]
            values[asked, 0] = torch.cat([torch.zeros(0), *answers]).numpy()
            return values

        with quiet_shap() as shap:  # it draws only to break ties, so its seed is always the same
            explainer = shap.PartitionExplainer(score, _masker(shap, *size))
            explained = explainer(np.ones((1, size.numel())), max_evals=self.evaluations, batch_size=AT_ONCE,
                                  silent=True)
        values = torch.from_numpy(explained.values).view(size)
        return Found(values, panels=ends(sampler, t, float(explained.base_values.item()), float(values.sum())))


def _masker(shap: Any, height: int, width: int) -> Any:
    """What shap takes for a masker: its own tree of halves over single pixels, and masks as they are."""
    tree = shap.maskers.Image(np.zeros((height, width, 1)))

    class Masks:
        shape, clustering, fixed_background, immutable_outputs = (1, height * width), tree.clustering, True, True

        def __call__(self, mask: np.ndarray, x: np.ndarray) -> tuple[np.ndarray]:
            return (mask[None],)

    return Masks()
