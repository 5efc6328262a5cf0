"""LRP: conservation, rules against plain matrices, identities, parity with captum, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from analyzers.attribution.input_x_gradient import InputXGradient
from analyzers.attribution.lrp import COMPOSITES, LRP
from tests.gradient_nets import (
    EXACT,
    UNUSUAL,
    Residual,
    batch_of,
    close_to_scale,
    conv_net,
    made,
    mapped,
    numbers,
    pictures,
    unusual,
)
from xai.batch import Batch
from xai.errors import XaiError
from xai.images import load_images
from xai.model import Model
from xai.panels import Text
from xai.targets import Target


def spent(analyzer: LRP, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, float]:
    """(map sums, scores, all that was absorbed), as the analyzer checks them."""
    seen: list[Any] = []
    monkeypatch.setattr(LRP, "_checked", lambda self, batch, *found: seen.append(found))
    mapped(analyzer, batch)
    monkeypatch.undo()
    values, start, absorbed = zip(*seen, strict=True)  # of each picture
    return torch.cat(values).sum((1, 2, 3)), torch.cat(start), sum(absorbed)


@pytest.mark.parametrize("rule", COMPOSITES)
def test_lrp_conserves_on_a_network_without_biases(rule: str) -> None:
    batch = batch_of(made(conv_net(bias=False)), pictures())
    found = mapped(LRP(rule, epsilon=1e-12), batch)
    assert_close(found.sum((1, 2)), batch.output()[:, 1], **EXACT)
    assert numbers(LRP(rule, epsilon=1e-12), batch, "absorbed").abs().max() < 1e-8


@pytest.mark.parametrize("rule", COMPOSITES)
@pytest.mark.parametrize("kind", UNUSUAL, ids=lambda k: k.__name__)
def test_lrp_loses_nothing_unseen(kind: type[nn.Module], rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Map and what biases, constants and epsilon absorbed are the score, whatever the network does."""
    batch = batch_of(unusual(kind), pictures(3))
    sums, start, absorbed = spent(LRP(rule), batch, monkeypatch)
    assert_close(start, batch.output()[:, 1], **EXACT)
    assert abs(sums.sum().item() + absorbed - start.sum().item()) < 1e-9
    assert abs(absorbed) > 1e-9
    shares = numbers(LRP(rule), batch, "absorbed")
    assert_close(shares, 1 - sums / start, **EXACT)


@pytest.mark.parametrize("net", [conv_net(), Residual()], ids=["conv_net", "Residual"])
def test_lrp_with_no_epsilon_is_input_x_gradient(net: nn.Module) -> None:
    batch = batch_of(made(net), pictures())
    assert_close(mapped(LRP("epsilon", epsilon=0), batch), mapped(InputXGradient(), batch), **EXACT)


def test_lrp_with_no_gamma_is_epsilon() -> None:
    batch = batch_of(made(conv_net()), pictures())
    plain = mapped(LRP("epsilon"), batch)
    assert_close(mapped(LRP("epsilon_gamma", gamma=0), batch), plain, **EXACT)
    assert (mapped(LRP("epsilon_gamma"), batch) - plain).abs().max() > 1e-3


def test_lrp_with_a_large_gamma_is_z_plus_where_sums_are_positive() -> None:
    net = conv_net()
    for parameter in net.parameters():
        parameter.data.abs_()
    net[3].weight.data[:, :4] *= -0.1  # type: ignore[index,operator]  # some negative contributions, no negative sums
    batch = batch_of(made(net), pictures() * 0.5 + 0.45)
    assert net(batch.inputs).min() > 0
    close_to_scale(mapped(LRP("epsilon_gamma", gamma=1e9), batch), mapped(LRP("epsilon_plus"), batch), 1e-4)


@pytest.mark.parametrize("rule", COMPOSITES)
def test_lrp_rules_equal_plain_matrices(rule: str) -> None:
    """One convolution as large as the picture is a matrix: each rule by its formula, contribution by contribution."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 6), nn.Flatten())
    batch = batch_of(made(net), pictures())
    a, w, b = batch.inputs.flatten(1), net[0].weight.detach().flatten(1), net[0].bias.detach()
    parts = a[:, None] * w  # (n, outputs, inputs)
    plus, minus = parts.clamp(min=0), parts.clamp(max=0)
    z = parts.sum(2) + b
    if rule == "epsilon":
        shares = parts / z[..., None]
    elif rule == "epsilon_plus":
        shares = plus / (plus.sum(2) + b.clamp(min=0))[..., None]
    elif rule == "epsilon_gamma":
        own = torch.where(z[..., None] > 0, parts + 0.25 * plus, parts + 0.25 * minus)
        bias = torch.where(z > 0, b + 0.25 * b.clamp(min=0), b + 0.25 * b.clamp(max=0))
        shares = own / (own.sum(2) + bias)[..., None]
    else:
        low, high = (torch.full_like(a, (level - 0.4) / 0.3)[:, None] for level in (0, 1))
        own = parts - low * w.clamp(min=0) - high * w.clamp(max=0)
        assert own.min() > -1e-6
        shares = own / own.sum(2, keepdim=True)
    expected = (shares * z[..., None])[:, 1].view(-1, 3, 6, 6).sum(1)
    assert_close(mapped(LRP(rule, epsilon=1e-12), batch), expected, rtol=1e-6, atol=1e-6)  # low and high are float32


def test_lrp_parity_with_captum() -> None:
    from captum.attr import LRP as Captum
    from captum.attr._utils.custom_modules import Addition_Module

    class Block(nn.Module):
        """A residual network of modules alone, each used once, as captum needs it."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.add = Addition_Module()
            self.relu, self.relu2, self.pool = nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)
            self.mean, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.relu(self.stem(x)))
            x = self.relu2(self.add(x, self.conv(x)))
            return self.head(self.mean(x).flatten(1))

    torch.manual_seed(0)
    model = made(Block())
    batch = batch_of(model, pictures())
    with model.opened() as raw:
        theirs = Captum(raw).attribute(batch.inputs.clone().requires_grad_(), target=1).detach()
    close_to_scale(mapped(LRP("epsilon", epsilon=1e-9), batch), theirs.sum(1))


def test_lrp_says_when_the_box_was_not_used() -> None:
    net = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.Flatten())
    batch = batch_of(made(net), pictures())
    maps = LRP().maps(batch, batch.bind(Target("class:1")))
    assert [p.key for p in maps.panels if isinstance(p, Text)] == ["box", "box"]
    assert_close(maps.values, mapped(LRP("epsilon_gamma"), batch), **EXACT)


def test_lrp_box_needs_the_normalisation() -> None:
    batch = next(Model(conv_net(), size=6).prepare(load_images(torch.from_numpy(pictures()), normalised=True)))
    with pytest.raises(XaiError, match="epsilon_gamma"):
        mapped(LRP(), batch)
    assert mapped(LRP("epsilon_gamma"), batch).abs().max() > 0


@pytest.mark.parametrize("how", ["sigmoid", "exp", "dynamic"])
def test_lrp_refuses_what_has_no_rule(how: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            if how == "dynamic":
                x = F.conv2d(x, self.conv.weight * x.mean())
            else:
                x = getattr(torch, how)(self.conv(x))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    batch = batch_of(made(Odd()), pictures())
    with pytest.raises(XaiError, match="Use input_x_gradient"):
        mapped(LRP(), batch)
