"""Input x gradient: the gradient weighed by the pixel it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from analyzers.attribution._gradients import REDUCTIONS, as_map, gradient, wide
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.targets import Bound


@dataclass(frozen=True)
class InputXGradient(Attribution):
    """Input x gradient: how much each pixel adds to the score, to first order.

    M = sum over channels of x * dS/dx, S the target's raw score, x the normalised input: 0 is the mean colour, so a
    pixel of that colour gets nothing. On a network of convolutions, ReLUs and pooling without biases the map adds up
    to the score.

    Reads     one model, images
    Yields    one signed map an image, at the input's size, in units of the score
    Raises    XaiError if no gradient reaches the input
    Cost      one forward and one backward
    Reference Shrikumar et al. 2016, "Not just a black box", arXiv:1605.01713, section 3
    """

    reduce: str = param("sum", "what becomes of the channels: sum (signed), max_abs or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "images"})

    def passes(self, model: Model) -> Passes:
        """One more forward, which records the way to the input, and its backward."""
        return Passes(forwards=1, backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size, signed unless reduce takes absolute values."""
        return Maps(as_map(wide(batch.inputs) * gradient(batch, target), self.reduce, batch))
