"""FullGrad: the terms sum to the score, the map equals a slow version, and where it does not apply."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from analyzers.attribution.fullgrad import FullGrad
from xai.analyzer import Maps
from xai.batch import Batch
from xai.errors import XaiError
from xai.images import load_images
from xai.model import Model
from xai.panels import Number
from xai.spread import spread
from xai.subject import Subject
from xai.targets import Target

SIZE = 17  # odd, so that no layer's size divides the input's


def noisy(net: nn.Module) -> nn.Module:
    """Biases and batch norm statistics that matter, in float64 and eval mode."""
    torch.manual_seed(5)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.5)
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return net.double().eval()


class Residual(nn.Module):
    """A batch norm before its convolution and one after, in-place ReLUs, an in-place sum and one ReLU used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.conv, self.relu = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.conv(self.relu(self.first(x))))
        y += x
        return self.relu(y)


class Gate(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): channels times a sigmoid of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)), inplace=True)).sigmoid()


class Shift(nn.Module):
    """A constant that no layer holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.25


class Views(nn.Module):
    """In-place steps on views of what a layer gave. The first two are heard on the views, which the next step takes
    out of the graph; the last follows a layer, whose own output a ReLU on its view leaves in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        flat = F.silu(x.flatten(2), inplace=True)
        flat *= flat.mean(2, keepdim=True).sigmoid()
        flat.relu_()
        y: Tensor = self.linear(x.mean((2, 3)))
        y.view(-1, 2, 3).relu_()
        return x + y[..., None, None]


def network(*middle: nn.Module, hidden: bool = False) -> nn.Module:
    head = [nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)] if hidden else [nn.Linear(6, 4)]
    return noisy(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head))


NETWORKS = {
    "relu in place": lambda: network(nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.LeakyReLU(0.1), hidden=True),
    "batch norms": lambda: network(Residual(), nn.MaxPool2d(2), Residual()),
    "smooth": lambda: network(nn.GELU(), nn.Conv2d(6, 6, 3), nn.SiLU(inplace=True), nn.Hardswish(True), nn.Tanh()),
    "clipped": lambda: network(nn.ReLU6(inplace=True), nn.Conv2d(6, 6, 1), nn.Hardsigmoid(), nn.ELU(inplace=True)),
    "gated": lambda: network(nn.BatchNorm2d(6), Gate(), nn.Mish()),
    "views in place": lambda: network(Views(), nn.Conv2d(6, 6, 1)),
    "transposed": lambda: network(nn.ConvTranspose2d(6, 6, 4, stride=3), nn.Softplus()),
}


def prepared(net: nn.Module, size: int = SIZE, count: int = 2) -> Batch:
    noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))
    return next(Model(net, mean=[0.4] * 3, std=[0.25] * 3, size=size).prepare(load_images(noise)))


def explain(batch: Batch, post: str, target: str = "class:1") -> tuple[Maps, Tensor, Tensor]:
    """(maps, completeness gaps (n,), parts without a place (n,))."""
    maps = FullGrad(post=post).maps(batch, batch.bind(Target(target)))
    numbers = [p for p in maps.panels if isinstance(p, Number)]
    gap, unplaced = (torch.tensor([p.value for p in numbers if p.key == key], dtype=torch.float64)
                     for key in ("completeness_gap", "unplaced"))
    return maps, gap, unplaced


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("target", ["class:1", "class:1 - class:3"])
def test_the_terms_sum_to_the_score(kind: str, target: str) -> None:
    net = NETWORKS[kind]()
    batch = prepared(net)
    with torch.no_grad():
        output = net(batch.inputs)
    score = output[:, 1] - (output[:, 3] if "-" in target else 0)
    maps, gap, unplaced = explain(batch, "signed", target)
    assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-9)
    assert maps.values.shape == (2, SIZE, SIZE)
    assert_close(maps.values.sum((1, 2)) + unplaced, score, rtol=1e-9, atol=1e-9)
    assert all("nothing is missing" in p.note for p in maps.panels if p.key == "completeness")


def test_bias_terms_are_the_biases_times_their_own_gradients() -> None:
    net = NETWORKS["relu in place"]()
    batch = prepared(net, count=1)
    x = batch.inputs.clone().requires_grad_()
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    biases = [m.bias for m in layers]
    slopes = torch.autograd.grad(net(x)[0, 1], [x, *biases])
    linear = sum((m.bias * g).sum() for m, g in zip(layers, slopes[1:], strict=True) if isinstance(m, nn.Linear))
    placed = (x * slopes[0]).sum() + sum((m.bias * g).sum() for m, g in zip(layers, slopes[1:], strict=True)
                                         if isinstance(m, nn.Conv2d))
    maps, _, unplaced = explain(batch, "signed")
    assert_close(unplaced[0], linear.detach(), rtol=1e-9, atol=1e-12)
    assert_close(maps.values[0].sum(), placed.detach(), rtol=1e-9, atol=1e-12)


def test_a_linear_picture_of_the_input_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).double()
    batch = prepared(net)
    weight, head = net[0].weight[0].detach(), net[3].weight[1, 0].detach()
    expected = ((weight * batch.inputs).sum(1) + net[0].bias.detach()) * head / SIZE**2
    maps, _, unplaced = explain(batch, "signed")
    assert_close(maps.values, expected, rtol=1e-9, atol=1e-12)
    assert_close(unplaced, net[3].bias[1].detach().expand(2), rtol=1e-9, atol=0)
    absolute, _, _ = explain(batch, "abs")
    slow = ((weight * batch.inputs).abs().sum(1) + net[0].bias.detach().abs()) * head.abs() / SIZE**2
    assert_close(absolute.values, slow, rtol=1e-9, atol=1e-12)


