"""Saliency: the gradient of the score with respect to the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from analyzers.attribution._gradients import REDUCTIONS, as_map, gradient
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.panels import View
from xai.targets import Bound


@dataclass(frozen=True)
class Saliency(Attribution):
    """Saliency: which pixels the score reacts to most.

    M(y, x) = max over channels of |dS/dx|, S the target's raw score (no softmax), x the normalised input. View: abs.

    Reads     one model, images
    Yields    one map an image, at the input's size, in units of the score per unit of the normalised input
    Raises    XaiError if no gradient reaches the input
    Cost      one forward and one backward
    Reference Simonyan, Vedaldi, Zisserman 2014, "Deep inside convolutional networks", arXiv:1312.6034, section 3.1
    """

    reduce: str = param("max_abs", "what becomes of the channels: max_abs, sum (signed) or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "images"})
    view: ClassVar[View] = "abs"

    def passes(self, model: Model) -> Passes:
        """One more forward, which records the way to the input, and its backward."""
        return Passes(forwards=1, backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size; not negative unless reduce is sum."""
        return Maps(as_map(gradient(batch, target), self.reduce, batch))
