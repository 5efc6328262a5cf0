"""Model randomisation and class sensitivity: exact cases, nets that keep an edge, broken maps, what is counted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.attribution.eigencam import EigenCAM
from analyzers.attribution.gradcam import GradCAM
from analyzers.attribution.guided_backprop import GuidedBackprop
from analyzers.attribution.rise import RISE
from analyzers.attribution.saliency import Saliency
from analyzers.evaluation import _likeness, model_randomization
from analyzers.evaluation._likeness import MEASURES, alike, distance
from analyzers.evaluation.class_sensitivity import ClassSensitivity, rivals
from analyzers.evaluation.model_randomization import ModelRandomization, entropy
from tests.gradient_nets import Attentive, Residual, batch_of, linear_net, made, pictures, unusual
from xai import health
from xai.analyzer import Maps
from xai.attribution import Attribution
from xai.batch import Batch
from xai.controls import CONTROLS, Control, Random, Sobel
from xai.errors import XaiError
from xai.images import load_images
from xai.metric import Metric, Scored, case_of
from xai.model import Model
from xai.modules import hash_state
from xai.randomized import stages
from xai.subject import Subject, as_targets
from xai.targets import Bound, Target


class Trained(nn.Module):
    """As a trained network: edge filters below, which every class reads, and sparse class weights above."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.low, self.mid, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Linear(256, 6)
        edges = torch.zeros(8, 3, 3, 3)
        for k in range(8):
            turn = torch.tensor(k * torch.pi / 4)
            edges[k] = torch.cos(turn) * torch.tensor([-1.0, 0, 1]) + torch.sin(turn) * torch.tensor([[-1.0], [0], [1]])
        with torch.no_grad():
            self.low.weight.copy_(edges)
            self.mid.weight.copy_(torch.randn(16, 8, 3, 3, generator=g) * 0.3 + 0.15)
            self.head.weight.copy_(torch.randn(6, 256, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.low(x).relu(), 2)
        return self.head(nn.functional.adaptive_avg_pool2d(self.mid(x).relu(), 4).flatten(1))


def scene(n: int = 4, size: int = 24) -> np.ndarray:
    """(n, 3, size, size) smooth pictures with a few edges."""
    rng, found = np.random.default_rng(3), np.empty((n, 3, size, size), np.float32)
    for picture in found:
        picture[:] = rng.random((3, 1, 1))
        for _ in range(3):
            y, x, h, w = rng.integers(2, size - 10), rng.integers(2, size - 10), *rng.integers(4, 9, 2)
            picture[:, y : y + h, x : x + w] = rng.random((3, 1, 1))
    return found


def trained() -> Model:
    return made(Trained(), size=24, precision="float32")


def scored(metric: Metric, method: Attribution, batch: Batch, target: str = "top1") -> Scored:
    return metric.score(case_of(method, batch, batch.bind(Target(target))))


@dataclass(frozen=True)
class Fixed(Attribution):
    """The map that it was given, whatever is asked; by the model's spec where it has several."""

    maps_by_spec: Any = None

    def maps(self, batch: Batch, target: Bound) -> Maps:
        return Maps(self.maps_by_spec["randomised" in batch.model.spec])


def fixed(before: Tensor, after: Tensor) -> Fixed:
    return Fixed({False: before, True: after})


# --- likeness ---
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("size", [4, 24])
def test_likeness_is_one_of_the_same_and_low_of_others(measure: str, size: int) -> None:
    g = torch.Generator().manual_seed(0)
    one, two = torch.randn(3, size, size, generator=g), torch.randn(3, size, size, generator=g)
    assert torch.equal(alike(one, one, measure), torch.ones(3).double())
    assert_close(alike(one, one * 3, measure), torch.ones(3).double(), rtol=0, atol=1e-6)
    assert (alike(one, two, measure) < 0.75).all()


@pytest.mark.parametrize("measure", MEASURES)
def test_a_flat_or_broken_map_is_like_no_other_but_itself(measure: str) -> None:
    one = torch.rand(3, 12, 12)
    bad = torch.stack([torch.zeros(12, 12), torch.full((12, 12), float("nan")), torch.full((12, 12), float("inf"))])
    assert torch.equal(alike(one, bad, measure), torch.zeros(3).double())
    assert torch.equal(alike(bad, one, measure), torch.zeros(3).double())
    assert alike(bad[:1], bad[:1].clone(), measure).item() == 1


def test_spearman_and_pearson_are_scipys() -> None:
    from scipy.stats import pearsonr, spearmanr

    one, two = torch.rand(1, 5, 7).round(decimals=1), torch.rand(1, 5, 7).round(decimals=1)  # with ties
    for measure, theirs in (("spearman", spearmanr), ("pearson", pearsonr)):
        expected = theirs(one.flatten().double().numpy(), two.flatten().double().numpy())[0]
        assert_close(alike(one, two, measure).item(), float(expected), rtol=0, atol=1e-9)


def test_distance_is_relative_and_unknown_of_a_map_of_zeros() -> None:
    one = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    found = distance(one, one + torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]))
    assert found[0].item() == pytest.approx(0.2)
    assert torch.isnan(found[1])


