"""A large network stage by stage, for the model explorer: its blocks, and the strongest channels of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xai import outputs
from xai.batch import Batch
from xai.layers import LayerView
from xai.model import Model

Stage = dict[str, Any]
UNITS = 12
"""Channels shown of a stage."""
CELLS = 64
"""Rows and columns of a map that go into the page; of a larger one every n-th."""
MOST_STAGES, MOST_PARTS = 60, 40
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SILENT = {"Identity", "Dropout", "Dropout2d", "Flatten", "Permute", "DropPath", "StochasticDepth"}
_POINTWISE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.BatchNorm2d, nn.LayerNorm)


class _Record:
    """What modules returned in one forward, in order; copies, so that no step in place rewrites it."""

    def __init__(self, module: nn.Module, views: dict[str, LayerView]) -> None:
        self.names = {child: name for name, child in module.named_modules()}
        self.views = views
        self.kept: set[str] = set()
        self.values: dict[str, Tensor] = {}
        self.shapes: dict[str, list[int]] = {}
        self.read: dict[str, Tensor] = {}
        self.order: list[str] = []

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        name = self.names[module]
        found = [(path, t) for path, t in outputs.tensors(output) if t.is_floating_point()]
        if not found:
            return None
        view = self.views.get(name)
        path, value = next(((p, t) for p, t in found if view is not None and p == view.path), found[0])
        if name not in self.shapes:
            self.order.append(name)
        self.shapes[name] = list(value.shape[1:])
        if name not in self.kept:
            return None
        first = next((t for _, t in outputs.tensors(arguments) if t.is_floating_point()), None)
        if isinstance(module, nn.Linear) and first is not None:
            self.read[name] = first.detach().clone()
        self.values[name] = value  # the network goes on with a copy
        return outputs.put(output, path, value.clone())


def blocks(model: Model, batch: Batch, answers: list[int]) -> list[Stage]:
    """The stages between the picture (position 0) and the scores, from two counted forwards and a backward a stage.

    `answers`: the classes shown of the last linear map. What a cell sees is measured: the box of the pixels at which
    the gradient of all channels at the middle cell is not zero.
    """
    views = {view.name: view for view in model.layers()}
    with model.opened() as module:
        record, x = _Record(module, views), batch.inputs[:1].detach().clone().requires_grad_()
        handles = [child.register_forward_hook(record) for child in module.modules() if child is not module]
        with torch.no_grad():
            module(x)
        record.kept = set(_chosen(module, record))
        record.order, record.shapes = [], {}
        output = model.head.read(module(x))
        for handle in handles:
            handle.remove()
        table = dict(module.named_modules())
        order = [name for name in record.order if name in record.kept]
        stages: list[Stage] = []
        for i, name in enumerate(order):
            made = _stage(name, table[name], record, i, answers if i + 1 == len(order) else [], output)
            made.setdefault("field", _seen(table[name], views.get(name), record.values[name], x, stages))
            stages.append(made)
    _group(stages, table)
    return stages


def _chosen(module: nn.Module, record: _Record) -> list[str]:
    """The modules shown: lists of blocks are opened, blocks are not, as deep as the page holds that many."""
    fired = set(record.order)

    def expand(name: str, part: nn.Module, depth: int) -> list[str]:
        children = [(f"{name}.{key}" if name else key, child) for key, child in part.named_children()]
        opened = isinstance(part, _LISTS) or not name or _holds_a_list(part)
        if children and opened and depth > 0:
            return [found for key, child in children for found in expand(key, child, depth - 1)]
        return [name] if name in fired and type(part).__name__ not in _SILENT else []

    for depth in range(8, 0, -1):
        names = [name for name in expand("", module, depth) if record.shapes[name]]
        if len(names) <= MOST_STAGES:
            break
    last = max(names, key=record.order.index, default="")  # a head of several modules is opened: scores are its last
    readable = [name for name in names if name != last and (len(record.shapes[name]) == 1 or name in record.views)]
    for name in names:
        if name not in readable:
            parts = [f"{name}.{key}" for key, _ in module.get_submodule(name).named_children()]
            opened = [p for p in parts if p in fired and type(module.get_submodule(p)).__name__ not in _SILENT]
            readable += [p for p in opened if len(record.shapes[p]) == 1 or p in record.views] or [name]
    return readable


def _holds_a_list(part: nn.Module) -> bool:
    """Whether blocks of one class stand in a list somewhere inside."""
    for child in part.modules():
        if isinstance(child, _LISTS):
            kinds = [type(c) for c in child.children() if any(True for _ in c.children())]
            if len(kinds) > len(set(kinds)):
                return True
    return False


def _stage(name: str, part: nn.Module, record: _Record, position: int, answers: list[int], output: Tensor) -> Stage:
    value, view = record.values[name], record.views.get(name)
    maps = (view.to_map(value) if view is not None else value)[0].detach()
    maps = maps.reshape(maps.shape[0], *(maps.shape[1:] if maps.ndim == 3 else (1, -1) if maps.ndim == 2 else (1, 1)))
    stage: Stage = {
        "name": name, "op": type(part).__name__, "kind": "block", "shape": list(maps.shape) if view else
        record.shapes[name], "layout": view.layout if view else "", "tokens": view.prefix if view else 0,
        "parameters": sum(p.numel() for p in part.parameters()), "sources": [position], "inside": _inside(name, part,
                                                                                                         record)}
    if answers and isinstance(part, nn.Linear) and value.ndim == 2 and value.shape == output.shape:
        return {**stage, **_scores(part, record.read[name], maps, answers)}
    units = _strongest(maps)
    step = max(1, -(-max(maps.shape[1:]) // CELLS))
    return {**stage, "units": units, "rule": "all" if len(units) == len(maps) else "strongest", "step": step,
            "values": maps[units][:, ::step, ::step].float().cpu().numpy(), "low": float(maps.min()),
            "high": float(maps.max())}


def _strongest(maps: Tensor) -> list[int]:
    """All of few channels in their order, else those of the largest mean absolute value, strongest first."""
    if len(maps) <= UNITS:
        return list(range(len(maps)))
    strength = maps.float().abs().flatten(1).mean(1).nan_to_num(0)
    return [int(i) for i in strength.topk(UNITS).indices]


def _scores(part: nn.Linear, read: Tensor, maps: Tensor, answers: list[int]) -> Stage:
    """The last linear map: the vector that it read, and its rows for the classes that are shown."""
    weight = part.weight.detach()[answers].float().cpu().numpy()
    bias = np.zeros(len(answers), np.float32)
    if part.bias is not None:
        bias = part.bias.detach()[answers].float().cpu().numpy()
    shown = maps[answers].float().cpu().numpy()
    return {"kind": "linear", "op": "linear", "units": answers, "rule": "all" if len(answers) == len(maps) else
            "likeliest", "values": shown, "step": 1, "low": float(maps.min()), "high": float(maps.max()), "field": None,
            "weight": weight[:, :, None, None], "bias": bias, "read": read[0].float().cpu().numpy()}


def _seen(part: nn.Module, view: LayerView | None, value: Tensor, x: Tensor, before: list[Stage]
          ) -> dict[str, list[float]] | None:
    """What cell (y, x) sees: `start` of cell 0, `jump` from one cell to the next, `size`, an axis, in input pixels.

    A pointwise step sees what the step before it sees; after a stage that sees the whole picture all do.
    """
    if view is None or not value.requires_grad or min(view.grid) < 2:
        return None
    jumps: list[float] = [n / g for n, g in zip(x.shape[2:], view.grid, strict=True)]
    last = next((stage["field"] for stage in reversed(before) if stage["field"]), None)
    if last and all(size >= n for size, n in zip(last["size"], x.shape[2:], strict=True)):
        starts = [-(g // 2) * j for g, j in zip(view.grid, jumps, strict=True)]
        return {"start": starts, "jump": jumps, "size": [float(n) for n in x.shape[2:]]}
    if last and isinstance(part, _POINTWISE) and before[-1]["shape"][-2:] == list(view.grid):
        return before[-1]["field"]  # type: ignore[no-any-return]  # a stage is plain data
    maps = view.to_map(value)
    middle = [g // 2 for g in view.grid]
    here = _box(maps[0, :, middle[0], middle[1]], x)
    there = _box(maps[0, :, middle[0] - 1, middle[1] - 1], x) if here else None
    if here is None:
        return None
    for axis, n in enumerate(x.shape[2:]):
        inner = there is not None and there[axis][0] > 0 and here[axis][1] < n
        if inner and there is not None and here[axis][1] - here[axis][0] == there[axis][1] - there[axis][0]:
            jumps[axis] = float(here[axis][0] - there[axis][0])
    return {"start": [here[axis][0] - middle[axis] * jumps[axis] for axis in (0, 1)], "jump": jumps,
            "size": [float(end - start) for start, end in here]}


def _box(values: Tensor, x: Tensor) -> list[tuple[int, int]] | None:
    """The rows and the columns (first, one past the last) of the pixels that move these values."""
    (gradient,) = torch.autograd.grad(values.abs().sum(), x, retain_graph=True)
    seen = (gradient[0] != 0).any(0)
    places = [seen.any(1 - axis).nonzero().flatten().tolist() for axis in (0, 1)]
    return [(axis[0], axis[-1] + 1) for axis in places] if all(places) else None


def _inside(name: str, part: nn.Module, record: _Record) -> list[dict[str, Any]]:
    """The modules without children inside a block: name, class, output shape, parameters."""
    leaves = [(key, child) for key, child in part.named_modules() if key and not any(True for _ in child.children())]
    return [{"name": key, "op": type(child).__name__, "shape": record.shapes.get(f"{name}.{key}"),
             "parameters": sum(p.numel() for p in child.parameters())} for key, child in leaves[:MOST_PARTS]]


def _group(stages: list[Stage], table: dict[str, nn.Module]) -> None:
    """Name the list that blocks of one class stand in, and how many of them follow each other."""
    lists = [_list_of(stage, table) for stage in stages]
    start = 0
    while start < len(stages):
        end = start + 1
        while end < len(stages) and lists[start] and lists[end] == lists[start]:
            end += 1
        if end - start > 1:
            for i in range(start, end):
                stages[i]["group"] = {"name": lists[start].rpartition("/")[0], "op": stages[i]["op"],
                                      "count": end - start, "number": i - start + 1}
        start = end


def _list_of(stage: Stage, table: dict[str, nn.Module]) -> str:
    """The list that a block stands in and its class; "" for what is no block in a list."""
    parent = stage["name"].rpartition(".")[0]
    composed = any(True for _ in table[stage["name"]].children())
    return f"{parent}/{stage['op']}" if parent and composed and isinstance(table.get(parent), _LISTS) else ""
