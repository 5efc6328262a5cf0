"""One spatial output of a network (`LayerView`) and how to record several of them in one forward (`Capture`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from xai import outputs
from xai.errors import XaiError

# How the axes of a tensor read, one letter an axis: n picture, K channel, h and w position, T tokens: `prefix` of them,
# then the h*w positions row by row, then whatever else there is.
LAYOUTS = {
    "nchw": "nKhw",
    "nhwc": "nhwK",
    "tokens": "nTK",
    "tokens_first": "TnK",
    "channels_tokens": "nKT",
}


@dataclass(frozen=True)
class LayerView:
    """One spatial output of a network: which module's, which call, where in its output, and how to read it as a map.

    `layout` is a key of `LAYOUTS`; `prefix` counts the class, register and distillation tokens before the patch tokens.
    """

    name: str
    grid: tuple[int, int]
    channels: int
    layout: str
    prefix: int = 0
    path: str = ""
    call: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise XaiError(f"The layout must be one of {', '.join(LAYOUTS)}; got {self.layout!r}. Use one of these.")

    def pick(self, output: Any) -> Tensor:
        """The tensor inside the module's output."""
        return output if isinstance(output, Tensor) and not self.path else outputs.pick(output, self.path)

    def put(self, output: Any, tensor: Tensor) -> Any:
        """The module's output with that tensor replaced."""
        return outputs.put(output, self.path, tensor)

    def to_map(self, tensor: Tensor) -> Tensor:
        """(n, K, h, w) from the tensor as the network holds it: a view wherever strides allow one, differentiable."""
        axes = LAYOUTS[self.layout]
        if "T" not in axes:
            return tensor.permute([axes.index(axis) for axis in "nKhw"])
        cells = self.grid[0] * self.grid[1]
        patches = tensor.permute([axes.index(axis) for axis in "nKT"])[..., self.prefix : self.prefix + cells]
        return patches.reshape(*patches.shape[:2], *self.grid)

    def from_map(self, maps: Tensor, like: Tensor) -> Tensor:
        """The inverse of `to_map`: `maps` (n, K, h, w) in the network's layout, other tokens taken from `like`."""
        axes = LAYOUTS[self.layout]
        if "T" not in axes:
            return maps.permute(["nKhw".index(axis) for axis in axes])
        others = like.permute([axes.index(axis) for axis in "nKT"])
        after = self.prefix + self.grid[0] * self.grid[1]
        tokens = torch.cat([others[..., : self.prefix], maps.flatten(2), others[..., after:]], dim=2)
        return tokens.permute(["nKT".index(axis) for axis in axes])


class Capture:
    """Records the tensors of several views in one forward: `with Capture(net, views) as c: net(x); c.values[view]`.

    Values are in the network's own layout (`view.to_map` reads them). With `cut`, a value that does not require grad
    becomes a leaf there, so that with frozen parameters nothing below the lowest view is recorded; the others stay in
    the graph. What the network goes on with is a clone, so an in-place operation after the layer cannot overwrite the
    value. A second forward replaces the values of the first. Recomputation inside a backward (checkpointing) is
    ignored. The hooks are removed on exit, also after an exception.

    Raises XaiError if a view names a module that the network does not have.
    """

    def __init__(self, module: nn.Module, views: Sequence[LayerView], cut: bool = True) -> None:
        self.values: dict[LayerView, Tensor] = {}
        self._module = module
        self._cut = cut
        self._calls: Counter[str] = Counter()
        self._handles: list[RemovableHandle] = []
        self._views: dict[str, list[LayerView]] = {}
        for view in views:
            self._views.setdefault(view.name, []).append(view)
        table = dict(module.named_modules())
        self._targets = {name: table.get(name) for name in self._views}
        missing = [name for name, target in self._targets.items() if target is None]
        if missing:
            raise XaiError(f"A layer must be a module of the network; got {missing[0]!r}. See `xai models info`.")

    def __enter__(self) -> Capture:
        # The root's pre-hook comes first: it starts the count of calls anew for every forward.
        self._handles.append(self._module.register_forward_pre_hook(self._restart))
        for name, target in self._targets.items():
            assert target is not None
            self._handles.append(target.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _restart(self, module: nn.Module, arguments: Any) -> None:
        if not inside_backward():
            self._calls.clear()
            self.values.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            if inside_backward():
                return None
            call = self._calls[name]
            self._calls[name] += 1
            for view in self._views[name]:
                if view.call == call:
                    output = self._record(view, output)
            return output

        return hook

    def _record(self, view: LayerView, output: Any) -> Any:
        value = view.pick(output)
        if self._cut and not value.requires_grad:
            value = value.detach().requires_grad_()
        self.values[view] = value
        return view.put(output, value.clone())


def inside_backward() -> bool:
    """Whether autograd is running a backward in this thread: a forward hook that fires then sees a recomputation."""
    return torch._C._current_graph_task_id() != -1
