"""A network's own graph, traced beside it: the steps from picture to output, any part of which can be run by itself."""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from xai import outputs
from xai.layers import LayerView

CLOSE = 1e-5  # of the largest output: what a part of the graph may be off the whole network
SHAPES = {"shape", "ndim", "dtype", "device", "size", "dim"}  # what of a tensor does not depend on its values
PLACES: tuple[Any, ...] = (operator, torch, F, torch._C._nn)


def unchanged(value: Any) -> Any:
    """The mark behind a module that is made of others: what reads its output reads this."""
    return value


class _Whole(nn.Module):
    """The network as the only part of another, so that its own call, defaults and hooks are traced too."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class _Tracer(fx.Tracer):
    """Modules without children stay whole; `made` holds what each module returned, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, list[Any]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = m.__module__.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(m, nn.Sequential)
        return own or not any(True for _ in m.children())

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        if not self.is_leaf_module(m, name):
            if isinstance(result, fx.Proxy):
                result = self._marked(result)
            elif type(result) in (tuple, dict):
                result = fx.node.map_aggregate(result, self._marked)
        nodes = fx.node.map_aggregate(result, lambda v: v.node if isinstance(v, fx.Proxy) else v)
        self.made.setdefault(name.removeprefix("net").removeprefix("."), []).append(nodes)
        return result

    def _marked(self, value: Any) -> Any:
        return self.create_proxy("call_function", unchanged, (value,), {}) if isinstance(value, fx.Proxy) else value