def test_entropy_has_its_closed_forms() -> None:
    levels = torch.arange(100.0).view(1, 10, 10)
    two = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    assert_close(entropy(levels), torch.tensor([np.log(100)]).double(), rtol=0, atol=1e-12)
    assert_close(entropy(two), torch.tensor([np.log(2)]).double(), rtol=0, atol=1e-12)
    assert entropy(torch.ones(1, 3, 3)).item() == 0
    assert torch.isnan(entropy(torch.full((1, 3, 3), float("nan")))).all()


# --- model randomisation ---
@pytest.mark.parametrize("order", model_randomization.ORDERS)
def test_a_map_that_ignores_the_network_is_one_everywhere_and_fails(order: str) -> None:
    found = scored(ModelRandomization(order=order), Sobel(), batch_of(trained(), scene()))
    for name in ("end", "mean", "last_layer"):
        assert torch.equal(found.values[name], torch.ones(4).double())
    assert torch.equal(found.values["entropy_rise"], torch.zeros(4).double())
    assert (found.traces["likeness"] == 1).all()
    assert health.weight_dependent(found.values["last_layer"][0].item(), "p", False).passed is False


@dataclass(frozen=True)
class Asking(Attribution):
    """Edges again, but of a method that could ask the network."""

    def maps(self, batch: Batch, target: Bound) -> Maps:
        return Sobel().maps(batch, target)


def test_edges_that_are_no_control_are_one_too() -> None:
    found = scored(ModelRandomization(), Asking(), batch_of(trained(), scene()))
    assert (found.traces["likeness"] == 1).all()


def test_nothing_randomised_is_likeness_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = model_randomization.randomized
    monkeypatch.setattr(model_randomization, "randomized", lambda model, names, seed: plain(model, (), seed))
    for method in (Saliency(), GradCAM(), RISE(samples=16)):
        found = scored(ModelRandomization(), method, batch_of(trained(), scene()))
        assert_close(found.traces["likeness"], torch.ones_like(found.traces["likeness"]), rtol=0, atol=1e-6)


def test_the_weights_are_as_they_were() -> None:
    model = trained()
    assert model._module is not None
    before = hash_state(model._module.state_dict())
    ModelRandomization(of="gradcam,saliency")(Subject((model,), load_images(scene()), as_targets("top1")))
    assert hash_state(model._module.state_dict()) == before


def test_guided_backprop_survives_the_last_layer_and_the_gradient_does_not() -> None:
    batch, metric = batch_of(trained(), scene()), ModelRandomization(order="last_layer")
    guided, gradient = (scored(metric, m, batch).values["last_layer"] for m in (GuidedBackprop(), Saliency()))
    assert guided.min() > 0.8
    assert gradient.mean() < 0.75
    assert (guided - gradient).min() > 0.1


def test_eigencam_knows_no_head() -> None:
    found = scored(ModelRandomization(), EigenCAM(layer="mid"), batch_of(trained(), scene()))
    assert_close(found.values["last_layer"], torch.ones(4).double(), rtol=0, atol=1e-9)
    assert found.values["end"].max() < 0.999


def test_what_is_flat_or_broken_after_randomisation_counts_as_zero() -> None:
    batch, own = batch_of(trained(), scene()), torch.rand(4, 6, 6)
    for after in (torch.zeros(4, 6, 6), torch.full((4, 6, 6), float("nan"))):
        found = scored(ModelRandomization(), fixed(own, after), batch)
        assert (found.traces["likeness"] == 0).all()
        assert (found.values["end"] == 0).all()


def test_values_say_what_is_compared() -> None:
    batch, own = batch_of(trained(), scene()), torch.randn(4, 6, 6)
    expected = {"raw": -1.0, "absolute": 1.0, "shown": -1.0}
    for values, likeness in expected.items():
        found = scored(ModelRandomization(values=values), fixed(own, -own), batch)
        assert_close(found.values["end"], torch.full((4,), likeness).double(), rtol=0, atol=1e-6)


def test_orders_ask_for_what_they_say() -> None:
    model = trained()
    assert stages(model) == ("head", "mid", "low")
    assert ModelRandomization().steps(model) == [("head",), ("head", "mid"), ("head", "mid", "low")]
    assert ModelRandomization(stages=2).steps(model) == [("head",), ("head", "mid", "low")]
    assert ModelRandomization(order="last_layer").steps(model) == [("head",)]
    assert ModelRandomization(order="independent").steps(model) == [("head",), ("mid",), ("low",), stages(model)]
    found = scored(ModelRandomization(order="independent"), Saliency(), batch_of(model, scene()))
    assert found.traces["likeness"].shape == (4, 3)
    assert_close(found.values["mean"], found.traces["likeness"].mean(1))


