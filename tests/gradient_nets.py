"""Small networks and pictures that the tests of the gradient methods share, and how maps are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from xai.attribution import Attribution
from xai.batch import Batch
from xai.images import load_images
from xai.model import PRECISIONS, Model
from xai.panels import Number
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
    net.to(PRECISIONS[precision])  # in place: the tests run the network beside the model
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


def numbers(analyzer: Attribution, batch: Batch, key: str) -> Tensor:
    panels = analyzer.maps(batch, batch.bind(Target("class:1"))).panels
    found = [p for p in panels if isinstance(p, Number) and p.key == key]
    assert [p.picture for p in found] == list(batch.hashes)
    return torch.tensor([p.value for p in found], dtype=torch.float64)


# --- networks that do things in unusual ways ---
class Residual(nn.Module):
    """A block as torchvision's: one in-place ReLU used twice, an in-place sum, batch norms, an overlapping max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.pool, self.head = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.Linear(8, 4)
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.bias, -0.3, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.stem(x))))
        out = self.bn2(self.conv(x))
        out += x
        return self.head(self.relu(out).mean((2, 3)))


class PreActivation(nn.Module):
    """As DenseNet: norm before convolution, functional in-place ReLU, concatenation, average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
        nn.init.uniform_(self.norm.bias, -0.3, 0.3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv(torch.relu(self.norm(x)))
        both = F.avg_pool2d(torch.cat([x, y], 1), 2)
        return self.head(F.relu(both, inplace=True).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation by an in-place product, hard activations, an adaptive max-pool, a quotient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        gate = F.hardsigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x *= gate
        x = F.adaptive_max_pool2d(x, 2) / (1 + x.square().mean((1, 2, 3), keepdim=True))
        return self.head(x.flatten(1))


class Attentive(nn.Module):
    """Patches, class token, positions, layer norms, three spellings of attention, GELU, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.place, self.scale = nn.Parameter(torch.randn(1, 10, 8)), nn.Parameter(torch.rand(8))
        self.norm, self.qkv, self.last = nn.LayerNorm(8), nn.Linear(8, 24), nn.LayerNorm(8)
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp, self.head = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v)
        x = x + self.scale * ((q @ k.transpose(1, 2)).softmax(-1) @ v)
        y = self.norm(x)
        x = x + self.heads(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.last(x))
        return self.head(self.last(x)[:, 0])


class Normed(nn.Module):
    """Group, instance, RMS and response norms, a unit length, a product of two branches, an einsum, tanh, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.group, self.conv = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)
        self.instance, self.rms = nn.InstanceNorm2d(8, affine=True), nn.RMSNorm(8)
        self.gain, self.offset = nn.Parameter(torch.rand(1, 8, 1, 1)), nn.Parameter(torch.rand(1, 8, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.stem(x))
        x = F.relu6(self.conv(x)) * torch.tanh(x)
        x = self.instance(x) + x.clamp(min=0)
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        x = x + torch.addcmul(self.offset, self.gain, x * (size / (size.mean(1, keepdim=True) + 1e-6)))
        x = x + torch.einsum("nchw,ncij->nchj", x, x.tanh())
        x = F.normalize(x, dim=1)
        return self.head(self.rms(x.mean((2, 3))))


UNUSUAL: tuple[type[nn.Module], ...] = (Residual, PreActivation, Gated, Attentive, Normed)


def unusual(kind: type[nn.Module], precision: str = "float64") -> Model:
    torch.manual_seed(3)
    return made(kind(), precision=precision)
