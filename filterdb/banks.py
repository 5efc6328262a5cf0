"""The convolutions of a model: their effective weights, where they stand, and which are left out and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xai.errors import error
from xai.model import Model
from xai.steps import Call, Record, Step, record


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One convolution. depth: the longest path from the input to it, over all operations, as a rank among those of all
    convolutions, from 0 (branches in parallel may share one); depth_norm: that over the last rank, 0 to 1 (0 where
    there is but one); both None for a layer that does not run. c_in: all input channels, of all groups. left_out: why
    its filters are not taken ("": they are)."""

    name: str
    op: str
    k: int = 0
    groups: int = 1
    depthwise: bool = False
    c_out: int = 0
    c_in: int = 0
    stride: tuple[int, int] = (1, 1)
    dilation: int = 1
    depth: int | None = None
    depth_norm: float | None = None
    bn_folded: bool = False
    dtype: str = ""
    n: int = 0
    left_out: str = ""


@dataclass(frozen=True, eq=False)
class Bank:
    """A layer with its weight (c_out, c_in / groups, k, k), float32 on the CPU."""

    layer: Layer
    weight: Tensor

    @property
    def filters(self) -> Tensor:
        """(n, k^2), by output channel, then input channel."""
        return self.weight.flatten(2).flatten(0, 1)


class _Watch(TorchFunctionMode):
    """The weight that each convolution really uses: parametrised, normalised or standardised as its code does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.used: dict[nn.Module, Tensor] = {}
        self._open: list[nn.Module] = []
        self._convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]

    def hooks(self) -> Iterator[Callable[[], None]]:
        """Set, one by one; what is given removes it."""
        for conv in self._convs:
            yield conv.register_forward_pre_hook(self._enter).remove
            yield conv.register_forward_hook(self._leave).remove

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._open.append(module)

    def _leave(self, *_: Any) -> None:
        self._open.pop()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Called by torch instead of every function of its own."""
        if func is torch.conv2d and self._open:
            weight = args[1] if len(args) > 1 else (kwargs or {}).get("weight")
            if isinstance(weight, Tensor):
                self.used.setdefault(self._open[-1], weight.detach())
        return func(*args, **(kwargs or {}))


def banks(model: Model, folded: bool = False) -> tuple[list[Bank], list[Layer]]:
    """The k x k convolutions of a model with k > 1, each module and each weight once, in the order of its modules; and
    those left out: 1 x 1, not square, 1-D, 3-D, transposed, or called as a function.

    folded: a convolution that only a batch norm reads has that norm's scale multiplied in. One forward of a picture of
    seeded noise shows depths, effective weights and norms. Raises XaiError for a model without
    convolutions, or whose layers cannot be seen.
    """
    model.need("gradients")
    model.need("hooks")
    example = model.example()
    with model.opened() as module, ExitStack() as stack:
        watch = _Watch(module)
        for remove in watch.hooks():
            stack.callback(remove)

        def seen() -> Record:
            with watch:
                return record(module, example)

        found: Record = model.told(seen, example)
        names = {m: name for name, m in module.named_modules()}
        kept, left = _sorted(names, watch.used, _Places(found), folded)
    if not kept and not left:
        raise error("the model", "one with convolutions that can be seen", f"{model.spec}, which has none",
                    "Take another model, or the network's own code in place of a compiled one")
    return kept, left


class _Places:
    """Where each convolution stands in a recorded forward, and the batch norm that alone reads it."""

    def __init__(self, found: Record) -> None:
        self._inside: dict[int, nn.Module] = {}
        self._walk(found.root)
        depth: list[int] = []
        for step in found.steps:
            depth.append(1 + max((depth[i] for i in step.reads if i >= 0), default=0))
        convs = [step for step in found.steps if step.name == "conv2d" and step.live]
        ranks = {d: i for i, d in enumerate(sorted({depth[s.index] for s in convs}))}
        self.last = max(len(ranks) - 1, 1)
        self.depth: dict[nn.Module, int] = {}
        self.norm: dict[nn.Module, nn.Module] = {}
        self.functional: list[Step] = []
        calls: dict[nn.Module, int] = {}
        for step in convs:
            module = self._inside.get(step.index)
            if not isinstance(module, nn.Conv2d):
                self.functional.append(step)
                continue
            calls[module] = calls.get(module, 0) + 1
            self.depth.setdefault(module, ranks[depth[step.index]])
            readers = [other for other in found.steps if step.index in other.reads]
            norm = self._inside.get(readers[0].index) if len(readers) == 1 else None
            if norm is not None and readers[0].name == "batch_norm" and _still(norm):
                self.norm[module] = norm
        self.norm = {m: norm for m, norm in self.norm.items() if calls[m] == 1}

    def _walk(self, call: Call) -> None:
        for item in call.items:
            if isinstance(item, Call):
                self._walk(item)
            else:
                self._inside[item.index] = call.module


def _still(norm: nn.Module) -> bool:
    """A batch norm whose scale is fixed in eval mode."""
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None


def _sorted(names: dict[nn.Module, str], used: dict[nn.Module, Tensor], places: _Places,
            folded: bool) -> tuple[list[Bank], list[Layer]]:
    kept: list[Bank] = []
    left = [Layer(name=", ".join(sorted(step.parameters)) or "?", op="conv2d", left_out="called as a function")
            for step in places.functional]
    first: dict[int, str] = {}
    for module, name in names.items():
        if isinstance(module, nn.Conv2d):
            weight = used.get(module, module.weight.detach())
            layer = _layer(module, name, weight, places)
            twin = first.setdefault(id(module.weight), name)
            if not layer.left_out and twin == name:
                kept.append(_bank(layer, weight, places.norm.get(module) if folded else None))
            else:
                left.append(layer if layer.left_out else _without(layer, f"has the weights of {twin}"))
        elif isinstance(module, nn.modules.conv._ConvNd):
            word = "transposed" if "Transpose" in type(module).__name__ else f"{module.weight.ndim - 2}-D"
            left.append(Layer(name=name, op=type(module).__name__, left_out=word))
        elif "conv" in type(module).__name__.lower() and hasattr(module, "weight") and not any(module.children()):
            left.append(Layer(name=name, op=type(module).__name__, left_out="not a Conv2d of torch"))
    return kept, left


def _layer(module: nn.Conv2d, name: str, weight: Tensor, places: _Places) -> Layer:
    high, wide = weight.shape[2:]
    why = "1 x 1" if high == wide == 1 else f"not square: {high} x {wide}" if high != wide else ""
    depth = places.depth.get(module)
    down, across = (int(s) for s in module.stride)
    return Layer(name=name, op=type(module).__name__, k=high if high == wide else 0, groups=module.groups,
                 depthwise=module.groups > 1 and module.groups == module.in_channels, c_out=module.out_channels,
                 c_in=module.in_channels, stride=(down, across), dilation=max(int(d) for d in module.dilation),
                 depth=depth, depth_norm=None if depth is None else depth / places.last,
                 dtype=str(weight.dtype).removeprefix("torch."), n=0 if why else len(weight) * weight.shape[1],
                 left_out=why)


def _without(layer: Layer, why: str) -> Layer:
    return replace(layer, n=0, left_out=why)


def _bank(layer: Layer, weight: Tensor, norm: Any) -> Bank:
    values = weight.cpu()
    if norm is not None:
        gain = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
        gain = gain * norm.weight.detach().double() if norm.affine else gain
        values = (values.double() * gain.cpu()[:, None, None, None])
        layer = replace(layer, bn_folded=True)
    return Bank(layer, values.float().contiguous())
