"""LayerCAM: each place's own positive gradient weighs its activation, so that early layers work too."""

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
class LayerCAM(Attribution):
    """LayerCAM: where a layer saw the class, at any depth of the network.

    L(x, y) = sum_k relu(G_k(x, y)) A_k(x, y); A the layer's activations, G = dS/dA, S the target score. The inner ReLU
    belongs to the formula; the outer one is the view. View: relu.

    Reads     one model, images
    Yields    one map an image, at the layer's size, in units of the score; signed only where the activations are
    Raises    XaiError if the layer has no spatial output or the gradient does not reach it
    Cost      one forward, and the backward above the layer (shared with the other CAMs)
    Reference Jiang et al. 2021, "LayerCAM", IEEE Transactions on Image Processing 30, 5875-5888,
              doi:10.1109/TIP.2021.3089943
    """

    layer: str = param("auto", "layer to look at, early ones too; auto = the last one that the gradient reaches")

    needs = frozenset({"gradients", "hooks", "images"})
    view: ClassVar[View] = "relu"

    def passes(self, model: Model) -> Passes:
        """One backward above the layer."""
        return Passes(backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, h, w) at the layer's size."""
        activations, gradients = seen(batch, self.layer, target)
        return Maps((gradients.clamp_min(0) * activations).sum(1))
