"""Receptive fields: which pixels each place of a layer reads, for networks of convolutions, pools and pointwise steps.

Coordinates go through the network in place of a picture, and every step answers with the largest that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from analyzers.visualization._until import until
from xai.frozen import QUERIES, VIEWS
from xai.layers import LayerView
from xai.model import Model

ROWS = 4  # -top, bottom, -left, right
POINTWISE = frozenset({
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "selu_", "celu", "celu_",
    "gelu", "silu", "mish", "softplus", "softsign", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardtanh", "hardtanh_",
    "hardswish", "hardsigmoid", "logsigmoid", "_threshold", "threshold", "clamp", "clamp_", "clamp_min", "clamp_min_",
    "clip", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout", "batch_norm", "neg", "__neg__", "abs", "exp", "square", "sqrt", "pow", "__pow__",
})  # fmt: skip
TWO = frozenset({
    "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "__isub__", "mul", "mul_",
    "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__", "true_divide", "maximum",
    "minimum",
})  # fmt: skip
NATIVE = (QUERIES | VIEWS | {"cat", "concat", "max_pool2d", "_max_pool2d", "adaptive_max_pool2d", "amax", "detach",
                             "__get__", "__set__", "is_inference"}
          ) - {"interpolate", "upsample", "unfold", "repeat_interleave"}


class _Unknown(Exception):
    """A step of which it is not known here what it reads."""


class _Fields(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in NATIVE:
            return func(*args, **kwargs)
        if name in POINTWISE:
            return args[0]
        if name not in TWO and name not in RULES:
            raise _Unknown(name)
        try:
            return _both(name, *args[:2]) if name in TWO else RULES[name](*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError) as problem:  # a form that it was not written for
            raise _Unknown(name) from problem


def _both(name: str, one: Any, two: Any) -> Any:
    """The larger of two values of the picture; a constant is read nowhere."""
    held = [t for t in (one, two) if isinstance(t, Tensor) and t.ndim > 1 and len(t) == ROWS]
    made = held[0] if len(held) == 1 else torch.maximum(*held)
    in_place = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    return one.copy_(made) if in_place else made


def _conv2d(x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
            groups: int = 1) -> Tensor:
    size, (dy, dx) = weight.shape[-2:], _pair(dilation)
    if isinstance(padding, str):
        totals = [0 if padding == "valid" else d * (k - 1) for k, d in zip(size, (dy, dx), strict=True)]
        around = [totals[1] // 2, totals[1] - totals[1] // 2, totals[0] // 2, totals[0] - totals[0] // 2]
    else:
        py, px = _pair(padding)
        around = [px, px, py, py]
    read = F.pad(x.view(len(x), groups, -1, *x.shape[2:]).amax(2), around, value=-math.inf)
    found = F.max_pool2d(read, tuple(size), _pair(stride), 0, (dy, dx))
    return found.repeat_interleave(weight.shape[0] // groups, 1)


def _avg_pool2d(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
                *_: Any, **more: Any) -> Tensor:
    return F.max_pool2d(x, kernel_size, stride or None, padding, ceil_mode=ceil_mode)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    if dim is None:
        raise _Unknown("mean of all")
    return x.amax(dim, keepdim=keepdim)


def _linear(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    return x.amax(-1, keepdim=True).expand(*x.shape[:-1], weight.shape[0]).clone()


def _pad(x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
    return F.pad(x, pad, value=-math.inf) if mode == "constant" else F.pad(x, pad, mode=mode)


def _pair(value: Any) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else tuple(value)
    return (both[0], both[-1])


RULES: dict[str, Callable[..., Tensor]] = {
    "conv2d": _conv2d, "avg_pool2d": _avg_pool2d, "mean": _mean, "sum": _mean, "linear": _linear, "pad": _pad,
    "adaptive_avg_pool2d": lambda x, size: F.adaptive_max_pool2d(x, size),
    "local_response_norm": lambda x, *_, **more: x.amax(1, keepdim=True).expand(x.shape).clone(),
}  # fmt: skip


class Fields:
    """The receptive fields of a layer's units, in the input's pixels; `known` False: all are the whole input.

    Takes four forwards, which end at the layer.
    """

    _ends: Tensor | None

    def __init__(self, model: Model, view: LayerView) -> None:
        height, width = self.size = model.preprocessing.size
        rows, columns = torch.arange(height)[:, None].expand(self.size), torch.arange(width).expand(self.size)
        x = torch.stack([-rows, rows, -columns, columns])[:, None].expand(-1, model.preprocessing.channels, -1, -1)
        x, self._ends = x.float().to(model.device), None
        with model.opened() as module, torch.no_grad():
            try:
                with _Fields():
                    ends = until(model, view, x, module)
                self._ends = ends.cpu()
            except _Unknown:
                model.cost.add(forwards=len(x))

    @property
    def known(self) -> bool:
        """Whether every step up to the layer is one of which it is known what it reads."""
        return self._ends is not None

    def at(self, channel: int, y: int, x: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the unit's field, the last two just outside, cut to the input."""
        ends = None if self._ends is None else self._ends[:, channel, y, x]
        if ends is None or not ends.isfinite().all():  # or it reads nothing but padding
            return 0, 0, *self.size
        top, bottom, left, right = (int(v) for v in (-ends[0], ends[1], -ends[2], ends[3]))
        return top, left, bottom + 1, right + 1
