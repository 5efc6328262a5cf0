"""The few words that say how a function was called: kernel, stride, factor, axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def words(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> str:
    """`7×7, stride 2` of a convolution or a pool, `192 → 576` of a linear map, `to 6×6`, `× 2`; else nothing."""
    try:
        if name.startswith("conv") and isinstance(result, Tensor):
            return _convolution(args, kwargs, "transpose" in name)
        if name == "linear":
            weight = _at(args, kwargs, 1, "weight", None)
            return f"{grouped(weight.shape[1])} → {grouped(weight.shape[0])}"
        if name.startswith("adaptive"):
            return f"to {times(result.shape[2:])}"
        if "pool" in name:
            kernel = _at(args, kwargs, 1, "kernel_size", None)
            stride = _at(args, kwargs, 2, "stride", None)
            return _sized(_all(kernel, result.ndim - 2), _all(stride or kernel, result.ndim - 2))
        if name in ("interpolate", "upsample"):
            mode = kwargs.get("mode", args[3] if len(args) > 3 else "nearest")
            return f"to {times(result.shape[2:])}, {mode}"
    except (IndexError, KeyError, TypeError, AttributeError, ValueError):  # an unusual call: the shapes must do
        return ""
    return ""


def _convolution(args: Sequence[Any], kwargs: Mapping[str, Any], transposed: bool) -> str:
    given, weight = _at(args, kwargs, 0, "input", None), _at(args, kwargs, 1, "weight", None)
    rank = weight.ndim - 2
    said = _sized(list(weight.shape[2:]), _all(_at(args, kwargs, 3, "stride", 1), rank))
    dilation = _all(_at(args, kwargs, 7 if transposed else 5, "dilation", 1), rank)
    if any(d > 1 for d in dilation):
        said += f", dilation {times(dilation)}"
    groups = int(_at(args, kwargs, 6, "groups", 1))
    if groups > 1:
        said += ", depthwise" if groups == given.shape[1] else f", {groups} groups"
    return said


def _sized(kernel: Sequence[int], stride: Sequence[int]) -> str:
    step = times(stride) if len(set(stride)) > 1 else str(stride[0])
    return times(kernel) + (f", stride {step}" if any(s != 1 for s in stride) else "")


def times(sizes: Sequence[int]) -> str:
    """`3×3`."""
    return "×".join(str(int(s)) for s in sizes)


def grouped(value: int) -> str:
    """A whole number in groups of three."""
    return f"{value:,}".replace(",", "\u202f")


def _all(value: Any, rank: int) -> list[int]:
    found = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)] * rank
    return found if len(found) == rank else found * rank


def _at(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if place < len(args) else kwargs.get(name, default)
