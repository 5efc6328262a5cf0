"""A forward that ends at a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from xai.errors import error
from xai.layers import Capture, LayerView
from xai.model import Model


class _Reached(Exception):
    """The layer has its value: nothing above it needs to run."""


class _Until(Capture):
    def _record(self, view: LayerView, output: Any) -> Any:
        self.values[view] = view.pick(output)
        raise _Reached


def until(model: Model, view: LayerView, x: Tensor, module: nn.Module | None = None) -> Tensor:
    """(n, K, h, w): the layer's output for inputs x (n, C, H, W), in the caller's grad mode; of the fast form unless
    the network itself is given.

    Counts as n forwards; what lies above the layer does not run. Raises XaiError where the layer does not run either.
    """
    module = model.runner([view.name]) if module is None else module
    with _Until(module, [view], cut=False) as found:
        try:
            model.run(x, module)
        except _Reached:
            model.cost.add(forwards=len(x))
    if view not in found.values:
        raise error("the layer", "one that runs in every forward", repr(view.name), "Name another")
    return view.to_map(found.values[view])
