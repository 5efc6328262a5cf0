"""The seven layer CAMs: closed forms in float64, cost, and agreement with pytorch-grad-cam on the same weights."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.attribution.eigencam import EigenCAM, principal
from analyzers.attribution.finercam import FinerCAM
from analyzers.attribution.gradcam import GradCAM
from analyzers.attribution.gradcam_plusplus import GradCAMPlusPlus
from analyzers.attribution.hirescam import HiResCAM
from analyzers.attribution.layercam import LayerCAM
from analyzers.attribution.xgradcam import XGradCAM
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import XaiError
from xai.images import load_images
from xai.model import Model
from xai.panels import Number, Text
from xai.subject import Subject
from xai.targets import Target, of_classes

SHARED = Path(__file__).resolve().parents[2] / "shared"
SEVEN = (GradCAM, GradCAMPlusPlus, HiResCAM, XGradCAM, LayerCAM, EigenCAM, FinerCAM)
CHANNELS, CLASSES, GRID = 6, 5, 8


# --- small networks whose head is known ---
def network(head: str, *, signed: bool = False, classes: int = CLASSES) -> nn.Sequential:
    """Two convolutions (the layer `trunk`, 8x8 for 16x16 pictures) and a pooled or a flattened linear head."""
    torch.manual_seed(3)
    last: list[nn.Module] = [nn.Conv2d(4, CHANNELS, 3, padding=1)] + ([] if signed else [nn.ReLU(inplace=True)])
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), *last)
    flat: list[tuple[str, nn.Module]] = [("flat", nn.Flatten())]
    pooled = [("pool", nn.AdaptiveAvgPool2d(1)), *flat] if head == "pooled" else flat
    width = CHANNELS if head == "pooled" else CHANNELS * GRID * GRID
    return nn.Sequential(OrderedDict([("trunk", trunk), *pooled, ("fc", nn.Linear(width, classes))])).double()


def pictures(count: int = 2, size: int = 16) -> Tensor:
    """Seeded noise, (count, 3, size, size) in [0, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(11))


def model_of(net: nn.Module, size: int = 16, **options: Any) -> Model:
    return Model(net, mean=[0.5] * 3, std=[0.25] * 3, size=size, **options)


def prepared(net: nn.Module, size: int = 16, count: int = 2) -> Batch:
    return next(model_of(net, size).prepare(load_images(pictures(count, size))))


@dataclass
class Case:
    """A batch with the layer's activations A, the head's weights of the explained class and its bias."""

    batch: Batch
    activations: Tensor
    weights: Tensor
    score: Tensor
    bias: Tensor

    def maps(self, method: Attribution) -> Tensor:
        return method.maps(self.batch, self.batch.bind(Target("class:2"))).values


def case(head: str, *, signed: bool = False) -> Case:
    net = network(head, signed=signed)
    batch = prepared(net)
    with torch.no_grad():
        activations = net.trunk(batch.inputs)
        output = net(batch.inputs)
    fc = cast(nn.Linear, net.fc)
    assert batch.view("auto").name.startswith("trunk")
    return Case(batch, activations, fc.weight[2].detach(), output[:, 2], fc.bias[2].detach())


