"""Faithfulness metrics, by slow versions of the published algorithms and by what must hold exactly."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.attribution.gradcam import GradCAM
from analyzers.attribution.integrated_gradients import IntegratedGradients
from analyzers.evaluation import infidelity, mu_fidelity
from analyzers.evaluation.completeness import Completeness, promises
from analyzers.evaluation.infidelity import Infidelity
from analyzers.evaluation.insertion_deletion import InsertionDeletion
from analyzers.evaluation.mu_fidelity import MuFidelity
from analyzers.evaluation.pixel_flipping import PixelFlipping
from analyzers.evaluation.road import ROAD
from tests.gradient_nets import EXACT, batch_of, conv_net, linear_net, made, pictures
from xai.analyzer import Maps, param
from xai.baselines import baseline
from xai.batch import Batch
from xai.controls import Control, Random
from xai.errors import XaiError
from xai.images import load_images
from xai.metric import Case, Metric, Scored
from xai.model import Model
from xai.panels import Table
from xai.removal import curves, imputed, in_steps, order
from xai.sampler import Sampler
from xai.subject import Subject
from xai.targets import Bound, Target
from xai.torchvision_import import ensure_torchvision

SIZE = 16
METRICS: tuple[Metric, ...] = (InsertionDeletion(steps=8), PixelFlipping(steps=8), PixelFlipping(regions="pixels"),
                               ROAD(percentages="10-90"), Infidelity(samples=30), MuFidelity(samples=40),
                               Completeness())
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-6}


def moving_net() -> nn.Module:
    """A small network whose probabilities move."""
    net = conv_net()
    net[-1].weight.data *= 20
    return net


def drawn_maps(n: int, size: int = SIZE, seed: int = 0, levels: int = 0) -> Tensor:
    """(n, size, size) float32: even noise, or a few levels, so that many pixels tie."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, size, size, generator=g) if not levels else torch.randint(levels, (n, size, size),
                                                                                  generator=g).float()


def case_of(batch: Batch, maps: Tensor, target: str = "top1") -> Case:
    """Maps at the input's size, as if a method had made them."""
    return Case(batch, batch.bind(Target(target)), Random(), maps, maps)


def order_by_lexsort(case: Case, i: int, name: str) -> np.ndarray:
    """The pixels by numpy's lexsort: the map, then a seeded random number."""
    drawn = torch.randperm(case.shown[i].numel(), generator=case.batch.generator(i, name)).numpy()
    second = np.empty(len(drawn), dtype=int)
    second[drawn] = np.arange(len(drawn))
    return np.lexsort((second, -case.shown[i].flatten().numpy()))


