"""Networks and views that the tests of the graph, the tail and the reach share: small ones, and torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.gradient_nets import Gated, Normed, PreActivation, Residual
from xai.model import Model
from xai.torchvision_import import ensure_torchvision


class Tokens(nn.Module):
    """A transformer that asks its input for its shape, not for its length: it can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.place, self.norm, self.last = nn.Parameter(torch.randn(1, 37, 8)), nn.LayerNorm(8), nn.LayerNorm(8)
        self.heads, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.patch(x)
        x = x.reshape(n, 8, -1).permute(0, 2, 1)
        x = torch.cat([self.token.expand(n, -1, -1), x], 1) + self.place
        y = self.norm(x)
        x = x + self.heads(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.last(x))
        return self.head(x[:, 0])


class Pairs(nn.Module):
    """A block that returns two tensors and a dictionary, an empty block beside it, one module used twice."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.one(x), {"gate": self.two(x).sigmoid()}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.skip = nn.Conv2d(3, 8, 3, padding=1), self.Block(), nn.Sequential()
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y, more = self.block(x)
        y = self.act(y * more["gate"]) + self.skip(x)
        return self.head((y * x).mean((2, 3)))


class Late(nn.Module):
    """Reads a tensor after it was changed in place: a graph whose values stay as they were cannot show that."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = F.relu(y, inplace=True)
        return self.head((y + 2 * z).mean((2, 3)))


class Choosy(nn.Module):
    """Goes one way or the other by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if float(y.detach().sum()) > 1e9:
            y = -y
        return self.head(self.act(y).square().mean((2, 3)))


class Keeper(nn.Module):
    """Keeps its last activations on itself, and makes a constant as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.stem(x)
        return self.head(self.seen.relu().mean((2, 3)) + torch.ones(8, dtype=x.dtype))


class Sliding(nn.Module):
    """Convolutions and pools of all kinds: grouped, dilated, strided beyond the kernel, even "same", ceil, padded."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 8, 4, padding="same"), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.SiLU(inplace=True),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Conv2d(8, 12, (1, 5), padding=(0, 2)), nn.Hardswish())
        self.jump, self.deep = nn.Conv2d(12, 8, 2, stride=3), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point, self.pool, self.head = nn.Conv2d(8, 6, 1), nn.AvgPool2d(2, 2), nn.Linear(6 * 4, 4)
        nn.init.uniform_(self.convs[1].running_mean, -0.3, 0.3)
        nn.init.uniform_(self.convs[1].bias, -0.3, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((torch.unsqueeze(x[:, 0], 1) * 1.1 + 0.2, x[:, 1:] / 0.9), 1)
        y = self.jump(self.convs(y))
        y = F.dropout(self.deep(y), 0.5, training=self.training) + y
        y = F.leaky_relu_(F.avg_pool2d(y, 3, stride=1, padding=1), 0.1)
        y = F.max_pool2d(self.point(y), kernel_size=3, stride=1, padding=1)
        return self.head(F.adaptive_avg_pool2d(y, 2).flatten(1))


class Branches(nn.Module):
    """Inception and DenseNet in small: branches of different reach joined by cat and by sums, a global gate late."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        self.gated = gated
        self.stem, self.one = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 4, 1)
        self.two = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, (1, 7), padding=(0, 3)),
                                 nn.Conv2d(4, 4, (7, 1), padding=(3, 0)))
        self.three, self.dense = nn.MaxPool2d(3, 1, 1), nn.Conv2d(20, 6, 3, padding=1)
        self.gate, self.head = nn.Conv2d(6, 6, 1), nn.Linear(26, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        found = [x, self.one(x), self.two(x), self.three(x)]
        found.append(self.dense(torch.cat(found, 1)) * 0.5 - found[0])
        y = torch.cat(found, dim=-3)
        if self.gated:
            y = torch.cat([y[:, :20], y[:, 20:] * self.gate(F.adaptive_avg_pool2d(y[:, 20:], 1)).sigmoid()], 1)
        return self.head(y.relu().mean((2, 3)))


def plain() -> nn.Module:
    """A stack with an affine end."""
    return nn.Sequential(OrderedDict([
        ("conv", nn.Conv2d(3, 8, 3, padding=1)), ("act", nn.ReLU(inplace=True)), ("pool", nn.MaxPool2d(2)),
        ("more", nn.Conv2d(8, 6, 3)), ("drop", nn.Dropout(0.5)), ("mean", nn.AdaptiveAvgPool2d(1)),
        ("flat", nn.Flatten()), ("head", nn.Linear(6, 4))]))


SMALL: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual, "pre-activation": PreActivation, "gated": Gated, "normed": Normed, "tokens": Tokens,
    "pairs": Pairs, "sliding": Sliding, "branches": Branches, "gated branches": lambda: Branches(True), "plain": plain,
}
LARGE = ("resnet18", "vgg11", "densenet121", "squeezenet1_0", "googlenet", "inception_v3", "mobilenet_v2",
         "mobilenet_v3_small", "shufflenet_v2_x0_5")


def model_of(net: nn.Module, size: int | tuple[int, int] = 12, precision: str = "float64", **more: Any) -> Model:
    return Model(net, mean=[0.5] * 3, std=[0.25] * 3, size=size, precision=precision, **more)


def small(name: str, size: int | tuple[int, int] = 12) -> Model:
    """In float64, with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return model_of(SMALL[name]().eval(), size)


def large(name: str) -> Model:
    """torchvision's, with seeded weights, for 64 pixels (96 where it must be)."""
    models = ensure_torchvision().models
    options: dict[str, Any] = {"googlenet": {"init_weights": False, "transform_input": True},
                               "inception_v3": {"init_weights": False, "transform_input": True}}.get(name, {})
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = getattr(models, name)(**options)
        if name.startswith("vgg"):  # 100 million weights of no use here
            net.avgpool, net.classifier = nn.Identity(), nn.Sequential(nn.Linear(512 * 4, 20), nn.ReLU(True),
                                                                       nn.Linear(20, 10))
        for part in net.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):  # what changes below is to be seen above
                nn.init.kaiming_normal_(part.weight)
    return model_of(net.eval(), 96 if name == "inception_v3" else 64, "float32")


def picture(model: Model, seed: int = 0) -> Tensor:
    """(1, 3, H, W), seeded noise that is not the model's example."""
    shape = (1, 3, *model.preprocessing.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(model.dtype)
