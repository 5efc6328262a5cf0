"""Neighbouring pixel relationships: the map, its statistics by place in a 2 x 2 cell, and a small classifier of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai import seeds, spectrum

Array = npt.NDArray[Any]
PHASES = ((0, 1), (1, 0), (1, 1))  # (row, column) in a cell; (0, 0) is the reference and always 0
SCALE, STD = 2 / 3, (0.229, 0.224, 0.225)  # the published network's input: 2/3 of the map of the normalised picture
EPOCHS, STEPS, BATCH, RATE = 20, 200, 32, 2e-3  # at least so many epochs and steps


def npr(pixels: Array) -> Array:
    """(C, h, w) of pixels (C, H, W) in [0, 1] or whole numbers: x minus the top left pixel of its 2 x 2 cell, in units
    of the full range; h, w are H, W without an odd last row or column."""
    h, w = (n // 2 * 2 for n in pixels.shape[1:])
    values = spectrum.unit(pixels[:, :h, :w])
    reference = values[:, ::2, ::2].repeat(2, 1).repeat(2, 2)
    return np.asarray(values - reference)


def by_phase(values: Array) -> Array:
    """(2, 3) of a map: mean absolute value and share of zeros at each of the three places that are not the reference,
    all channels together."""
    parts = [values[:, a::2, b::2] for a, b in PHASES]
    return np.array([[float(np.abs(p).mean()) for p in parts], [float((p == 0).mean()) for p in parts]])


def network_input(values: Array, side: int) -> Tensor:
    """(3, n, n) float32: the middle square, `side` at most and on the 2 x 2 grid, of a map, as the published network
    takes it; one channel is repeated."""
    n = min(side // 2 * 2, *values.shape[1:])
    y, x = ((length - n) // 4 * 2 for length in values.shape[1:])
    cut = values[:, y : y + n, x : x + n]
    three = cut if len(cut) == 3 else np.repeat(cut[:1], 3, 0)
    return torch.from_numpy((SCALE * three / np.array(STD)[:, None, None]).astype(np.float32))


class Small(nn.Module):
    """Three convolutions, the mean over places, one number: above 0 means the second group."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.three, self.head = nn.Conv2d(32, 32, 3, 1, 1), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n,) of maps (n, 3, h, w)."""
        x = F.relu(self.three(F.relu(self.two(F.relu(self.one(x))))))
        found: Tensor = self.head(x.mean((2, 3)))[:, 0]
        return found


def trained(inputs: Tensor, truth: Tensor, seed: int, name: str = "npr", steps: int = STEPS) -> Small:
    """The small network fitted to maps (n, 3, h, w) and truth (n,) of 0 and 1 by Adam on the logistic loss, each
    channel scaled by nothing: what a map is zero on stays zero."""
    draws, each = seeds.generator(seed, name), math.ceil(len(inputs) / BATCH)
    epochs = max(EPOCHS, math.ceil(steps / each))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
        net = Small()
        adam = torch.optim.Adam(net.parameters(), RATE)
        slower = torch.optim.lr_scheduler.OneCycleLR(adam, 3 * RATE, total_steps=epochs * each)
        for _ in range(epochs):
            order = torch.randperm(len(inputs), generator=draws)
            for i in range(0, len(order), BATCH):
                rows = order[i : i + BATCH]
                adam.zero_grad()
                F.binary_cross_entropy_with_logits(net(inputs[rows]), truth[rows].float()).backward()  # type: ignore[no-untyped-call]  # torch's own gap
                adam.step()
                slower.step()
    return net.eval().requires_grad_(False)


def scores(net: Small, inputs: Tensor) -> Array:
    """(n,) the higher the more of the second group."""
    with torch.no_grad():
        parts = [net(inputs[i : i + BATCH]) for i in range(0, len(inputs), BATCH)]
    return np.asarray(torch.cat(parts).numpy())


def picture(values: Array) -> Array:
    """(h, w) uint8: the mean absolute map over channels, its 99th percentile white."""
    size = np.abs(values).mean(0)
    top = float(np.quantile(size, 0.99)) or float(size.max()) or 1.0
    return np.asarray(np.rint(255 * np.minimum(size / top, 1)).astype(np.uint8))
