"""Integrated gradients: closed forms, completeness, baselines, parity with captum, determinism, cost."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.attribution.input_x_gradient import InputXGradient
from analyzers.attribution.integrated_gradients import IntegratedGradients
from tests.gradient_nets import EXACT, SHARED, batch_of, close_to_scale, conv_net, linear_net, made, mapped, pictures
from xai.baselines import baseline, blurred
from xai.batch import Batch
from xai.errors import XaiError
from xai.images import load_images
from xai.model import Model
from xai.panels import Number
from xai.subject import Subject
from xai.targets import Target
from xai.torchvision_import import ensure_torchvision
from xai.zoo.nets.photo20 import photo20


def numbers(batch: Batch, analyzer: IntegratedGradients, key: str) -> list[float | None]:
    panels = analyzer.maps(batch, batch.bind(Target("class:1"))).panels
    found = [p for p in panels if isinstance(p, Number) and p.key == key]
    assert [p.picture for p in found] == list(batch.hashes)
    return [p.value for p in found]


# --- closed forms ---
@given(level=st.floats(0, 1), steps=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_linear_network_is_exact_with_any_number_of_steps(level: float, steps: int) -> None:
    net = linear_net()
    batch = batch_of(made(net), pictures())
    weights = net[1].weight.detach()[1].double().view(3, 6, 6)
    way = batch.inputs - (level - 0.4) / 0.3
    analyzer = IntegratedGradients(level, steps)
    assert_close(mapped(analyzer, batch), (weights * way).sum(1), rtol=1e-6, atol=1e-6)  # the level is float32
    gaps = numbers(batch, analyzer, "completeness_gap")
    assert all(gap is not None and abs(gap) < 1e-9 for gap in gaps)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_without_biases_zero_baseline_is_input_x_gradient(steps: int) -> None:
    batch = batch_of(made(conv_net(bias=False)), pictures())
    for reduce in ("sum", "max_abs"):
        found = mapped(IntegratedGradients("zero", steps, reduce), batch)
        assert_close(found, mapped(InputXGradient(reduce), batch), **EXACT)


def test_one_step_is_the_gradient_half_way() -> None:
    net = conv_net()
    batch = batch_of(made(net), pictures())
    leaf = (batch.inputs / 2).requires_grad_()
    middle = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)[0]
    assert_close(mapped(IntegratedGradients("zero", steps=1), batch), (batch.inputs * middle).sum(1), **EXACT)


def test_polynomial_is_integrated_exactly() -> None:
    """n Gauss-Legendre points are exact for a gradient of degree 2n - 1 along the way: three for the fifth power."""
    class Power(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x**6).sum((1, 2, 3))[:, None].repeat(1, 2)

    batch = batch_of(Model(Power(), mean=[0.4] * 3, std=[0.3] * 3, size=6, precision="float64"), pictures())
    assert_close(mapped(IntegratedGradients("zero", steps=3), batch), (batch.inputs**6).sum(1), **EXACT)
    off = mapped(IntegratedGradients("zero", steps=2), batch) - (batch.inputs**6).sum(1)
    assert off.abs().max() > 1e-3


# --- completeness ---
@pytest.mark.parametrize("start", ["black", "zero", "white", "blur", 0.3])
def test_completeness_of_a_smooth_network(start: str | float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softplus(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(),
                        nn.Linear(32, 4))
    batch = batch_of(made(net), pictures())
    analyzer = IntegratedGradients(start, steps=12)
    maps = analyzer.maps(batch, batch.bind(Target("class:1")))
    begin = baseline(batch, start, "integrated_gradients")
    rise = batch.output()[:, 1] - batch.model(begin)[:, 1]
    assert rise.abs().min() > 1e-5
    assert_close(maps.values.sum((1, 2)), rise, **EXACT)
    gaps = numbers(batch, analyzer, "completeness_gap")
    assert max(abs(gap or 0) for gap in gaps) < 1e-9


def test_the_gap_is_reported_as_it_is() -> None:
    batch = batch_of(made(conv_net()), pictures())
    analyzer = IntegratedGradients(steps=2)
    rise = batch.output()[:, 1] - batch.model(baseline(batch, "black", "ig"))[:, 1]
    missed = mapped(analyzer, batch).sum((1, 2)) - rise
    assert missed.abs().min() > 1e-6
    assert_close(torch.tensor(numbers(batch, analyzer, "completeness_gap"), dtype=torch.float64), missed, **EXACT)
    shares = torch.tensor(numbers(batch, analyzer, "completeness"), dtype=torch.float64)
    assert_close(shares, missed.abs() / rise.abs(), **EXACT)


def test_completeness_is_reported_whatever_the_reduction() -> None:
    batch = batch_of(made(conv_net()), pictures())
    signed, largest = (IntegratedGradients(steps=5, reduce=r) for r in ("sum", "max_abs"))
    assert numbers(batch, signed, "completeness") == numbers(batch, largest, "completeness")


def test_no_rise_has_no_relative_gap() -> None:
    batch = batch_of(made(linear_net()), np.full((1, 3, 6, 6), 0.5, np.float32))
    assert numbers(batch, IntegratedGradients("grey", steps=2), "completeness") == [None]


# --- baselines ---
def test_flat_baselines_are_flat_in_pixel_units() -> None:
    batch = batch_of(made(linear_net()), pictures())
    for name, level in (("black", 0.0), ("grey", 0.5), ("white", 1.0), ("0.25", 0.25), (0.75, 0.75)):
        found = baseline(batch, name, "integrated_gradients")
        assert found.shape == batch.inputs.shape
        assert_close(found * 0.3 + 0.4, torch.full_like(found, level), rtol=0, atol=1e-6)
    assert not baseline(batch, "zero", "integrated_gradients").any()


def test_blur_keeps_flat_pictures_and_the_mean_and_reduces_detail() -> None:
    flat = torch.full((1, 2, 9, 7), 0.7, dtype=torch.float64)
    assert_close(blurred(flat, 2.0), flat, **EXACT)
    noise = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert blurred(noise, 3.0).std() < 0.2 * noise.std()
    spot = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    spot[..., 16, 16] = 1
    found, place = blurred(spot, 2.0)[0, 0], torch.arange(33.0) - 16
    assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)
    assert_close((found.sum(0) * place**2).sum().sqrt(), torch.tensor(2.0, dtype=torch.float64), rtol=0.02, atol=0)


@pytest.mark.parametrize("wrong", ["blackish", 1.5, "-0.1", "nan"])
def test_wrong_baselines_are_refused(wrong: str | float) -> None:
    with pytest.raises(XaiError, match=re.escape("integrated_gradients.baseline must be black, zero")):
        IntegratedGradients(wrong)


def test_flat_baseline_needs_the_normalisation() -> None:
    model = Model(linear_net(), size=6)
    batch = next(model.prepare(load_images(torch.from_numpy(pictures()), normalised=True)))
    with pytest.raises(XaiError, match="baseline zero"):
        mapped(IntegratedGradients(), batch)
    assert mapped(IntegratedGradients("zero", steps=1), batch).abs().max() > 0


# --- parity: in float64, as in float32 the rounding of a step decides some ReLUs and poolings otherwise ---
def test_parity_with_captum_on_resnet18() -> None:
    from captum.attr import IntegratedGradients as Captum

    torch.manual_seed(0)
    model = Model(ensure_torchvision().models.resnet18(), mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
                  size=64, precision="float64")
    batch = batch_of(model, ["sample:coffee", "sample:chelsea"])
    bound = batch.bind(Target())
    for start in ("zero", "black"):
        begin = baseline(batch, start, "integrated_gradients")
        with model.opened() as net:
            theirs = Captum(net).attribute(batch.inputs.clone(), begin, target=bound.classes, n_steps=5).detach()
        close_to_scale(IntegratedGradients(start, steps=5).maps(batch, bound).values, theirs.sum(1))


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared")
def test_parity_and_completeness_on_trained_weights() -> None:
    from captum.attr import IntegratedGradients as Captum
    from safetensors.torch import load_file

    net = ensure_torchvision().models.squeezenet1_0()
    net.load_state_dict(load_file(SHARED / "models" / "squeezenet1_0_imagenet.safetensors"))
    model = Model(net, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], size=128, precision="float64")
    batch = batch_of(model, SHARED / "images" / "n01440764_tench.jpg")
    bound, begin = batch.bind(Target()), baseline(batch, "black", "integrated_gradients")
    with model.opened() as raw:
        theirs = Captum(raw).attribute(batch.inputs.clone(), begin, target=bound.classes, n_steps=20).detach()
    maps = IntegratedGradients(steps=20).maps(batch, bound)
    close_to_scale(maps.values, theirs.sum(1))
    gap = maps.panels[0]
    assert isinstance(gap, Number)
    assert gap.value is not None
    assert gap.value < 0.05


# --- determinism, cost, traces ---
@pytest.mark.parametrize("start", ["black", "blur"])
def test_batch_chunk_and_order_change_nothing_but_rounding(start: str) -> None:
    many = pictures(3)
    model = made(conv_net(), precision="float32")
    analyzer = IntegratedGradients(start, steps=5)
    together = mapped(analyzer, batch_of(model, many, chunk=7))
    apart = torch.cat([mapped(analyzer, batch_of(model, one[None], chunk=1)) for one in many])
    backwards = mapped(analyzer, batch_of(model, many[::-1].copy(), chunk=3))
    close_to_scale(apart, together)
    close_to_scale(backwards.flip(0), together)


def test_planned_cost_is_the_counted_cost_and_nothing_stays_behind() -> None:
    net = photo20()
    model = Model(net, mean=[0.5] * 3, std=[0.25] * 3, size=64)
    subject = Subject.of(model, ["sample:coffee", "sample:rocket"])
    analyzer = IntegratedGradients(steps=7)
    result = analyzer(subject)
    planned = analyzer.cost(subject)
    assert (result.cost.forwards, result.cost.backwards) == (planned.forwards, planned.backwards) == (18, 14)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in net.modules())
    assert {p.key for p in result.panels} >= {"map", "completeness", "completeness_gap"}


def test_record_survives_the_disk(tmp_path: Path) -> None:
    from xai.result import Result

    model = Model(photo20(), mean=[0.5] * 3, std=[0.25] * 3, size=64)
    result = IntegratedGradients(0.5, steps=2)(Subject.of(model, "sample:coffee"))
    result.save(tmp_path / "record")
    again = Result.load(tmp_path / "record")
    assert again.parameters == {"baseline": 0.5, "steps": 2, "reduce": "sum"}
    value = next(p for p in again.panels if p.key == "completeness")
    assert isinstance(value, Number)
    assert value.value == next(p for p in result.panels if p.key == "completeness").value  # type: ignore[union-attr]
