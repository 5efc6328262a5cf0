"""Activations as gates: f(x) = x g(x), g in closed form with its limit at 0 (a quotient would be 0/0 there)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xai.rules import depends

SWITCHES = frozenset({"sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "softmax"})
CLAMPS = frozenset({"relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_",
                    "clamp_max", "clamp_max_"})


def _ratio(function: Callable[[Tensor], Tensor], limit: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.where(x == 0, limit, function(x) / torch.where(x == 0, 1, x))


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _leaky(x: Tensor, slope: Any = 0.01) -> Tensor:
    # Tensors, because two numbers would make float32 of any slope.
    return torch.where(x > 0, torch.ones_like(x), torch.as_tensor(slope, dtype=x.dtype, device=x.device))


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    weight = weight.detach()
    return _leaky(x, weight if weight.numel() == 1 or x.ndim < 2 else weight.view(-1, *(1,) * (x.ndim - 2)))


GATES: dict[str, Callable[..., Tensor]] = {
    "leaky_relu": lambda x, negative_slope=0.01: _leaky(x, negative_slope), "prelu": _prelu,
    "rrelu": lambda x, lower=1 / 8, upper=1 / 3, training=False: _leaky(x, (lower + upper) / 2),
    "silu": torch.sigmoid, "gelu": _gelu, "hardswish": lambda x: (x + 3).clamp(0, 6) / 6,
    "mish": lambda x: torch.tanh(F.softplus(x)), "softsign": lambda x: 1 / (1 + x.abs()),
    "tanh": _ratio(torch.tanh, 1.0), "abs": torch.sign, "square": lambda x: x,
    "elu": lambda x, alpha=1.0: _ratio(lambda y: F.elu(y, alpha), alpha)(x),
    "celu": lambda x, alpha=1.0: _ratio(lambda y: F.celu(y, alpha), 1.0)(x),
    "selu": _ratio(F.selu, 1.0507009873554804934193349852946 * 1.6732632423543772848170429916717),
}  # fmt: skip
KINKED = frozenset(("leaky_relu", "leaky_relu_", "prelu", "rrelu"))  # the same in both modes


def gate_of(name: str, args: Any, kwargs: Any) -> Callable[[Tensor], Tensor] | None:
    """g of a function that is x g(x), None where it is none (in this form)."""
    rest = {k: v for k, v in kwargs.items() if k != "inplace"}
    if name in CLAMPS:
        return _clamp(name.rstrip("_"), args[1:], rest)
    if name == "pow" and len(args) == 2 and args[1] == 2:
        return lambda x: x
    gate = GATES.get(name.rstrip("_"))
    if gate is None or any(isinstance(a, Tensor) and depends(a) for a in args[1:]):
        return None
    # A bool that follows is `inplace`, which some of torch's functions also take by position.
    more = [a for a in args[1:] if not isinstance(a, bool)]
    return lambda x: gate(x, *more, **rest)


def _clamp(name: str, args: Any, kwargs: Any) -> Callable[[Tensor], Tensor] | None:
    bounds: dict[str, tuple[Any, Any]] = {"relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}
    low, high = bounds.get(name, (None, None))
    numbers = [a for a in args if not isinstance(a, bool)] if name != "relu6" else []
    if name == "clamp_max":
        high = numbers[0] if numbers else kwargs.get("max")
    else:
        low = numbers[0] if numbers else kwargs.get("min", kwargs.get("min_val", low))
        high = numbers[1] if len(numbers) > 1 else kwargs.get("max", kwargs.get("max_val", high))
    if any(isinstance(bound, Tensor) for bound in (low, high)):
        return None
    below, above = -math.inf if low is None else low, math.inf if high is None else high
    if not below <= 0 <= above:  # not through zero: no gate
        return None
    return _ratio(lambda x: x.clamp(below, above), 1.0 if below < 0 < above else 0.0)
