"""Saliency, input x gradient, SmoothGrad, VarGrad, expected gradients: identities, parity with captum, cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.attribution._gradients import Running, as_map, noisy
from analyzers.attribution.expected_gradients import ExpectedGradients
from analyzers.attribution.input_x_gradient import InputXGradient
from analyzers.attribution.saliency import Saliency
from analyzers.attribution.smoothgrad import SmoothGrad
from analyzers.attribution.vargrad import VarGrad
from tests.gradient_nets import EXACT, SHARED, batch_of, close_to_scale, conv_net, linear_net, made, mapped, pictures
from xai.attribution import Attribution
from xai.errors import XaiError
from xai.model import Model
from xai.subject import Subject
from xai.targets import Target
from xai.torchvision_import import ensure_torchvision
from xai.zoo.nets.photo20 import photo20

FEW: list[Attribution] = [Saliency(), InputXGradient(), SmoothGrad(samples=6), VarGrad(samples=6),
                          ExpectedGradients(samples=3), ExpectedGradients("noise", samples=3, reduce="max_abs")]


# --- closed forms ---
@pytest.mark.parametrize("reduce", ["max_abs", "sum", "sum_abs"])
def test_linear_network_gives_its_weights(reduce: str) -> None:
    net = linear_net()
    batch = batch_of(made(net), pictures())
    weights = net[1].weight.detach()[1].double().view(1, 3, 6, 6)
    expected = {"max_abs": weights.abs().amax(1), "sum": weights.sum(1), "sum_abs": weights.abs().sum(1)}[reduce]
    assert_close(mapped(Saliency(reduce), batch), expected.expand(2, 6, 6), **EXACT)
    product = batch.inputs * weights
    wanted = {"max_abs": product.abs().amax(1), "sum": product.sum(1), "sum_abs": product.abs().sum(1)}[reduce]
    assert_close(mapped(InputXGradient(reduce), batch), wanted, **EXACT)
    assert_close(mapped(SmoothGrad(samples=5, noise=0.7, reduce=reduce), batch), expected.expand(2, 6, 6), **EXACT)
    assert mapped(VarGrad(samples=5, noise=0.7, reduce=reduce), batch).abs().max() < 1e-20


def test_contrast_is_the_difference_of_weights() -> None:
    net = linear_net()
    batch = batch_of(made(net), pictures())
    weights = net[1].weight.detach().double().view(4, 3, 6, 6)
    found = mapped(Saliency("sum"), batch, "class:2 - class:0")
    assert_close(found[0], (weights[2] - weights[0]).sum(0), **EXACT)


def test_saliency_agrees_with_finite_differences() -> None:
    model = made(conv_net(activation=nn.Softplus))
    batch = batch_of(model, pictures(1))
    bound, found = batch.bind(Target("class:1")), mapped(Saliency("sum"), batch)
    for y, x in ((0, 0), (2, 3), (5, 4)):
        step = torch.zeros_like(batch.inputs)
        step[:, :, y, x] = 1e-4  # all channels at once, as the sum over channels of the gradient
        slope = (batch.score(batch.inputs + step, bound) - batch.score(batch.inputs - step, bound)) / 2e-4
        assert_close(found[0, y, x], slope[0], rtol=1e-6, atol=1e-9)


def test_input_x_gradient_adds_up_to_the_score_without_biases() -> None:
    batch = batch_of(made(conv_net(bias=False)), pictures())
    found = mapped(InputXGradient(), batch)
    assert_close(found.sum((1, 2)), batch.output()[:, 1], **EXACT)


def test_no_noise_is_saliency() -> None:
    batch = batch_of(made(conv_net()), pictures())
    plain = mapped(Saliency(), batch)
    assert_close(mapped(SmoothGrad(samples=1, noise=0), batch), plain, **EXACT)
    assert_close(mapped(SmoothGrad(samples=4, noise=0), batch), plain, **EXACT)
    assert_close(mapped(SmoothGrad(samples=2, noise=0, squared=True), batch), plain**2, **EXACT)
    assert not mapped(VarGrad(samples=4, noise=0), batch).any()


def test_mean_square_is_variance_plus_squared_mean() -> None:
    batch = batch_of(made(conv_net(channels=1, activation=nn.Softplus), channels=1), pictures(channels=1))
    mean, variance = mapped(SmoothGrad(samples=7, reduce="sum"), batch), mapped(VarGrad(samples=7), batch)
    assert variance.min() > 0
    assert_close(mapped(SmoothGrad(samples=7, squared=True), batch), variance + mean**2, **EXACT)


# --- against a slow version and captum; this in float64, as in float32 rounding decides some ReLUs otherwise ---
def test_smoothgrad_and_vargrad_equal_a_slow_loop() -> None:
    net = conv_net()
    batch = batch_of(made(net, precision="float32"), pictures())
    maps, spreads = [], []
    for i, x in enumerate(batch.inputs):
        g = batch.generator(i, "smoothgrad")
        found = []
        for _ in range(6):
            noise = torch.randn(x.shape, generator=g) * 0.2 * (x.max() - x.min())
            leaf = (x + noise)[None].requires_grad_()
            found.append(torch.autograd.grad(net(leaf)[0, 1], leaf)[0][0])
        maps.append(torch.stack(found).mean(0).abs().amax(0))
        spreads.append(torch.stack(found).var(0, unbiased=False).amax(0))
    close_to_scale(mapped(SmoothGrad(samples=6, noise=0.2), batch), torch.stack(maps))
    close_to_scale(mapped(VarGrad(samples=6, noise=0.2), batch), torch.stack(spreads))


@pytest.fixture(scope="module")
def resnet() -> Model:
    torch.manual_seed(0)
    net = ensure_torchvision().models.resnet18()
    return Model(net, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], size=64, precision="float64")


def test_parity_with_captum_on_resnet18(resnet: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    import captum.attr as captum

    batch = batch_of(resnet, ["sample:coffee", "sample:chelsea"])
    bound = batch.bind(Target())
    assert bound.classes is not None
    with resnet.opened() as net:
        x, classes = batch.inputs.clone().requires_grad_(), bound.classes
        plain = captum.Saliency(net).attribute(x, target=classes, abs=False)
        product = captum.InputXGradient(net).attribute(x, target=classes)
        sources = [batch.generator(i, "smoothgrad") for i in range(2)]
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in sources for _ in range(3)]).double()
        monkeypatch.setattr(torch, "normal", lambda mean, deviation: noise * deviation)
        spread = 0.1 * (x.detach()[0].max() - x.detach()[0].min())
        both = {kind: captum.NoiseTunnel(captum.Saliency(net)).attribute(
            x, nt_type=kind, nt_samples=3, stdevs=float(spread), target=classes, abs=False)
            for kind in ("smoothgrad", "smoothgrad_sq", "vargrad")}
    close_to_scale(Saliency().maps(batch, bound).values, plain.abs().amax(1))
    close_to_scale(InputXGradient().maps(batch, bound).values, product.sum(1))
    three: dict[str, Any] = {"samples": 3, "noise": 0.1, "reduce": "sum"}
    ours = {"smoothgrad": SmoothGrad(**three), "smoothgrad_sq": SmoothGrad(squared=True, **three),
            "vargrad": VarGrad(**three)}
    for kind, analyzer in ours.items():  # the first picture alone: captum's noise has one size for the whole batch
        close_to_scale(analyzer.maps(batch, bound).values[0], both[kind].detach()[0].sum(0))


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared")
def test_parity_with_captum_on_trained_weights() -> None:
    import captum.attr as captum
    from safetensors.torch import load_file

    net = ensure_torchvision().models.squeezenet1_0()
    net.load_state_dict(load_file(SHARED / "models" / "squeezenet1_0_imagenet.safetensors"))
    model = Model(net, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], size=160, precision="float64")
    batch = batch_of(model, SHARED / "images" / "n01440764_tench.jpg")
    bound = batch.bind(Target())
    with model.opened() as raw:
        x = batch.inputs.clone().requires_grad_()
        plain = captum.Saliency(raw).attribute(x, target=bound.classes)
        product = captum.InputXGradient(raw).attribute(x, target=bound.classes)
    close_to_scale(Saliency().maps(batch, bound).values, plain.amax(1))
    close_to_scale(InputXGradient().maps(batch, bound).values, product.sum(1))


# --- expected gradients ---
def test_expected_gradients_of_one_baseline_on_a_linear_network(tmp_path: Path) -> None:
    grey = np.full((6, 6, 3), 51, np.uint8)
    Pil.fromarray(grey).save(tmp_path / "grey.png")
    net = linear_net()
    batch = batch_of(made(net), pictures())
    weights = net[1].weight.detach()[1].double().view(3, 6, 6)
    start = (51 / 255 - 0.4) / 0.3
    for samples in (1, 4):
        maps = ExpectedGradients(str(tmp_path), samples=samples).maps(batch, batch.bind(Target("class:1")))
        assert_close(maps.values, (weights * (batch.inputs - start)).sum(1), rtol=1e-6, atol=1e-6)  # float32 pictures
        assert (maps.error is None) == (samples == 1)
    assert maps.error is not None
    assert maps.error.max() < 1e-9


@pytest.mark.parametrize("baselines", ["colours", "noise"])
def test_expected_gradients_converge_within_their_standard_error(baselines: str) -> None:
    """On a linear network the expectation is known: the mean baseline is mid-grey."""
    net = linear_net()
    batch = batch_of(made(net), pictures(1))
    weights = net[1].weight.detach()[1].double().view(3, 6, 6)
    maps = ExpectedGradients(baselines, samples=400).maps(batch, batch.bind(Target("class:1")))
    expected = (weights * (batch.inputs - (0.5 - 0.4) / 0.3)).sum(1)
    assert maps.error is not None
    off = (maps.values - expected) / maps.error
    assert off.abs().max() < 5
    assert 0.1 < off.square().mean() < 3  # neither too small nor too large an error


def test_expected_gradients_equal_a_slow_loop() -> None:
    net = conv_net()
    batch = batch_of(made(net, precision="float32"), pictures())
    total = []
    for i, x in enumerate(batch.inputs):
        g = batch.generator(i, "expected_gradients")
        found = []
        for _ in range(5):
            start = ((torch.rand((3, 1, 1), generator=g) - 0.4) / 0.3).expand_as(x)
            place = torch.rand((1, 1, 1), generator=g)
            leaf = (start + place * (x - start))[None].requires_grad_()
            found.append(((x - start) * torch.autograd.grad(net(leaf)[0, 1], leaf)[0][0]).sum(0))
        total.append(torch.stack(found))
    maps = ExpectedGradients(samples=5).maps(batch, batch.bind(Target("class:1")))
    close_to_scale(maps.values, torch.stack([t.mean(0) for t in total]))
    assert maps.error is not None
    close_to_scale(maps.error, torch.stack([t.std(0) / 5**0.5 for t in total]), 1e-4)


def test_expected_gradients_refuse_baselines_of_another_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "nothing.npy", np.zeros(3))
    batch = batch_of(made(linear_net()), pictures(1))
    with pytest.raises(XaiError, match="must be"):
        mapped(ExpectedGradients(str(tmp_path / "absent.png"), samples=1), batch)


# --- determinism, cost, traces ---
@pytest.mark.parametrize("analyzer", FEW, ids=lambda a: f"{a.name()}-{a.parameters()['reduce']}")
def test_batch_chunk_and_order_change_nothing_but_rounding(analyzer: Attribution) -> None:
    many = pictures(3)
    model = made(conv_net(), precision="float32")
    together = mapped(analyzer, batch_of(model, many, chunk=8))
    apart = torch.cat([mapped(analyzer, batch_of(model, one[None], chunk=1)) for one in many])
    backwards = mapped(analyzer, batch_of(model, many[::-1].copy(), chunk=3))
    close_to_scale(apart, together)
    close_to_scale(backwards.flip(0), together)


def test_draws_are_identical_in_any_batch() -> None:
    many = pictures(3)
    model = made(conv_net(), precision="float32")
    whole, last = batch_of(model, many), batch_of(model, many[2:])
    for method in ("smoothgrad", "expected_gradients"):
        a, b, c = whole.generator(2, method), last.generator(0, method), whole.generator(0, method)
        for _ in range(3):
            draw = torch.rand(5, generator=a)
            assert torch.equal(draw, torch.rand(5, generator=b))
            assert not torch.equal(draw, torch.rand(5, generator=c))
    one, two = noisy(whole, "smoothgrad", 0.1), noisy(last, "smoothgrad", 0.1)
    points = [(one(2, k), two(0, k)) for k in range(3)]
    assert all(torch.equal(p, q) for p, q in points)
    assert not torch.equal(points[0][0], points[1][0])


@pytest.mark.parametrize("analyzer", FEW[2:], ids=lambda a: f"{a.name()}-{a.parameters()['reduce']}")
def test_with_the_same_chunk_a_picture_alone_is_equal_to_the_bit(analyzer: Attribution) -> None:
    many = pictures(3)
    model = made(conv_net(), precision="float32")
    together = mapped(analyzer, batch_of(model, many, chunk=4))
    apart = torch.cat([mapped(analyzer, batch_of(model, one[None], chunk=4)) for one in many])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("analyzer", FEW, ids=lambda a: f"{a.name()}-{a.parameters()['reduce']}")
def test_planned_cost_is_the_counted_cost_and_nothing_stays_behind(analyzer: Attribution) -> None:
    net = photo20()
    model = Model(net, mean=[0.5] * 3, std=[0.25] * 3, size=64)
    before = {name: (p.requires_grad, p.grad) for name, p in net.named_parameters()}
    subject = Subject.of(model, ["sample:coffee", "sample:rocket"], target="top1")
    result = analyzer(subject)
    planned = analyzer.cost(subject)
    assert (result.cost.forwards, result.cost.backwards) == (planned.forwards, planned.backwards)
    assert net.training
    assert {name: (p.requires_grad, p.grad) for name, p in net.named_parameters()} == before
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(v.passed for v in result.verdicts if v.name in ("finite", "not constant"))
    maps = [p for p in result.panels if p.key == "map"]
    assert [p.values.shape for p in maps] == [(64, 64)] * 2
    assert all(p.values.dtype == np.float32 for p in maps)


def test_maps_are_float32_for_a_float32_model() -> None:
    batch = batch_of(made(conv_net(), precision="float32"), pictures())
    assert {mapped(a, batch).dtype for a in FEW} == {torch.float32}


def test_a_mask_target_keeps_its_own_region_of_each_picture() -> None:
    """Its region belongs to a picture and goes with it into every forward."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    batch = batch_of(made(net), pictures(), chunk=8)
    bound = batch.bind(Target("mask:1"))
    region = (batch.output().argmax(1) == 1).double()
    with torch.enable_grad():
        leaf = batch.inputs.clone().requires_grad_()
        expected = torch.autograd.grad((net(leaf)[:, 1] * region).sum(), leaf)[0].abs().amax(1)
    assert_close(SmoothGrad(samples=3, noise=0).maps(batch, bound).values, expected, **EXACT)


