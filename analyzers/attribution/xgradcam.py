"""XGradCAM: the gradient's mean, weighted by the activation, weighs each channel of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from analyzers.attribution._cam import seen, weighted
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.panels import View
from xai.targets import Bound


@dataclass(frozen=True)
class XGradCAM(Attribution):
    """XGradCAM: where a convolutional layer saw the class, each channel weighed where it is active.

    L = sum_k w_k A_k, w_k = sum_ij G_kij A_kij / sum_ij A_kij (0 where the activations sum to nothing but rounding); A
    the layer's activations, G = dS/dA, S the target score. The map has the sum of HiResCAM's. View: relu.

    Reads     one model, images
    Yields    one signed map an image, at the layer's size, in units of the score
    Raises    XaiError if the layer has no spatial output or the gradient does not reach it
    Cost      one forward, and the backward above the layer (shared with the other CAMs)
    Reference Fu et al. 2020, "Axiom-based Grad-CAM", arXiv:2008.02312
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
        total = activations.sum((2, 3))
        rounding = torch.finfo(activations.dtype).eps * activations.abs().sum((2, 3))
        there = total.abs() > rounding
        weights = torch.where(there, (gradients * activations).sum((2, 3)) / torch.where(there, total, 1), 0)
        return Maps(weighted(weights, activations))
