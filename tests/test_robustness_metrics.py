"""Max-sensitivity, seed spread and disagreement: closed forms, the law of large numbers, what is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from analyzers.attribution.gradcam import GradCAM
from analyzers.attribution.input_x_gradient import InputXGradient
from analyzers.attribution.saliency import Saliency
from analyzers.attribution.smoothgrad import SmoothGrad
from analyzers.evaluation.disagreement import Disagreement
from analyzers.evaluation.max_sensitivity import MaxSensitivity
from analyzers.evaluation.seed_spread import SeedSpread
from tests.gradient_nets import batch_of, conv_net, linear_net, made, pictures
from xai.analyzer import Maps
from xai.attribution import Attribution
from xai.batch import Batch
from xai.controls import Centre, Random, Sobel
from xai.errors import XaiError
from xai.images import load_images
from xai.metric import Metric, Scored, case_of
from xai.model import Model
from xai.panels import Matrix, Table, Text
from xai.result import Result
from xai.subject import Subject, as_targets
from xai.targets import Bound, Target

STEP = 2e-3  # maps are judged in float16 steps of their maximum


def scored(metric: Metric, method: Attribution, batch: Batch) -> Scored:
    return metric.score(case_of(method, batch, batch.bind(Target("class:1"))))


@pytest.fixture
def linear() -> Batch:
    return batch_of(made(linear_net(channels=1), channels=1), pictures(3, channels=1))


# --- max-sensitivity ---
def test_the_gradient_of_a_linear_network_never_moves(linear: Batch) -> None:
    for values in scored(MaxSensitivity(), Saliency(), linear).values.values():
        assert torch.equal(values, torch.zeros(3).double())


def test_input_x_gradient_of_a_linear_network_has_its_closed_form(linear: Batch) -> None:
    metric = MaxSensitivity(samples=7, radius=0.3)
    found = scored(metric, InputXGradient(), linear)
    draws, shape = [linear.generator(i, "max_sensitivity") for i in range(3)], linear.inputs.shape[1:]
    assert linear.model._module is not None
    w = linear.model._module[1].weight[1].detach().view(shape)
    expected = torch.empty(3, 7, dtype=torch.float64)
    for k in range(7):
        for i in range(3):
            e = 0.3 * (2 * torch.rand(shape, generator=draws[i]) - 1)
            expected[i, k] = (w * e).norm() / (w * linear.inputs[i]).norm()
    assert_close(found.traces["changes"], expected, rtol=0.02, atol=STEP)
    assert_close(found.values["max"], expected.amax(1), rtol=0.02, atol=STEP)
    assert_close(found.values["mean"], expected.mean(1), rtol=0.02, atol=STEP)
    assert (found.values["max"] > found.values["mean"]).all()


def test_no_noise_is_no_change_also_for_a_method_that_draws() -> None:
    batch = batch_of(made(conv_net(), precision="float32"), pictures())
    for method in (GradCAM(), SmoothGrad(samples=4), Sobel()):
        found = scored(MaxSensitivity(radius=0.0, samples=2), method, batch)
        assert torch.equal(found.values["max"], torch.zeros(2).double()), "the same seed draws the same numbers"


def test_controls_move_with_the_picture_or_not_at_all() -> None:
    batch = batch_of(made(conv_net()), pictures())
    assert (scored(MaxSensitivity(samples=2), Sobel(), batch).values["mean"] > 0).all()
    for still in (Random(), Centre()):
        assert torch.equal(scored(MaxSensitivity(samples=2), still, batch).values["max"], torch.zeros(2).double())


def test_more_noise_moves_more(linear: Batch) -> None:
    small, large = (scored(MaxSensitivity(radius=r), InputXGradient(), linear).values["mean"] for r in (0.1, 0.4))
    assert_close(large / small, torch.full((3,), 4.0).double(), rtol=0.05, atol=0)


@dataclass(frozen=True)
class Breaking(Attribution):
    """A map that is no number once the picture has moved."""

    def maps(self, batch: Batch, target: Bound) -> Maps:
        moved = batch.inputs.amax() > 2.1
        return Maps(torch.full((len(batch), 4, 4), float("nan") if moved else 1.0) * torch.arange(4.0))


def test_a_map_that_breaks_has_no_score() -> None:
    found = scored(MaxSensitivity(radius=50.0, samples=2), Breaking(), batch_of(made(conv_net()), pictures()))
    assert torch.isnan(found.values["max"]).all()


# --- seed spread ---
def test_a_method_that_draws_nothing_has_no_spread() -> None:
    batch = batch_of(made(conv_net()), pictures())
    for method in (Saliency(), GradCAM(), Sobel(), Centre()):
        found = scored(SeedSpread(), method, batch)
        assert torch.equal(found.values["spread"], torch.zeros(2).double())
        assert torch.equal(found.values["likeness"], torch.ones(2).double())
    assert (scored(SeedSpread(), Random(), batch).values["spread"] > 0.3).all()


@dataclass(frozen=True)
class Mean(Attribution):
    """1 plus the mean of n draws of unit variance."""

    n: int = 1

    def maps(self, batch: Batch, target: Bound) -> Maps:
        return Maps(torch.stack([1 + torch.randn(self.n, 20, 20, generator=batch.generator(i, "mean")).mean(0)
                                 for i in range(len(batch))]))


def test_the_spread_of_a_mean_is_what_statistics_says() -> None:
    batch = batch_of(made(conv_net()), pictures(4))
    for n in (4, 64):
        found = scored(SeedSpread(seeds=4), Mean(n), batch).values["spread"].mean()
        assert found.item() == pytest.approx((2 / n / (1 + 1 / n)) ** 0.5, rel=0.1)


def test_the_spread_of_smoothgrad_falls_as_one_over_the_root_of_its_samples() -> None:
    batch = batch_of(made(conv_net(), precision="float32"), pictures(4))
    few, many = (scored(SeedSpread(), SmoothGrad(samples=n, reduce="sum", noise=0.3), batch).values["spread"].mean()
                 for n in (8, 128))
    assert 2.4 < (few / many).item() < 6.5, "expected 4"


# --- disagreement ---
@dataclass(frozen=True)
class Given(Attribution):
    """A map as it is given, the same for each picture."""

    number: int = 0

    def maps(self, batch: Batch, target: Bound) -> Maps:
        g = torch.Generator().manual_seed(1)
        found = {0: torch.randn(6, 6, generator=g), 3: torch.randn(6, 6, generator=g).abs()}
        found[1], found[2] = -found[0], found[0] ** 3
        found[4] = torch.zeros(6, 6)
        return Maps(found[self.number].expand(len(batch), -1, -1).clone())


def agreement(a: int, b: int) -> dict[str, Tensor]:
    batch = batch_of(made(conv_net()), pictures())
    bound = batch.bind(Target("class:1"))
    metric = Disagreement(top=0.25)
    return metric.between(*(metric.seen(case_of(Given(k), batch, bound)) for k in (a, b))).values


def test_agreement_of_a_map_with_itself_its_negative_and_a_stretched_one() -> None:
    assert all(torch.equal(values, torch.ones(2).double()) for values in agreement(0, 0).values())
    stretched = agreement(0, 2)
    assert_close(stretched["rank"], torch.ones(2).double(), rtol=0, atol=STEP)
    assert torch.equal(stretched["overlap"], torch.ones(2).double())
    assert torch.equal(stretched["signs"], torch.ones(2).double())
    mirrored = agreement(0, 1)
    assert_close(mirrored["rank"], -torch.ones(2).double(), rtol=0, atol=1e-9)
    assert torch.equal(mirrored["overlap"], torch.zeros(2).double())


def test_signs_need_signed_maps_and_a_flat_map_agrees_with_nothing() -> None:
    assert torch.isnan(agreement(0, 3)["signs"]).all()
    assert torch.isfinite(agreement(0, 3)["overlap"]).all()
    assert all(torch.isnan(values).all() for values in agreement(0, 4).values())


def test_overlap_is_that_of_sets() -> None:
    batch = batch_of(made(conv_net()), pictures())
    bound = batch.bind(Target("class:1"))
    one, two = (case_of(Given(k), batch, bound) for k in (0, 3))
    metric = Disagreement(top=0.25)
    found = metric.between(metric.seen(one), metric.seen(two)).values["overlap"]
    first, second = (set(case.shown[0].flatten().argsort(descending=True)[:9].tolist()) for case in (one, two))
    assert_close(found, torch.full((2,), len(first & second) / 9).double())


def judged(of: Any, model: Model | None = None, **options: Any) -> Result:
    model = model or made(conv_net(), precision="float32")
    return Disagreement(of=of, **options)(Subject((model,), load_images(pictures(3)), as_targets("top1")))


def test_disagreement_draws_a_matrix_for_each_measure() -> None:
    result = judged("gradcam,saliency,input_x_gradient")
    matrices = {p.key: p for p in result.panels if isinstance(p, Matrix)}
    assert set(matrices) == {"rank", "overlap", "signs"}
    rank = torch.from_numpy(matrices["rank"].values)
    assert_close(rank, rank.T)
    assert_close(rank.diag(), torch.ones(3))
    assert matrices["rank"].rows == ("gradcam", "saliency", "input_x_gradient")
    pairs, pictures_ = (next(p for p in result.panels if isinstance(p, Table) and p.key == key)
                        for key in ("pairs", "by_picture"))
    assert len(pairs.rows) == 9
    assert len(pictures_.rows) == 9
    assert (result.cost.forwards, result.cost.backwards) == (3 + 3 * 2, 3 * 3)


def test_a_method_that_cannot_run_is_left_out_and_one_alone_is_refused() -> None:
    model = Model(forward=conv_net(), mean=[0.4] * 3, std=[0.3] * 3, size=6)
    result = judged("rise(samples=16),saliency,occlusion", model)
    assert next(p for p in result.panels if isinstance(p, Matrix)).rows == ("rise(samples=16)", "occlusion")
    assert any(isinstance(p, Text) and p.title == "saliency" for p in result.panels)
    for of, said in (("rise(samples=16),saliency", "gives gradients"), ("gradcam", "two attributions or more")):
        with pytest.raises(XaiError, match=said):
            judged(of, model if said == "gives gradients" else None)


@pytest.mark.parametrize("metric", [MaxSensitivity(of="gradcam,smoothgrad(samples=3),rise(samples=16)", samples=3),
                                    SeedSpread(of="gradcam,smoothgrad(samples=3),rise(samples=16)", seeds=2),
                                    Disagreement(of="gradcam,saliency,rise(samples=16)")])
def test_planned_passes_are_counted_passes(metric: Metric) -> None:
    subject = Subject((made(conv_net(), precision="float32"),), load_images(pictures(3)), as_targets("top1"))
    planned, result = metric.cost(subject), metric(subject)
    assert (result.cost.forwards, result.cost.backwards) == (planned.forwards, planned.backwards)
