"""What a changed patch reaches: the output for many local changes of one picture, each map made anew only near them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from xai.devices import free_memory
from xai.fast import Folded, Pointwise
from xai.graph import Graph, agree, graph_of
from xai.model import Model
from xai.outputs import tensors
from xai.pace import MMAP_THRESHOLD
from xai.windows import Slide, Spot, crop, union

WHOLE = 0.85  # of a map's area: where more of it changes, all of it is made anew
MOST = 64  # patches at once
POINT_PARTS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Dropout, nn.Dropout2d, nn.Identity, Folded,
    nn.BatchNorm2d,
)  # fmt: skip
POINT_CALLS = {  # place by place in the first that they read; what else they read belongs to channels
    "unchanged", "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
    "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "clamp", "clamp_min", "clamp_max", "neg", "abs", "exp",
    "square", "sqrt", "dropout", "contiguous", "clone", "detach", "float", "batch_norm",
}  # fmt: skip
MERGES = {"add", "sub", "mul", "truediv", "div", "cat", "concat"}  # place by place in all that they read
ARGUMENTS = {
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "batch_norm": ("input", "", "", "", "", "training"),
    "unsqueeze": ("input", "dim"),
}


class Reach:
    """Incremental recomputation for local changes: exact, as far as rounding goes.

    Windows of what has changed go through the network's convolutions, pools and elementwise steps; whatever lies around
    them is taken from one forward of the picture. From where a window fills most of its map, or a step is not local,
    whole maps go on. After Nakandala, Kumar and Papakonstantinou 2019, "Incremental and Approximate Inference for
    Faster Occlusion-based Deep CNN Explanations", SIGMOD.
    """

    def __init__(self, graph: Graph, shape: Sequence[int]) -> None:
        self.graph, self.shape = graph, tuple(shape)
        self._kinds = {node: _kind(graph, node) for node in graph.nodes[1:]}
        self._order = [node for node in graph.above(graph.entry) if not graph.tells_shape(node)]
        self._last = {read: node for node in self._order for read in node.all_input_nodes}
        self._savings: dict[tuple[int, int], float] = {}

    @staticmethod
    def of(model: Model) -> Reach | None:
        """For a model's fast form, made once; None where it has no graph. Takes some uncounted forwards of noise."""
        if model not in _REACHES:
            _REACHES[model] = _made(model)
        return _REACHES[model]

    def at(self, model: Model, x: Tensor) -> Patched:
        """For one picture x (1, C, H, W) of the example's size. Takes one forward, which is not counted: what is asked
        of it then is cheaper than it counts."""
        with torch.no_grad():
            return Patched(model, self, model.told(lambda: self.graph.base(x), x))

    def saving(self, height: int, width: int) -> float:
        """Multiply-adds of a forward over those for a patch of that size, in convolutions and linear maps alone."""
        if (height, width) not in self._savings:
            plan = self.plan(self._grid(height, width))
            whole = sum(self._work(node, None) for node in self.graph.nodes[1:])
            part = sum(self._work(node, spot) for node, spot in plan.items() if node is not self.graph.entry)
            self._savings[height, width] = whole / max(1, part)
        return self._savings[height, width]

    def rows(self, height: int, width: int, memory_bytes: int | None, device: torch.device) -> int:
        """How many patches of that size go at once: none of their windows is then larger than 32 MiB together."""
        plan = self.plan(self._grid(height, width))
        sizes = [self._bytes(node, spot) for node, spot in plan.items()]
        budget = (memory_bytes or free_memory(device) // 2) - sum(self._bytes(node, None) for node in self.graph.nodes)
        fits = max(1, budget) // max(1, 3 * sum(sizes))
        return int(max(1, min(MOST, fits, MMAP_THRESHOLD // max(1, *sizes))))

    def proves(self, x: Tensor) -> bool:
        """Whether it gives what the whole graph gives for a patch in the middle and one in a corner of x."""
        rows, columns = x.shape[-2:]
        height, width = max(1, rows // 7), max(1, columns // 7)
        spot = Spot(np.array([(rows - height) // 2, 0]), np.array([(columns - width) // 2, 0]), height, width)
        patches = x.flip(-1)[..., :height, :width].repeat(2, 1, 1, 1)
        try:
            with torch.no_grad():
                full = crop(x, Spot(np.zeros(2, int), np.zeros(2, int), rows, columns), 0.0, patches, spot)
                return agree(self.graph.base(full)[self.graph.exit], self.run(self.graph.base(x), spot, patches))
        except Exception:  # a network's own steps with shapes that they were not written for may raise anything
            return False

    def plan(self, spot: Spot) -> dict[fx.Node, Spot | None]:
        """Where each step's value changes; None = everywhere. Steps that are not named keep the picture's own value."""
        plan: dict[fx.Node, Spot | None] = {self.graph.entry: spot}
        for node in self._order:
            moved = [plan[read] for read in node.all_input_nodes if read in plan]
            if moved:
                plan[node] = self._reached(node, moved)
        return plan

    def _reached(self, node: fx.Node, moved: Sequence[Spot | None]) -> Spot | None:
        kind, spots = self._kinds[node], [spot for spot in moved if spot is not None]
        if kind is None or len(spots) < len(moved):
            return None
        shape = self.graph.one[node].shape[-2:]
        spot = kind.reached(spots[0], shape) if isinstance(kind, Slide) else union(spots, shape)
        return spot if spot.height * spot.width <= WHOLE * shape[0] * shape[1] else None

    def run(self, base: dict[fx.Node, Any], spot: Spot, patches: Tensor) -> Any:
        """The network's output for each patch, given every step's value for the picture."""
        plan, m = self.plan(spot), len(spot.top)
        values: dict[fx.Node, Any] = {self.graph.entry: patches}
        entire: dict[fx.Node, Any] = {}

        def whole(read: fx.Node) -> Any:
            if read not in plan:
                return self.graph.widened(read, base[read], m)
            place = plan[read]
            if place is None:
                return values[read]
            if read not in entire:
                shape = base[read].shape
                all_of_it = Spot(np.zeros(m, int), np.zeros(m, int), shape[-2], shape[-1])
                entire[read] = crop(base[read], all_of_it, 0.0, values[read], place)
            return entire[read]

        for node in plan:
            if node is self.graph.entry:
                continue
            place, kind = plan[node], self._kinds[node]
            if place is not None and isinstance(kind, Slide):
                read = node.all_input_nodes[0]
                values[node] = kind.call(_near(base, values, plan, read, kind.read(place), kind.fill))
            else:
                values[node] = self._step(node, base, values, plan, whole)
            for read in node.all_input_nodes:
                if self._last[read] is node:
                    values.pop(read, None)
                    entire.pop(read, None)
        return values[self.graph.exit] if self.graph.exit in plan else whole(self.graph.exit)

    def _step(self, node: fx.Node, base: dict[fx.Node, Any], values: dict[fx.Node, Any],
              plan: dict[fx.Node, Spot | None], whole: Callable[[fx.Node], Any]) -> Any:
        """A step place by place in a window, or one of whole maps."""
        place, graph = plan[node], self.graph

        def look(read: fx.Node) -> Any:
            if place is None:
                value, mine = whole(read), read in plan and graph.lent(read)
            elif read in plan or _is_map(graph, read, graph.one[node].shape[-2:]):
                value = _near(base, values, plan, read, place, 0.0)
                mine = value is not values.get(read) or graph.lent(read)
            else:
                value, mine = graph.widened(read, base[read], len(place.top)), False
            return value.clone() if read in graph.writes[node] and not mine else value

        return graph.step(node, look)

    def _grid(self, height: int, width: int) -> Spot:
        """Nine places over the picture."""
        rows, columns = (np.linspace(0, size - part, 3).astype(int)
                         for size, part in zip(self.shape[-2:], (height, width), strict=True))
        return Spot(np.repeat(rows, 3), np.tile(columns, 3), height, width)

    def _work(self, node: fx.Node, spot: Spot | None) -> float:
        part = self.graph.parts.get(node)
        if not isinstance(part, nn.Linear | nn.modules.conv._ConvNd):
            return 0
        shape = self.graph.one[node].shape
        places = shape[:-1] if isinstance(part, nn.Linear) else shape[2:]
        area = spot.height * spot.width if spot is not None else int(np.prod(places))
        return float(area * part.weight.numel())

    def _bytes(self, node: fx.Node, spot: Spot | None) -> int:
        total = 0
        for _, tensor in tensors(self.graph.one[node]):
            share = spot.height * spot.width / (tensor.shape[-2] * tensor.shape[-1]) if spot is not None else 1
            total += int(tensor.numel() * tensor.element_size() * share)
        return total


class Patched:
    """One picture whose patches may be replaced."""

    def __init__(self, model: Model, reach: Reach, base: dict[fx.Node, Any]) -> None:
        self._model, self._reach, self._base = model, reach, base

    def __call__(self, top: Sequence[int], left: Sequence[int], patches: Tensor) -> Tensor:
        """What the head holds for m forms of the picture, each with its pixels from (top, left) on replaced by its
        patch of `patches` (m, C, h, w). Counts as m forwards; no gradient."""
        spot = Spot(np.asarray(top), np.asarray(left), int(patches.shape[-2]), int(patches.shape[-1]))
        with torch.no_grad():
            found = self._model._read(self._model.told(lambda: self._reach.run(self._base, spot, patches), patches))
        self._model.cost.add(forwards=len(patches))
        return found


def _near(base: dict[fx.Node, Any], values: dict[fx.Node, Any], plan: dict[fx.Node, Spot | None], read: fx.Node,
          place: Spot, fill: float) -> Tensor:
    """A step's values in windows: what has changed in them from `values`, all else the picture's own."""
    held = plan.get(read)
    if held is None:
        return crop(base[read], place, fill)
    same = (held.height, held.width) == (place.height, place.width)
    if same and (held is place or ((held.top == place.top).all() and (held.left == place.left).all())):
        found: Tensor = values[read]
        return found
    return crop(base[read], place, fill, values[read], held)


def _is_map(graph: Graph, node: fx.Node, shape: Sequence[int]) -> bool:
    """Whether the value is a map (n, ..., H, W) of that size, one for each picture."""
    one, two = graph.one.get(node), graph.two.get(node)
    return (isinstance(one, Tensor) and isinstance(two, Tensor) and one.ndim in (3, 4) and len(one) == 1
            and len(two) == 2 and tuple(one.shape[-2:]) == tuple(shape))


def _kind(graph: Graph, node: fx.Node) -> Slide | bool | None:
    """How a step is local: a `Slide`, or place by place (True); None where it is not known to be."""
    value, reads = graph.one[node], node.all_input_nodes
    if not isinstance(value, Tensor) or value.ndim < 3 or not _is_map(graph, node, value.shape[-2:]):
        return None
    if node.op == "call_module":
        part = graph.parts[node]
        if len(reads) != 1 or part._forward_hooks or part._forward_pre_hooks or part.training:
            return None
        if type(part) in POINT_PARTS:
            kept = not isinstance(part, nn.BatchNorm2d) or part.running_mean is not None
            return True if kept and _is_map(graph, reads[0], value.shape[-2:]) else None
        return _slide(graph, node, part)
    name = graph.name(node)
    if name in ("max_pool2d", "avg_pool2d"):
        return _slide(graph, node, None)
    if name in MERGES:
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        across = name not in ("cat", "concat") or axis in (1, 1 - value.ndim)
        return True if across and all(_joins(graph, read, value) for read in reads) else None
    first = node.args[0] if node.args else None
    alone = isinstance(first, fx.Node) and all(read is first or read in graph.fixed for read in reads)
    if not alone or not _is_map(graph, first, value.shape[-2:]):  # type: ignore[arg-type]  # a node, if alone
        return None
    if name == "batch_norm":
        return True if not _given(node, name).get("training", False) else None
    return True if name in POINT_CALLS or _picks(name, node, graph.one[first].ndim) else None  # type: ignore[index]


def _joins(graph: Graph, read: fx.Node, value: Tensor) -> bool:
    """Whether what is read is a map as `value` is, or the same at all its places."""
    other = graph.one[read]
    if not isinstance(other, Tensor):
        return isinstance(other, int | float)
    same = other.ndim == value.ndim and _is_map(graph, read, value.shape[-2:])
    return same or all(size == 1 for size in other.shape[-2:])


def _picks(name: str, node: fx.Node, axes: int) -> bool:
    """x[:, channels], or the axis of channels put back."""
    if name == "unsqueeze":
        return axes == 3 and _given(node, name).get("dim") == 1
    where = node.args[1] if name == "getitem" else None
    return (axes == 4 and isinstance(where, tuple) and len(where) == 2 and where[0] == slice(None)
            and isinstance(where[1], int | slice))


def _slide(graph: Graph, node: fx.Node, part: nn.Module | None) -> Slide | None:
    """A convolution or a pool, or None where it is of another kind or its border is treated in a special way."""
    read = node.all_input_nodes[0]
    one, two = graph.one[read], graph.two[read]
    if len(node.all_input_nodes) > 1 or not isinstance(one, Tensor) or one.ndim != 4 or (len(one), len(two)) != (1, 2):
        return None
    if part is None:
        return _pool(graph.name(node), _given(node, graph.name(node)), one.shape[-2:])
    if type(part) in (nn.MaxPool2d, nn.AvgPool2d):
        return _pool("max_pool2d" if type(part) is nn.MaxPool2d else "avg_pool2d", vars(part), one.shape[-2:])
    return _convolution(part) if type(part) in (nn.Conv2d, Pointwise) else None


def _convolution(part: Any) -> Slide | None:
    if part.padding_mode != "zeros":
        return None
    span = [d * (k - 1) for d, k in zip(part.dilation, part.kernel_size, strict=True)]
    padding = {"same": [s // 2 for s in span], "valid": [0, 0]}.get(part.padding, part.padding)

    def call(x: Tensor) -> Tensor:
        if type(part) is Pointwise and not any(padding):
            return part(x)  # type: ignore[no-any-return]
        return F.conv2d(x, part.weight, part.bias, part.stride, 0, part.dilation, part.groups)

    return Slide(part.kernel_size, part.stride, tuple(padding), part.dilation, 0.0, call)


def _pool(name: str, given: Mapping[str, Any], shape: Sequence[int]) -> Slide | None:
    size, padding = _pair(given["kernel_size"]), _pair(given.get("padding", 0))
    stride = _pair(given.get("stride") or size)
    if name == "max_pool2d":
        dilation = _pair(given.get("dilation", 1))
        if given.get("return_indices"):
            return None
        return Slide(size, stride, padding, dilation, -math.inf, lambda x: F.max_pool2d(x, size, stride, 0, dilation))
    over = given.get("divisor_override")
    exact = all((n + 2 * p - k) % s == 0 for n, p, k, s in zip(shape, padding, size, stride, strict=True))
    if (given.get("ceil_mode") and not exact) or not (given.get("count_include_pad", True) or padding == (0, 0)):
        return None
    return Slide(size, stride, padding, (1, 1), 0.0,
                 lambda x: F.avg_pool2d(x, size, stride, 0, divisor_override=over))


def _given(node: fx.Node, name: str) -> dict[str, Any]:
    """A function's arguments by name."""
    return {**dict(zip(ARGUMENTS[name], node.args, strict=False)), **node.kwargs}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _made(model: Model) -> Reach | None:
    if model._module is None:
        return None
    example = model.example()
    graph = graph_of(model.fast.module, example)
    if graph is None or example.ndim != 4:
        return None
    reach = Reach(graph, example.shape)
    return reach if reach.proves(example) else None


_REACHES: weakref.WeakKeyDictionary[Model, Reach | None] = weakref.WeakKeyDictionary()
