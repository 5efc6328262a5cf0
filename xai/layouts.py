"""Read a traced tensor as a map: which axis is the channel, which are positions, how many tokens precede the patches.

Sizes alone never decide which axis is the channel. What decides is the modules that made or read the tensor: a Conv2d
keeps channels first, a Linear or LayerNorm last. A tensor that no such module touched is read like the nearest one of
its shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xai.layers import LayerView
from xai.trace import Firing, Node, Trace

_PLANAR = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.Conv1d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LPPool2d,
    nn.FractionalMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout2d,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
)
_LAYOUT_OF_FORMAT = {"NCHW": "nchw", "NHWC": "nhwc", "NLC": "tokens", "NCL": "channels_tokens"}
_LARGEST_UNDECLARED_PREFIX = 8
_TOKEN_PARAMETERS = ("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token", "reg_token",
                     "register_token")  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How a tensor reads as a map, without a name."""

    layout: str
    grid: tuple[int, int]
    prefix: int
    channels: int
    why: str


class Reader:
    """Reads the nodes of one trace. `grid` and the declared prefixes come from the caller and the network."""

    def __init__(self, module: nn.Module, run: Trace, grid: tuple[int, int] | None = None) -> None:
        self._run = run
        self.forced = grid
        self._size = tuple(run.picture.shape[-2:]) if run.picture.ndim >= 3 else None
        self._prefixes = [*declared_prefixes(module), 0]
        self._channel_axis = {node: _channel_axis(node) for node in run.nodes}
        self._grids = self._planar_grids()
        self._token_grids: dict[int, tuple[tuple[int, int], int, str] | None] = {}

    def read(self, node: Node) -> Reading | None:
        """How `node` reads, or None if it has no spatial extent or nothing tells how."""
        shape = tuple(node.tensor.shape)
        axis = self._channel_axis[node]
        if axis is not None:
            return self._along(shape, axis, "") if axis >= 0 else None
        for other in self._alike(node):
            known = self._channel_axis[other]
            if known is not None and known >= 0:
                return self._along(shape, known, f"read like {other.last[-1].name}, of the same shape")
        return None

    def _alike(self, node: Node) -> Iterator[Node]:
        """Nodes of the same shape: first those inside the module that made this one, then the nearest in time."""
        same = [other for other in self._run.nodes if other is not node and other.tensor.shape == node.tensor.shape]
        prefix, order = node.last[-1].name + ".", node.last[0].order
        inside = [other for other in same if any(firing.name.startswith(prefix) for firing in other.firings)]
        yield from reversed(inside)
        yield from sorted(same, key=lambda other: abs(other.last[0].order - order))

    def _along(self, shape: tuple[int, ...], axis: int, why: str) -> Reading | None:
        if len(shape) == 4 and shape[0] == 1:
            h, w = (shape[2], shape[3]) if axis == 1 else (shape[1], shape[2])
            layout = "nchw" if axis == 1 else "nhwc"
            if h * w > 1 and (axis == 1 or self._plausible((h, w))):
                return Reading(layout, (h, w), 0, shape[axis], why)
        if len(shape) == 3 and 1 in shape[:2]:
            layout, count = _sequence(shape, axis)
            found = self._token_grid(count)
            if found:
                words = f"{found[2]}; {why}" if why else found[2]
                return Reading(layout, found[0], found[1], shape[axis], words)
        return None

    def _plausible(self, grid: tuple[int, int]) -> bool:
        """Whether some planar output has this grid or a whole stride leads to it: attention matrices fail both."""
        if grid in self._grids or grid == self.forced:
            return True
        if self._size is None:
            return False
        strides = [size / cells for size, cells in zip(self._size, grid, strict=True)]
        return strides[0] == strides[1] and strides[0].is_integer()

    def _planar_grids(self) -> list[tuple[int, int]]:
        grids = []
        for node in self._run.nodes:
            shape = node.tensor.shape
            if len(shape) == 4 and shape[0] == 1 and self._channel_axis[node] == 1 and shape[2] * shape[3] > 1:
                grids.append((int(shape[2]), int(shape[3])))
        return list(dict.fromkeys(reversed(grids)))

    def _token_grid(self, count: int) -> tuple[tuple[int, int], int, str] | None:
        """(grid, prefix, why) of a sequence of `count` tokens."""
        if count not in self._token_grids:
            grids = [self.forced] if self.forced else self._grids
            answer = self._declared(count, grids) or self._probed(count, grids)
            self._token_grids[count] = answer or (None if self.forced else self._guessed(count))
        return self._token_grids[count]

    def _declared(self, count: int, grids: list[tuple[int, int]]) -> tuple[tuple[int, int], int, str] | None:
        """By the prefixes that the network declares and the grids that planar outputs have."""
        for prefix in self._prefixes:
            for grid in grids:
                if grid[0] * grid[1] + prefix == count:
                    source = "as it was given" if self.forced else "the grid of a planar output"
                    return grid, prefix, _token_words(grid, prefix, source)
        return None

    def _probed(self, count: int, grids: list[tuple[int, int]]) -> tuple[tuple[int, int], int, str] | None:
        """By what single tokens look at, where nothing says which of the tokens are the patches."""
        squares = [self._grid_of(count - extra) for extra in range(_LARGEST_UNDECLARED_PREFIX + 1)]
        tried = [*grids, *(square for square in squares if square and not self.forced)]
        for grid in sorted(dict.fromkeys(tried), key=lambda grid: count - grid[0] * grid[1]):
            if count / 2 < grid[0] * grid[1] <= count:
                prefix = self._offset(count, grid)
                if prefix is not None:
                    return grid, prefix, _token_words(grid, prefix, "where in the picture single tokens look")
        return None

    def _guessed(self, count: int) -> tuple[tuple[int, int], int, str] | None:
        """By a declared prefix and the picture's aspect ratio."""
        for prefix in self._prefixes:
            grid = self._grid_of(count - prefix)
            if grid:
                return grid, prefix, _token_words(grid, prefix, "the picture's aspect ratio")
        return None

    def _offset(self, count: int, grid: tuple[int, int]) -> int | None:
        """How many tokens precede the first patch, if three tokens agree, in the earliest sequence of that length."""
        found = self._first_sequence(count)
        if found is None or not self._run.picture.requires_grad:
            return None
        tokens, cells = found, grid[0] * grid[1]
        extra = count - cells
        weights = torch.randn(tokens.shape[1], generator=torch.Generator().manual_seed(0)).to(tokens)
        offsets = set()
        for part in (0.1, 0.5, 0.9):
            index = extra + round(part * (cells - 1 - extra))
            score = (tokens[index] * weights).sum()
            if not score.requires_grad:
                return None
            (slope,) = torch.autograd.grad(score, self._run.picture, retain_graph=True, materialize_grads=True)
            energy = nn.functional.adaptive_avg_pool2d(slope.square().sum(1, keepdim=True), grid)
            offsets.add(index - int(energy.argmax()))
        offset = offsets.pop()
        return offset if not offsets and 0 <= offset <= extra else None

    def _first_sequence(self, count: int) -> Tensor | None:
        """The earliest sequence of that many tokens, (count, K)."""
        for node in self._run.nodes:
            axis, shape = self._channel_axis[node], tuple(node.tensor.shape)
            if len(shape) == 3 and 1 in shape[:2] and axis is not None and axis > 0 and node.tensor.requires_grad:
                layout, length = _sequence(shape, axis)
                if length == count:
                    return node.tensor[:, 0] if layout == "tokens_first" else node.tensor[0].movedim(axis - 1, 1)
        return None

    def _grid_of(self, patches: int) -> tuple[int, int] | None:
        """The grid of that many patches with the picture's aspect ratio, if there is one."""
        if patches < 4 or self._size is None:
            return None
        height, width = self._size
        h = round(math.sqrt(patches * height / width))
        if h and patches % h == 0 and abs(h * width - patches // h * height) <= max(height, width):
            return h, patches // h
        return None


def view_of(firing: Firing, reading: Reading, reason: str = "") -> LayerView:
    """The reading with the name, call and place of one firing."""
    return LayerView(
        firing.name,
        reading.grid,
        reading.channels,
        reading.layout,
        reading.prefix,
        firing.path,
        firing.call,
        reason,
    )


def declared_prefixes(module: nn.Module) -> list[int]:
    """Numbers of prefix tokens that the network names itself, by attribute or token parameters; the largest first."""
    found: list[int] = []
    for child in module.modules():
        for name in ("num_prefix_tokens", "num_tokens_prefix"):
            value = getattr(child, name, None)
            if isinstance(value, int) and value > 0:
                found.append(value)
    single = [_token_count(name, parameter) for name, parameter in module.named_parameters()]
    counts = [count for count in single if count]
    found += [sum(counts[: end + 1]) for end in range(len(counts))]
    return sorted(set(found), reverse=True)


def _token_count(name: str, parameter: Tensor) -> int:
    last = name.rsplit(".", 1)[-1].lower()
    if not any(word in last for word in _TOKEN_PARAMETERS):
        return 0
    return int(parameter.shape[-2]) if parameter.ndim >= 2 else 1


def _token_words(grid: tuple[int, int], prefix: int, source: str) -> str:
    before = f" after {prefix} prefix token(s)" if prefix else ""
    return f"{grid[0]}x{grid[1]} patch tokens{before}, from {source}"


def _sequence(shape: tuple[int, ...], axis: int) -> tuple[str, int]:
    """(layout, number of tokens) of a 3-axis tensor for one picture with its channels along `axis`."""
    if axis == 1 and shape[0] == 1:
        return "channels_tokens", shape[2]
    return ("tokens", shape[1]) if shape[0] == 1 else ("tokens_first", shape[0])


def _channel_axis(node: Node) -> int | None:
    """The axis that the modules around the tensor treat as the channel; None if nothing tells, -1 if they disagree."""
    shape = tuple(node.tensor.shape)
    if len(shape) not in (3, 4):
        return -1
    made = {_axis_for(firing.module, shape, made=True) for firing in node.firings} - {None}
    read = {_axis_for(module, shape, made=False) for module in node.readers} - {None}
    if len(made | read) == 1:
        return next(iter(made | read))
    return None if not (made | read) else -1


def _axis_for(module: nn.Module, shape: tuple[int, ...], made: bool) -> int | None:
    last = len(shape) - 1
    if isinstance(module, nn.Linear):
        return last if shape[-1] == (module.out_features if made else module.in_features) else None
    if isinstance(module, _PLANAR):
        return 1
    normalized = getattr(module, "normalized_shape", None)
    if normalized is not None:
        return _norm_axis(module, shape, tuple(normalized) if isinstance(normalized, tuple | list) else (normalized,))
    fmt = getattr(module, "output_fmt", None)
    layout = _LAYOUT_OF_FORMAT.get(str(getattr(fmt, "value", fmt)).upper()) if made and fmt is not None else None
    if layout in ("nchw", "nhwc") and len(shape) == 4:
        return 1 if layout == "nchw" else 3
    if layout in ("tokens", "channels_tokens") and len(shape) == 3:
        return 2 if layout == "tokens" else 1
    if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) and len(shape) == 3:
        return 2
    return None


def _norm_axis(module: nn.Module, shape: tuple[int, ...], normalized: tuple[int, ...]) -> int | None:
    """A layer norm's channel axis: the one of its size; where two are, the norm's own class or option tells."""
    if len(normalized) != 1:
        return None
    last = len(shape) - 1
    fits = [axis for axis in (1, last) if shape[axis] == normalized[0]]
    if len(fits) == 2:
        first = "2d" in type(module).__name__.lower() or getattr(module, "data_format", "") == "channels_first"
        return 1 if first else last
    return fits[0] if fits else None
