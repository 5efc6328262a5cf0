"""How many inputs one forward takes: what memory allows, what keeps activations small, and what a search measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MAX_CHUNK = 32  # pictures of a batch, and inputs of a forward on a CPU
MAX_CHUNK_GPU = 256  # inputs of a forward where many run side by side
MMAP_THRESHOLD = 32 << 20  # glibc maps, faults and unmaps every larger block anew: activations stay under it
UNKNOWN = 8  # inputs of a forward where the activations cannot be seen
GAIN = 0.95  # another size must take at most this share of the time an input
TRIES = 3  # forwards of a size that are timed: the first makes the kernels ready, the best of the others counts
WORTH = 2  # a search is begun where at least so many times its own inputs are still to be run


class Pace:
    """The number of inputs a forward takes, searched on the job: start, then twice, half and four times as many.

    Nothing is run for the search alone: the sizes are tried on inputs that must be run anyway. The sizes depend on
    time, the outputs only by rounding. `fixed`: no search (a study fixes the size in its plan).
    """

    def __init__(self, start: int, most: int, fixed: bool = False) -> None:
        self.best = max(1, min(start, most))
        self.most = max(most, self.best)
        self._trying = False
        self._least: dict[int, float] = {}
        self._tries: dict[int, int] = {}
        tried = (self.best, 2 * self.best, self.best // 2, 4 * self.best)
        self._left = [] if fixed else [size for size in tried if 1 <= size <= self.most]

    def size(self, waiting: int, ahead: int = 0) -> int:
        """For the next forward, of `waiting` inputs that are ready; `ahead`: with those that are still to come."""
        self._left = [size for size in self._left if size <= self.most]
        begun = self._tries or max(waiting, ahead) >= WORTH * TRIES * sum(self._left)
        self._trying = bool(self._left and begun and waiting >= self._left[0])
        return self._left[0] if self._trying else min(self.best, max(1, waiting))

    def took(self, size: int, seconds: float) -> None:
        """Note the time of a forward of that size."""
        if not self._trying:
            return
        self._tries[size] = self._tries.get(size, 0) + 1
        if self._tries[size] > 1:
            self._least[size] = min(self._least.get(size, seconds), seconds)
        if self._tries[size] < TRIES:
            return
        self._left.pop(0)
        each = {tried: spent / tried for tried, spent in self._least.items() if tried <= self.most}
        first = next(iter(each))
        fastest = min(each, key=lambda tried: each[tried])
        self.best = fastest if each[fastest] <= GAIN * each[first] else first

    def short(self, size: int) -> None:
        """Memory was too little for that size: half of it from now on."""
        self._trying = False
        self.most = max(1, size // 2)
        self.best = min(self.best, self.most)


def activation_sizes(module: nn.Module, run: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of the largest and of all activations of one forward, which `run` does."""
    sizes: list[int] = []

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    handles = [m.register_forward_hook(hook) for m in module.modules() if not any(m.children())]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes, default=1), sum(sizes)


def fitting(largest: int, total: int, budget: int, device: torch.device) -> tuple[int, int]:
    """(calm, fits): how many inputs keep every activation under the threshold, and how many the budget (bytes) holds.

    A forward is taken to need three times its activations.
    """
    fits = max(1, budget // max(1, total * 3))
    calm = MMAP_THRESHOLD // max(1, largest) if device.type == "cpu" else MAX_CHUNK
    return max(1, min(MAX_CHUNK, fits, max(calm, 4))), fits
