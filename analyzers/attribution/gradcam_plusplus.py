"""Grad-CAM++: each place's gradient counts by how much it can still move the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.attribution._cam import seen, weighted
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.panels import Text, View
from xai.targets import Bound


@dataclass(frozen=True)
class GradCAMPlusPlus(Attribution):
    """Grad-CAM++: where a convolutional layer saw the class, also where it saw it several times.

    L = sum_k w_k A_k, w_k = sum_ij a_kij relu(G_kij), a = G^2 / (2 G^2 + T_k G^3 + epsilon), T_k = sum_ij A_kij; a = 0
    where G = 0. A the layer's activations, G = dS/dA, S the target score. Eq. 19 is for exp(S): its higher derivatives
    are then powers of G, and the factor exp(S) that all weights of a picture share is left out. The paper takes A >= 0,
    so T >= 0; where a layer is signed the weight has a pole at T G = -2, and a warning says how many channels lie
    beyond it. View: relu.

    Reads     one model, images
    Yields    one signed map an image, at the layer's size, unitless
    Raises    XaiError if the layer has no spatial output or the gradient does not reach it
    Cost      one forward, and the backward above the layer (shared with the other CAMs)
    Reference Chattopadhyay et al. 2018, "Grad-CAM++", arXiv:1710.11063, eq. 19
    """

    layer: str = param("auto", "layer to look at; auto = the last spatial one that the target's gradient reaches")
    epsilon: float = param(0.0, "added to a's denominator; pytorch-grad-cam adds 1e-6", low=0)

    needs = frozenset({"gradients", "hooks", "images"})
    view: ClassVar[View] = "relu"

    def passes(self, model: Model) -> Passes:
        """One backward above the layer."""
        return Passes(backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, h, w) at the layer's size."""
        activations, gradients = seen(batch, self.layer, target)
        total = activations.sum((2, 3), keepdim=True)
        places, beyond = self._weights(gradients.clamp_min(0), total)
        return Maps(weighted(places.sum((2, 3)), activations), panels=tuple(_warnings(batch, beyond)))

    def _weights(self, rising: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """(a relu(G) at every place, share of channels past the pole (n,)); rising: relu(G), total: T, (n, K, 1, 1).

        Divided through by G^2: no power of a small G is taken that could underflow.
        """
        below = 2 + total * rising
        if self.epsilon:
            below = below + self.epsilon / rising.square()
        nothing = (rising == 0) | (below == 0)  # a gradient that is not a number stays one
        places = torch.where(nothing, 0, rising / below)
        return places, (below <= 0).flatten(2).any(2).float().mean(1)


def _warnings(batch: Batch, beyond: Tensor) -> list[Text]:
    return [Text(key="assumption", title="Grad-CAM++ beyond its assumption", picture=picture, tone="warning",
                 text="The method takes activations that are not negative. In "
                      f"{share:.1%} of this layer's channels the negative ones outweigh and turn the weight's sign. "
                      "Prefer gradcam or hirescam here, or a layer behind a ReLU.")
            for picture, share in zip(batch.hashes, beyond.tolist(), strict=True) if share > 0]
