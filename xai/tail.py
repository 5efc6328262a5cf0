"""What lies above a layer, by itself: the output for other activations of that layer, the rest of the picture as is."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, fx, nn

from xai import outputs
from xai.devices import free_memory
from xai.fast import Folded, Pointwise
from xai.graph import Graph, agree, graph_of
from xai.layers import LAYOUTS, Capture, LayerView
from xai.model import Model
from xai.pace import MMAP_THRESHOLD

MOST = 512  # rows of maps at once
AFFINE_PARTS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, Pointwise, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Unflatten, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
    Folded,
)  # fmt: skip
SUMS = {"add", "sub", "cat", "concat", "stack"}  # affine in all that they read together
PRODUCTS = {"mul", "matmul"}  # affine in either of two, where the other does not depend on it
CALLS = {  # affine in the first that they read, where the others do not depend on it
    "unchanged", "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "mean", "sum", "neg",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "getitem", "contiguous", "clone",
    "detach", "expand", "chunk", "split", "unbind", "dropout", "float", "to", "truediv", "div", "linear", "conv2d",
    "movedim", "flip", "roll",
}  # fmt: skip


class Tail:
    """The part of a network above a layer.

    cut: whether it runs by itself; else every run is one of the whole network, with the activations put in place by a
    hook. affine: whether the output is an affine function of the layer's activations, as the kinds of the steps in
    between tell; False where one is not known, and for a network that is not cut.
    """

    def __init__(self, model: Model, view: LayerView) -> None:
        self.view, self.affine = view, False
        self._module = model.runner([view.name])
        self._part: _Part | None = None
        graph = graph_of(self._module, model.example())
        place = graph.place(view) if graph is not None else None
        if graph is not None and place is not None:
            part = _Part(graph, *place, view)
            if part.fits(model.example()):
                self._part, self.affine = part, part.affine()

    @staticmethod
    def of(model: Model, view: LayerView) -> Tail:
        """The tail of a model above a layer, made once: that takes a few forwards of noise, which are not counted."""
        known = _TAILS.setdefault(model, {})
        if view not in known:
            known[view] = Tail(model, view)
        return known[view]

    @property
    def cut(self) -> bool:
        """Whether the part above the layer runs by itself."""
        return self._part is not None

    @property
    def opening(self) -> int:
        """How many forwards `at` takes: one, if the part above reads more of the picture than the layer's maps."""
        return int(self._part is not None and not self._part.alone)

    def at(self, model: Model, x: Tensor) -> Above:
        """The tail of that model for one picture x (1, C, H, W), of the example's size."""
        if self._part is None or self._part.alone:
            return Above(model, self, x, self._part.graph.fixed if self._part is not None else {})
        part = self._part
        model.cost.add(forwards=1)
        with torch.no_grad():
            return Above(model, self, x, model.told(lambda: part.read(x), x))

    def rows(self, memory_bytes: int | None, device: torch.device) -> int:
        """How many maps a run takes at once where the tail is cut: none of its values is then larger than 32 MiB."""
        largest, total = self._part.sizes() if self._part is not None else (1, 1)
        fits = (memory_bytes or free_memory(device) // 2) // max(1, 3 * total)
        return int(max(1, min(MOST, fits, MMAP_THRESHOLD // max(1, largest))))


class Above:
    """The tail of one picture: a call takes maps (m, K, h, w) of the layer and gives what the head holds for each.

    A call counts as m forwards. Maps are never written to. Gradients to them are recorded where the caller records.
    """

    def __init__(self, model: Model, tail: Tail, x: Tensor, values: dict[fx.Node, Any]) -> None:
        self._model, self._tail, self._x, self._values = model, tail, x, values

    def __call__(self, maps: Tensor) -> Tensor:
        part, module = self._tail._part, self._tail._module
        if part is None:
            with _Put(module, self._tail.view, maps):
                return self._model.run(self._x.expand(len(maps), -1, -1, -1), module)
        found = self.uncounted(maps)
        self._model.cost.add(forwards=len(maps))
        return found

    def uncounted(self, maps: Tensor) -> Tensor:
        """The same of a tail that is cut, for a pass that is counted by other means."""
        part = self._tail._part
        assert part is not None
        return self._model._read(self._model.told(lambda: part.run(self._values, maps), maps))


class _Part:
    """The steps above the node whose value holds the layer's output, at `path`.

    `alone`: they read nothing of the picture but that, and all of it is the map's.
    """

    def __init__(self, graph: Graph, node: fx.Node, path: str, view: LayerView) -> None:
        self.graph, self._node, self._path, self._view = graph, node, path, view
        self._todo = graph.above(node)
        self._read = {a for step in self._todo for a in step.all_input_nodes} - set(self._todo) - {node}
        self.alone = "T" not in LAYOUTS[view.layout] and not path and self._read <= graph.fixed.keys()

    def fits(self, example: Tensor) -> bool:
        """Whether it gives the network's own output for the network's own activations, for two copies of a picture."""
        if self._todo[-1:] != [self.graph.exit]:
            return False
        try:
            with torch.no_grad():
                both = self.read(torch.cat([example, example]))
                maps = self._view.to_map(outputs.pick(both[self._node], self._path))
                output = self.run(self.graph.fixed if self.alone else self.read(example.clone()), maps)
                return agree(both[self.graph.exit], output)
        except Exception:  # the network's own steps with shapes that they were not written for may raise anything
            return False

    def read(self, x: Tensor) -> dict[fx.Node, Any]:
        """Of a forward of x, the values that the part above reads."""
        return self.graph.base(x, {*self._read, self._node})

    def run(self, values: dict[fx.Node, Any], maps: Tensor) -> Any:
        """The network's output for maps (m, K, h, w), given what else is read, for one picture."""
        graph, m = self.graph, len(maps)
        if self.alone:
            start: Any = self._view.from_map(maps, maps)
        else:
            whole = graph.widened(self._node, values[self._node], m)
            start = outputs.put(whole, self._path, self._view.from_map(maps, outputs.pick(whole, self._path)))
        own = {self._node: start}
        graph.follow(self._todo, own, lambda node: graph.widened(node, values[node], m))
        return own[graph.exit]

    def sizes(self) -> tuple[int, int]:
        """Bytes of the largest and of all values of a run, for one row."""
        sizes = [sum(t.numel() * t.element_size() for _, t in outputs.tensors(self.graph.one[node]))
                 for node in (self._node, *self._todo)]
        return max(sizes), sum(sizes)

    def affine(self) -> bool:
        """Whether every step is one that is known to be affine in what depends on the layer's values."""
        moved = {self._node}
        for node in self._todo:
            dependent = [a for a in node.all_input_nodes if a in moved]
            if not dependent or self.graph.tells_shape(node):
                continue
            if node is not self.graph.exit and not self._is_affine(node, dependent):
                return False
            moved.add(node)
        return True

    def _is_affine(self, node: fx.Node, dependent: list[fx.Node]) -> bool:
        first = dependent == [node.args[0]] if node.args else False
        if node.op == "call_module":
            part = self.graph.parts[node]
            hooked = part._forward_hooks or part._forward_pre_hooks
            return first and type(part) in AFFINE_PARTS and not hooked and not part.training
        name = self.graph.name(node)
        read_twice = sum(a in dependent for a in node.args if isinstance(a, fx.Node)) > 1
        return (name in SUMS or (name in CALLS and first and not read_twice)
                or (name in PRODUCTS and len(dependent) == 1 and not read_twice))


class _Put(Capture):
    """Puts maps in the place of a layer's output in one forward of the whole network."""

    def __init__(self, module: nn.Module, view: LayerView, maps: Tensor) -> None:
        super().__init__(module, [view])
        self._maps = maps

    def _record(self, view: LayerView, output: Any) -> Any:
        return view.put(output, view.from_map(self._maps, view.pick(output)).clone())


_TAILS: weakref.WeakKeyDictionary[Model, dict[LayerView, Tail]] = weakref.WeakKeyDictionary()
