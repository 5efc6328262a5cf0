"""A network compiled by torch's inductor: faster still, for one size of batch, after half a minute of building."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xai.errors import error


class Compiled:
    """A frozen network as one compiled program for `batch` inputs; fewer are filled up.

    Raises XaiError, when it is first called, where the compiler cannot build it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.batch = 1
        self._call: Any = torch.compile(module, dynamic=False, options={"freezing": True})

    def __call__(self, inputs: Tensor) -> Any:
        """What the network gives for inputs (n, C, H, W), n at most `batch`."""
        count = len(inputs)
        if count < self.batch:
            inputs = torch.cat([inputs, inputs[-1:].expand(self.batch - count, -1, -1, -1)])
        try:
            output = self._call(inputs)
        except torch._dynamo.exc.TorchDynamoException as problem:
            first = str(problem).strip().splitlines()[0][:200]
            raise error("the network", "one that torch.compile can build here", first,
                        "Leave --compile out") from problem
        return _first(output, count)


def _first(output: Any, count: int) -> Any:
    from torch.utils._pytree import tree_map_only

    return tree_map_only(Tensor, lambda t: t[:count] if t.ndim else t, output)
