"""Guided backpropagation: the gradient that only positive evidence carries back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from analyzers.attribution._gradients import REDUCTIONS, as_map, wide
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import error
from xai.model import Model
from xai.panels import Text, View
from xai.rules import CLAMPS, RELUS, SIGMOIDS, THROUGH_ZERO, Rule, Rules
from xai.targets import Bound


class _Guided(Rules):
    """Every ReLU, whatever its spelling, lets only positive gradients back; counts of ReLUs and other activations."""

    method, instead = "guided_backprop", "saliency"

    def __init__(self) -> None:
        super().__init__()
        self.answer(RELUS, self._relu)
        self.answer(CLAMPS, self._clamp)
        self.answer((*THROUGH_ZERO, *SIGMOIDS, F.leaky_relu, F.prelu, torch.prelu), self._other)
        self.count = self.others = 0

    def _relu(self, func: Rule, *args: Any, **kwargs: Any) -> Tensor:
        value: Tensor = func(*args, **kwargs)
        value.register_hook(lambda gradient: gradient.clamp(min=0))  # type: ignore[no-untyped-call]  # torch's gap
        self.count += 1
        return value

    def _clamp(self, func: Rule, x: Tensor, *limits: Any, **kwargs: Any) -> Tensor:
        """ReLU6, and a clamp at zero from below, are ReLUs too."""
        low = limits[0] if limits else kwargs.get("min", kwargs.get("min_val"))
        is_relu = func.__name__ == "relu6" or (isinstance(low, int | float) and low == 0)
        return self._relu(func, x, *limits, **kwargs) if is_relu else func(x, *limits, **kwargs)

    def _other(self, func: Rule, *args: Any, **kwargs: Any) -> Any:
        self.others += 1
        return func(*args, **kwargs)


@dataclass(frozen=True)
class GuidedBackprop(Attribution):
    """Guided backpropagation: which pixels feed what excites the score.

    The gradient of the score, but at each ReLU (modules, functions, ReLU6 and clamps at zero) only positive gradients
    pass: dS/dz = 1[z > 0] * max(dS/dy, 0); other activations keep theirs, and the page says so. It draws crisp edges
    and hardly depends on the class or on the upper weights (Adebayo et al. 2018): look at it as a sketch of the
    picture, not as evidence. View: abs.

    Reads     one model, images
    Yields    one map an image, at the input's size, in units of the score per unit of the normalised input
    Raises    XaiError if the network has no ReLU: then it would be the plain gradient, which is saliency
    Cost      one forward and one backward
    Reference Springenberg et al. 2015, "Striving for simplicity: the all convolutional net",
              arXiv:1412.6806, section 3.4
    """

    reduce: str = param("max_abs", "what becomes of the channels: max_abs, sum (signed) or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "hooks", "images"})
    view: ClassVar[View] = "abs"

    def passes(self, model: Model) -> Passes:
        """One more forward, with the other ReLUs, and its backward."""
        return Passes(forwards=1, backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size; not negative unless reduce is sum."""
        batch.output()  # the fast form is built outside the rules
        with _Guided() as rules:
            _, found = batch.input_gradient(batch.inputs, target)
        if not rules.count:
            raise error("the network", "one with ReLUs for guided_backprop", f"{batch.model.spec}, which has none",
                        "Without a ReLU it is the plain gradient: use saliency")
        said = f"{rules.count} ReLUs are guided; {rules.others} other activations hand back the plain gradient."
        panels = tuple(Text(key="guided", title="What is guided", picture=digest, tone="warning", text=said)
                       for digest in batch.hashes if rules.others)
        return Maps(as_map(wide(found), self.reduce, batch), panels=panels)