class Graph:
    """The steps (`nodes`) of a network. Tensors that a step would change in place are copied first where anything else
    may still read them, so that each node's value stays what it was.

    `one` and `two` hold every node's value for one and for two copies of a picture, tensors without their numbers;
    `fixed` the values that do not depend on the picture.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, made: Mapping[str, Sequence[Any]]) -> None:
        self.root, self.nodes, self.made = root, tuple(graph.nodes), made
        self.entry, self.exit = self.nodes[0], self.nodes[-1]
        self.parts = {node: root.get_submodule(node.target) for node in self.nodes if node.op == "call_module"}
        self.writes: dict[fx.Node, set[fx.Node]] = {}
        self._shares: dict[fx.Node, list[fx.Node]] = {}
        self._own: set[fx.Node] = set()
        self.one: dict[fx.Node, Any] = {}
        self.two: dict[fx.Node, Any] = {}
        self.fixed: dict[fx.Node, Any] = {}

    def learn(self, example: Tensor) -> Any:
        """Note what the steps do with one picture and with two copies of it; gives the output for the two."""
        of_picture = {self.entry, *self.above(self.entry)}
        self.fixed = {node: None for node in self.nodes if node not in of_picture}
        self._watch(example.clone())
        both = torch.cat([example, example])
        values: dict[fx.Node, Any] = {self.entry: both}
        self.two = {self.entry: _bare(both)}
        self.follow(self.nodes[1:], values, values.__getitem__, note=self.two)
        return values[self.exit]

    def _watch(self, x: Tensor) -> None:
        """Run as the network does, in place and all, noting which inputs each step writes to and whose memory is its
        own: nobody but its one reader will look at it again."""
        values: dict[fx.Node, Any] = {self.entry: x}
        self.one = {self.entry: _bare(x)}
        last = {read: node for node in self.nodes for read in node.all_input_nodes}
        for node in self.nodes[1:]:
            before = {a: _versions(values[a]) for a in node.all_input_nodes}
            values[node] = self.step(node, values.__getitem__)
            self.one[node] = _bare(values[node])
            self.writes[node] = {a for a, was in before.items() if _versions(values[a]) != was}
            memory = _memory(values[node])
            self._shares[node] = [a for a in node.all_input_nodes
                                  if memory & _memory(values[a]) and a not in self.writes[node]]
            if node.op != "get_attr" and all(self.lent(a) for a in self._shares[node]):
                self._own.add(node)
            if node in self.fixed:
                self.fixed[node] = values[node]
            for read in node.all_input_nodes:
                if last[read] is node:
                    del values[read]

    def lent(self, node: fx.Node) -> bool:
        """Whether a step's value may be written over by its one reader."""
        return node in self._own and len(node.users) == 1

    def step(self, node: fx.Node, look: Callable[[fx.Node], Any]) -> Any:
        """The value of one node; `look` gives those that it reads."""
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        args, kwargs = fx.node.map_arg(node.args, look), fx.node.map_arg(node.kwargs, look)
        if node.op == "output":
            return args[0]
        if node.op == "call_module":
            return self.parts[node](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def follow(self, nodes: Sequence[fx.Node], values: dict[fx.Node, Any], rest: Callable[[fx.Node], Any],
               keep: Collection[fx.Node] = (), note: dict[fx.Node, Any] | None = None) -> None:
        """Run some nodes in order into `values`; what else they read is in there or given by `rest`. A value that no
        later one of these nodes reads is dropped, unless its node is in `keep`. `note` gets all without numbers."""
        last = {read: node for node in nodes for read in node.all_input_nodes}
        mine: set[fx.Node] = set()  # whose memory came about here and may be written over
        for node in nodes:
            def look(read: fx.Node, node: fx.Node = node) -> Any:
                value = values[read] if read in values else rest(read)
                spoilt = read in self.writes[node] and not (read in mine and self.lent(read))
                return _cloned(value) if spoilt else value

            values[node] = self.step(node, look)
            if note is not None:
                note[node] = _bare(values[node])
            if node not in keep and all(read in mine for read in self._shares[node]):
                mine.add(node)
            for read in node.all_input_nodes:
                if last[read] is node and read not in keep:
                    values.pop(read, None)

    def base(self, x: Tensor, keep: Collection[fx.Node] | None = None) -> dict[fx.Node, Any]:
        """Every node's value for pictures x (n, C, H, W), or those in `keep` and the output."""
        values: dict[fx.Node, Any] = {self.entry: x}
        kept = set(self.nodes) if keep is None else {*keep, self.exit}
        self.follow(self.nodes[1:], values, values.__getitem__, kept)
        return {node: value for node, value in values.items() if node in kept}

    def above(self, *start: fx.Node) -> list[fx.Node]:
        """The nodes that depend on those, in order."""
        found = set(start)
        for node in self.nodes:
            if any(read in found for read in node.all_input_nodes):
                found.add(node)
        return [node for node in self.nodes if node in found and node not in start]

    def widened(self, node: fx.Node, value: Any, m: int) -> Any:
        """What the node's value for one picture would be for m copies of it."""
        return _widened(value, self.one[node], self.two[node], m)

    def place(self, view: LayerView) -> tuple[fx.Node, str] | None:
        """The node whose value holds that layer's output, and where in it; None where the graph does not show it."""
        calls = self.made.get(view.name, ())
        if view.call >= len(calls):
            return None
        result = calls[view.call]
        if isinstance(result, fx.Node):
            return result, view.path
        marks: dict[int, tuple[Tensor, fx.Node]] = {}

        def mark(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            stand_in = torch.empty(0)
            marks[id(stand_in)] = stand_in, value
            return stand_in

        nest = fx.node.map_aggregate(result, mark)
        found = next((tensor for path, tensor in outputs.tensors(nest) if path == view.path), None)
        return (marks[id(found)][1], "") if id(found) in marks else None

    def name(self, node: fx.Node) -> str:
        """What a function or method is called, without a sign that it works in place; "" for one that is not torch's
        or Python's own."""
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op == "call_function" and node.target not in (unchanged, getattr):
            if not any(getattr(place, name, None) is node.target for place in PLACES):
                return ""
            if name in ("iadd", "isub", "imul", "itruediv"):
                name = name[1:]
        return name if name.startswith("__") else name.rstrip("_")

    def tells_shape(self, node: fx.Node) -> bool:
        """Whether the value is a shape, type or place of a tensor, which no change of numbers moves."""
        name = self.name(node) if node.op in ("call_method", "call_function") else ""
        return (node.args[1] if name == "getattr" else name) in SHAPES


_GRAPHS: weakref.WeakKeyDictionary[nn.Module, Graph | None] = weakref.WeakKeyDictionary()


def graph_of(module: nn.Module, example: Tensor) -> Graph | None:
    """The graph of a frozen network in eval mode, made once; the network itself is never touched.

    example (1, C, H, W). None where it cannot be copied or traced (its code asks for values), or where the graph does
    not give the network's output on the example to 1e-5 of its largest. Takes five forwards, which are not counted.
    """
    if module not in _GRAPHS:
        _GRAPHS[module] = _traced(module, example)
    return _GRAPHS[module]


def _traced(module: nn.Module, example: Tensor) -> Graph | None:
    shared = {id(p): p for p in module.parameters()}  # the structure is copied, the weights are not
    try:
        whole, tracer = _Whole(copy.deepcopy(module, shared)).eval(), _Tracer()
        graph = Graph(whole, tracer.trace(whole), tracer.made)
        with torch.no_grad():
            same = agree(module(torch.cat([example, example])), graph.learn(example))
    except Exception:  # the network's own code, run with stand-ins for tensors, may raise anything
        return None
    return graph if same else None


def agree(one: Any, two: Any) -> bool:
    """Whether outputs are equal to 1e-5 of the largest value of each tensor, or to the rounding of half precision."""
    pairs = [(a, b) for (_, a), (_, b) in zip(outputs.tensors(one), outputs.tensors(two), strict=True)]
    return all(a.shape == b.shape and bool((a - b).abs().max() <= max(CLOSE, 4 * torch.finfo(a.dtype).eps)
                                           * a.abs().max())
               for a, b in pairs if a.is_floating_point() and a.numel())


def _bare(value: Any) -> Any:
    return fx.node.map_aggregate(value, lambda v: v.to("meta") if isinstance(v, Tensor) else v)


def _cloned(value: Any) -> Any:
    return fx.node.map_aggregate(value, lambda v: v.clone() if isinstance(v, Tensor) else v)


def _versions(value: Any) -> list[int]:
    return [tensor._version for _, tensor in outputs.tensors(value)]


def _memory(value: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for _, tensor in outputs.tensors(value)}


def _widened(value: Any, one: Any, two: Any, m: int) -> Any:
    if m == 1:
        return value
    if isinstance(value, Tensor):
        axis = next((a for a, (s, t) in enumerate(zip(one.shape, two.shape, strict=True)) if s != t), None)
        if axis is None:
            return value
        alone = value.shape[axis] == 1
        return value.expand([m if a == axis else -1 for a in range(value.ndim)]) if alone else \
            torch.cat([value] * m, axis)
    if isinstance(value, int) and not isinstance(value, bool):
        return value + (two - one) * (m - 1)
    if isinstance(value, (tuple, list)):
        parts: Iterable[Any] = [_widened(*each, m) for each in zip(value, one, two, strict=True)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: _widened(inner, one[key], two[key], m) for key, inner in value.items()}
    return value
