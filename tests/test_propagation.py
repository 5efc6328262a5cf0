"""Guided backpropagation and DeepLIFT: closed forms, completeness, captum; with LRP: spellings, batches, traces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from analyzers.attribution.deeplift import DeepLIFT
from analyzers.attribution.guided_backprop import GuidedBackprop
from analyzers.attribution.input_x_gradient import InputXGradient
from analyzers.attribution.lrp import COMPOSITES, LRP
from analyzers.attribution.saliency import Saliency
from tests.gradient_nets import (
    EXACT,
    SHARED,
    UNUSUAL,
    Residual,
    batch_of,
    close_to_scale,
    conv_net,
    linear_net,
    made,
    mapped,
    numbers,
    pictures,
    unusual,
)
from xai.attribution import Attribution
from xai.baselines import baseline
from xai.errors import XaiError
from xai.model import Model
from xai.panels import Number, Text
from xai.subject import Subject
from xai.targets import Target
from xai.torchvision_import import ensure_torchvision
from xai.zoo.nets.photo20 import photo20

pytestmark = pytest.mark.filterwarnings("ignore:Setting:UserWarning", "ignore:Input Tensor:UserWarning")  # captum's
ALL: list[Attribution] = [GuidedBackprop(), DeepLIFT(), DeepLIFT("blur", "max_abs"), *(LRP(r) for r in COMPOSITES)]


def label(analyzer: Attribution) -> str:
    return "-".join([analyzer.name(), *map(str, analyzer.parameters().values())])


class Spelled(nn.Module):
    """conv_net with its activations written in some way."""

    def __init__(self, spelling: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.spelling = conv_net(), spelling

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:  # type: ignore[attr-defined]
            x = self.spelling(x) if isinstance(layer, nn.ReLU) else layer(x)
        return x


def statement(x: Tensor) -> Tensor:
    x.relu_()  # the result is not used: the change in place is
    return x


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "function": F.relu, "torch": torch.relu, "method": Tensor.relu, "one module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True), "statement": statement, "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
}


# --- guided backpropagation ---
def test_guided_closed_form() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 30), nn.ReLU(), nn.Linear(30, 4))
    batch = batch_of(made(net), pictures())
    first, last = net[1], net[3]
    hidden = first(batch.inputs.flatten(1)).detach()
    back = (hidden > 0) * last.weight[1].clamp(min=0).detach()
    expected = (back @ first.weight.detach()).view(-1, 3, 6, 6)
    assert_close(mapped(GuidedBackprop("sum"), batch), expected.sum(1), **EXACT)
    assert_close(mapped(GuidedBackprop(), batch), expected.abs().amax(1), **EXACT)


def test_guided_with_positive_weights_is_saliency() -> None:
    net = conv_net()
    for parameter in net.parameters():
        parameter.data.abs_()
    batch = batch_of(made(net), pictures())
    assert_close(mapped(GuidedBackprop(), batch), mapped(Saliency(), batch), **EXACT)


@pytest.mark.parametrize("analyzer", [GuidedBackprop(), DeepLIFT(), LRP()], ids=label)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_any_spelling_of_relu_is_seen(spelling: str, analyzer: Attribution) -> None:
    batch = batch_of(made(Spelled(SPELLINGS[spelling])), pictures())
    found = mapped(analyzer, batch)
    assert_close(found, mapped(analyzer, batch_of(made(conv_net()), pictures())), **EXACT)
    assert (found - mapped(Saliency("sum"), batch)).abs().max() > 1e-3


def test_guided_without_relu_is_refused() -> None:
    batch = batch_of(made(conv_net(activation=nn.GELU)), pictures())
    with pytest.raises(XaiError, match="use saliency"):
        mapped(GuidedBackprop(), batch)


def test_guided_says_what_is_not_guided() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Sigmoid(), nn.Flatten())
    batch = batch_of(made(net), pictures())
    panels = GuidedBackprop().maps(batch, batch.bind(Target())).panels
    texts = [p.text for p in panels if isinstance(p, Text)]
    assert texts == ["1 ReLUs are guided; 2 other activations hand back the plain gradient."] * 2


def test_on_resnet18() -> None:
    """It uses one in-place ReLU twice in each block; captum's guided backpropagation needs it out of place."""
    from captum.attr import GuidedBackprop as Captum

    torch.manual_seed(0)
    net = ensure_torchvision().models.resnet18()
    model = Model(net, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], size=64, precision="float64")
    batch = batch_of(model, ["sample:coffee", "sample:chelsea"])
    bound = batch.bind(Target())
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    with model.opened() as raw:
        theirs = Captum(raw).attribute(batch.inputs.clone().requires_grad_(), target=bound.classes).detach()
    close_to_scale(GuidedBackprop("sum").maps(batch, bound).values, theirs.sum(1))
    found = DeepLIFT().maps(batch, bound)
    shares = [p.value for p in found.panels if isinstance(p, Number) and p.key == "completeness"]
    assert all(share is not None and share < 1e-3 for share in shares)


