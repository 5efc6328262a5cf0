"""FinerCAM: what tells a class from the classes that the model nearly took instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from analyzers.attribution._cam import seen, weighted
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import error
from xai.model import Model
from xai.panels import View
from xai.targets import Bound


@dataclass(frozen=True)
class FinerCAM(Attribution):
    """Finer-CAM: where a layer saw what tells the class from its nearest rivals.

    Grad-CAM of S = sum_d p_d (f_c - alpha f_d) / sum_d p_d, f the logits, c the class, d the rivals whose logits lie
    closest to f_c, p = softmax(f). The gradient flows through the p_d as well, as in the authors' code. p_d / sum_d p_d
    is computed as a softmax over the rivals alone, so a very sure model does not underflow. alpha = 0 is Grad-CAM.
    View: relu.

    Reads     one model, images; the target must be a class
    Yields    one signed map an image, at the layer's size, in units of the score
    Raises    XaiError if the layer has no spatial output or the gradient does not reach it, or if the target is no
              class
    Cost      one forward, and a backward of its own above the layer
    Reference Zhang et al. 2025, "Finer-CAM", arXiv:2501.11309; pytorch-grad-cam's FinerWeightedTarget
    """

    layer: str = param("auto", "layer to look at; auto = the last spatial one that the target's gradient reaches")
    alpha: float = param(1.0, "how much of the rivals' score is taken off; 0 = Grad-CAM", low=0)
    rivals: int = param(3, "how many classes it is compared with: those with the nearest logits", low=1)

    needs = frozenset({"gradients", "hooks", "images"})
    view: ClassVar[View] = "relu"

    def passes(self, model: Model) -> Passes:
        """One backward above the layer."""
        return Passes(backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, h, w) at the layer's size."""
        activations, gradients = seen(batch, self.layer, self.contrast(batch.output(), target))
        return Maps(weighted(gradients.mean((2, 3)), activations))

    def contrast(self, output: Tensor, target: Bound) -> Bound:
        """The target against its rivals, which are chosen by `output` (n, classes) and then stay."""
        if target.classes is None or target.versus is not None or output.ndim != 2 or output.shape[1] < 2:
            raise error("the target of finercam", "one class of several", repr(target.names[0]),
                        "Use gradcam with the contrast that you mean, or name a class")
        own = target.classes[:, None]
        distance = (output - output.gather(1, own)).abs().scatter(1, own, float("inf"))
        rivals = distance.topk(min(self.rivals, output.shape[1] - 1), 1, largest=False).indices

        def score(scores: Tensor) -> Tensor:
            others = scores.gather(1, rivals)
            return (others.softmax(1) * (scores.gather(1, own) - self.alpha * others)).sum(1)

        return Bound(score, target.names, skip=target.skip)
