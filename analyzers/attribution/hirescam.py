"""HiResCAM: gradient times activation at every place, summed over the channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from analyzers.attribution._cam import seen
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.panels import View
from xai.targets import Bound


@dataclass(frozen=True)
class HiResCAM(Attribution):
    """HiResCAM: the places of a layer that the model used for the class.

    L(x, y) = sum_k G_k(x, y) A_k(x, y); A the layer's activations, G = dS/dA, S the target score. Where the score is
    affine in A (pooling or flattening, then one linear layer) the map sums to the score without the bias. View: relu.

    Reads     one model, images
    Yields    one signed map an image, at the layer's size, in units of the score
    Raises    XaiError if the layer has no spatial output or the gradient does not reach it
    Cost      one forward, and the backward above the layer (shared with the other CAMs)
    Reference Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM", arXiv:2011.08891
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
        return Maps((gradients * activations).sum(1))
