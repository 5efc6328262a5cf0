"""A small network step by step, for the model explorer: each convolution, activation, pool and sum with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from xai.batch import Batch
from xai.graph import Graph, graph_of, unchanged
from xai.model import Model
from xai.modules import copied

Stage = dict[str, Any]
FULL_FLOATS = 600_000
"""Numbers of maps and weights up to which a network is shown whole: 2.4 MB of float32, 3.2 MB in a page."""
MOST_UNITS, MOST_STAGES = 64, 48
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.ELU: "elu", nn.SiLU: "silu", nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Hardswish: "hardswish", nn.Softplus: "softplus", nn.Mish: "mish",
}
CALLS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
}
UNCHANGED = (nn.Identity, nn.Dropout, nn.Dropout2d)


class Unknown(Exception):
    """Why a network cannot be shown step by step, as the end of a sentence."""


@dataclass
class _Walk:
    """The stages found so far, and for each step of the graph the stage that holds its value."""

    graph: Graph
    values: dict[fx.Node, Any]
    stages: list[Stage] = field(default_factory=list)
    held: dict[fx.Node, int] = field(default_factory=dict)

    def source(self, node: fx.Node, which: int = 0) -> int:
        reads = node.all_input_nodes
        if which >= len(reads) or reads[which] not in self.held:
            raise Unknown(f"{_called(self.graph, node)} reads what is no map")
        return self.held[reads[which]]

    def shape(self, position: int) -> list[int]:
        """(C, h, w) of a stage, or (C,); position 0 is the picture."""
        return list(self.values[self.graph.entry].shape[1:]) if position == 0 else self.stages[position - 1]["shape"]

    def window(self, position: int) -> dict[str, list[float]] | None:
        first = {"start": [0.0, 0.0], "jump": [1.0, 1.0], "size": [1.0, 1.0]}
        return first if position == 0 else self.stages[position - 1]["field"]


def steps(model: Model, batch: Batch) -> list[Stage]:
    """The stages between the picture (position 0) and the scores, from one counted forward.

    Raises Unknown, the reason in it, where the network's graph cannot be traced or holds a step that is none of:
    convolution, batch normalisation, elementwise activation, max or average pool, sum, flatten, linear map.
    """
    with model.opened() as module, torch.no_grad():
        count = sum(p.numel() for p in module.parameters())
        if count > FULL_FLOATS:
            raise Unknown(f"it has {count:,} parameters")
        x, own = batch.inputs[:1], copied(module)
        if own is None:
            raise Unknown("it cannot be copied")
        own._forward_hooks.clear()  # the one that counts passes knows no stand-ins for tensors
        graph = graph_of(own, x)
        if graph is None:
            raise Unknown("its code cannot be traced")
        unknown = next((n for n in graph.nodes[1:-1] if not _known(graph, n)), None)
        if unknown is not None:
            raise Unknown(f"it has steps such as {_called(graph, unknown)}")
        walk = _Walk(graph, graph.base(x))
        model.cost.add(forwards=1)
        walk.held[graph.entry] = 0
        for node in graph.nodes[1:-1]:
            _take(walk, node)
    last = graph.exit.args[0]
    if not isinstance(last, fx.Node) or walk.held.get(last) != len(walk.stages) or not walk.stages:
        raise Unknown("its output is not one tensor of its last step")
    return walk.stages


def floats(stages: Sequence[Stage]) -> int:
    """How many numbers the stages hold."""
    return sum(value.size for stage in stages for value in stage.values() if isinstance(value, np.ndarray))


def _called(graph: Graph, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(graph.parts[node]).__name__
    return graph.name(node) or str(node.target)


def _known(graph: Graph, node: fx.Node) -> bool:
    part, name = graph.parts.get(node), graph.name(node) if node.op in ("call_function", "call_method") else ""
    if part is not None:
        return type(part) in (*ACTIVATIONS, *UNCHANGED, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d,
                              nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.Softmax)
    return graph.tells_shape(node) or node.target is unchanged or name in (
        *CALLS, "add", "flatten", "view", "reshape", "dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")


def _take(walk: _Walk, node: fx.Node) -> None:
    """Add the stage of one step, or let the step stand for the stage that it hands through."""
    graph, value = walk.graph, walk.values[node]
    if graph.tells_shape(node) or not isinstance(value, Tensor):
        return
    part, name = graph.parts.get(node), graph.name(node) if node.op != "call_module" else ""
    if node.target is unchanged or type(part) in UNCHANGED or name == "dropout":
        walk.held[node] = walk.source(node)
        return
    if type(part) is nn.Flatten or name in ("flatten", "view", "reshape"):
        if value.ndim != 2:
            raise Unknown(f"{_called(graph, node)} gives a tensor of shape {tuple(value.shape)}")
        walk.held[node] = walk.source(node)
        return
    if type(part) is nn.Softmax and node.users.keys() == {graph.exit}:
        walk.held[node] = walk.source(node)  # the page's own last stage shows it
        return
    if value.ndim not in (2, 4) or value.shape[1] > MOST_UNITS:
        raise Unknown(f"{_called(graph, node)} gives a tensor of shape {tuple(value.shape)}")
    made = _operation(walk, node, part, name)
    if len(walk.stages) >= MOST_STAGES:
        raise Unknown(f"it has more than {MOST_STAGES} steps")
    maps = value[0].reshape(value.shape[1], *(value.shape[2:] or (1, 1)))
    label = str(node.target).removeprefix("net.") if node.op == "call_module" else node.name
    walk.stages.append({
        "name": label, "shape": list(value.shape[1:]), "sources": [walk.source(node)],
        "parameters": sum(p.numel() for p in part.parameters()) if part is not None else 0,
        "units": list(range(value.shape[1])), "rule": "all", "values": _array(maps), "step": 1,
        "low": float(maps.min()), "high": float(maps.max()), **made})
    walk.held[node] = len(walk.stages)


def _operation(walk: _Walk, node: fx.Node, part: nn.Module | None, name: str) -> Stage:
    read = walk.source(node)
    shape, seen = walk.shape(read), walk.window(read)
    if isinstance(part, nn.Conv2d):
        return _convolution(part, seen)
    if isinstance(part, nn.Linear):
        whole = shape if len(shape) == 3 else [shape[0], 1, 1]
        return {"op": "linear", "kind": "linear", "weight": _array(part.weight).reshape(-1, *whole),
                "bias": _bias(part, part.out_features), "field": None}
    if len(shape) != 3 and type(part) not in ACTIVATIONS and name not in (*CALLS, "add"):
        raise Unknown(f"{_called(walk.graph, node)} reads a tensor of shape {tuple(shape)}")
    if isinstance(part, nn.BatchNorm2d):
        return _normalisation(part, seen)
    if type(part) in ACTIVATIONS or name in CALLS:
        call = part if part is not None else CALLS[name]
        return {"op": ACTIVATIONS[type(part)] if part is not None else name, "kind": "activation", "field": seen,
                "curve": _curve(call, walk.values[node.all_input_nodes[0]])}
    if name == "add":
        return _sum(walk, node)
    return _pool(walk, node, part, name, shape, seen)


def _convolution(part: nn.Conv2d, seen: dict[str, list[float]] | None) -> Stage:
    if part.padding_mode != "zeros":
        raise Unknown(f"a convolution pads with {part.padding_mode}")
    span = [d * (k - 1) for d, k in zip(part.dilation, part.kernel_size, strict=True)]
    named = {"same": [s // 2 for s in span], "valid": [0, 0]}
    padding = named[part.padding] if isinstance(part.padding, str) else part.padding
    return {"op": "conv", "kind": "conv", "weight": _array(part.weight), "bias": _bias(part, part.out_channels),
            "groups": part.groups, **_window(part.kernel_size, part.stride, padding, part.dilation, seen)}


def _normalisation(part: nn.BatchNorm2d, seen: dict[str, list[float]] | None) -> Stage:
    if part.running_mean is None or part.running_var is None:
        raise Unknown("a batch normalisation keeps no statistics")
    ones, count = torch.ones(part.num_features), part.num_features
    weight = part.weight if part.weight is not None else ones
    return {"op": "batchnorm", "kind": "norm", "mean": _array(part.running_mean), "var": _array(part.running_var),
            "scale": _array(weight), "shift": _bias(part, count), "eps": float(part.eps), "field": seen}


def _sum(walk: _Walk, node: fx.Node) -> Stage:
    if len(node.all_input_nodes) != 2 or any(not isinstance(a, fx.Node) for a in node.args[:2]):
        raise Unknown("a sum is not one of two maps")
    both = [walk.source(node, 0), walk.source(node, 1)]
    if walk.shape(both[0]) != walk.shape(both[1]):
        raise Unknown("a sum is of maps of two sizes")
    one, two = walk.window(both[0]), walk.window(both[1])
    seen = None
    if one and two and one["jump"] == two["jump"]:
        start = [min(a, b) for a, b in zip(one["start"], two["start"], strict=True)]
        ends = [max(a + s, b + t) for a, s, b, t in zip(one["start"], one["size"], two["start"], two["size"],
                                                        strict=True)]
        seen = {"start": start, "jump": one["jump"], "size": [e - s for e, s in zip(ends, start, strict=True)]}
    return {"op": "add", "kind": "add", "sources": both, "field": seen}


def _pool(walk: _Walk, node: fx.Node, part: Any, name: str, shape: list[int],
          seen: dict[str, list[float]] | None) -> Stage:
    arguments = list(node.args[1:])
    if part is not None:
        given = vars(part)
    else:
        names = ("output_size",) if name.startswith("adaptive") else ("kernel_size", "stride", "padding")
        given = {**dict(zip(names, arguments, strict=False)), **node.kwargs}
        if len(arguments) > len(names):
            raise Unknown(f"{name} has rare settings")
    if type(part) is nn.AdaptiveAvgPool2d or name == "adaptive_avg_pool2d":
        size = [n if o is None else o for n, o in zip(shape[1:], _pair(given["output_size"]), strict=True)]
        if any(n % o for n, o in zip(shape[1:], size, strict=True)):
            raise Unknown("an adaptive pool has windows of several sizes")
        parts = [n // o for n, o in zip(shape[1:], size, strict=True)]
        return {"op": "avgpool", "kind": "pool", **_window(parts, parts, [0, 0], [1, 1], seen)}
    kernel, padding = _pair(given["kernel_size"]), _pair(given.get("padding") or 0)
    stride = _pair(given.get("stride") or kernel)
    largest = type(part) is nn.MaxPool2d or name == "max_pool2d"
    rare = given.get("dilation", 1) not in (1, (1, 1)) or given.get("divisor_override") or given.get("return_indices")
    border = given.get("ceil_mode") or (any(padding) and not given.get("count_include_pad", True))
    if rare or (border and not largest):
        raise Unknown("a pool has rare settings")
    return {"op": "maxpool" if largest else "avgpool", "kind": "pool", **_window(kernel, stride, padding, [1, 1], seen)}


def _window(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
            seen: dict[str, list[float]] | None) -> Stage:
    """A sliding window's settings, and what its cells see of the input when those of its source see `seen`."""
    reach = None if seen is None else {
        "start": [s - p * j for s, p, j in zip(seen["start"], padding, seen["jump"], strict=True)],
        "size": [z + d * (k - 1) * j for z, d, k, j in zip(seen["size"], dilation, kernel, seen["jump"], strict=True)],
        "jump": [j * t for j, t in zip(seen["jump"], stride, strict=True)]}
    return {"kernel": list(kernel), "stride": list(stride), "padding": list(padding), "dilation": list(dilation),
            "field": reach}


def _curve(call: Callable[..., Any], read: Tensor) -> dict[str, Any]:
    """The function itself, for a drawing: 97 points over the values that it reads here."""
    reach = max(1.0, float(read.abs().max()))
    x = torch.linspace(-reach, reach, 97)
    return {"x": _array(x), "y": _array(call(x.clone()))}


def _bias(part: Any, count: int) -> np.ndarray:
    return np.zeros(count, np.float32) if part.bias is None else _array(part.bias)


def _array(value: Tensor) -> np.ndarray:
    return np.ascontiguousarray(value.detach().float().cpu().numpy())


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[-1]) if isinstance(value, tuple | list) else (value, value)
