"""How many products one call of a torch function adds up: convolutions, linear maps, matrix products, recurrences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

_MATRIX = frozenset({"matmul", "mm", "bmm", "mv", "dot", "vdot", "inner"})
_ADDED = frozenset({"addmm", "addbmm", "baddbmm", "addmv"})  # their first argument is added to the product
_CONVOLUTIONS = frozenset({"convolution", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def multiply_adds(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Multiply-adds of one call; 0 for what only adds, compares, moves or multiplies element by element.

    name: the function's, without underscores at its ends; result: what it returned. Bias, scaling, normalisation and
    activation count as nothing, as in the counts that papers give: a convolution has one a weight and output position.
    """
    if not isinstance(result, Tensor):
        return _recurrent(args, kwargs) if name in _RECURRENT else 0
    if name in _CONVOLUTIONS:
        return _convolution(name, args, kwargs, result)
    rule = _RULES.get(name)
    return rule(args, kwargs, result) if rule else 0


def _convolution(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    given, weight = _at(args, kwargs, 0, "input"), _at(args, kwargs, 1, "weight")
    transposed = "transpose" in name or (name == "convolution" and bool(_at(args, kwargs, 6, "transposed")))
    return int((given if transposed else result).numel() * math.prod(weight.shape[1:]))


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    return result.numel() * int(_at(args, kwargs, 1, "weight").shape[-1])


def _matrix(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    return result.numel() * int(args[0].shape[-1])


def _reversed(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    return result.numel() * int(args[1].shape[-1])


def _added(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    first = args[1]
    batches = int(first.shape[0]) if result.ndim < first.ndim else 1  # addbmm sums over the batch
    return result.numel() * int(first.shape[-1]) * batches


def _bilinear(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    weight = _at(args, kwargs, 2, "weight")
    return result.numel() * int(weight.shape[1]) * (1 + int(weight.shape[2]))


def _einsum(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    """From left to right, as torch does it where no better path is asked for; a letter is summed once nobody needs it.
    """
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], (tuple, list)) else list(args[1:])
    if not isinstance(args[0], str) or "." in args[0]:
        return result.numel() * int(operands[0].shape[-1]) if len(operands) > 1 else 0
    left, _, out = args[0].replace(" ", "").partition("->")
    terms = left.split(",")
    sizes = {letter: int(size) for term, operand in zip(terms, operands, strict=True)
             for letter, size in zip(term, operand.shape, strict=True)}
    held, total = set(terms[0]), 0
    for i, term in enumerate(terms[1:], 1):
        joined = held | set(term)
        total += math.prod(sizes[letter] for letter in joined)
        held = joined & (set(out) | set("".join(terms[i + 1 :])))
    return total


def _recurrent(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Every matrix of the recurrence once a step of the sequence."""
    given: Tensor = args[0]
    lists = [a for a in args[1:] if isinstance(a, (list, tuple))]
    weights: Sequence[Tensor] = next((a for a in lists if any(isinstance(w, Tensor) and w.ndim == 2 for w in a)), ())
    steps = given.numel() // max(1, int(given.shape[-1]))
    return sum(w.numel() for w in weights if w.ndim == 2) * steps


def _at(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if place < len(args) else kwargs.get(name)


_RULES: dict[str, Callable[[Sequence[Any], Mapping[str, Any], Tensor], int]] = {
    "linear": _linear, "bilinear": _bilinear, "einsum": _einsum, "rmatmul": _reversed,
    **dict.fromkeys(_MATRIX, _matrix), **dict.fromkeys(_ADDED, _added),
}
