"""Score-CAM: each channel of a layer is weighed by the score of what it leaves of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from analyzers.attribution._cam import full
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.baselines import check_baseline
from xai.batch import Batch
from xai.model import Model
from xai.panels import View
from xai.sampler import VALUES, Sampler
from xai.targets import Bound

BLOCK = 256  # channels whose masks are made ready at a time


@dataclass(frozen=True)
class ScoreCAM(Attribution):
    """Score-CAM: where the channels are active that, used as a mask, keep the class's score up.

    L = sum_k w_k A_k. H_k is A_k enlarged to the input's size and stretched to [0, 1]; y_k is the score of
    b + H_k (x - b).
    weights "increase": w_k = y_k - score of b (definition 3 of the paper); "softmax": w = softmax over k of y_k
    (its algorithm 1, and pytorch-grad-cam; with logits nearly all weight goes to one channel). A channel that is
    the same everywhere makes no mask: its y_k is the score of b. View: relu.

    Reads     one model, images
    Yields    one signed map an image, at the layer's size
    Raises    XaiError if the layer has no spatial output, or the baseline is flat and the normalisation not known
    Cost      at most one forward a channel of the layer, and one of the baseline; channels without a mask cost nothing
    Reference Wang et al. 2020, "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
              arXiv:1910.01279, eq. 3-6, algorithm 1
    """

    layer: str = param("auto", "layer to look at; auto = the last spatial one that the target's gradient reaches")
    weights: str = param("increase", "increase over the baseline, or softmax", choices=("increase", "softmax"))
    baseline: str = param("zero", "what is seen instead: zero (the mean colour), black, grey, white, a level, or blur")
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)

    needs = frozenset({"hooks", "images"})
    view: ClassVar[View] = "relu"
    shares: ClassVar[bool] = True
    upper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.name())

    def passes(self, model: Model) -> Passes:
        """One forward a channel, and one of the baseline."""
        return Passes(forwards=model.view(self.layer).channels + 1)

    def maps_for(self, batch: Batch, targets: Sequence[Bound], owners: Sequence[int] = ()) -> list[Maps]:
        """(n, h, w) at the layer's size for each target."""
        activations = full(batch.activations(self.layer))
        weights = torch.stack([self._weights(Sampler(batch, i, targets, self.value), activations[i])
                               for i in range(len(batch))])  # (n, T, K)
        each = weights.to(activations).unbind(1)  # by itself, so that no map depends on what else is asked
        return [Maps(torch.einsum("nk,nkhw->nhw", one, activations)) for one in each]

    def _weights(self, sampler: Sampler, activations: Tensor) -> Tensor:
        """(T, K) for one picture's activations (K, h, w)."""
        low, high = activations.amin((1, 2)), activations.amax((1, 2))
        alive = ((high > low) & torch.isfinite(high - low)).nonzero().flatten()
        fill = sampler.baseline(self.baseline, self.name())
        gap = sampler.x - fill

        def paint(channels: Tensor, out: Tensor) -> None:
            torch.addcmul(fill, stretched(channels, out.shape[-2:]).to(out), gap, out=out)

        none = sampler.scores(fill[None])[0]
        scores = none.repeat(len(activations), 1)
        blocks = (activations[rows] for rows in torch.split(alive, BLOCK))
        asked = [answer.scores for answer in sampler.ask(blocks, paint, len(alive))]
        scores[alive.cpu()] = torch.cat([none[None][:0], *asked])
        return (scores - none).T if self.weights == "increase" else scores.softmax(0).T


def stretched(channels: Tensor, size: Sequence[int]) -> Tensor:
    """(m, 1, H, W) in [0, 1]: channels (m, h, w) enlarged bilinearly and stretched to their own range."""
    up = F.interpolate(channels[:, None], tuple(size), mode="bilinear", align_corners=False)
    low, high = up.amin((2, 3), keepdim=True), up.amax((2, 3), keepdim=True)
    return (up - low) / (high - low).clamp_min(torch.finfo(up.dtype).tiny)
