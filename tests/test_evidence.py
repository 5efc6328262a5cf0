"""The evidence card: what fails must fail, what is planned is what is counted, and nothing of it costs a map."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xai
from analyzers.attribution.eigencam import EigenCAM
from analyzers.attribution.gradcam import GradCAM
from analyzers.attribution.guided_backprop import GuidedBackprop
from analyzers.attribution.input_x_gradient import InputXGradient
from analyzers.attribution.saliency import Saliency
from tests.gradient_nets import conv_net, made, pictures
from xai import health
from xai.analyzer import Maps
from xai.ask import Ask
from xai.attribution import Attribution
from xai.batch import Batch
from xai.controls import CONTROLS, Control
from xai.errors import XaiError
from xai.evidence import NAMES, NOISE, QUICK, SAMPLE, SHARES, plan, sample
from xai.images import Images, load_images
from xai.model import Model
from xai.panels import Curve, Text
from xai.plan import plan as plan_of
from xai.result import Result, Verdict
from xai.subject import Subject
from xai.targets import Bound
from xai.zoo.loading import load

NAN = float("nan")


@pytest.fixture(scope="module")
def planted() -> Model:
    return load("xai:planted")


def judged(method: Attribution, model: Model, images: Any, level: str = "quick") -> Result:
    return method(Subject((model,), images if isinstance(images, Images) else load_images(images), evidence=level))


def told(result: Result, name: str) -> list[Verdict]:
    return [v for v in result.verdicts if v.name == name]


# --- known cases on a trained network ---
def test_guided_backpropagation_fails_weight_dependence_and_says_so(planted: Model) -> None:
    found = told(judged(GuidedBackprop(), planted, "planted:16@9"), "weight-dependent")
    assert len(found) == 16
    failed = [v for v in found if v.passed is False]
    assert len(failed) >= 14
    assert all("it does not show what the last layer learned" in v.sentence and v.advice for v in failed)
    assert all(v.value is not None and v.value > health.WEIGHTS for v in failed)


@pytest.mark.parametrize("method", [GradCAM(), InputXGradient()], ids=lambda m: m.name())
def test_methods_that_read_the_network_pass_on_planted_evidence(method: Attribution, planted: Model) -> None:
    result = judged(method, planted, "planted:16@9")
    for name in (NAMES[0], NAMES[1], NAMES[2]):
        passed = sum(v.passed is True for v in told(result, name))
        assert passed >= 8, name


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name())
def test_maps_that_know_nothing_fail_for_class_and_weights_exactly(control: Control, planted: Model) -> None:
    result = judged(control, planted, "planted:16@9")
    for name in NAMES[:2]:
        for verdict in told(result, name):
            assert verdict.passed is False
            assert verdict.value == pytest.approx(1.0, abs=1e-9)
    assert np.mean([v.passed is True for v in told(result, NAMES[2])]) <= (0.25 if control.name() == "random" else 1)


def test_a_map_of_the_activations_alone_does_not_depend_on_the_last_layer(planted: Model) -> None:
    for verdict in told(judged(EigenCAM(), planted, "planted:4@9"), "weight-dependent"):
        assert verdict.passed is False
        assert verdict.value == pytest.approx(1.0, abs=1e-6)


# --- numbers by hand ---
class Sum(nn.Module):
    """The logit of class 0 is the mean of the upper half; class 1's is 0; the layer before is the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(3 * 8 * 8, 2, bias=False)
        with torch.no_grad():
            weight = torch.zeros(2, 3, 8, 8)
            weight[0, :, :4] = 1 / 96
            self.mean.weight.copy_(weight.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(x.flatten(1))


@dataclass(frozen=True)
class Half(Control):
    """Half: 1 in the upper half, or in the lower one."""

    upper: bool = True

    def maps(self, batch: Batch, target: Bound) -> Maps:
        values = torch.zeros(len(batch), 8, 8)
        values[:, :4] = 1.0
        return Maps(values if self.upper else 1 - values)


def half_model() -> Model:
    return Model(Sum(), mean=[0.0] * 3, std=[1.0] * 3, size=8)


def bright() -> Images:
    return load_images(np.full((8, 8, 3), 200, dtype=np.uint8))


@pytest.mark.parametrize("upper", [True, False])
def test_the_preference_of_a_map_of_half_a_linear_network_is_one_or_minus_one(upper: bool) -> None:
    """At equal shares: removing u pixels of the read half costs u / 32 of the score, of the other half nothing."""
    result = judged(Half(upper=upper), half_model(), bright())
    (verdict,) = told(result, "faithful beyond random")
    drop = [min(max(1, round(s * 64)), 32) / 32 for s in SHARES]
    late = [max(0, max(1, round(s * 64)) - 32) / 32 for s in SHARES]

    def odds(left: float) -> float:  # two logits: the log-odds are their difference
        return left * 200 / 255

    most, least = ([odds(1 - d) for d in way] for way in (drop, late))
    expected = health.preference(torch.tensor(most), torch.tensor(least), odds(1))
    assert verdict.value == pytest.approx(expected if upper else -expected, abs=1e-5)
    assert verdict.passed is upper
    (curve,) = [p for p in result.panels if isinstance(p, Curve) and p.key == "removal"]
    lines = [most, least] if upper else [least, most]
    for line, way in zip(curve.y, lines, strict=True):
        np.testing.assert_allclose(line, [odds(1), *way], atol=1e-5)


@pytest.mark.parametrize(("most", "least", "value"), [
    ((0.0, 0.0), (1.0, 1.0), 1.0), ((1.0, 1.0), (0.0, 0.0), -1.0), ((0.5, 0.5), (0.5, 0.5), 0.0),
    ((1.0, 1.0), (1.0, 1.0), 0.0), ((0.0, 0.5), (1.0, 1.0), 1.0), ((0.0, 0.0), (0.5, 0.5), 1 / 3)])
def test_preference(most: tuple[float, ...], least: tuple[float, ...], value: float) -> None:
    assert health.preference(torch.tensor(most), torch.tensor(least), 1.0) == pytest.approx(value)
    moved = health.preference(torch.tensor(most) * 7 - 3, torch.tensor(least) * 7 - 3, 1.0 * 7 - 3)
    assert moved == pytest.approx(value, abs=1e-5)


def test_the_gradient_of_a_linear_network_is_stable_and_a_map_that_counts_its_calls_is_not() -> None:
    @dataclass(frozen=True)
    class Fickle(Control):
        """Fickle: another map for other inputs."""

        def maps(self, batch: Batch, target: Bound) -> Maps:
            seeds = [torch.Generator().manual_seed(int(x.sum() * 1e4)) for x in batch.inputs]
            return Maps(torch.stack([torch.rand(8, 8, generator=one) for one in seeds]))

    image = load_images(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    (good,) = told(judged(InputXGradient(), half_model(), image), "stable")
    assert good.passed is True
    assert good.value is not None
    assert good.value > 0.95
    assert f"{NOISE:.0%}" in good.sentence
    (bad,) = told(judged(Fickle(), half_model(), image), "stable")
    assert bad.passed is False


# --- plan, budget, sample ---
def test_a_sample_is_checked_where_there_are_many_and_the_page_says_so() -> None:
    model, many = made(conv_net(), precision="float32"), pictures(20)
    result = judged(Saliency(), model, many)
    checked = {v.picture for v in told(result, "stable")}
    assert len(checked) == SAMPLE
    assert {v.picture for v in told(result, "finite")} == {image.hash for image in result.images}
    (note,) = [p for p in result.panels if isinstance(p, Text) and p.key == "evidence"]
    assert note.text.startswith("A sample of 16 of the 20 maps, drawn by the seed")
    again = judged(Saliency(), made(conv_net(), precision="float32"), many)
    assert {v.picture for v in told(again, "stable")} == checked
    assert sample(16, 0) is None
    assert sample(20, 0) != sample(20, 1)


@pytest.mark.parametrize("level", ["off", "quick", "full"])
@pytest.mark.parametrize("name", ["gradcam", "smoothgrad", "occlusion", "lime"])
@pytest.mark.parametrize("count", [3, 18])
def test_the_planned_checks_are_the_counted_ones(level: str, name: str, count: int) -> None:
    if level == "full" and count > 3:
        count = 17
    settings = {"lime.samples": "40", "lime.segments": "9", "lime.segmentation": "grid"} if name == "lime" else {}
    model = made(conv_net(), precision="float32")
    ask = Ask(models=(model,), images=(list(pictures(count)),), methods=(name,), settings=settings, evidence=level)
    _, row = plan_of(ask).rows
    cost = xai.explain(model, list(pictures(count)), name, settings=settings, evidence=level).result.cost
    assert cost.check_forwards + cost.check_backwards == row.checks
    assert (row.checks == 0) == (level == "off")


def test_checks_change_no_map() -> None:
    images = pictures(3)
    for name in ("smoothgrad", "rise"):
        settings = {"samples": "40"}
        results = [xai.explain(made(conv_net(), precision="float32"), list(images), name, evidence=level,
                               settings=settings).result for level in ("off", "quick", "full")]
        maps = [[p.values for p in result.panels if p.key == "map"] for result in results]
        for other in maps[1:]:
            for one, two in zip(maps[0], other, strict=True):
                np.testing.assert_array_equal(one, two)


def test_half_of_a_dear_methods_work_may_be_spent_and_no_more() -> None:
    model = made(conv_net(), precision="float32")
    for spent in (10.0, 64.0, 200.0, 5000.0):
        for classes in (True, False):
            how = plan(xai.SmoothGrad(samples=2000), model, "quick", classes, spent)
            forwards, backwards = how.passes(model, shares=False)
            assert forwards + 2 * backwards <= max(QUICK, spent / 2)


# --- what is missing or broken ---
def test_a_model_without_layers_is_not_drawn_anew_and_the_card_says_so() -> None:
    bare = Model(forward=conv_net(), mean=[0.4] * 3, std=[0.3] * 3, size=16)
    result = xai.explain(bare, list(pictures(1)), "occlusion").result
    (verdict,) = told(result, "weight-dependent")
    assert (verdict.passed, verdict.value) == (None, None)
    assert verdict.sentence == "Not checked: the weights of this model cannot be drawn anew."
    assert told(result, "faithful beyond random")[0].passed is not None


@pytest.mark.parametrize("fill", [NAN, 0.0, -1.0])
@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_map_that_is_none_gets_no_good_verdict(fill: float, level: str, planted: Model) -> None:
    @dataclass(frozen=True)
    class Flat(Control):
        """Flat: one value."""

        def maps(self, batch: Batch, target: Bound) -> Maps:
            return Maps(torch.full((len(batch), 8, 8), fill))

    result = judged(Flat(), planted, "planted:2@3", level)
    assert any(v.passed is False for v in result.verdicts)
    for name in (NAMES[0], NAMES[1], NAMES[3]):
        assert all(v.passed is not True for v in told(result, name))


def test_a_map_of_the_wrong_shape_gives_the_sentence(planted: Model) -> None:
    @dataclass(frozen=True)
    class Wrong(Control):
        """Wrong: a vector."""

        def maps(self, batch: Batch, target: Bound) -> Maps:
            return Maps(torch.zeros(len(batch), 8))

    with pytest.raises(XaiError, match=r"the maps of wrong must be of shape \(1, h, w\)"):
        judged(Wrong(), planted, "planted:1")


def test_a_check_that_fails_costs_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = Saliency.maps, iter(range(1000))

    def second_fails(self: Saliency, batch: Batch, target: Bound) -> Maps:
        if next(calls) > 0:
            raise XaiError("the lamp must be lit; got none. Light it.")
        return plain(self, batch, target)

    monkeypatch.setattr(Saliency, "maps", second_fails)
    result = judged(Saliency(), made(conv_net(), precision="float32"), pictures(1))
    assert len(result.images) == 1
    for name in (NAMES[0], NAMES[1], NAMES[3]):
        (verdict,) = told(result, name)
        assert (verdict.passed, verdict.sentence) == (None, "Not checked: the lamp must be lit; got none. Light it.")
    assert told(result, NAMES[2])[0].passed is not None


def test_the_full_card_shows_the_cascade_and_compares_with_the_moved_map(planted: Model) -> None:
    result = judged(GradCAM(), planted, "planted:2@9", "full")
    cascade = [p for p in result.panels if isinstance(p, Curve) and p.key == "randomised"]
    assert len(cascade) == 2
    assert cascade[0].x[0] == 1
    assert cascade[0].y.shape[1] == len(cascade[0].x) == 6
    for verdict in told(result, NAMES[2]):
        assert "the best of 19 copies of it moved elsewhere" in verdict.sentence


def test_an_unknown_level_gives_the_sentence() -> None:
    with pytest.raises(XaiError, match=r"--evidence must be one of off, quick, full; got 'some'"):
        xai.explain(made(conv_net(), precision="float32"), list(pictures(1)), "gradcam", evidence="some")


# --- networks with which a careless check goes wrong ---
class Aside(nn.Module):
    """A head that runs last and lies beside the way to the output; a scale of each class after the head, if asked."""

    def __init__(self, scale: bool) -> None:
        super().__init__()
        self.body, self.relu, self.flat = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten()
        self.head, self.beside = nn.Linear(6 * 36, 4), nn.Linear(6, 2)
        self.scale = nn.BatchNorm1d(4) if scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.body(x))
        out = self.scale(self.head(self.flat(y)))
        self.beside(y.mean((2, 3)))
        return out


@pytest.mark.parametrize("scale", [False, True])
def test_a_stage_that_changes_nothing_is_passed_over(scale: bool) -> None:
    torch.manual_seed(1)
    net = Aside(scale).eval()
    if scale:
        nn.init.uniform_(net.scale.weight, 0.5, 2)  # type: ignore[arg-type]  # a batch norm here
    model = Model(net, mean=[0.4] * 3, std=[0.3] * 3, size=6)
    for verdict in told(judged(InputXGradient(), model, load_images(list(pictures(3)))), NAMES[1]):
        assert verdict.value is not None
        assert verdict.value < 0.999


def test_a_network_without_parameters_is_not_drawn_anew() -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    model = Model(Means(), mean=[0.4] * 3, std=[0.3] * 3, size=6)
    for level in ("quick", "full"):
        (verdict,) = told(judged(InputXGradient(), model, load_images(list(pictures(1))), level), NAMES[1])
        assert (verdict.passed, verdict.value) == (None, None)
        assert verdict.sentence == "Not checked: drawing the weights anew does not change the output."


def test_a_network_that_is_all_but_certain_is_judged_by_finite_numbers() -> None:
    torch.manual_seed(0)
    net = conv_net()
    with torch.no_grad():
        for parameter in list(net.parameters())[-2:]:
            parameter.mul_(3000)
    result = judged(GradCAM(), made(net, precision="float32"), load_images(list(pictures(2))))
    for curve in (p for p in result.panels if isinstance(p, Curve) and p.key == "removal"):
        assert bool(np.isfinite(curve.y).all())
    assert all(v.value != 0.0 for v in told(result, NAMES[2]))


def test_ctrl_c_in_a_check_keeps_the_maps_that_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(health, "stable", stopped)
    done = xai.explain(made(conv_net(), precision="float32"), list(pictures(4)), "saliency", chunk=2)
    assert done.interrupted
    assert len(done.result.images) == 2


def test_any_failure_of_a_check_is_told_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise IndexError("no such shelf")

    monkeypatch.setattr(health, "preference", broken)
    result = judged(Saliency(), made(conv_net(), precision="float32"), pictures(1))
    (verdict,) = told(result, NAMES[2])
    assert (verdict.passed, verdict.sentence) == (None, "Not checked: no such shelf.")
    assert told(result, "stable")[0].passed is not None


def test_a_picture_one_pixel_high_can_be_checked() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, (1, 3), padding=(0, 1)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(4, 3))
    model = Model(net, mean=[0.4] * 3, std=[0.3] * 3, size=(1, 24))
    image = load_images(torch.rand(3, 1, 24, generator=torch.Generator().manual_seed(0)))
    assert {v.name for v in judged(InputXGradient(), model, image, "full").verdicts} >= set(NAMES)


@pytest.mark.parametrize("count", [3, 18])
@pytest.mark.parametrize("name", ["deeplift", "scorecam", "smoothgrad"])
def test_the_budget_holds_for_samples_too(name: str, count: int) -> None:
    settings = {"samples": "2"} if name == "smoothgrad" else {}
    model = made(conv_net(), precision="float32")
    cost = xai.explain(model, list(pictures(count)), name, settings=settings).result.cost
    own = (cost.forwards - count + 2 * cost.backwards) / count
    checked = min(count, SAMPLE)
    assert cost.check_forwards + 2 * cost.check_backwards <= checked * max(QUICK, own / 2)


def test_a_network_that_cannot_be_copied_has_a_plan_and_a_sentence() -> None:
    net = conv_net()
    net.register_module("lock", Locked())
    model = Model(net, mean=[0.4] * 3, std=[0.3] * 3, size=6)
    assert plan_of(Ask(models=(model,), images=(list(pictures(2)),), methods=("saliency",))).rows
    (verdict, *_) = told(judged(Saliency(), model, load_images(list(pictures(2)))), NAMES[1])
    assert verdict.passed is None
    assert "one that can be copied" in verdict.sentence


class Locked(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return x