def test_a_network_without_gradient_is_refused() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().mean((2, 3))

    batch = batch_of(Model(Cut(), mean=[0.5] * 3, std=[0.5] * 3, size=6), pictures())
    for analyzer in FEW:
        with pytest.raises(XaiError, match="only forwards"):
            mapped(analyzer, batch)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"noise": -1.0}, {"reduce": "mean"}])
def test_wrong_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(XaiError, match=next(iter(wrong))):
        SmoothGrad(**wrong)


# --- the parts ---
@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=12))
def test_running_moments_equal_those_of_the_whole(rows: list[list[float]]) -> None:
    values, total = torch.tensor(rows, dtype=torch.float64), Running()
    for row in values:
        total.add(row)
    scale = max(1.0, values.abs().max().item())
    assert_close(total.mean, values.mean(0), rtol=0, atol=1e-12 * scale)
    assert_close(total.variance(), values.var(0, unbiased=False), rtol=1e-9, atol=1e-12 * scale**2)
    if len(rows) > 1:
        assert_close(total.standard_error(), values.std(0) / len(rows) ** 0.5, rtol=1e-6, atol=1e-9 * scale)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_reductions_bound_each_other(seed: int, channels: int) -> None:
    values = torch.randn(2, channels, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    batch = batch_of(made(linear_net()), pictures())
    signed, largest, total = (as_map(values, how, batch) for how in ("sum", "max_abs", "sum_abs"))
    assert (signed.abs() <= total + 1e-12).all()
    assert (largest <= total + 1e-12).all()
    assert (total <= channels * largest + 1e-12).all()


@pytest.mark.parametrize("kind", [Saliency, InputXGradient, SmoothGrad, VarGrad, ExpectedGradients])
def test_every_parameter_has_help(kind: type[Attribution]) -> None:
    assert all(len(f.metadata["help"]) > 10 for f in dataclasses.fields(kind))
    assert all(kind.section(word) for word in ("Reads", "Yields", "Raises", "Cost", "Reference"))
