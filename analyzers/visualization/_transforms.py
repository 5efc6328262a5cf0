"""What is done to a picture before the network sees it, so that only what is robust to it is optimised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

GREY = 0.5  # beyond the picture's edge


@dataclass(frozen=True)
class Draw:
    """One draw: turned by `angle` (radians), enlarged by `scale`, moved by (`down`, `right`) of its own pixels,
    mirrored, multiplied by `bright`. As it stands it changes nothing."""

    angle: float = 0.0
    scale: float = 1.0
    down: float = 0.0
    right: float = 0.0
    mirrored: bool = False
    bright: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """(n, C, H, W) in [0, 1], all by the same draw; bilinear; what comes in from beyond the edge is grey."""
        if self != Draw(bright=self.bright):
            n, c, h, w = x.shape
            grid = self._grid(h, w).to(x)
            # As channels of one picture: where to read is worked out once for all of them.
            flat = F.grid_sample(x.reshape(1, n * c, h, w) - GREY, grid[None], align_corners=False)
            x = (flat + GREY).view(n, c, h, w)
        return x if self.bright == 1 else (x * self.bright).clamp(0, 1)

    def _grid(self, h: int, w: int) -> Tensor:
        """(H, W, 2) where each pixel of the result is read, x and y from -1 to 1."""
        y = torch.arange(h, dtype=torch.float64)[:, None] - (h - 1) / 2
        x = torch.arange(w, dtype=torch.float64)[None] - (w - 1) / 2
        x = -x if self.mirrored else x
        cos, sin = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        across, along = cos * x + sin * y - self.right, cos * y - sin * x - self.down
        return torch.stack([2 * across / w, 2 * along / h], -1)


def _whole(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _between(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _jitter(generator: torch.Generator, side: int) -> Draw:
    """Up to a sixteenth of the side each way; at least one pixel."""
    most = max(1, round(side / 16))
    return Draw(down=_whole(generator, -most, most), right=_whole(generator, -most, most))


def _standard(generator: torch.Generator, side: int) -> Draw:
    """lucid's stack as one draw: jitter, a scale of 0.9 to 1.1, a turn of up to 10 degrees (none in 6 of 26), jitter;
    the two jitters together reach 6/128 of the side each way, as the crops of 8 and 4 pixels of 128 do."""
    most = max(1, round(side * 6 / 128))
    scale = 0.9 + 0.02 * _whole(generator, 0, 10)
    angle = _whole(generator, -10, 15)
    return Draw(math.radians(angle if angle <= 10 else 0), scale,
                _whole(generator, -most, most), _whole(generator, -most, most))


def _wide(generator: torch.Generator, side: int) -> Draw:
    """As the standard stack, but scales from 0.85 to 1.45, evenly in their logarithm, and mirrored in half the draws:
    a class whose likes share its parts (breeds of dogs, say) is told from them at one scale only, else."""
    one = _standard(generator, side)
    scale = math.exp(_between(generator, math.log(0.85), math.log(1.45)))
    return replace(one, scale=scale, mirrored=_whole(generator, 0, 1) == 1)


def _crops(generator: torch.Generator, side: int) -> Draw:
    """A square crop of 0.4 to 0.9 of the side, enlarged to the whole: its centre normal about the middle with a
    standard deviation of 0.15 sides, held so that the crop stays inside."""
    share = _between(generator, 0.4, 0.9)
    free = (1 - share) / 2
    place = (0.15 * torch.randn(2, generator=generator, dtype=torch.float64)).clamp(-free, free)
    return Draw(scale=1 / share, down=-float(place[0]) * side, right=-float(place[1]) * side)


def _none(generator: torch.Generator, side: int) -> Draw:
    return Draw()


def fresh(generator: torch.Generator, side: int) -> Draw:
    """What pictures are judged under: a random crop of 0.5 to 1 of the area, enlarged, mirrored in half the draws, 0.8
    to 1.2 times as bright; no turn, and nothing from beyond the edge."""
    share = math.sqrt(_between(generator, 0.5, 1.0))
    down, right = ((1 - share) / 2 * side * _between(generator, -1, 1) for _ in range(2))
    return Draw(scale=1 / share, down=down, right=right, mirrored=_whole(generator, 0, 1) == 1,
                bright=_between(generator, 0.8, 1.2))


STACKS: dict[str, Callable[[torch.Generator, int], Draw]] = {
    "wide": _wide, "standard": _standard, "jitter": _jitter, "crops": _crops, "none": _none,
}
