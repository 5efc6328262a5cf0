"""What is maximised: classes, channels, neurons, directions, layers, and sums and differences of them, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xai.errors import XaiError, error
from xai.layers import LayerView
from xai.model import Model
from xai.targets import find_class, need_class

FORMS = ("class:281, a class name, LAYER:CHANNEL, LAYER:CHANNEL@y,x or @centre, LAYER:[3=0.5 7=-1] or LAYER:[file.npy] "
         "(a direction), LAYER, or a sum such as 'class:281 - 0.5*class:282' (blanks round the sign)")
LEAST_COSINE = 0.1  # lucid's

_UNIT = re.compile(r"(?:@\s*\d+\s*,\s*\d+|[^,])+")  # the comma of a place parts no units
_SIGN = re.compile(r"\s+([+-])\s+")
_FACTOR = re.compile(r"(?:(?P<sign>-)\s*)?(?:(?P<factor>\d+(?:\.\d+)?)\s*\*\s*)?(?P<rest>\S.*)")
_CHANNEL = re.compile(r"(?P<layer>.+):(?P<channel>\d+)(?:@(?P<cell>centre|\d+\s*,\s*\d+))?")
_DIRECTION = re.compile(r"(?P<layer>.+):\[(?P<body>[^\]]*)\]")


@dataclass(frozen=True)
class Term:
    """One quantity times a factor. kind: class, channel, neuron, direction or layer; view: whose activations; index:
    the class or channel; cell: the neuron's (y, x) on the layer's grid; direction: (K,) of the layer's channels."""

    factor: float
    kind: str
    index: int = 0
    view: LayerView | None = None
    cell: tuple[int, int] = (0, 0)
    direction: tuple[float, ...] = ()


@dataclass(frozen=True)
class Unit:
    """A sum of terms, and the words it was named by, blanks and "auto" spelled out."""

    text: str
    terms: tuple[Term, ...]

    @property
    def class_index(self) -> int | None:
        """The class, where the unit is one and nothing else."""
        one = self.terms[0]
        return one.index if len(self.terms) == 1 and one.kind == "class" and one.factor > 0 else None

    @property
    def views(self) -> list[LayerView]:
        """The layers that it looks at."""
        return [term.view for term in self.terms if term.view is not None]


def split(text: str) -> list[str]:
    """The units of a list in words, separated by commas."""
    return [one.strip() for one in _UNIT.findall(text) if one.strip()]


def parse(text: str, model: Model, example: Tensor) -> Unit:
    """One unit in words, for inputs shaped as `example` (1, C, H, W). Raises XaiError with the forms there are."""
    text = " ".join(text.split())
    if model.labels and find_class(text, model.labels, model.head.size) is not None:
        return Unit(text, (_term("+", text, model, example),))
    parts = _SIGN.split(text)
    terms = tuple(_term(sign, part, model, example)
                  for sign, part in zip(("+", *parts[1::2]), parts[::2], strict=True))
    named = next((view.name for one in terms if (view := one.view) is not None), "")
    return Unit(re.sub(r"\bauto(?=$|:| )", named, text) if named else text, terms)


def _term(sign: str, text: str, model: Model, example: Tensor) -> Term:
    found = _FACTOR.fullmatch(text.strip())
    if found is None:
        raise error("a unit", FORMS, repr(text), "Name one with --set units=...")
    factor = float(found["factor"] or 1) * (-1 if (sign == "-") != bool(found["sign"]) else 1)
    rest = found["rest"]
    if rest.startswith("class:") or find_class(rest, model.labels, model.head.size) is not None:
        return Term(factor, "class", need_class(rest, model.labels, model.head.size))
    if match := _DIRECTION.fullmatch(rest):
        view = _view(match["layer"], model, example)
        return Term(factor, "direction", view=view, direction=_direction(match["body"], view))
    if match := _CHANNEL.fullmatch(rest):
        view, channel = _view(match["layer"], model, example), int(match["channel"])
        if channel >= view.channels:
            raise error(f"the channel of {view.name}", f"from 0 to {view.channels - 1}", channel, "Name another")
        return Term(factor, "neuron" if match["cell"] else "channel", channel, view, _cell(match["cell"], view))
    return Term(factor, "layer", view=_view(rest, model, example))


def _view(name: str, model: Model, example: Tensor) -> LayerView:
    try:
        return model.view(name, example)
    except XaiError as problem:
        if str(problem).startswith(("the input", "the memory")):  # the network failed, not the name
            raise
        raise error("a unit", FORMS, repr(name), f"{problem}") from problem


def _cell(text: str | None, view: LayerView) -> tuple[int, int]:
    h, w = view.grid
    if text is None or text == "centre":
        return h // 2, w // 2
    y, x = (int(v) for v in text.split(","))
    if y >= h or x >= w:
        raise error(f"the place y,x in {view.name}", f"inside its grid of {h} x {w}", f"{y},{x}", "Name another")
    return y, x


def _direction(body: str, view: LayerView) -> tuple[float, ...]:
    """(K,): from pairs CHANNEL=VALUE, or from a .npy file."""
    said = f"the direction in {view.name}"
    if body.strip().endswith(".npy"):
        return _from_file(Path(body.strip()), view, said)
    values = [0.0] * view.channels
    try:
        for pair in body.split():
            channel, value = pair.split("=")
            values[int(channel)] = float(value)
    except (ValueError, IndexError):
        raise error(said, f"pairs CHANNEL=VALUE with channels from 0 to {view.channels - 1}, or a .npy file",
                    repr(body), "For example [3=0.5 7=-1]") from None
    if not any(values):
        raise error(said, "not zero everywhere", repr(body), "Give a channel a value")
    return tuple(values)