# --- DeepLIFT ---
def test_deeplift_of_a_linear_network() -> None:
    net = linear_net()
    batch = batch_of(made(net), pictures())
    weights = net[1].weight.detach()[1].double().view(3, 6, 6)
    way = batch.inputs - baseline(batch, 0.3, "deeplift")
    assert_close(mapped(DeepLIFT(0.3), batch), (weights * way).sum(1), **EXACT)


def test_deeplift_closed_form_of_one_activation() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 30), nn.Softplus(), nn.Linear(30, 4))
    batch = batch_of(made(net), pictures())
    start = baseline(batch, "white", "deeplift")
    z, b = (net[1](v.flatten(1)).detach() for v in (batch.inputs, start))
    multiplier = (F.softplus(z) - F.softplus(b)) / (z - b) * net[3].weight[1].detach()
    expected = (multiplier @ net[1].weight.detach()).view(-1, 3, 6, 6) * (batch.inputs - start)
    assert_close(mapped(DeepLIFT("white"), batch), expected.sum(1), **EXACT)


def test_deeplift_without_biases_from_zero_is_input_x_gradient() -> None:
    batch = batch_of(made(conv_net(bias=False)), pictures())
    assert_close(mapped(DeepLIFT("zero"), batch), mapped(InputXGradient(), batch), **EXACT)


def test_deeplift_from_the_picture_itself_is_nothing() -> None:
    batch = batch_of(made(conv_net()), torch.full((1, 3, 6, 6), 0.5))
    maps = DeepLIFT("grey").maps(batch, batch.bind(Target()))
    assert not maps.values.any()


@pytest.mark.parametrize("kind", UNUSUAL, ids=lambda k: k.__name__)
@pytest.mark.parametrize("start", ["black", "zero", "blur"])
def test_deeplift_is_complete_on_unusual_networks(kind: type[nn.Module], start: str) -> None:
    batch = batch_of(unusual(kind), pictures(3))
    found = mapped(DeepLIFT(start), batch)
    rise = batch.output()[:, 1] - batch.model(baseline(batch, start, "deeplift"))[:, 1]
    assert rise.abs().min() > 1e-6
    assert_close(found.sum((1, 2)), rise, **EXACT)
    assert numbers(DeepLIFT(start), batch, "completeness").max() < 1e-7
    assert found.std() > 0


@pytest.mark.parametrize("kind", UNUSUAL, ids=lambda k: k.__name__)
def test_deeplift_in_float32_is_near_that_in_float64(kind: type[nn.Module]) -> None:
    exact, rounded = (batch_of(unusual(kind, p), pictures()) for p in ("float64", "float32"))
    close_to_scale(mapped(DeepLIFT(), rounded), mapped(DeepLIFT(), exact), 2e-3)
    assert numbers(DeepLIFT(), rounded, "completeness_gap").abs().max() < 1e-4


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.LeakyReLU])
def test_deeplift_parity_with_captum(activation: type[nn.Module]) -> None:
    from captum.attr import DeepLift

    # A convolution between activation and pooling: next to each other captum 0.9 does not see both and misses the sum.
    torch.manual_seed(0)
    model = made(nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), activation(), nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 2),
        activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 4)))
    batch = batch_of(model, pictures())
    start = baseline(batch, "black", "deeplift")
    with model.opened() as net:
        theirs = DeepLift(net).attribute(batch.inputs.clone(), start, target=1).detach()
    close_to_scale(mapped(DeepLIFT(), batch), theirs.sum(1))


@pytest.mark.parametrize("curve", ["softmax", "log_softmax"])
def test_deeplift_of_a_target_with_a_curve(curve: str) -> None:
    batch = batch_of(made(conv_net()), pictures())
    bound = batch.bind(Target(curve, lambda output: getattr(output, curve)(1)[:, 2]))
    start = batch.model(baseline(batch, "black", "deeplift"))
    rise = bound(batch.output()) - bound(start)
    assert_close(DeepLIFT().maps(batch, bound).values.sum((1, 2)), rise, **EXACT)


def test_deeplift_of_a_mask() -> None:
    torch.manual_seed(0)
    batch = batch_of(made(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 3, 1))), pictures())
    bound = batch.bind(Target("mask:1"))
    rise = bound(batch.output()) - bound(batch.model(baseline(batch, "black", "deeplift")))
    assert rise.abs().min() > 1e-3
    assert_close(DeepLIFT().maps(batch, bound).values.sum((1, 2)), rise, **EXACT)


