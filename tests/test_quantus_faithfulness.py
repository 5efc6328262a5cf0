"""Agreement with Quantus where its conventions are these, and what its conventions are where they are not."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.evaluation.infidelity import errors
from analyzers.evaluation.mu_fidelity import pearson
from tests.gradient_nets import batch_of, conv_net, made, pictures
from xai.batch import Batch
from xai.removal import Course, area, imputed, in_steps, kept, order, walked
from xai.sampler import Sampler
from xai.targets import Target

quantus = pytest.importorskip("quantus", reason="needs quantus 0.6")

SIZE = 12
QUIET: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Quantus calls np.trapz, which numpy 2.4 has as np.trapezoid alone, and draws from numpy's global numbers."""
    state = np.random.get_state()
    if not hasattr(np, "trapz"):
        monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    np.random.set_state(state)


class Doubled(nn.Module):
    """Takes the float32 that Quantus hands over and answers in double precision."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x.double())
        return found


def setting(n: int = 2, channels: int = 3) -> tuple[nn.Module, Batch, Tensor, np.ndarray]:
    """Network, batch, maps (n, H, W) without ties, and the predicted classes."""
    net = conv_net(channels=channels)
    net[-1].weight.data *= 20
    source = pictures(n, SIZE, channels=channels)
    with torch.no_grad():  # all classes near one another, so that what is removed decides
        net[-1].bias -= net.double()((torch.from_numpy(source).double() - 0.4) / 0.3).mean(0)
    batch = batch_of(made(net, size=SIZE, channels=channels), source)
    maps = torch.stack([torch.randperm(SIZE**2, generator=torch.Generator().manual_seed(k)).view(SIZE, SIZE) + 1
                        for k in range(n)]).double() / SIZE**2
    return Doubled(net.double()).eval(), batch, maps, batch.output().argmax(1).numpy()


def asked(metric: Any, net: nn.Module, batch: Batch, maps: np.ndarray, classes: np.ndarray, **more: Any) -> Any:
    with contextlib.redirect_stdout(None):
        return metric(model=net, x_batch=batch.inputs.numpy(), y_batch=classes, a_batch=maps, device="cpu", **more)


def rank(values: Tensor) -> Tensor:
    return order(values, torch.Generator().manual_seed(0))


def test_pixel_flipping_moves_channels_there_and_pixels_here() -> None:
    """Its features are the values of single channels, and its curve begins after the first step. With a map of which
    all channels of a pixel come together, three features are one pixel, and the curves are the same."""
    net, batch, maps, classes = setting()
    spread = np.repeat(maps.numpy()[:, None], 3, 1) - np.arange(3)[None, :, None, None] * 1e-4 / SIZE**2
    metric = quantus.PixelFlipping(features_in_step=3 * 8, perturb_baseline=0.0, normalise=False, **QUIET)
    theirs = asked(metric, net, batch, spread, classes, softmax=True)
    auc = quantus.PixelFlipping(features_in_step=3 * 8, perturb_baseline=0.0, normalise=False,
                                return_auc_per_sample=True, **QUIET)
    areas = asked(auc, net, batch, spread, classes, softmax=True)
    for i in range(2):
        sampler = Sampler(batch, i, [batch.bind(Target("top1"))], "probability")
        fill = torch.zeros_like(sampler.x)
        ours = walked(sampler, [Course(rank(maps[i]), sampler.x, fill, in_steps(SIZE**2, 8))])[0][:, 0]
        assert_close(ours[1:], torch.tensor(theirs[i], dtype=torch.float64), **CLOSE)
        assert float(ours.std()) > 1e-3
        assert areas[i] == pytest.approx(float(area(ours[1:])) * (len(ours) - 2), rel=1e-5)  # width 1 a step


def test_road_removes_the_same_pixels_and_counts_whether_the_class_is_kept() -> None:
    """Its score is the share of pictures that keep their class at each percentage, most relevant first alone. With
    several channels it repeats the map for each and then indexes pixels by the places of channel values, which raises
    IndexError: the comparison is on grey pictures."""
    net, batch, maps, classes = setting(4, channels=1)
    metric = quantus.ROAD(noise=0.0, normalise=False, **QUIET)
    theirs = asked(metric, net, batch, maps.numpy()[:, None], classes)
    for percentage in range(1, 100, 2):
        held = []
        for i in range(4):
            missing = torch.zeros(SIZE**2, dtype=torch.bool)
            missing[rank(maps[i])[: int(SIZE**2 * percentage / 100)]] = True
            sampler = Sampler(batch, i, [kept(torch.from_numpy(classes), i)])
            held.append(float(sampler.scores(imputed(sampler.x, missing.view(SIZE, SIZE), 0.0)[None])))
        assert theirs[percentage] == pytest.approx(np.mean(held))
    assert len(theirs) == 50
    assert len(set(theirs.values())) > 1  # some class is lost on the way


@pytest.mark.parametrize("share", [0.1, 0.7, 0.99])
def test_the_imputation_is_theirs(share: float) -> None:
    from quantus.functions.perturb_func import noisy_linear_imputation

    x = np.random.default_rng(0).normal(size=(3, SIZE, SIZE))
    holes = np.random.default_rng(1).permutation(SIZE**2)[: int(share * SIZE**2)]
    missing = torch.zeros(SIZE**2, dtype=torch.bool)
    missing[torch.from_numpy(holes)] = True
    ours = imputed(torch.from_numpy(x), missing.view(SIZE, SIZE), 0.0)
    assert_close(ours, torch.from_numpy(noisy_linear_imputation(x, holes, noise=0.0)), rtol=1e-9, atol=1e-9)


def test_faithfulness_correlation_is_mu_fidelity_over_channel_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is Pearson's correlation of Bhatt et al.; its sets are values of single channels, drawn by numpy's global
    generator, and its map is divided by its maximum first (which moves no correlation)."""
    net, batch, maps, classes = setting(1)
    drawn: list[np.ndarray] = []
    choose = np.random.choice

    def watched(*args: Any, **more: Any) -> np.ndarray:
        drawn.append(choose(*args, **more))
        return drawn[-1]

    monkeypatch.setattr(np.random, "choice", watched)
    metric = quantus.FaithfulnessCorrelation(nr_runs=40, subset_size=100, perturb_baseline=0.0, return_aggregate=False,
                                             **QUIET)
    theirs = asked(metric, net, batch, maps.numpy()[:, None], classes, softmax=False)
    whole = maps[0].expand(3, -1, -1).flatten()
    sampler = Sampler(batch, 0, [batch.bind(Target("top1"))])
    hidden = torch.zeros(len(drawn), 3 * SIZE**2, dtype=torch.bool)
    for row, chosen in zip(hidden, drawn, strict=True):
        row[torch.from_numpy(chosen)] = True
    scores = sampler.scores(torch.where(hidden, 0.0, sampler.x.flatten()).view(-1, *sampler.x.shape))[:, 0]
    assert len(drawn) == 40
    assert theirs[0] == pytest.approx(pearson(hidden.double() @ whole, sampler.here[0] - scores), abs=1e-5)