def _from_file(path: Path, view: LayerView, said: str) -> tuple[float, ...]:
    import numpy as np

    wanted = f"a file that holds {view.channels} finite numbers, not all zero"
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise error(said, wanted, f"{path}: {problem}", "Write it with numpy.save") from None
    good = isinstance(values, np.ndarray) and values.shape == (view.channels,) and values.dtype.kind in "fiu"
    if not good or not np.isfinite(values).all() or not values.any():
        raise error(said, wanted, f"{path} of shape {getattr(values, 'shape', '?')}", "Write it with numpy.save")
    return tuple(float(v) for v in values)


@dataclass(frozen=True)
class _Group:
    """Terms of one kind and layer: which rows of the batch they speak of, and of what."""

    kind: str
    view: LayerView | None
    rows: Tensor
    factors: Tensor
    index: Tensor
    y: Tensor
    x: Tensor
    direction: Tensor


class Objective:
    """The values of units, one a row of a batch: `objective(output, captured)` -> (n,), in float32 or wider.

    output: what the head holds; captured: the tensors of the views, in the network's layout. power: of the cosine in a
    direction, dot * max(0.1, cos)^power, at each place, then the mean; 0 is the plain dot product.
    """

    def __init__(self, units: Sequence[Unit], power: float = 0.0, device: torch.device | None = None) -> None:
        self.count, self.power = len(units), power
        self.views = list(dict.fromkeys(view for unit in units for view in unit.views))
        kinds: dict[tuple[str, LayerView | None], list[tuple[int, Term]]] = {}
        for row, unit in enumerate(units):
            for term in unit.terms:
                kinds.setdefault((term.kind, term.view), []).append((row, term))
        self._groups = [_group(kind, view, pairs, device) for (kind, view), pairs in kinds.items()]

    def __call__(self, output: Tensor, captured: Mapping[LayerView, Tensor]) -> Tensor:
        wide = torch.promote_types(output.dtype, torch.float32)
        total = torch.zeros(self.count, dtype=wide, device=output.device)
        maps = {view: view.to_map(captured[view]).to(wide) for view in self.views}
        for group in self._groups:
            values = KINDS[group.kind](output.to(wide) if group.view is None else maps[group.view], group, self.power)
            total = total.index_add(0, group.rows, group.factors.to(wide) * values)
        return total


def _group(kind: str, view: LayerView | None, pairs: Sequence[tuple[int, Term]], device: torch.device | None) -> _Group:
    def whole(values: Sequence[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.long, device=device)

    terms = [term for _, term in pairs]
    return _Group(kind, view, whole([row for row, _ in pairs]),
                  torch.tensor([term.factor for term in terms], dtype=torch.float64, device=device),
                  whole([t.index for t in terms]), whole([t.cell[0] for t in terms]), whole([t.cell[1] for t in terms]),
                  torch.tensor([t.direction for t in terms], dtype=torch.float64, device=device))


def _class(output: Tensor, group: _Group, power: float) -> Tensor:
    """The logit, never the probability; of an output with places, its mean over them."""
    return output[group.rows, group.index].flatten(1).mean(1) if output.ndim > 2 else output[group.rows, group.index]


def _along(maps: Tensor, group: _Group, power: float) -> Tensor:
    direction = group.direction.to(maps)
    chosen = maps[group.rows]
    dot = torch.einsum("nkhw,nk->nhw", chosen, direction)
    if power:
        size = chosen.square().sum(1).add(1e-12).sqrt() * direction.norm(dim=1)[:, None, None]
        dot = dot * (dot / size).clamp_min(LEAST_COSINE) ** power
    return dot.mean((1, 2))


KINDS: dict[str, Callable[[Tensor, _Group, float], Tensor]] = {
    "class": _class,
    "channel": lambda maps, group, power: maps[group.rows, group.index].mean((1, 2)),
    "neuron": lambda maps, group, power: maps[group.rows, group.index, group.y, group.x],
    "layer": lambda maps, group, power: maps[group.rows].square().mean((1, 2, 3)),
    "direction": _along,
}


def alike(maps: Tensor, of: Sequence[int]) -> Tensor:
    """(n,): how alike each row's features (n, K, h, w) are to those of the other rows of its unit, `of` the unit's
    number: the sum of <G_i, G_j> over the others, G the Gram matrix of the channels at unit Frobenius norm, divided by
    the number of rows of the unit. Alone 0; the sum over B rows that are the same is B - 1."""
    flat = maps.flatten(2)
    gram = torch.einsum("nkp,nlp->nkl", flat, flat).flatten(1)
    gram = gram / gram.norm(dim=1, keepdim=True).clamp_min(1e-12)
    number = torch.tensor(list(of), device=maps.device)
    same = (number[:, None] == number).to(maps) - torch.eye(len(maps), device=maps.device, dtype=maps.dtype)
    shared: Tensor = (same * (gram @ gram.T)).sum(1)
    return shared / (1 + same.sum(1))
