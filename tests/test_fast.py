"""The fast form: the same output, what is folded and what is not, and 1x1 convolutions given to oneDNN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import xai
from xai.fast import Pointwise, fast_form
from xai.model import Model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def alive(net: nn.Module) -> nn.Module:
    """Batch norms with statistics and gains that matter."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.2, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net.eval()


def test_folds_batch_norm_into_the_convolution_before_it() -> None:
    net = alive(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1, bias=False),
                              nn.BatchNorm2d(4)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = noise(2, 3, 12, 12)
    fast = fast_form(net, x)
    assert fast.folded == {"0", "3"}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.module.modules())
    assert_close(fast.module(x), net(x), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in fast.module.parameters())
    for name, value in net.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)


class TwoReaders(nn.Module):
    """The convolution's output goes into a batch norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return self.norm(y) + y


def test_folds_nothing_where_something_else_reads_the_convolution() -> None:
    net, x = alive(TwoReaders()), noise(2, 3, 8, 8)
    fast = fast_form(net, x)
    assert fast.folded == frozenset()
    assert_close(fast.module(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 8, 5, 5), (1, 8, 60, 60), (4, 8, 5, 5), (4, 8, 1, 1)])
def test_pointwise_convolutions_give_the_same_values_and_gradients(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    net = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1, stride=2))
    fast = fast_form(net, noise(1, 8, 5, 5)).module
    assert [type(module) for module in fast] == [Pointwise, nn.ReLU, nn.Conv2d, nn.Conv2d]
    assert type(net[0]) is nn.Conv2d
    one, two = (noise(*shape).requires_grad_() for _ in range(2))
    assert_close(fast(one), net(two), rtol=1e-4, atol=1e-6)
    slopes = (torch.autograd.grad(module(x).sum(), x)[0] for module, x in ((fast, one), (net, two)))
    assert_close(*slopes, rtol=1e-4, atol=1e-6)


def test_double_precision_keeps_its_plain_convolutions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1)).double().eval()
    assert type(fast_form(net, noise(1, 3, 4, 4).double()).module[0]) is nn.Conv2d


@pytest.mark.parametrize("spelled", ["module", "function"])
def test_a_gradient_through_an_instance_norm_is_the_networks_own(spelled: str) -> None:
    """torch reads a channels-last gradient of its output as if it were contiguous; the squares make it one."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm, self.two = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            x = self.norm(x) if spelled == "module" else F.instance_norm(x)
            return self.two(x).square().mean((2, 3))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, x = Normed().double().eval(), torch.randn(1, 3, 12, 12, dtype=torch.float64)
    fast = fast_form(network, x[:1]).module
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    ours, own = (torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)[0]
                 for net, leaf in zip((fast, network), leaves, strict=True))
    assert_close(ours, own, rtol=1e-4, atol=1e-6)


class Viewed(nn.Module):
    """What a first lesson writes: `view` on activations, here with a batch norm to fold, and on weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 5), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 4, 3), nn.Linear(4 * 5 * 5, 4)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second.weight.view(4, -1).softmax(1).view(4, 6, 3, 3)
        x = nn.functional.conv2d(self.norm(self.conv(x)).relu(), weight)
        return self.head(x.view(-1, 4 * 5 * 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_views_what_it_made_runs_and_is_folded(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Viewed().to(dtype).eval()
        x = torch.rand(3, 3, 11, 11).to(dtype)
    with torch.no_grad():
        expected = network(x)
    model = Model(network, mean=[0.4] * 3, std=[0.3] * 3, size=11)
    assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert model.fast.folded == {"conv"}
    for name in ("gradcam", "saliency", "rise", "lrp", "fullgrad", "occlusion", "linearscope"):
        made = xai.explain(model, np.random.default_rng(0).random((11, 11, 3), np.float32), name, evidence="off",
                           settings={"samples": "20"} if name == "rise" else {}).result
        assert all(verdict.passed for verdict in made.verdicts), name