def test_infidelity_adds_one_block_after_the_other_there() -> None:
    """Its blocks are hidden one after the other and stay hidden, in rows of the picture, always the same ones (ten
    "samples" are ten times the same number); its map holds sensitivities, spread over the channels."""
    net, batch, maps, classes = setting()
    metric = quantus.Infidelity(perturb_patch_sizes=[4], n_perturb_samples=2, perturb_baseline=0.0, **QUIET)
    theirs = asked(metric, net, batch, maps.numpy()[:, None], classes)
    rows = torch.arange(SIZE) // 4
    blocks = (rows[:, None] * 3 + rows).flatten().argsort(stable=True)
    for i in range(2):
        sampler = Sampler(batch, i, [batch.bind(Target("top1"))])
        counts = tuple(range(16, SIZE**2 + 1, 16))
        scores = walked(sampler, [Course(blocks, sampler.x, torch.zeros_like(sampler.x), counts)])[0][:, 0]
        said = (maps[i] * sampler.x.sum(0)).flatten()[blocks].view(-1, 16).sum(1).cumsum(0)
        found = errors(said, sampler.here[0] - scores, torch.ones(9, dtype=torch.float64))
        assert float(found[0]) == pytest.approx(theirs[i], rel=1e-5)
        assert not math.isnan(theirs[i])
