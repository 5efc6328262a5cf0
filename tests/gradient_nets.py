"""Small networks and pictures that the tests of the gradient methods share, and how maps are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from xai.analyzer import Attribution
from xai.batch import Batch
from xai.images import load_images
from xai.model import Model
from xai.targets import Target

SHARED = Path(__file__).resolve().parents[2] / "shared"
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def pictures(n: int = 2, size: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(n, channels, size, size) float32 in [0, 1]."""
    return np.random.default_rng(seed).random((n, channels, size, size), dtype=np.float32)


def linear_net(channels: int = 3, size: int = 6, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))


def conv_net(bias: bool = True, activation: type[nn.Module] = nn.ReLU, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1, bias=bias), activation(), nn.MaxPool2d(2),
                         nn.Conv2d(8, 8, 3, padding=1, bias=bias), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 4, bias=bias))


def made(net: nn.Module, *, size: int = 6, channels: int = 3, precision: str = "float64") -> Model:
    return Model(net, mean=[0.4] * channels, std=[0.3] * channels, size=size, channels=channels, precision=precision)


def batch_of(model: Model, source: Any, **more: Any) -> Batch:
    found = list(model.prepare(load_images(source), **more))
    assert len(found) == 1
    return found[0]


def mapped(analyzer: Attribution, batch: Batch, target: str = "class:1") -> Tensor:
    return analyzer.maps(batch, batch.bind(Target(target))).values


def close_to_scale(actual: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    scale = expected.abs().max().item()
    assert scale > 0
    assert_close(actual, expected, rtol=0, atol=share * scale, check_dtype=False)
