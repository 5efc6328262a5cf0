"""What LRP and DeepLIFT share: a value with another gradient, the batch in parts, the way back to several leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from xai.batch import Batch
from xai.errors import error
from xai.targets import Bound


class Carry(torch.autograd.Function):
    """A value whose gradient goes to `carrier`, a tensor of the same shape; `tally` is told what the two differ by."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: Tensor, tally: Callable[[Tensor], None] | None) -> Tensor:
        """The value."""
        ctx.tally = tally
        if tally is not None:
            ctx.save_for_backward(value - carrier)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, to the carrier alone."""
        if ctx.tally is not None:
            ctx.tally(ctx.saved_tensors[0] * gradient)
        return gradient, None, None


def carry(carrier: Tensor, value: Tensor, tally: Callable[[Tensor], None] | None = None) -> Tensor:
    """`value` with the gradient of `carrier`; `tally` is given, on the way back, (value - carrier) * gradient."""
    return Carry.apply(carrier, value.detach(), tally)  # type: ignore[no-any-return,no-untyped-call]  # torch's gap


def parts(batch: Batch, target: Bound, size: int) -> Iterator[tuple[slice, Bound]]:
    """The batch in parts of at most `size` pictures, each with its target."""
    n = len(batch)
    if size >= n:
        yield slice(0, n), target
        return
    for first in range(0, n, size):
        rows = range(first, min(n, first + size))
        yield slice(rows.start, rows.stop), target.take(rows)


def backward(batch: Batch, score: Tensor, leaves: Sequence[Tensor], method: str, instead: str) -> tuple[Tensor, ...]:
    """d(sum of scores)/d(each leaf), zeros where none reaches one; XaiError where the first is not reached at all."""
    found: tuple[Tensor | None, ...] = (None,)
    if score.requires_grad:
        found = batch.model.told(lambda: torch.autograd.grad(score.sum(), list(leaves), allow_unused=True), leaves[0])
    if found[0] is None:
        raise error("the network", f"one that {method} has a way through", "an output that no gradient reaches",
                    f"Use {instead}")
    batch.model.cost.add(backwards=len(leaves[0]))
    return tuple(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True))
