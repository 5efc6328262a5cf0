"""A program whose inside nobody can reach, as one module: for TorchScript and for exports of a fixed batch size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Sealed(nn.Module):
    """One module to the outside, with the program's parameters. `batch`: the only number of pictures that it takes.

    A scripted module refuses hooks and may lack even the flag `training`: none of its parts is shown.
    """

    def __init__(self, program: nn.Module, batch: int | None = None) -> None:
        super().__init__()
        self.program = program
        self.batch = batch
        self.training = False

    def forward(self, x: Tensor) -> Any:
        """What the program returns for (n, C, H, W); in pieces of the size that it takes, the last one filled up."""
        if self.batch is None or len(x) == self.batch:
            return self.program(x)
        outputs = [self._filled(piece, self.batch) for piece in torch.split(x, self.batch)]
        return tree_map(lambda *values: torch.cat(values) if isinstance(values[0], Tensor) else values[0], *outputs)

    def _filled(self, piece: Tensor, batch: int) -> Any:
        count = len(piece)
        if count == batch:
            return self.program(piece)
        output = self.program(torch.cat([piece, piece[-1:].expand(batch - count, -1, -1, -1)]))
        return tree_map(lambda value: value[:count] if isinstance(value, Tensor) and value.ndim else value, output)

    def train(self, mode: bool = True) -> Sealed:
        """Nothing changes: the program stays in the mode it was loaded in."""
        return self

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Only this module."""
        yield prefix, self

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The program's."""
        yield from self.program.named_parameters(prefix, recurse)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The program's."""
        yield from self.program.named_buffers(prefix, recurse)