def slow_psi(net: nn.Module, x: Tensor) -> Tensor:
    """The authors' post-processing with all tensors kept, on a network without batch norm and in-place operations."""
    outputs: list[tuple[Tensor, Tensor]] = []
    handles = [m.register_forward_hook(lambda m, _, out: outputs.append((m.bias, out)))
               for m in net.modules() if isinstance(m, nn.Conv2d)]
    x = x.clone().requires_grad_()
    score = net(x)[:, 1].sum()
    for handle in handles:
        handle.remove()
    slopes = torch.autograd.grad(score, [x, *(out for _, out in outputs)])
    total = torch.zeros(())
    for bias, slope in zip([x, *(b[:, None, None] for b, _ in outputs)], slopes, strict=True):
        term = (bias * slope).abs().detach()
        term = term - term.flatten(1).min(1).values[:, None, None, None]
        term = term / term.flatten(1).max(1).values[:, None, None, None]
        total = total + F.interpolate(term, size=x.shape[2:], mode="bilinear", align_corners=False).sum(1)
    return total


def test_rescaled_is_the_papers_psi() -> None:
    net = network(nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU())
    batch = prepared(net)
    maps, gap, _ = explain(batch, "rescaled")
    assert_close(maps.values, slow_psi(net, batch.inputs), rtol=1e-9, atol=1e-9)
    assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-9)
    assert FullGrad().post == "rescaled"


@pytest.mark.parametrize("size", [(3, 4), (7, 6), (5, 17), (25, 11)])
def test_spread_interpolates_or_keeps_the_sum(size: tuple[int, int]) -> None:
    values = torch.randn(2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(spread(values, (17, 12), keep_sum=True).sum((1, 2)), values.sum((1, 2)), rtol=1e-9, atol=1e-9)
    if size[0] <= 17 and size[1] <= 12:
        plain = F.interpolate(values[:, None], size=(17, 12), mode="bilinear", align_corners=False)[:, 0]
        assert_close(spread(values, (17, 12), keep_sum=False), plain, rtol=1e-9, atol=1e-9)


def test_a_constant_outside_the_layers_is_said_to_be_missing() -> None:
    net = network(nn.ReLU(), Shift())
    batch = prepared(net)
    maps, gap, _ = explain(batch, "rescaled")
    missing = -0.25 * net[5].weight[1].sum()  # the mean over places passes the constant on as it is
    assert_close(gap, missing.detach().expand(2), rtol=1e-9, atol=1e-12)
    notes = [p.note for p in maps.panels if p.key == "completeness"]
    assert all("unaccounted for" in note and "integrated_gradients" in note for note in notes)
    shares = torch.tensor([p.value for p in maps.panels if p.key == "completeness"], dtype=torch.float64)
    with torch.no_grad():
        assert_close(shares, (missing / net(batch.inputs)[:, 1]).abs(), rtol=1e-9, atol=1e-12)


class Tokens(nn.Module):
    """Pixels as tokens through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.embed(x.flatten(2).mT).relu().mean(1))
        return out


@pytest.mark.parametrize(
    ("net", "got"),
    [(lambda: network(nn.GroupNorm(2, 6)), "group_norm"), (lambda: network(nn.LayerNorm(8)), "layer_norm"),
     (lambda: network(nn.BatchNorm2d(6, track_running_stats=False)), "batch norm by the batch's own statistics"),
     (lambda: noisy(Tokens()), "linear layers on tokens")], ids=["group norm", "layer norm", "batch norm", "tokens"])
def test_refuses_with_an_alternative(net: object, got: str) -> None:
    batch = prepared(net())  # type: ignore[operator]
    with pytest.raises(XaiError, match=f"piecewise linear .* got one with {got}. Use hirescam or integrated_gradients"):
        FullGrad().maps(batch, batch.bind(Target("class:1")))


def test_planned_passes_are_counted_passes_and_nothing_stays_behind() -> None:
    net = NETWORKS["batch norms"]()
    model = Model(net, mean=[0.4] * 3, std=[0.25] * 3, size=SIZE)
    result = FullGrad()(Subject.of(model, load_images(torch.rand(3, 3, SIZE, SIZE)), target="class:1"))
    planned = FullGrad().cost(Subject.of(model, load_images(torch.rand(3, 3, SIZE, SIZE)), target="class:1"))
    assert (result.cost.forwards, result.cost.backwards) == (planned.forwards, planned.backwards) == (6, 3)
    assert {p.key for p in result.panels} >= {"map", "completeness", "completeness_gap", "unplaced"}
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())


def test_one_picture_alone_is_the_same_as_in_a_batch() -> None:
    net = NETWORKS["batch norms"]()
    together, _, _ = explain(prepared(net, count=3), "rescaled")
    alone, _, _ = explain(prepared(net, count=1), "rescaled")
    assert_close(together.values[:1], alone.values, rtol=1e-9, atol=1e-9)


def test_resnet18_in_single_precision() -> None:
    from xai.torchvision_import import ensure_torchvision

    torch.manual_seed(0)
    net = noisy(ensure_torchvision().models.resnet18(num_classes=10)).float()
    batch = prepared(net, size=64, count=1)
    with torch.no_grad():
        score = float(net(batch.inputs)[0, 1])
    maps, gap, unplaced = explain(batch, "signed")
    size = float(maps.values.abs().sum()) + abs(score)
    assert abs(float(gap)) < 1e-5 * size
    assert abs(float(maps.values.sum()) + float(unplaced) - score) < 1e-5 * size