def test_deeplift_refuses_a_function_that_it_does_not_know() -> None:
    class Waves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(3 * x).mean((2, 3))

    batch = batch_of(Model(Waves(), mean=[0.4] * 3, std=[0.3] * 3, size=6), pictures())
    with pytest.raises(XaiError, match="Use integrated_gradients"):
        mapped(DeepLIFT(), batch)


def test_deeplift_flags_a_small_miss() -> None:
    """A sine of small arguments is nearly linear: not gross, but the number says it."""
    class Waves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(0.2 * x).mean((2, 3))

    batch = batch_of(Model(Waves(), mean=[0.4] * 3, std=[0.3] * 3, size=6), pictures())
    assert 1e-4 < numbers(DeepLIFT(), batch, "completeness").max() < 0.05


def test_deeplift_in_halves_is_deeplift() -> None:
    model = made(conv_net())
    whole, halves = batch_of(model, pictures(4), chunk=8), batch_of(model, pictures(4), chunk=4)
    assert_close(mapped(DeepLIFT(), halves), mapped(DeepLIFT(), whole), **EXACT)


# --- parity on trained weights, batches, cost, traces ---
@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared")
def test_on_trained_weights() -> None:
    from captum.attr import GuidedBackprop as Captum
    from safetensors.torch import load_file

    net = ensure_torchvision().models.squeezenet1_0()
    net.load_state_dict(load_file(SHARED / "models" / "squeezenet1_0_imagenet.safetensors"))
    model = Model(net, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], size=128, precision="float64")
    batch = batch_of(model, SHARED / "images" / "n01440764_tench.jpg")
    bound = batch.bind(Target())
    ours = GuidedBackprop("sum").maps(batch, bound).values
    rewired = ensure_torchvision().models.squeezenet1_0()
    rewired.load_state_dict(net.state_dict())
    for module in rewired.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum's hooks cannot follow it in place
    rewired.double().eval()
    theirs = Captum(rewired).attribute(batch.inputs.clone().requires_grad_(), target=bound.classes).detach()
    close_to_scale(ours, theirs.sum(1))
    gap, absorbed = DeepLIFT().maps(batch, bound).panels[0], LRP().maps(batch, bound).panels[0]
    assert isinstance(gap, Number)
    assert isinstance(absorbed, Number)
    assert gap.value is not None
    assert absorbed.value is not None
    assert gap.value < 1e-4
    assert -0.5 < absorbed.value < 0.9


@pytest.mark.parametrize("analyzer", ALL, ids=label)
def test_batch_and_order_change_nothing_but_rounding(analyzer: Attribution) -> None:
    many = pictures(3)
    model = unusual(Residual, "float32")
    together = mapped(analyzer, batch_of(model, many, chunk=8))
    apart = torch.cat([mapped(analyzer, batch_of(model, one[None], chunk=1)) for one in many])
    backwards = mapped(analyzer, batch_of(model, many[::-1].copy(), chunk=3))
    close_to_scale(apart, together)
    close_to_scale(backwards.flip(0), together)


@pytest.mark.parametrize("analyzer", ALL, ids=label)
def test_planned_cost_is_the_counted_cost_and_nothing_stays_behind(analyzer: Attribution) -> None:
    net = photo20()
    model = Model(net, mean=[0.5] * 3, std=[0.25] * 3, size=64)
    kinds = [type(m) for m in net.modules()]
    subject = Subject.of(model, ["sample:coffee", "sample:rocket"])
    plain = Saliency()(subject)
    result = analyzer(subject)
    planned = analyzer.cost(subject)
    assert (result.cost.forwards, result.cost.backwards) == (planned.forwards, planned.backwards)
    assert net.training
    assert [type(m) for m in net.modules()] == kinds
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    for module in (net, model.fast.module):
        assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in module.modules())
    again = Saliency()(subject)
    for one, two in zip(plain.panels, again.panels, strict=True):
        if one.kind == "heatmap" and two.kind == "heatmap":
            assert (one.values == two.values).all()


@pytest.mark.parametrize("analyzer", [GuidedBackprop(), DeepLIFT(), LRP()], ids=label)
def test_nothing_stays_behind_after_a_failure(analyzer: Attribution) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.fails = conv_net(), False

        def forward(self, x: Tensor) -> Tensor:
            x = self.net(x)
            if x.requires_grad:
                raise RuntimeError("out of luck")
            return x

    model = made(Late())
    batch = batch_of(model, pictures())
    with pytest.raises(XaiError, match="out of luck"):
        mapped(analyzer, batch)
    leaf = torch.tensor([-1.0, 2.0], requires_grad=True)
    assert torch.equal(torch.autograd.grad(-torch.relu(leaf).sum(), leaf)[0], torch.tensor([0.0, -1.0]))
