"""Grad-CAM: the gradient's spatial mean weighs each channel of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from analyzers.attribution._cam import seen, weighted
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.panels import View
from xai.targets import Bound


@dataclass(frozen=True)
class GradCAM(Attribution):
    """Grad-CAM: where a convolutional layer saw the class.

    L(x, y) = sum_k w_k A_k(x, y), w_k the spatial mean of dS/dA_k; A the layer's activations, S the target score. View:
    relu.

    Reads     one model, images
    Yields    one signed map an image, at the layer's size, in units of the score
    Raises    XaiError if the layer has no spatial output or the gradient does not reach it
    Cost      one forward, and the backward above the layer
    Reference Selvaraju et al. 2017, "Grad-CAM", arXiv:1610.02391, eq. 1-2
    """

    layer: str = param("auto", "layer to look at; auto = the last spatial one that the target's gradient reaches")

    needs = frozenset({"gradients", "hooks", "images"})
    view: ClassVar[View] = "relu"

    def passes(self, model: Model) -> Passes:
        """One backward above the layer."""
        return Passes(backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, h, w) at the layer's size."""
        activations, gradients = seen(batch, self.layer, target)
        return Maps(weighted(gradients.mean((2, 3)), activations))
