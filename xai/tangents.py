"""A function of torch and its tangent where it was asked: f(z0) + J (z - z0), whatever the function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from xai.rules import Rule


@dataclass(frozen=True)
class Curved:
    """Where a function that has no gate was asked: its arguments, those that depend on the input among them."""

    leaves: list[Any]
    spec: Any
    moving: list[int]


@contextlib.contextmanager
def _plain_steps() -> Iterator[None]:
    """oneDNN's own steps (LSTMs among them) have no forward-mode derivative; torch's plain ones have."""
    # not `flags`, which also sets what a CPU warns of
    was = torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]  # torch's gap
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=was[0])  # type: ignore[no-untyped-call]  # torch's gap


def pushed(func: Rule, entry: Curved, tangents: Sequence[Tensor]) -> tuple[Any, Any]:
    """(f(z0), J t): what the function gives where it was asked, and what a change of its arguments does."""
    with torch.no_grad(), forward_ad.dual_level(), _plain_steps():
        leaves = list(entry.leaves)
        for i, tangent in zip(entry.moving, tangents, strict=True):
            # Cloned, both, because the function may work in place.
            plain, push = (one.clone(memory_format=torch.contiguous_format) for one in (leaves[i], tangent))
            leaves[i] = forward_ad.make_dual(plain, push.to(plain))  # type: ignore[no-untyped-call]  # torch's gap
        args, kwargs = tree_unflatten(leaves, entry.spec)
        found = func(*args, **kwargs)
        parts, spec = tree_flatten(found)
        pairs = [forward_ad.unpack_dual(p)  # type: ignore[no-untyped-call]  # torch's gap
                 if isinstance(p, Tensor) and p.is_floating_point() else (p, None) for p in parts]
        made = tree_unflatten([pair[0] for pair in pairs], spec)
        moved = tree_unflatten([torch.zeros_like(pair[0]) if pair[1] is None and isinstance(pair[0], Tensor)
                                else pair[1] for pair in pairs], spec)
    return made, moved


def summed(made: Any, moved: Any) -> Any:
    """f(z0) + J t, place by place; what is no floating-point tensor as it is."""
    ones, spec = tree_flatten(made)
    twos = spec.flatten_up_to(moved)
    return tree_unflatten([one + two if isinstance(one, Tensor) and one.is_floating_point() else one
                           for one, two in zip(ones, twos, strict=True)], spec)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest with every leaf changed."""
    leaves, spec = tree_flatten(value)
    return tree_unflatten([change(leaf) for leaf in leaves], spec)


def intercept(func: Rule, entry: Curved) -> Tensor:
    """f(z0) - J z0."""
    made, moved = pushed(func, entry, [entry.leaves[i] for i in entry.moving])
    return made - moved  # type: ignore[no-any-return]  # of tensors a tensor