def test_gradcam_is_cam_on_a_pooled_linear_head() -> None:
    known = case("pooled")
    cam = (known.weights[:, None, None] * known.activations).sum(1)
    assert_close(known.maps(GradCAM()), cam / GRID**2, rtol=1e-9, atol=1e-12)
    assert_close(known.maps(GradCAM()).sum((1, 2)), known.score - known.bias, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", ["pooled", "flat"])
def test_hirescam_sums_to_the_score_without_its_bias(head: str) -> None:
    known = case(head)
    assert_close(known.maps(HiResCAM()).sum((1, 2)), known.score - known.bias, rtol=1e-9, atol=1e-12)


def test_gradcam_does_not_sum_to_the_score_on_a_flattened_head() -> None:
    known = case("flat")
    gap = (known.maps(GradCAM()).sum((1, 2)) - (known.score - known.bias)).abs()
    assert (gap > 1e-5).all()


def test_xgradcam_is_gradcam_where_the_gradient_is_constant_and_sums_as_hirescam_does() -> None:
    pooled, flat = case("pooled"), case("flat")
    assert_close(pooled.maps(XGradCAM()), pooled.maps(GradCAM()), rtol=1e-9, atol=1e-12)
    assert_close(flat.maps(XGradCAM()).sum((1, 2)), flat.maps(HiResCAM()).sum((1, 2)), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(flat.maps(XGradCAM()), flat.maps(HiResCAM()))


def test_layercam_is_the_elementwise_form_where_activations_are_not_negative() -> None:
    known = case("flat")
    slopes = known.weights.reshape(CHANNELS, GRID, GRID)
    assert_close(known.maps(LayerCAM()), (slopes * known.activations).relu().sum(1), rtol=1e-9, atol=1e-12)


def test_gradcam_plusplus_with_a_constant_gradient_by_hand() -> None:
    known = case("pooled")
    slope = (known.weights / GRID**2).relu()
    total = known.activations.sum((2, 3))
    weights = GRID**2 * slope / (2 + slope * total)  # uv q / (2 + q T); 0 where q <= 0
    expected = (weights[:, :, None, None] * known.activations).sum(1)
    assert_close(known.maps(GradCAMPlusPlus()), expected, rtol=1e-9, atol=1e-12)


# --- formulas on any activations and gradients ---
@dataclass
class Given:
    """Stands for a batch whose activations and gradients are what the test says."""

    a: Tensor
    g: Tensor

    @property
    def hashes(self) -> tuple[str, ...]:
        return tuple(f"picture {i}" for i in range(len(self.a)))

    def activations(self, layer: str) -> Tensor:
        return self.a

    def gradients(self, layer: str, bound: object) -> Tensor:
        return self.g


def raw(method: Attribution, a: Tensor, g: Tensor) -> Tensor:
    nothing = of_classes(torch.zeros(len(a), dtype=torch.long), ("",) * len(a))
    return method.maps(cast(Batch, Given(a, g)), nothing).values


@st.composite
def layers(draw: st.DrawFn, signed: bool = True) -> tuple[Tensor, Tensor]:
    """(activations, gradients), each (n, K, h, w) float64."""
    shape = tuple(draw(st.integers(1, 5)) for _ in range(4))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    a, g = (torch.randn(shape, generator=source, dtype=torch.float64) for _ in range(2))
    return (a if signed else a.relu()), g


@settings(max_examples=60, deadline=None)
@given(layers(signed=False))
def test_identities_where_activations_are_not_negative(layer: tuple[Tensor, Tensor]) -> None:
    a, g = layer
    assert_close(raw(XGradCAM(), a, g).sum((1, 2)), raw(HiResCAM(), a, g).sum((1, 2)), rtol=1e-9, atol=1e-9)
    assert_close(raw(LayerCAM(), a, g), (g * a).relu().sum(1), rtol=1e-9, atol=1e-9)
    flat = g.mean((2, 3), keepdim=True).expand_as(g)
    assert_close(raw(XGradCAM(), a, flat), raw(GradCAM(), a, g), rtol=1e-9, atol=1e-9)
    assert_close(raw(HiResCAM(), a, flat), raw(GradCAM(), a, g), rtol=1e-9, atol=1e-9)
    squares, cubes, total = g**2, g**3, a.sum((2, 3), keepdim=True)
    for epsilon in (0.0, 1e-6):
        share = squares / (2 * squares + total * cubes + epsilon)
        weights = (share * g.relu()).sum((2, 3), keepdim=True)
        assert_close(raw(GradCAMPlusPlus(epsilon=epsilon), a, g), (weights * a).sum(1), rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(layers(), st.floats(-3, 3))
def test_gradcam_and_hirescam_are_linear_in_the_score(layer: tuple[Tensor, Tensor], factor: float) -> None:
    a, g = layer
    other = g.flip(1)
    for method in (GradCAM(), HiResCAM()):
        both = raw(method, a, g + factor * other)
        assert_close(both, raw(method, a, g) + factor * raw(method, a, other), rtol=1e-9, atol=1e-9)


def test_gradcam_plusplus_keeps_weights_whose_powers_underflow() -> None:
    source = torch.Generator().manual_seed(0)
    a, g = (torch.rand(1, 4, 3, 3, generator=source) for _ in range(2))
    tiny = raw(GradCAMPlusPlus(), a, g * 1e-20)  # g^2 and g^3 are 0 in float32
    expected = (0.5 * g.sum((2, 3), keepdim=True) * a).sum(1)  # a = 1/2 there
    assert_close(tiny * 1e20, expected, rtol=1e-5, atol=1e-6)
    assert raw(GradCAMPlusPlus(epsilon=1e-6), a, g * 1e-25).eq(0).all()


def test_gradcam_plusplus_is_finite_at_its_pole_and_warns_beyond_it() -> None:
    a, g = torch.full((2, 1, 1, 2), -1.0), torch.ones(2, 1, 1, 2)
    a[1] = 1.0
    maps = GradCAMPlusPlus().maps(cast(Batch, Given(a, g)), of_classes(torch.zeros(2, dtype=torch.long), ("", "")))
    assert torch.isfinite(maps.values).all()
    (warning,) = maps.panels
    assert isinstance(warning, Text)
    assert (warning.picture, warning.tone) == ("picture 0", "warning")
    assert "100.0%" in warning.text


@pytest.mark.parametrize("method", [GradCAM, GradCAMPlusPlus, HiResCAM, XGradCAM, LayerCAM], ids=lambda m: m.__name__)
def test_a_broken_gradient_is_not_hidden(method: type[Attribution]) -> None:
    a, g = torch.ones(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    g[0, 1, 0, 0] = float("nan")
    values = raw(method(), a, g)
    assert values[0].isnan().any()
    assert values[1].isfinite().all()


def test_xgradcam_gives_channels_without_activation_no_weight() -> None:
    a = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
    a[0, 1] = torch.tensor([[1.0, 3.0]])
    a[0, 2] = torch.tensor([[0.1 + 0.2, -0.3]])  # sums to rounding only
    values = raw(XGradCAM(), a, torch.ones_like(a))
    assert_close(values, a[:, 1])


# --- EigenCAM ---
def test_eigencam_of_a_rank_one_layer_is_its_picture() -> None:
    place = torch.tensor([[0.0, 1.0, 5.0], [2.0, 0.0, 1.0]], dtype=torch.float64)
    scales = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    values = raw(EigenCAM(), scales[None, :, None, None] * place, torch.zeros(1))
    assert_close(values[0], (place - place.mean()) * scales.norm(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("channels", "places"), [(4, 9), (9, 4), (30, 49), (49, 30)])
def test_eigencam_is_the_first_component_of_a_singular_value_decomposition(channels: int, places: int) -> None:
    values = torch.randn(3, channels, places, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lines, share = principal(values)
    for value, line, part in zip(values, lines, share, strict=True):
        matrix = (value - value.mean(1, keepdim=True)).T
        _, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        slow = matrix @ right[0]
        assert_close(line, slow * torch.sign(slow[slow.abs().argmax()]), rtol=1e-8, atol=1e-8)
        assert_close(part, sizes[0] ** 2 / sizes.square().sum(), rtol=1e-9, atol=0)


@settings(max_examples=30, deadline=None)
@given(layers())
def test_eigencam_ignores_channel_offsets_and_fixes_the_sign(layer: tuple[Tensor, Tensor]) -> None:
    a, offsets = layer
    values, _ = principal(a.flatten(2))
    moved, _ = principal((a + offsets.mean((2, 3), keepdim=True)).flatten(2))
    peak = values.gather(1, values.abs().argmax(1, keepdim=True))
    assert (peak >= 0).all()
    assert_close(values.abs(), moved.abs(), rtol=1e-5, atol=1e-7)


def test_eigencam_of_a_constant_layer_is_zero_and_of_a_broken_one_not_a_number() -> None:
    values = torch.ones(2, 3, 4)
    values[1, 0, 0] = float("inf")
    line, share = principal(values)
    assert line[0].eq(0).all()
    assert share[0] == 0
    assert line[1].isnan().all()


def test_eigencam_says_how_much_it_shows_and_is_the_same_for_every_class() -> None:
    batch = prepared(network("pooled"))
    one, two = (EigenCAM().maps(batch, batch.bind(Target(f"class:{c}"))) for c in (0, 1))
    assert_close(one.values, two.values, rtol=0, atol=0)
    for panel in one.panels:
        assert isinstance(panel, Number)
        assert 0 < (panel.value or 0) <= 1
    assert batch.model.cost.backwards == 0


# --- FinerCAM ---
def test_finercam_without_rivals_in_the_balance_is_gradcam() -> None:
    known = case("flat")
    assert_close(known.maps(FinerCAM(alpha=0.0)), known.maps(GradCAM()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
@pytest.mark.parametrize("rivals", [1, 3, 99])
def test_finercam_against_its_definition(alpha: float, rivals: int) -> None:
    net = network("flat")
    batch = prepared(net)
    with torch.no_grad():
        a = net.trunk(batch.inputs)
    a.requires_grad_()
    logits = net.fc(a.flatten(1))
    scores = []
    for row in logits:
        far = (row - row[2]).abs().tolist()
        nearest = sorted((c for c in range(CLASSES) if c != 2), key=far.__getitem__)
        p = row.softmax(0)
        chosen = nearest[:rivals]
        scores.append(sum(p[d] * (row[2] - alpha * row[d]) for d in chosen) / sum(p[d] for d in chosen))
    (g,) = torch.autograd.grad(torch.stack(scores).sum(), a)
    found = FinerCAM(alpha=alpha, rivals=rivals).maps(batch, batch.bind(Target("class:2"))).values
    assert_close(found, (g.mean((2, 3), keepdim=True) * a).sum(1).detach(), rtol=1e-9, atol=1e-12)


def test_finercam_does_not_vanish_for_a_very_sure_model() -> None:
    logits = torch.zeros(1, CLASSES)
    logits[0, 2] = 60.0  # the rivals' probabilities are 1e-26, far below any additive guard
    logits.requires_grad_()
    bound = FinerCAM().contrast(logits.detach(), of_classes(torch.tensor([2]), ("sure",)))
    (slope,) = torch.autograd.grad(bound(logits).sum(), logits)
    assert_close(slope[0, 2], torch.tensor(1.0))


@pytest.mark.parametrize("target", ["class:1 - class:2", "callable"])
def test_finercam_needs_one_class(target: str) -> None:
    batch = prepared(network("pooled"))
    rule = Target("sum", lambda output: output.sum(1)) if target == "callable" else Target(target)
    with pytest.raises(XaiError, match=r"one class of several; got .* Use gradcam"):
        FinerCAM().maps(batch, batch.bind(rule))


def test_finercam_of_two_classes_has_one_rival() -> None:
    batch = prepared(network("pooled", classes=2))
    finer = FinerCAM().maps(batch, batch.bind(Target("class:1"))).values
    contrast = GradCAM().maps(batch, batch.bind(Target("class:1 - class:0"))).values
    assert_close(finer, contrast, rtol=1e-9, atol=1e-12)


def test_parameters_are_checked() -> None:
    with pytest.raises(XaiError, match=r"finercam\.rivals must be at least 1; got 0"):
        FinerCAM(rivals=0)
    with pytest.raises(XaiError, match=r"gradcam_plusplus\.epsilon must be at least 0"):
        GradCAMPlusPlus(epsilon=-1.0)


# --- what they cost ---
@pytest.mark.parametrize("method", SEVEN, ids=lambda m: m.__name__)
def test_planned_passes_are_counted_passes(method: type[Attribution]) -> None:
    model = model_of(network("pooled"))
    subject = Subject.of(model, load_images(pictures(3)))
    result = method()(subject)
    planned = method().cost(subject)
    assert (result.cost.forwards, result.cost.backwards) == (planned.forwards, planned.backwards)
    heat = [panel for panel in result.panels if panel.key == "map"]
    assert len(heat) == 3
    assert all(panel.values.dtype == np.float32 and panel.values.shape == (GRID, GRID) for panel in heat)


def test_one_forward_and_two_backwards_serve_all_seven() -> None:
    batch = prepared(network("pooled"))
    bound = batch.bind(Target("top1"))
    before = batch.model.cost.forwards
    batch.want("auto")
    for method in SEVEN:
        method().maps(batch, bound)
    assert batch.model.cost.backwards == 2 * len(batch)  # the score's, and FinerCAM's contrast
    assert batch.model.cost.forwards - before <= len(batch)


def test_nothing_below_the_layer_is_recorded() -> None:
    bound = prepared(network("pooled")).bind(Target("class:2"))
    batch = prepared(network("pooled"))
    batch.want("auto")
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        GradCAM().maps(batch, bound)
    assert kept  # by the head
    read = [shape for shape in kept if len(shape) == 4 and shape[1] in (3, 4)]
    assert read == []  # by the trunk's convolutions


def test_half_precision_is_summed_in_single() -> None:
    net = network("pooled").bfloat16()
    batch = prepared(net)
    bound = batch.bind(Target("top1"))
    for method in SEVEN:
        values = method().maps(batch, bound).values
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()


# --- agreement with pytorch-grad-cam ---
@pytest.fixture(scope="module")
def peers() -> Any:
    from xai.torchvision_import import ensure_torchvision

    ensure_torchvision()
    import pytorch_grad_cam

    return pytorch_grad_cam


def resnet18() -> tuple[nn.Module, str, str]:
    """Random weights, batch norms that do something, and the name of the layer."""
    from xai.torchvision_import import ensure_torchvision

    torch.manual_seed(0)
    net = ensure_torchvision().models.resnet18(num_classes=20)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return net.eval(), "layer4", "noise"


def squeezenet() -> tuple[nn.Module, str, str]:
    """Trained weights and two photographs."""
    weights = SHARED / "models" / "squeezenet1_0_imagenet.safetensors"
    if not weights.exists():
        pytest.skip("needs ../shared")
    from safetensors.torch import load_file

    from xai.torchvision_import import ensure_torchvision

    net = ensure_torchvision().models.squeezenet1_0()
    net.load_state_dict(load_file(str(weights)))
    return net.eval(), "features.12", str(SHARED / "images")


@pytest.fixture(scope="module", params=[resnet18, squeezenet], ids=["resnet18", "squeezenet1_0"])
def both(request: pytest.FixtureRequest, peers: Any) -> tuple[Batch, nn.Module, nn.Module, Any]:
    net, layer, source = request.param()
    images = load_images(pictures(2, 96)) if source == "noise" else load_images(source)[4:6]
    size = 96 if source == "noise" else 224
    model = Model(net, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], size=size, layer=layer)
    return next(model.prepare(images)), net, net.get_submodule(layer), peers


def theirs(name: str, net: nn.Module, layer: nn.Module, x: Tensor, targets: Any, peers: Any) -> np.ndarray:
    """The raw map (n, h, w), before their ReLU, scaling and resizing."""
    finer = name == "FinerCAM"
    outer = getattr(peers, name)(model=net, target_layers=[layer])
    try:
        final = outer(input_tensor=x, targets=None if finer else targets)
        cam = outer.base_cam if finer else outer
        kept = cam.activations_and_grads
        slopes = kept.gradients[0].numpy() if kept.gradients else None  # EigenCAM asks for none
        found = cam.get_cam_image(x, layer, targets, kept.activations[0].numpy(), slopes, False)
        scale = peers.utils.image.scale_cam_image
        scaled = scale(scale(np.maximum(found, 0), tuple(x.shape[:1:-1])))  # a layer's map, then the mean over layers
        np.testing.assert_allclose(final, scaled, atol=1e-6)  # so `found` is what leads to their answer
    finally:
        (outer.base_cam if finer else outer).activations_and_grads.release()
    return np.asarray(found)


@pytest.mark.parametrize(
    ("name", "method"),
    [("GradCAM", GradCAM()), ("GradCAMPlusPlus", GradCAMPlusPlus(epsilon=1e-6)), ("HiResCAM", HiResCAM()),
     ("XGradCAM", XGradCAM()), ("LayerCAM", LayerCAM()), ("EigenCAM", EigenCAM()), ("FinerCAM", FinerCAM())],
    ids=lambda value: value if isinstance(value, str) else "")
def test_agrees_with_pytorch_grad_cam(name: str, method: Attribution, both: Any) -> None:
    batch, net, layer, peers = both
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    bound = batch.bind(Target("top1"))
    targets = [ClassifierOutputTarget(int(c)) for c in bound.classes]
    ours = method.maps(batch, bound).values.numpy()
    found = theirs(name, net, layer, batch.inputs, targets, peers)
    for one, other in zip(ours, found, strict=True):
        if name == "EigenCAM":  # the sign of a singular vector is arbitrary there
            other = other * np.sign((one * other).sum())
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()
