"""Sobol, HSIC and Score-CAM: closed forms, definitions written out, and what peers compute."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from analyzers.attribution._cells import cells
from analyzers.attribution.hsic import HSIC, centred_kernel
from analyzers.attribution.scorecam import ScoreCAM, stretched
from analyzers.attribution.sobol import Sobol
from tests.gradient_nets import EXACT, batch_of, close_to_scale, conv_net, made, mapped, numbers, pictures
from xai.batch import Batch
from xai.errors import XaiError
from xai.model import Model
from xai.targets import Target


class Sums(nn.Module):
    """Class 1 is a polynomial of the means of the four quarters of a white picture on a black ground."""

    def __init__(self, *weights: float, pair: float = 0.0) -> None:
        super().__init__()
        self.weights, self.pair = torch.tensor(weights, dtype=torch.float64), pair

    def forward(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(x, 2).mean(1).flatten(1)
        score = means @ self.weights.to(x) + self.pair * means[:, 0] * means[:, 3]
        return torch.stack([torch.zeros_like(score), score], 1)


def white(net: nn.Module) -> Batch:
    """A picture of ones as the network takes it; hidden is 0."""
    model = Model(net, mean=[0.0] * 3, std=[1.0] * 3, size=8, precision="float64")
    return batch_of(model, np.ones((1, 3, 8, 8), dtype=np.float32))


# --- Sobol ---
def test_the_total_index_of_a_sum_is_each_parts_share_of_the_variance() -> None:
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0])
    found = mapped(Sobol(samples=1024, grid=2), white(Sums(*weights.tolist())))[0].flatten()
    expected = weights.square() / weights.square().sum()
    assert_close(found, expected, rtol=0, atol=0.01, check_dtype=False)
    assert found[3] == 0
    assert float(found.sum()) == pytest.approx(1, abs=0.01)


def test_cells_that_act_together_are_counted_with_each() -> None:
    """f = z0 + 2 z0 z3 on [0, 1]: Var f = 4/9 + ... by hand, and the parts of the variance that hold z0 or z3."""
    # E[f | z0] = 2 z0: variance 4/12. E[f | z3] = (1 + 2 z3) / 2: variance 1/12. The centred product: 4/144.
    alone0, alone3, both = 4 / 12, 1 / 12, 4 / 144
    total = alone0 + alone3 + both
    expected = torch.tensor([(alone0 + both) / total, 0, 0, (alone3 + both) / total])
    batch = white(Sums(1, 0, 0, 0, pair=2))
    found = mapped(Sobol(samples=2048, grid=2), batch)[0].flatten()
    assert_close(found, expected, rtol=0, atol=0.02, check_dtype=False)
    assert numbers(Sobol(samples=2048, grid=2), batch, "sum").item() == pytest.approx(float(expected.sum()), abs=0.02)


def test_sobol_is_jansens_formula_on_its_own_designs() -> None:
    model = made(conv_net(), size=12)
    batch = batch_of(model, pictures(1, size=12))
    analyzer, g = Sobol(samples=16, grid=3, baseline="grey"), batch.generator(0, "sobol")
    seed = int(torch.randint(2**31, (), generator=g))
    a, b = torch.quasirandom.SobolEngine(18, scramble=True, seed=seed).draw(16).double().chunk(2, 1)
    fill = model.preprocessing.constant(0.5)

    def score(z: Tensor) -> Tensor:
        mask = z.view(-1, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return model(fill + mask * (batch.inputs - fill))[:, 1]

    variance = torch.cat([score(a), score(b)]).var(unbiased=False)
    expected, spread = [], []
    for i in range(9):
        c = a.clone()
        c[:, i] = b[:, i]
        part = (score(a) - score(c)).square() / 2 / variance
        expected.append(part.mean())
        spread.append(part.std() / 4)
    found = analyzer.maps(batch, batch.bind(Target("class:1")))
    assert_close(found.values[0].flatten(), torch.stack(expected), rtol=1e-6, atol=1e-9)
    assert found.error is not None
    assert_close(found.error[0].flatten(), torch.stack(spread), rtol=1e-6, atol=1e-9)


def test_a_score_that_nothing_moves_has_no_indices() -> None:
    for analyzer in (Sobol(grid=2), HSIC(grid=2)):
        assert mapped(analyzer, white(Sums(0, 0, 0, 0))).abs().max() == 0


def test_sobol_wants_a_power_of_two() -> None:
    with pytest.raises(XaiError, match=r"sobol.samples must be a power of two; got 100\. .*take 32"):
        Sobol(samples=100)


# --- HSIC ---
def test_hsic_is_the_trace_of_its_definition() -> None:
    model = made(conv_net(), size=12)
    batch = batch_of(model, pictures(1, size=12))
    n = 40
    masks = (torch.rand(n, 9, generator=batch.generator(0, "hsic")).argsort(0).argsort(0) < n // 2).double()
    y = model(batch.inputs * masks.view(n, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3))[:, 1]
    gaps = (y[:, None] - y).abs()
    width = torch.stack([gaps[i, j] for i, j in itertools.combinations(range(n), 2)]).median()
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    kernel = torch.exp(-gaps.square() / (2 * width**2))
    expected = torch.stack([torch.trace((1.5 - (m[:, None] - m).square()) @ h @ kernel @ h) for m in masks.T]) / n**2
    assert_close(mapped(HSIC(samples=n, grid=3), batch)[0].flatten(), expected, rtol=1e-6, atol=1e-10)


def test_a_cell_that_does_not_matter_gets_what_chance_gives() -> None:
    batch = white(Sums(1, -2, 0, 0))
    found = mapped(HSIC(samples=512, grid=2), batch)[0].flatten()
    chance = numbers(HSIC(samples=512, grid=2), batch, "chance").item()
    assert found[0] > 10 * chance
    assert found[1] > 10 * chance
    assert float(found[2:].max()) < 6 * chance


def test_the_level_of_chance_is_the_mean_over_shuffles() -> None:
    g = torch.Generator().manual_seed(0)
    y, m = torch.randn(30, generator=g).double(), (torch.arange(30) % 2).double()
    kernel, values = centred_kernel(y), []
    for _ in range(4000):
        c = m[torch.randperm(30, generator=g)] - 0.5
        values.append(2 / 900 * c @ kernel @ c)
    expected = 2 / 900 * 0.25 * kernel.trace() * 30 / 29
    assert float(torch.stack(values).mean()) == pytest.approx(float(expected), rel=0.05)


def test_a_constant_on_the_score_changes_no_dependence() -> None:
    y = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    assert_close(centred_kernel(y + 7), centred_kernel(y), rtol=1e-9, atol=1e-9)
    assert_close(centred_kernel(y).sum(0), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-12)


def test_cells_cover_the_input_and_no_more_than_it_has() -> None:
    labels = cells(torch.zeros(3, 10, 7), 3)
    assert labels.unique().tolist() == list(range(9))
    assert labels[0, 0] == 0
    assert labels[-1, -1] == 8
    small = batch_of(made(conv_net()), pictures(1))
    assert mapped(HSIC(samples=64), small).shape == (1, 6, 6)
    assert mapped(Sobol(samples=16), small).shape == (1, 6, 6)


# --- Score-CAM ---
def scored(batch: Batch, layer: str, *, softmax: bool) -> Tensor:
    """One channel at a time, all by hand."""
    activations = batch.activations(layer)
    maps = []
    for x, channels in zip(batch.inputs, activations, strict=True):
        none, weights = batch.model(torch.zeros_like(x)[None])[0, 1], []
        for channel in channels:
            up = F.interpolate(channel[None, None], x.shape[1:], mode="bilinear")[0, 0]
            if up.max() == up.min():
                weights.append(none)
                continue
            weights.append(batch.model((x * (up - up.min()) / (up.max() - up.min()))[None])[0, 1])
        w = torch.stack(weights)
        w = w.softmax(0) if softmax else w - none
        maps.append((w[:, None, None] * channels).sum(0))
    return torch.stack(maps)


@pytest.mark.parametrize("layer", ["1", "4"])
def test_scorecam_is_its_definition_written_out(layer: str) -> None:
    batch = batch_of(made(conv_net(), size=12), pictures(2, size=12))
    close_to_scale(mapped(ScoreCAM(layer=layer), batch), scored(batch, layer, softmax=False), 1e-9)
    batch = batch_of(made(conv_net(), size=12), pictures(2, size=12))
    close_to_scale(mapped(ScoreCAM(layer=layer, weights="softmax"), batch), scored(batch, layer, softmax=True), 1e-9)


def test_a_dead_channel_costs_nothing_and_adds_nothing() -> None:
    net = conv_net()
    with torch.no_grad():
        net[0].bias[2:5] = -100.0  # type: ignore[union-attr, index, operator]  # a convolution's
    batch = batch_of(made(net, size=12), pictures(1, size=12))
    batch.want("1")
    before = batch.model.cost.forwards
    found = mapped(ScoreCAM(layer="1"), batch)
    assert batch.model.cost.forwards - before == 1 + 5 + 1
    close_to_scale(found, scored(batch, "1", softmax=False), 1e-9)


def test_masks_are_stretched_to_their_own_range() -> None:
    g = torch.Generator().manual_seed(0)
    masks = stretched(torch.randn(3, 4, 5, generator=g) * 100 - 7, (16, 20))
    assert masks.shape == (3, 1, 16, 20)
    assert_close(masks.amin((1, 2, 3)), torch.zeros(3), **EXACT)
    assert_close(masks.amax((1, 2, 3)), torch.ones(3), **EXACT)