@pytest.mark.parametrize("metric", [ModelRandomization(of="gradcam,saliency,rise(samples=16)"),
                                    ModelRandomization(of="eigencam", order="independent", stages=2),
                                    ClassSensitivity(of="gradcam,saliency,rise(samples=16)")])
@pytest.mark.parametrize("net", ["trained", "transformer"])
def test_planned_passes_are_counted_passes(metric: Metric, net: str) -> None:
    model = trained() if net == "trained" else unusual(Attentive, "float32")
    if net == "transformer":
        metric = dataclasses.replace(metric, of="saliency,rise(samples=16)")  # type: ignore[call-arg]  # every metric has it
    subject = Subject((model,), load_images(scene() if net == "trained" else pictures(3)), as_targets("top1"))
    planned, result = metric.cost(subject), metric(subject)
    assert (result.cost.forwards, result.cost.backwards) == (planned.forwards, planned.backwards)


def test_scores_do_not_depend_on_the_batch() -> None:
    images, model = load_images(scene()), trained()
    together = scored(ModelRandomization(), RISE(samples=16), batch_of(model, scene()))
    alone = [scored(ModelRandomization(), RISE(samples=16), one) for one in model.prepare(images, chunk=1)]
    assert_close(torch.cat([one.values["mean"] for one in alone]), together.values["mean"], rtol=0, atol=1e-3)


def test_a_model_that_can_only_be_run_gives_the_sentence() -> None:
    bare = Model(forward=Trained(), mean=[0.4] * 3, std=[0.3] * 3, size=24, spec="onnx:net")
    with pytest.raises(XaiError, match="access to its layers"):
        ModelRandomization(of="rise(samples=16)")(Subject((bare,), load_images(scene()), as_targets("top1")))


# --- class sensitivity ---
def test_a_linear_network_has_its_closed_form() -> None:
    model = made(linear_net(channels=1, classes=3), channels=1)
    batch = batch_of(model, pictures(3, channels=1))
    found = scored(ClassSensitivity(values="raw"), Saliency(reduce="sum"), batch, "class:1")
    assert model._module is not None
    weights, order = model._module[1].weight.detach().view(3, 6, 6), batch.output().argsort(1)
    for name, place in (("second", -1), ("lowest", 0)):
        for i in range(3):
            others = [c for c in order[i].tolist() if c != 1]
            expected = alike(weights[1][None].float(), weights[others[place]][None].float(), "spearman")
            assert found.values[name][i].item() == pytest.approx(expected.item(), abs=2e-3)  # steps of float16


def test_maps_that_know_no_class_are_one() -> None:
    batch = batch_of(trained(), scene())
    for method in (EigenCAM(), *CONTROLS):
        for values in scored(ClassSensitivity(), method, batch).values.values():
            assert torch.equal(values, torch.ones(4).double())
    for values in scored(ClassSensitivity(), Saliency(), batch).values.values():
        assert values.max() < 0.99


def test_rivals_are_never_what_is_explained() -> None:
    batch = batch_of(trained(), scene(16))
    for text in ("top1", "class:2", "class:2 - class:4"):
        bound = batch.bind(Target(text))
        found = rivals(batch, bound, "class_sensitivity")
        assert bound.classes is not None
        taken = [bound.classes] + ([bound.versus] if bound.versus is not None else [])
        for other in found.values():
            assert other.classes is not None
            assert not any((other.classes == one).any() for one in taken)
        if text == "top1":
            assert torch.equal(found["second"].classes, batch.output().topk(2, 1).indices[:, 1])  # type: ignore[arg-type]  # asserted above
            assert torch.equal(found["lowest"].classes, batch.output().argmin(1))  # type: ignore[arg-type]  # asserted above
            assert len(set(found["random"].classes.tolist())) > 2  # type: ignore[union-attr]  # asserted above


@pytest.mark.parametrize("target", ["sum", "one output"])
def test_without_classes_there_is_the_sentence(target: str) -> None:
    model = trained() if target == "sum" else made(linear_net(classes=1), precision="float32")
    batch = batch_of(model, scene() if target == "sum" else pictures())
    bound = batch.bind(as_targets(lambda output: output.sum(1))[0] if target == "sum" else Target("top1"))
    with pytest.raises(XaiError, match="must be one class of several"):
        ClassSensitivity().score(case_of(Saliency(), batch, bound))


def test_controls_are_told_from_methods() -> None:
    assert not _likeness.asks(Random())
    assert _likeness.asks(GradCAM())
    assert all(isinstance(one, Control) for one in CONTROLS)


def test_a_batch_normed_network_is_judged() -> None:
    found = scored(ModelRandomization(of="gradcam"), GradCAM(), batch_of(unusual(Residual), pictures()))
    assert torch.isfinite(found.values["end"]).all()
