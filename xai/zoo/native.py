"""Give an exported program its layers back: what runs one known operation becomes the module that it once was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def restore_layers(network: nn.Module) -> None:
    """Replace, in place, every part of an unflattened program that is one convolution, norm, linear map or ReLU.

    An exported layer only interprets its graph. What asks a layer what it is (the layout of its output, folding, rules
    for ReLUs) needs the real one; parameters and values stay the same.
    """
    for name, part in list(network.named_modules()):
        graph = getattr(part, "graph", None)
        layer = _layer(part, graph) if name and isinstance(graph, torch.fx.Graph) else None
        if layer is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, layer.eval())


def _layer(part: nn.Module, graph: torch.fx.Graph) -> nn.Module | None:
    nodes = list(graph.nodes)
    calls = [node for node in nodes if node.op not in ("placeholder", "get_attr", "output")]
    given = [node for node in nodes if node.op == "placeholder"]
    if len(calls) != 1 or len(given) != 1 or calls[0].op != "call_function" or calls[0].kwargs:
        return None
    call = calls[0]
    make = _MAKERS.get(str(call.target))
    if make is None or not call.args or call.args[0] is not given[0] or nodes[-1].args[0] is not call:
        return None
    values = [_value(part, argument) for argument in call.args[1:]]
    return make(*values) if all(value is not NotImplemented for value in values) else None


def _value(part: nn.Module, argument: Any) -> Any:
    if not isinstance(argument, torch.fx.Node):
        return argument
    if argument.op != "get_attr":
        return NotImplemented
    found: Any = part
    for name in str(argument.target).split("."):
        found = getattr(found, name)
    return found


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]


def _held(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """The layer with its tensors in place of the empty ones, as parameters or buffers, whichever they are there."""
    for name, value in tensors.items():
        if value is not None and name in layer._parameters:
            parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
            setattr(layer, name, parameter)
        else:
            setattr(layer, name, value)
    return layer


def _convolution(
    weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> nn.Module:
    out, each, height, width = weight.shape
    layer = nn.Conv2d(
        each * groups, out, (height, width), _pair(stride), _pair(padding), _pair(dilation), groups, bias is not None,
        device="meta",
    )  # fmt: skip
    return _held(layer, weight=weight, bias=bias)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return _held(layer, weight=weight, bias=bias)


def _batch_norm(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, training: bool, momentum: float,
    epsilon: float, *_: Any,
) -> nn.Module:  # fmt: skip
    layer = nn.BatchNorm2d(len(mean), epsilon, momentum, weight is not None, device="meta")
    _held(layer, weight=weight, bias=bias, running_mean=mean, running_var=variance)
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return layer


def _layer_norm(
    shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, epsilon: float = 1e-5, *_: Any
) -> nn.Module:
    layer = nn.LayerNorm(tuple(shape), epsilon, weight is not None, bias is not None, device="meta")
    return _held(layer, weight=weight, bias=bias)


_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "aten.conv2d.default": _convolution,
    "aten.linear.default": _linear,
    "aten.batch_norm.default": _batch_norm,
    "aten.layer_norm.default": _layer_norm,
    "aten.relu.default": nn.ReLU,
    "aten.relu_.default": lambda: nn.ReLU(inplace=True),
}