# --- insertion and deletion ---
def of_the_authors(net: nn.Module, x: np.ndarray, pixels: np.ndarray, step: int, mode: str) -> np.ndarray:
    """RISE's CausalMetric for one picture: pixel by pixel, one forward a step, softmax of the clean picture's class."""

    def softmax(picture: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits = net(torch.from_numpy(picture)[None])[0].numpy()
        e = np.exp(logits - logits.max())
        return e / e.sum()

    c = int(softmax(x).argmax())
    if mode == "del":
        start, finish = x.copy(), np.zeros_like(x)
    else:
        point = np.zeros((11, 11))
        point[5, 5] = 1
        kernel, padded = gaussian_filter(point, 5), np.pad(x, ((0, 0), (5, 5), (5, 5)))
        start, finish = np.empty_like(x), x.copy()
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                start[:, i, j] = (padded[:, i : i + 11, j : j + 11] * kernel).sum((1, 2))
    steps = -(-x.shape[1] * x.shape[2] // step)
    scores = np.empty(steps + 1)
    for k in range(steps + 1):
        scores[k] = softmax(start)[c]
        for pixel in pixels[step * k : step * (k + 1)]:
            start[:, pixel // x.shape[2], pixel % x.shape[2]] = finish[:, pixel // x.shape[2], pixel % x.shape[2]]
    return scores


@pytest.mark.parametrize(("step", "levels"), [(16, 0), (7, 0), (50, 3)])
def test_insertion_and_deletion_are_the_authors(step: int, levels: int) -> None:
    net = moving_net()
    batch = batch_of(made(net, size=SIZE), pictures(2, SIZE))
    case = case_of(batch, drawn_maps(2, levels=levels))
    found = InsertionDeletion(step=step).score(case)
    for i in range(2):
        pixels = order_by_lexsort(case, i, "insertion_deletion")
        for name, mode in (("deletion", "del"), ("insertion", "ins")):
            scores = of_the_authors(net, batch.inputs[i].numpy(), pixels, step, mode)
            assert_close(found.traces[name][i], torch.from_numpy(scores), **CLOSE)
            auc = (scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)
            assert float(found.values[name][i]) == pytest.approx(auc, abs=1e-6)
    assert float(found.traces["deletion"].std(1).min()) > 1e-3  # the curves move


def test_steps_of_the_authors() -> None:
    assert InsertionDeletion().counts(224 * 224) == in_steps(224 * 224, 224 * 8)  # 29 scores
    assert InsertionDeletion(steps=224).counts(224 * 224) == in_steps(224 * 224, 224)  # 225 scores
    assert len(InsertionDeletion().counts(64 * 64)) <= 29
    assert InsertionDeletion(step=1000).counts(64) == (0, 64)


def test_constant_scores_and_a_straight_curve() -> None:
    net = linear_net(size=SIZE)
    net[1].weight.data.zero_()
    batch = batch_of(made(net, size=SIZE), pictures(2, SIZE))
    found = InsertionDeletion().score(case_of(batch, drawn_maps(2))).values
    q = batch.output().softmax(1).amax(1).double()
    for name in ("insertion", "deletion"):
        assert_close(found[name], q, **EXACT)
    assert found["dropped"].tolist() == [1, 1]
    assert torch.isnan(found["deletion_normalised"]).all()
    net[1].weight.data[1] = 0.01  # the logit of class 1 is a multiple of the sum, and the picture is flat
    batch = batch_of(made(net, size=SIZE), np.full((1, 3, SIZE, SIZE), 0.9, dtype=np.float32))
    metric = InsertionDeletion(value="logit", step=16)
    found = metric.score(case_of(batch, drawn_maps(1), "class:1")).values
    here, bias = batch.output()[0, 1].double(), net[1].bias[1].detach().double()
    assert_close(found["deletion"][0], (here + bias) / 2, **EXACT)
    assert torch.isnan(found["insertion_normalised"]).all()  # a logit is no share of anything


class Sure(nn.Module):
    """Two classes, the first with probability s p + t, p that of class 1: as sure as one likes, otherwise the same."""

    def __init__(self, net: nn.Module, s: float, t: float) -> None:
        super().__init__()
        self.net, self.s, self.t = net, s, t

    def forward(self, x: Tensor) -> Tensor:
        first = self.s * self.net(x).softmax(1)[:, 1:2] + self.t
        return torch.cat([first, 1 - first], 1).log()


def test_how_sure_a_network_is_moves_the_areas_and_not_their_normalised_forms() -> None:
    net, maps = moving_net(), drawn_maps(3)
    found = {}
    for s, t in ((1.0, 0.0), (0.6, 0.0), (0.6, 0.3)):
        batch = batch_of(made(Sure(net, s, t), size=SIZE), pictures(3, SIZE))
        found[s, t] = InsertionDeletion(insertion_fill="zero").score(case_of(batch, maps, "class:0")).values
    plain, scaled, moved = found.values()
    keep = ~plain["deletion_normalised"].isnan() & ~scaled["deletion_normalised"].isnan()
    assert keep.any()
    assert_close(scaled["deletion"], 0.6 * plain["deletion"], **CLOSE)
    assert_close(scaled["insertion_normalised"], plain["insertion_normalised"], **CLOSE)
    for other in (scaled, moved):
        assert_close(other["deletion_normalised"][keep], plain["deletion_normalised"][keep], **CLOSE)
    assert float((moved["insertion_normalised"] - plain["insertion_normalised"]).abs().max()) > 1e-3


def test_ends_reversal_and_rising_functions_of_the_map() -> None:
    batch = batch_of(made(moving_net(), size=SIZE), pictures(2, SIZE))
    maps, metric = drawn_maps(2), InsertionDeletion(step=16, insertion_fill="zero")
    found = metric.score(case_of(batch, maps))
    p = batch.output().softmax(1).amax(1).double()
    assert_close(found.traces["deletion"][:, 0], p, **EXACT)
    assert_close(found.traces["insertion"][:, -1], p, **EXACT)
    assert_close(found.values["picture"], p, **EXACT)
    assert_close(found.traces["deletion"][:, -1], found.traces["insertion"][:, 0], **EXACT)
    reverse = metric.score(case_of(batch, -maps))  # no ties, so that the order is reversed
    assert_close(found.traces["deletion"], reverse.traces["insertion"].flip(1), **EXACT)
    assert_close(reverse.traces["deletion"][:, -1], found.traces["deletion"][:, -1], **EXACT)
    for other in (10 * maps, maps.double().exp() - 7):
        again = metric.score(case_of(batch, other))
        for name in ("insertion", "deletion", "overall", "deletion_lead"):
            assert_close(again.values[name], found.values[name], rtol=0, atol=0)


def test_the_lead_by_hand_and_none_where_there_is_no_class() -> None:
    net = moving_net()
    batch = batch_of(made(net, size=SIZE), pictures(1, SIZE))
    case, metric = case_of(batch, drawn_maps(1), "class:2"), InsertionDeletion(step=64)
    pixels = torch.from_numpy(order_by_lexsort(case, 0, metric.name()))
    leads = []
    for count in range(0, 257, 64):
        x = batch.inputs.clone()
        x[0].flatten(1)[:, pixels[:count]] = 0
        logits = net(x)[0].detach()
        leads.append(float(logits[2] - logits[[0, 1, 3]].max()))
    expected = (sum(leads) - leads[0] / 2 - leads[-1] / 2) / 4
    assert float(metric.score(case).values["deletion_lead"]) == pytest.approx(expected, abs=1e-9)
    mine = Target("mine", function=lambda out: out[:, 0]).bind(batch.output())
    free = Case(batch, mine, Random(), case.raw, case.shown)
    found = metric.score(free).values
    assert torch.isnan(found["deletion_lead"]).all()
    assert torch.isnan(found["insertion_normalised"]).all()
    assert torch.isfinite(found["overall"]).all()


# --- pixel flipping ---
@pytest.mark.parametrize(("regions", "side", "steps"), [("pixels", 0, 16), ("patches", 4, 100), ("patches", 5, 3)])
def test_pixel_flipping_by_a_loop(regions: str, side: int, steps: int) -> None:
    net = moving_net()
    batch = batch_of(made(net, size=SIZE), pictures(1, SIZE))
    case = case_of(batch, drawn_maps(1, seed=4))
    metric = PixelFlipping(regions=regions, side=side, steps=steps, fill="grey")
    fill, c = baseline(batch, "grey", "test")[0], int(batch.output().argmax())
    blocks = [[(i, j)] for i in range(SIZE) for j in range(SIZE)] if regions == "pixels" else [
        [(i, j) for i in range(top, min(top + side, SIZE)) for j in range(left, min(left + side, SIZE))]
        for top in range(0, SIZE, side) for left in range(0, SIZE, side)]
    ranked = sorted(blocks, key=lambda block: -float(np.mean([case.shown[0, i, j] for i, j in block])))
    found = metric.score(case).values
    for name, way in (("morf", ranked), ("lerf", ranked[::-1])):
        m = min(steps, len(way))
        x, gone, ends = batch.inputs[0].clone(), 0, [round(k * len(way) / m) for k in range(m + 1)]
        share, score = [], []
        for k, block in enumerate([*way, []]):
            if k in ends:
                share.append(gone / SIZE**2)
                score.append(float(net(x[None]).detach().softmax(1)[0, c]))
            for i, j in block:
                x[:, i, j] = fill[:, i, j]
            gone += len(block)
        assert float(found[name]) == pytest.approx(np.trapezoid(score, share), abs=1e-6)
        if name == "morf":
            assert float(found["aopc"]) == pytest.approx(score[0] - np.mean(score), abs=1e-6)
    assert_close(found["between"], found["lerf"] - found["morf"], **EXACT)


def test_the_reversed_map_turns_the_area_between() -> None:
    batch = batch_of(made(moving_net(), size=SIZE), pictures(2, SIZE))
    for regions in ("pixels", "slic"):
        metric = PixelFlipping(regions=regions, segments=8, steps=1000)
        found = metric.score(case_of(batch, drawn_maps(2)))
        other = metric.score(case_of(batch, -drawn_maps(2)))
        assert_close(found.values["between"], -other.values["between"], **CLOSE)
        assert float(found.values["between"].abs().max()) > 1e-4
        assert_close(found.traces["morf"], other.traces["lerf"], **CLOSE)
        assert found.traces["morf"].shape == (2, 1001)  # as many points, however many superpixels


# --- ROAD ---
def test_road_by_its_definition() -> None:
    net = moving_net()
    batch = batch_of(made(net, size=SIZE), pictures(2, SIZE))
    case = case_of(batch, drawn_maps(2, seed=2))
    found = ROAD(percentages="10-90", noise=0.0).score(case)
    classes = batch.output().argmax(1)
    for i in range(2):
        pixels = order_by_lexsort(case, i, "road")
        means, held = {}, {}
        for name, way in (("morf", pixels), ("lerf", pixels[::-1])):
            scores = []
            for percentage in range(10, 100, 10):
                missing = torch.zeros(SIZE**2, dtype=torch.bool)
                missing[way[: SIZE**2 * percentage // 100].copy()] = True
                x = imputed(batch.inputs[i], missing.view(SIZE, SIZE), 0.0)
                scores.append(net(x[None]).softmax(1)[0].detach())
            means[name] = float(np.mean([s[classes[i]] for s in scores]))
            held[name] = float(np.mean([int(s.argmax()) == int(classes[i]) for s in scores]))
            assert float(found.values[name][i]) == pytest.approx(means[name], abs=1e-6)
            assert float(found.values[f"{name}_kept"][i]) == pytest.approx(held[name])
        assert float(found.values["combined"][i]) == pytest.approx((means["lerf"] - means["morf"]) / 2, abs=1e-6)


def test_road_turns_with_the_map_and_its_noise_with_the_seed() -> None:
    model = made(moving_net(), size=SIZE)
    batch, again, other = (batch_of(model, pictures(2, SIZE), seed=seed) for seed in (0, 0, 1))
    found = ROAD(noise=0.0).score(case_of(batch, drawn_maps(2)))
    turned = ROAD(noise=0.0).score(case_of(batch, 1 - drawn_maps(2).double()))
    assert_close(found.traces["morf"], turned.traces["lerf"], **CLOSE)
    assert found.traces["morf"].shape == (2, 50)
    noisy = [ROAD(noise=0.3).score(case_of(one, drawn_maps(2))).traces["morf"] for one in (batch, again, other)]
    assert torch.equal(noisy[0], noisy[1])
    assert float((noisy[0] - noisy[2]).abs().max()) > 1e-6
    assert ROAD().places("morf", 50).tolist() == list(range(1, 100, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_road_is_that_of_pytorch_grad_cam_up_to_its_noise_and_a_pixel() -> None:
    """It removes what is at or above a percentile, which is one pixel more than here for some of them; its noise comes
    from torch's global generator, and it works in single precision alone."""
    ensure_torchvision()
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined

    net = moving_net()
    batch = batch_of(made(net, size=SIZE), pictures(2, SIZE))
    inputs, missing = batch.inputs.float(), drawn_maps(1)[0] > 0.4
    case = case_of(batch, drawn_maps(2, seed=2), "class:2")
    ours = ROAD(percentages="10-90").score(case)
    net = copy.deepcopy(net).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        imputer = NoisyLinearImputer(noise=0.0)(inputs[0], (~missing).float())
        combined = ROADCombined()(inputs, case.shown.numpy(), [lambda out: out.softmax(-1)[2]] * 2, net)
    assert_close(imputed(inputs[0], missing, 0.0), imputer, **CLOSE)
    assert_close(ours.values["combined"], torch.from_numpy(combined).double(), rtol=0, atol=1e-3)
    assert float(ours.values["combined"].abs().max()) > 5e-3


# --- infidelity, mu-fidelity, completeness ---
def linear_case(n: int = 2, fill: str = "black") -> tuple[Case, Batch]:
    """A linear score and the contributions that make it up, from a flat picture on."""
    net = linear_net(size=SIZE)
    batch = batch_of(made(net, size=SIZE), pictures(n, SIZE))
    w = net[1].weight.detach()[1].view(3, SIZE, SIZE)
    maps = (w * (batch.inputs - baseline(batch, fill, "test"))).sum(1)
    return case_of(batch, maps, "class:1"), batch


def test_the_contributions_of_a_linear_score_are_perfect() -> None:
    case, batch = linear_case()
    found = Infidelity(fill="black").score(case).values
    for name in ("infidelity", "scaled", "unexplained"):
        assert_close(found[name], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    twice = Infidelity(fill="black").score(case_of(batch, 2 * case.shown, "class:1")).values
    assert float(twice["infidelity"].min()) > 1e-3
    assert float(twice["unexplained"].max()) < 1e-12
    turned = Infidelity(fill="black").score(case_of(batch, -case.shown, "class:1")).values
    assert float(turned["unexplained"].min()) >= 1
    grid = MuFidelity(fill="black", grid=4).score(case).values
    for name in ("spearman", "pearson"):
        assert_close(grid[name], torch.ones(2, dtype=torch.float64), **EXACT)
    against = MuFidelity(fill="black", grid=4).score(case_of(batch, -case.shown, "class:1")).values
    assert_close(against["spearman"], -torch.ones(2, dtype=torch.float64), **EXACT)


def test_a_gradient_is_judged_as_sensitivities() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 2))
    net[1].weight.data = net[1].weight.data.view(2, 3, -1)[:, :1].repeat(1, 3, 1).flatten(1)  # all channels alike
    batch = batch_of(made(net, size=SIZE), pictures(1, SIZE))
    gradient = net[1].weight.detach()[1].view(3, SIZE, SIZE)[:1]
    found = Infidelity(holds="sensitivities").score(case_of(batch, gradient, "class:1")).values
    assert_close(found["infidelity"], torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-12)


def test_infidelity_by_a_loop_and_by_captum() -> None:
    from captum.metrics import infidelity as of_captum

    net = moving_net()
    batch = batch_of(made(net, size=SIZE), pictures(1, SIZE))
    case, metric = case_of(batch, drawn_maps(1).double() - 0.3, "class:2"), Infidelity(samples=40)
    squares = infidelity.drawn((SIZE, SIZE), 40, batch.generator(0, metric.name())).tolist()
    said, lost, flat = [], [], []
    for top, left, side in squares:
        x = batch.inputs.clone()
        x[0, :, top : top + side, left : left + side] = 0
        said.append(float(case.shown[0, top : top + side, left : left + side].sum()))
        lost.append(float((net(batch.inputs) - net(x)).detach()[0, 2]))
        flat.append(side**2)
    s, d, f = (np.array(values, dtype=float) for values in (said, lost, flat))
    found = {name: float(v) for name, v in metric.score(case).values.items()}
    assert found["infidelity"] == pytest.approx(np.mean((s - d) ** 2), rel=1e-9)
    best = [np.mean((max(0.0, (a @ d) / (a @ a)) * a - d) ** 2) for a in (s, f)]
    assert found["scaled"] == pytest.approx(best[0], rel=1e-9)
    assert found["unexplained"] == pytest.approx(best[0] / best[1], rel=1e-9)
    asked = iter(squares)

    def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
        top, left, side = next(asked)
        hidden = torch.zeros_like(x)
        hidden[:, :, top : top + side, left : left + side] = 1
        return hidden, x * (1 - hidden)  # the map holds contributions: what is taken away counts whole

    theirs = of_captum(net, perturb, batch.inputs, case.shown[:, None].expand(-1, 3, -1, -1) / 3, target=2,
                       n_perturb_samples=40, max_examples_per_batch=1)
    assert found["infidelity"] == pytest.approx(float(theirs), rel=1e-6)


def test_squares_lie_inside_and_their_sums_are_right() -> None:
    g = torch.Generator().manual_seed(0)
    squares = infidelity.drawn((40, 64), 4000, g)
    top, left, side = squares.T
    assert side.min() == 2
    assert side.max() == 20
    assert min(int(top.min()), int(left.min())) == 0
    assert int((top + side).max()) == 40
    assert int((left + side).max()) == 64
    values = torch.rand(40, 64, generator=g, dtype=torch.float64)
    for t, lt, s in squares[:20].tolist():
        expected = values[t : t + s, lt : lt + s].sum()
        assert_close(infidelity.sums(values, torch.tensor([[t, lt, s]]))[0], expected, **EXACT)
    assert infidelity.drawn((1, 5), 3, g)[:, 2].tolist() == [1, 1, 1]


def test_mu_fidelity_by_a_loop() -> None:
    net = moving_net()
    batch = batch_of(made(net, size=SIZE), pictures(1, SIZE))
    case, metric = case_of(batch, drawn_maps(1), "class:2"), MuFidelity(samples=30, grid=5, subset=0.2, fill="grey")
    places = torch.rand(30, 25, generator=batch.generator(0, metric.name()), dtype=torch.float64).numpy()
    fill, said, lost = baseline(batch, "grey", "test")[0], [], []
    for row in places:
        x, total = batch.inputs.clone(), 0.0
        hidden = set(np.argsort(row)[:5].tolist())
        for i in range(SIZE):
            for j in range(SIZE):
                if i * 5 // SIZE * 5 + j * 5 // SIZE in hidden:
                    x[0, :, i, j] = fill[:, i, j]
                    total += float(case.shown[0, i, j])
        said.append(total)
        lost.append(float((net(batch.inputs) - net(x)).detach()[0, 2]))
    found = metric.score(case).values
    assert float(found["spearman"]) == pytest.approx(stats.spearmanr(said, lost)[0], abs=1e-9)
    assert float(found["pearson"]) == pytest.approx(stats.pearsonr(said, lost)[0], abs=1e-9)
    assert mu_fidelity.pearson(torch.ones(4), torch.rand(4, generator=torch.Generator())) != 1
    assert math.isnan(mu_fidelity.pearson(torch.full((4,), 0.1), torch.arange(4.0)))


def test_completeness_of_what_promises_it_alone() -> None:
    net = moving_net()
    batch = batch_of(made(net, size=SIZE), pictures(2, SIZE))
    bound = batch.bind(Target("top1"))
    method = IntegratedGradients(steps=7, baseline="grey")
    maps = method.maps(batch, bound)
    found = Completeness().score(Case(batch, bound, method, maps.values, maps.values)).values
    told = {key: [p.value for p in maps.panels if getattr(p, "key", "") == key]
            for key in ("completeness", "completeness_gap")}
    assert found["relative"].tolist() == pytest.approx(told["completeness"], rel=1e-6)
    assert found["gap"].tolist() == pytest.approx(told["completeness_gap"], rel=1e-6)
    assert float(found["relative"].min()) > 1e-4  # seven steps leave a gap
    case, batch = linear_case(fill="grey")
    exact = Case(batch, case.bound, method, case.raw, case.shown)
    assert float(Completeness().score(exact).values["relative"].max()) < 1e-12
    for other in (Random(), GradCAM()):
        assert not promises(other)
        none = Completeness().score(dataclasses.replace(exact, method=other)).values
        assert all(torch.isnan(values).all() for values in none.values())


# --- what holds for all of them ---
@dataclass(frozen=True)
class Fixed(Control):
    """A map that is what the test says."""

    which: str = param("nan", "what it is")

    def maps(self, batch: Batch, target: Bound) -> Maps:
        values = drawn_maps(len(batch), int(batch.inputs.shape[-1]))
        made_of = {"nan": values * math.nan, "one_nan": torch.where(values > 0.99, math.nan, values),
                   "inf": torch.where(values > 0.99, math.inf, values),
                   "constant": torch.full_like(values, 0.3), "negative": -values - 1, "zero": values * 0}
        return Maps(made_of[self.which])


@dataclass(frozen=True)
class Positive(Fixed):
    """The same, of which only what is above 0 is shown."""

    view = "relu"


def table_of(metric: Metric, model: Model, n: int = 3, target: str = "top1") -> dict[str, dict[str, Any]]:
    """Mean scores by method and name."""
    result = metric(Subject(models=(model,), images=load_images(pictures(n, SIZE)), targets=(Target(target),)))
    table = next(p for p in result.panels if isinstance(p, Table) and p.key == "scores")
    planned = metric.cost(Subject(models=(model,), images=load_images(pictures(n, SIZE)), targets=(Target(target),)))
    assert result.cost.forwards == planned.forwards or metric.upper
    assert result.cost.forwards <= planned.forwards
    found: dict[str, dict[str, Any]] = {}
    for row in table.rows:
        found.setdefault(str(row[0]), {})[str(row[1])] = row[2]
    return found


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name())
def test_no_bad_map_crashes_or_scores_well(metric: Metric) -> None:
    model, first = made(moving_net(), size=SIZE), next(iter(metric.scores))
    bad = [Fixed(which) for which in ("nan", "one_nan", "inf", "constant", "zero")]
    negative = [Fixed("negative"), Positive("negative")]
    found = table_of(dataclasses.replace(metric, of=(*bad, *negative)), model)
    for method in bad:
        scores = found[f"fixed(which={method.which})" if method.which != "nan" else "fixed"]
        assert all(value is None for value in scores.values())
    if first == "relative":
        return
    spread = found["fixed(which=negative)"][first]
    hidden = found["positive(which=negative)"][first]
    assert spread is not None
    assert hidden is None  # nothing is shown: no score, however a random order would do


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name())
def test_any_target_and_head(metric: Metric) -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    model = Model(one.double(), mean=[0.4] * 3, std=[0.3] * 3, size=SIZE, precision="float64", head="regression")
    first = next(iter(metric.scores))
    of = (IntegratedGradients(steps=4),) if isinstance(metric, Completeness) else (GradCAM(layer="0"),)
    metric = dataclasses.replace(metric, of=of)
    found = table_of(metric, model)
    name = next(name for name in found if name not in ("random", "centre", "sobel"))
    assert found[name][first] is not None
    contrast = table_of(metric, made(moving_net(), size=SIZE), target="class:1 - class:2")
    assert contrast[name][first] is not None


@pytest.mark.parametrize("metric", [m for m in METRICS if not isinstance(m, Completeness)],
                         ids=lambda metric: metric.name())
def test_the_same_alone_and_in_a_batch_and_by_the_seed(metric: Metric) -> None:
    model, maps = made(moving_net(), size=SIZE), drawn_maps(3, levels=3)

    def scored(which: slice, seed: int = 0) -> Scored:
        return metric.score(case_of(batch_of(model, pictures(3, SIZE)[which], seed=seed), maps[which]))

    whole, last, other = scored(slice(0, 3)), scored(slice(2, 3)), scored(slice(0, 3), 1)
    for name, values in whole.values.items():
        assert values.dtype == torch.float64
        assert_close(values[2:], last.values[name], rtol=1e-9, atol=1e-12, equal_nan=True)
    for name, trace in whole.traces.items():
        assert_close(trace[2:], last.traces[name], rtol=1e-9, atol=1e-12)
    first = next(iter(metric.scores))
    assert float((whole.values[first] - other.values[first]).abs().max()) > 1e-9


def test_better_maps_score_better() -> None:
    """Where the exact contributions of every pixel are known, they beat noise in each metric."""
    case, batch = linear_case(4)
    exact = case.shown
    noise = case_of(batch, drawn_maps(4).double() * exact.std(), "class:1")
    for metric in METRICS:
        if isinstance(metric, Completeness):
            continue
        fills = {"fill": "black"} if hasattr(metric, "fill") else (
            {"deletion_fill": "black", "insertion_fill": "black"} if hasattr(metric, "deletion_fill") else {})
        metric = dataclasses.replace(metric, value="logit", **fills)
        first = next(iter(metric.scores))
        better = metric.score(case_of(batch, exact, "class:1")).values[first] - metric.score(noise).values[first]
        assert (better > 0).all() if metric.scores[first].better == "higher" else (better < 0).all(), metric.name()


def test_curves_serve_any_order() -> None:
    batch = batch_of(made(moving_net(), size=SIZE), pictures(1, SIZE))
    sampler = Sampler(batch, 0, [batch.bind(Target("top1"))], "log_odds")
    first = order(drawn_maps(1)[0], batch.generator(0, "test"))
    before = batch.model.cost.forwards
    most, least = curves(sampler, [first, first.flip(0)], torch.zeros_like(sampler.x), [13, 26, 51, 90, 128, 179])
    assert batch.model.cost.forwards - before == 12
    assert most.shape == least.shape == (6, 1)


@pytest.mark.parametrize(("make", "what"), [
    (lambda: InsertionDeletion(deletion_fill="purple"), "baseline"), (lambda: PixelFlipping(regions="grid"), "regions"),
    (lambda: ROAD(percentages="5"), "percentages"), (lambda: Infidelity(fill="-1"), "baseline"),
    (lambda: MuFidelity(subset=2.0), "subset"), (lambda: PixelFlipping(steps=0), "steps")])
def test_wrong_parameters_are_told(make: Any, what: str) -> None:
    with pytest.raises(XaiError, match=what):
        make()
