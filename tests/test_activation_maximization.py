"""Activation maximisation: closed forms of its four parts, draws that batching does not change, dead units, scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from analyzers.visualization import _ascent, _quality
from analyzers.visualization._ascent import Found, Network, Plan, Redirected, ascend
from analyzers.visualization._objectives import Unit, alike, parse, split
from analyzers.visualization._parameterisation import (
    PARAMETERISATIONS,
    Fourier,
    Maco,
    Parameterisation,
    Pixel,
    analytic,
    coloured,
    frequencies,
    magnitudes,
    mixing,
    spectral_distance,
)
from analyzers.visualization._penalties import PENALTIES, sharpness, squares, variation
from analyzers.visualization._transforms import STACKS, Draw, fresh
from analyzers.visualization.activation_maximization import ActivationMaximization
from xai import seeds
from xai.errors import XaiError
from xai.images import Image, Images
from xai.model import Model
from xai.panels import Curve, Picture, Table, Text
from xai.result import Result
from xai.subject import Subject
from xai.zoo.loading import load

SHARED = Path(__file__).resolve().parents[2] / "shared"
SIDE = 12


def generator(name: str = "test") -> torch.Generator:
    return seeds.generator(0, name)


def drawn(*shape: int, name: str = "values") -> Tensor:
    return torch.rand(*shape, generator=generator(name))


class Linear(nn.Module):
    """Class scores w_k . x, and a 1x1 convolution whose output has places."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.point, self.head = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3 * SIDE * SIDE, classes, bias=False)
        with torch.no_grad():
            self.point.weight.copy_(torch.eye(3)[..., None, None])
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator("linear")))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.point(x).flatten(1))


class Small(nn.Module):
    """Two convolutions with ReLUs and a pooled head; `dead` shuts channel 0 of the second for ever, `asleep` channel 1
    until something bright comes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.one, self.two, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Linear(4, 3)
        with torch.no_grad():
            self.two.weight[0], self.two.bias[0] = -self.two.weight[0].abs(), -1.0
            self.one.weight[0] = 0.2
            self.two.weight[1], self.two.bias[1] = 0.0, -6.0
            self.two.weight[1, 0] = 0.2
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.two(F.relu(self.one(x)))).mean((2, 3)))


def model(module: nn.Module | None = None, size: int = SIDE, **options: object) -> Model:
    options = {"labels": None, **options}
    return Model(Small() if module is None else module, mean=[0.0] * 3, std=[1.0] * 3, size=size, **options)  # type: ignore[arg-type]


def made(subject: Subject | Model, **settings: object) -> Result:
    subject = subject if isinstance(subject, Subject) else Subject.of(subject)
    return ActivationMaximization(**{"steps": 8, **settings})(subject)  # type: ignore[arg-type]


def pictures(result: Result) -> list[np.ndarray]:
    return [p.pixels for p in result.panels if isinstance(p, Picture) and p.key.startswith("picture-")]


def rows(result: Result) -> dict[str, dict[str, object]]:
    """Of the table, by unit and column."""
    table = next(p for p in result.panels if isinstance(p, Table))
    names = [column.name for column in table.columns]
    return {str(row[0]): dict(zip(names, row, strict=True)) for row in table.rows}


def climbed(module: nn.Module, units: list[str], how: Parameterisation, at_once: int = 4, seed: int = 0,
            **plan: object) -> Found:
    own = model(module, size=how.size[0])
    parsed = [parse(text, own, own.example()) for text in units]
    network = Network(own, parsed, 0.0, at_once)
    settings = {"steps": 6, "stack": "standard", "draws": 1, "rate": how.rate, **plan}
    with network.open():
        return ascend(network, units, Plan(how, **settings), seed)  # type: ignore[arg-type]


# --- closed forms of the optimum ---
def test_a_linear_unit_under_the_square_penalty_reaches_its_optimum() -> None:
    """w.x - c mean((x - 0.5)^2) is largest at 0.5 + N w / (2 c): of all pictures that far from grey the best, by
    Cauchy and Schwarz, which is the optimum rho w / |w| of the ball |x - 0.5| <= rho."""
    net, how = Linear(), Pixel(3, (SIDE, SIDE))
    w = net.head.weight[0].detach().view(3, SIDE, SIDE)
    count, charge = w.numel(), 4 * w.numel() * float(w.abs().max())
    found = climbed(net, ["class:0"], how, stack="none", steps=400, rate=0.005, penalties={"l2": charge})
    expected = 0.5 + count * w / (2 * charge)
    assert_close(found.pictures[0], expected, rtol=0, atol=2e-3)
    moved = found.pictures[0] - 0.5
    assert float((w * moved).sum() / (w.norm() * moved.norm())) > 0.999


def test_without_a_charge_a_linear_unit_fills_the_box() -> None:
    net = Linear()
    found = climbed(net, ["class:1"], Pixel(3, (SIDE, SIDE)), stack="none", steps=80, rate=0.02)
    assert_close(found.pictures[0], (net.head.weight[1].detach().view(3, SIDE, SIDE) > 0).float(), rtol=0, atol=1e-6)
    assert not found.dead[0]


# --- parameterisations ---
def test_the_colours_are_decorrelated_by_the_published_matrix() -> None:
    m = mixing()
    assert float(torch.tensor([0.26, 0.27, 0.27], dtype=torch.float64).norm()) == pytest.approx(0.461952, abs=1e-6)
    assert_close(m[:, 0], torch.tensor([0.562829, 0.584476, 0.584476], dtype=torch.float64), rtol=0, atol=1e-6)
    assert_close(m[:, 1], torch.tensor([0.194825, 0, -0.194825], dtype=torch.float64), rtol=0, atol=1e-6)
    assert_close(m @ torch.linalg.inv(m), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    z = drawn(2, 3, 4, 5).double()
    assert_close(coloured(z), (z.permute(0, 2, 3, 1) @ m.T).permute(0, 3, 1, 2), rtol=0, atol=1e-12)
    assert coloured(z[:, :1]) is not None
    assert_close(coloured(z[:, :1]), z[:, :1])


@pytest.mark.parametrize("size", [(16, 16), (15, 16), (16, 15), (9, 13)])
def test_every_picture_has_a_spectrum_that_gives_it_back(size: tuple[int, int]) -> None:
    """The steps of `Fourier.picture` undone one by one, written here: logit, colours, x 4, rfft2, x max(f, 1/side)."""
    how = Fourier(3, size)
    x = 0.05 + 0.9 * drawn(2, 3, *size).double()
    z = (torch.logit(x).permute(0, 2, 3, 1) @ torch.linalg.inv(mixing()).T).permute(0, 3, 1, 2)
    spectrum = torch.fft.rfft2(4 * z, norm="ortho") * frequencies(*size).clamp_min(1 / max(size))
    assert_close(how.picture(torch.view_as_real(spectrum)), x, rtol=0, atol=1e-10)


def test_the_start_is_the_flat_grey_that_is_known() -> None:
    """Before the sigmoid, at 128 pixels: 0.018 to 0.019 before the colours, 0.011 after."""
    how = Fourier(3, (128, 128))
    p = torch.stack([how.start(generator(str(i))) for i in range(4)])
    after = torch.logit(how.picture(p))
    before = torch.einsum("dc,nchw->ndhw", torch.linalg.inv(mixing()).float(), after)
    assert 0.0175 <= float(before.std()) <= 0.0195
    assert 0.0105 <= float(after.std()) <= 0.0125


def test_the_frequencies_are_those_of_numpy() -> None:
    fy, fx = np.fft.fftfreq(7), np.fft.rfftfreq(10)
    assert_close(frequencies(7, 10), torch.from_numpy(np.sqrt(fy[:, None] ** 2 + fx**2)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(16, 16), (15, 17)])
def test_maco_keeps_the_magnitudes_whatever_the_phases(size: tuple[int, int]) -> None:
    how = Maco(3, size)
    p = 3 * torch.randn(2, 3, size[0], size[1] // 2 + 1, generator=generator(), dtype=torch.float64)
    z = torch.logit(how.picture(p))
    z = torch.einsum("dc,nchw->ndhw", torch.linalg.inv(mixing()), z)
    inner = slice(1, (size[1] + 1) // 2)  # the other columns must be their own mirror image
    ratio = torch.fft.rfft2(z).abs()[..., inner] / analytic(3, *size).double()[..., inner]
    assert_close(ratio, ratio.mean((1, 2, 3), keepdim=True).expand_as(ratio), rtol=2e-3, atol=0)
    assert_close(how.picture(2 * p + 5), how.picture(p), rtol=0, atol=1e-3)
    louder = Maco(3, size, 1000 * analytic(3, *size))
    assert_close(louder.picture(p), how.picture(p), rtol=0, atol=2e-3)


def test_the_analytic_magnitudes_are_near_the_measured_ones() -> None:
    """Radial means of ImageNet's mean spectrum in decorrelated colours, 512 pixels; only the shape counts."""
    f = torch.tensor([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4], dtype=torch.float64)
    measured = torch.tensor([28427, 12907, 5400, 1612, 558, 169, 20], dtype=torch.float64)
    r = f**-1.25 * torch.exp(-((f / 0.3) ** 2))
    place = (frequencies(512, 512)[0] - 0.2).abs().argmin()
    assert_close(analytic(1, 512, 512)[0, 0, place].double(), r[5], rtol=0.02, atol=0)
    ratio = measured / r
    assert float(ratio.max() / ratio.min()) < 1.12**2


def test_a_natural_spectrum_is_near_and_noise_and_the_flat_are_far() -> None:
    how = Maco(3, (64, 64))
    natural = how.picture(torch.stack([how.start(generator(str(i))) for i in range(2)]))
    near = spectral_distance(natural, analytic(3, 64, 64))
    noise = spectral_distance(drawn(2, 3, 64, 64), analytic(3, 64, 64))
    assert max(near) < 0.15 < 0.5 < min(noise)
    own = magnitudes(natural[:1])[0]
    assert spectral_distance(natural[:1], own)[0] == pytest.approx(0, abs=1e-9)
    assert spectral_distance(natural[:1], 7 * own)[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", PARAMETERISATIONS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_lie_in_the_unit_range_and_take_a_gradient(name: str, channels: int) -> None:
    how = PARAMETERISATIONS[name](channels, (9, 8))
    p = torch.stack([how.start(generator(str(i))) for i in range(3)]).requires_grad_()
    x = how.picture(p)
    assert x.shape == (3, channels, 9, 8)
    assert 0 <= float(x.detach().min()) <= float(x.detach().max()) <= 1
    (g,) = torch.autograd.grad(x[1].square().sum(), p)
    assert g[1].abs().sum() > 0
    assert not g[0].any()
    assert not g[2].any()


# --- penalties ---
def test_the_penalties_of_pictures_whose_value_is_known() -> None:
    flat = torch.full((2, 3, 8, 8), 0.25)
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 4:] = 1
    ramp = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    assert_close(squares(flat), torch.full((2,), 0.0625))
    for penalty in (variation, sharpness):
        assert_close(penalty(flat), torch.zeros(2), rtol=0, atol=1e-9)
    assert float(64 * variation(edge)) == pytest.approx(8, abs=1e-2)
    assert float(64 * variation(ramp)) == pytest.approx(8, abs=1e-2)
    assert float(sharpness(edge)) > 10 * float(sharpness(ramp)) > 0


@pytest.mark.parametrize("name", PENALTIES)
def test_the_gradient_of_each_penalty(name: str) -> None:
    x = drawn(2, 3, 5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(PENALTIES[name], (x,), atol=1e-5)
    flat = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    (g,) = torch.autograd.grad(PENALTIES[name](flat).sum(), flat)
    assert_close(g, torch.zeros_like(g), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_charge_lowers_what_it_is_for(name: str) -> None:
    how = Pixel(3, (SIDE, SIDE))
    free, charged = (climbed(Small(), ["class:0"], how, steps=20, penalties={name: weight}) for weight in (0.0, 50.0))
    assert float(PENALTIES[name](charged.pictures)) < float(PENALTIES[name](free.pictures))


# --- transforms ---
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_transforms_of_which_the_result_is_known(size: tuple[int, int]) -> None:
    x = drawn(2, 3, *size)
    h, w = size
    assert Draw()(x) is x
    assert_close(Draw(scale=1 + 1e-12)(x), x, rtol=0, atol=1e-5)
    assert_close(Draw(mirrored=True)(x), x.flip(-1), rtol=0, atol=1e-5)
    assert_close(Draw(angle=math.pi)(x), x.flip(-1, -2), rtol=0, atol=1e-5)
    moved = Draw(down=2, right=-1)(x)
    assert_close(moved[..., 2:, : w - 1], x[..., : h - 2, 1:], rtol=0, atol=1e-5)
    assert_close(moved[..., :2, :], torch.full_like(moved[..., :2, :], 0.5), rtol=0, atol=1e-5)
    assert_close(Draw(bright=0.5)(x), x / 2)


def test_a_crop_is_a_crop_that_is_enlarged() -> None:
    """The left upper quarter, twice as large, against torch's own bilinear interpolation, away from the border."""
    x = drawn(1, 2, 8, 8)
    mine = Draw(scale=2.0, down=2.0, right=2.0)(x)
    theirs = F.interpolate(x[..., :4, :4], (8, 8), mode="bilinear", align_corners=False)
    assert_close(mine[..., 1:7, 1:7], theirs[..., 1:7, 1:7], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*STACKS, "fresh"])
def test_draws_follow_their_generator_and_stay_in_bounds(name: str) -> None:
    stack: Callable[[torch.Generator, int], Draw] = fresh if name == "fresh" else STACKS[name]
    first, again, other = ([stack(g, 64) for _ in range(40)] for g in (generator("a"), generator("a"), generator("b")))
    assert first == again
    assert (first != other) == (name != "none")
    if name in ("crops", "fresh"):  # what is read lies inside
        for one in first:
            assert max(abs(one.down), abs(one.right)) + 32 / one.scale <= 32 + 1e-9
    if name in ("standard", "wide"):
        low, high = (0.9, 1.1) if name == "standard" else (0.85, 1.45)
        assert len({one.angle for one in first}) > 5
        assert all(abs(one.angle) <= math.radians(10) and low <= one.scale <= high for one in first)
        assert any(one.mirrored for one in first) == (name == "wide")


# --- objectives ---
def test_words_become_units() -> None:
    own = model(labels=("ant", "bee", "ant - bee"))
    ex = own.example()
    assert split("class:1, two:3@1,2 , ant - bee") == ["class:1", "two:3@1,2", "ant - bee"]
    assert parse("bee", own, ex).class_index == 1
    assert parse("ant - bee", own, ex).class_index == 2
    assert parse("class:2 - 0.5*class:0", own, ex).class_index is None
    assert [t.factor for t in parse("class:2 - 0.5*bee + -2*two:1", own, ex).terms] == [1, -0.5, -2]
    assert parse("two:3@1,2", own, ex).terms[0].cell == (1, 2)
    assert parse("two:3@centre", own, ex).terms[0].cell == (4, 4)
    assert parse("auto:1", own, ex).text == f"{own.view('auto').name}:1"
    assert parse("two:[0=0.5 3=-1]", own, ex).terms[0].direction == (0.5, 0, 0, -1)


@pytest.mark.parametrize("text", ["class:3", "two:4", "nowhere", "two:1@99,0", "two:[9=1]", "two:[x]", "two:[]", "wasp",
                                  "two:[no.npy]", "class:0 - ", "nowhere:3"])
def test_words_that_name_nothing_get_a_sentence(text: str) -> None:
    with pytest.raises(XaiError, match=r"must be .+; got .+\. \S"):
        made(model(labels=("ant", "bee", "cat")), units=text)


def test_what_cannot_be_read_without_a_picture_gets_a_sentence() -> None:
    with pytest.raises(XaiError, match="one unit or more"):
        made(model(), units=" , ")
    for target in ("rank:2", "label", lambda output: output[:, 0]):
        with pytest.raises(XaiError, match="a class or a contrast: .+ Name units"):
            made(Subject.of(model(), target=target))  # type: ignore[arg-type]
    unknown = Model(Small(), size=SIDE)
    for models in (unknown, [model(), unknown]):
        with pytest.raises(XaiError, match="the preprocessing of this model"):
            made(Subject.of(models), units="class:0", steps=1)


def test_a_direction_from_a_file(tmp_path: Path) -> None:
    own = model()
    np.save(tmp_path / "v.npy", np.array([1.0, 0, -2, 0]))
    assert parse(f"two:[{tmp_path}/v.npy]", own, own.example()).terms[0].direction == (1, 0, -2, 0)
    np.save(tmp_path / "short.npy", np.ones(3))
    np.save(tmp_path / "code.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("short", "code"):
        with pytest.raises(XaiError, match="holds 4 finite numbers"):
            parse(f"two:[{tmp_path}/{name}.npy]", own, own.example())


def test_the_values_are_those_of_the_definitions() -> None:
    """Each form computed anew from the network's own tensors; different units in the rows of one batch."""
    own, x = model(), drawn(6, 3, SIDE, SIDE)
    texts = ["class:1", "two:2", "two:3@1,2", "act", "two:[0=1 3=-2]", "class:0 - 0.5*two:1 + 2*one:4@centre"]
    net = Small().eval()
    with torch.no_grad():
        one = net.one(x)
        two = net.two(one.relu())
        act = two.relu()
        out = net.head(act.mean((2, 3)))
    v = torch.tensor([1.0, 0, 0, -2])
    expected = [out[0, 1], two[1, 2].mean(), two[2, 3, 1, 2], act[3].square().mean(),
                torch.einsum("khw,k->hw", two[4], v).mean(),
                out[5, 0] - 0.5 * two[5, 1].mean() + 2 * one[5, 4, 5, 5]]
    units = [parse(text, own, own.example()) for text in texts]
    for at_once in (1, 4, 6):
        with Network(own, units, 0.0, at_once).open() as network:
            assert_close(network.look(x)[0], torch.stack(expected), rtol=1e-4, atol=1e-5)
    with Network(own, units, 0.0, 6).open() as network:
        each = network.each(x)
        assert_close(each.diag(), torch.stack(expected), rtol=1e-4, atol=1e-5)
        assert_close(each[:, 0], out[:, 1], rtol=1e-4, atol=1e-5)
    cosine = torch.einsum("khw,k->hw", two[4], v) / (two[4].norm(dim=0) * v.norm())
    with Network(own, [units[4]], 2.0, 1).open() as network:
        value = torch.einsum("khw,k->hw", two[4], v) * cosine.clamp_min(0.1) ** 2
        assert_close(network.look(x[4:5])[0][0], value.mean(), rtol=1e-4, atol=1e-5)


def test_a_sum_climbs_by_the_sum_of_the_gradients() -> None:
    own, x = model(), drawn(1, 3, SIDE, SIDE)

    def gradient(text: str) -> Tensor:
        with Network(own, [parse(text, own, own.example())], 0.0, 1).open() as network:
            return network.climb(x, redirect=False)[1]

    together = gradient("class:0 - 0.5*two:1 + 3*two:2@1,1")
    assert_close(together, gradient("class:0") - 0.5 * gradient("two:1") + 3 * gradient("two:2@1,1"),
                 rtol=1e-4, atol=1e-6)


def test_likeness_of_copies_is_counted_as_defined() -> None:
    maps = drawn(1, 4, 3, 3).expand(5, -1, -1, -1)
    assert float(alike(maps, [0] * 5).sum()) == pytest.approx(4, abs=1e-5)
    assert_close(alike(maps, range(5)), torch.zeros(5))
    free = drawn(4, 4, 3, 3, name="free")
    found, expected = alike(free, [7, 7, 2, 7]), 0.0
    grams = [m.flatten(1) @ m.flatten(1).T for m in free]
    for i in (0, 1, 3):
        for j in (0, 1, 3):
            expected += float((grams[i] / grams[i].norm() * grams[j] / grams[j].norm()).sum()) / 3 if i != j else 0
    assert float(found.sum()) == pytest.approx(expected, rel=1e-5)
    assert float(found[2]) == 0


def test_diversity_makes_copies_less_alike() -> None:
    """By the Gram matrices of the unit's own layer."""
    text = "one:2 + one:4"

    def likeness(diversity: float) -> float:
        result = made(model(), units=text, copies=3, diversity=diversity, steps=60, parameterisation="pixel")
        own = model()
        with Network(own, [parse(text, own, own.example())] * 3, 0.0, 3).open() as network:
            x = torch.stack([torch.from_numpy(p.copy()) for p in pictures(result)]).permute(0, 3, 1, 2) / 255
            _, found = network.ask(x)
            return float(alike(found[network.units[0].views[0]], [0, 0, 0]).sum())

    assert likeness(30.0) < likeness(0.0) - 0.01


# --- batching ---
@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_batching_changes_no_random_draw_and_the_picture_by_rounding_only(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: list[tuple[str, ...]] = []
    real = seeds.generator
    monkeypatch.setattr(seeds, "generator", lambda seed, *parts: draws.append(parts) or real(seed, *parts))  # type: ignore[func-returns-value]
    how, units = PARAMETERISATIONS[name](3, (SIDE, SIDE)), ["class:0", "two:2", "class:1 - class:2", "two:3@1,1", "act"]
    plan = {"stack": how.stack, "draws": how.draws, "noise": 0.05, "steps": 4}
    together = climbed(Small(), units, how, **plan)
    steps = [parts for parts in draws if parts[0].startswith("step ")]
    assert len(steps) == 4
    for i, unit in enumerate(units):
        draws.clear()
        alone = climbed(Small(), [unit], how, at_once=1, **plan)
        assert [parts for parts in draws if parts[0].startswith("step ")] == steps
        assert_close(alone.first[0], together.first[i], rtol=0, atol=1e-6)
        assert_close(alone.course[:, 0], together.course[:, i], rtol=1e-3, atol=1e-4)
        assert_close(alone.pictures[0], together.pictures[i], rtol=0, atol=2e-3)
    assert not torch.equal(climbed(Small(), units, how, seed=1, **plan).first, together.first)


def test_jobs_hold_sixteen_and_more_units_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = _ascent.ascend

    def watched(network: Network, *rest: object) -> Found:
        sizes.append(len(network.units))
        return real(network, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("analyzers.visualization.activation_maximization.ascend", watched)
    names = [f"one:{i}@{y},1" for i in range(6) for y in range(3)]
    many = made(model(), units=", ".join(names), steps=2)
    assert sizes == [16, 2]
    sizes.clear()
    few = made(model(), units=names[17], steps=2)
    assert sizes == [1]
    assert int(np.abs(pictures(many)[17].astype(int) - pictures(few)[0]).max()) <= 1
    sizes.clear()
    made(model(), units="class:0, class:1, class:2", copies=6, steps=1)
    assert sizes == [12, 6]


# --- dead units ---
def test_dead_units_are_said_to_be_dead_and_sleepers_wake() -> None:
    """Channel 0 can only be zero after its ReLU; channel 1 is zero at grey and awakes with the redirected gradient."""
    result = made(model(), units="act:0, act:1, act:2", steps=40, parameterisation="pixel", transforms="jitter")
    table = rows(result)
    assert list(table) == ["act:0, dead", "act:1", "act:2"]
    assert table["act:0, dead"]["reached"] == 0
    assert table["act:1"]["start"] == 0
    assert table["act:1"]["reached"] > 0  # type: ignore[operator]
    said = next(p for p in result.panels if isinstance(p, Text) and p.key == "dead")
    assert "act:0 (always 0)" in said.text
    assert "act:1" not in said.text
    alive = next(v for v in result.verdicts if v.name == "alive")
    assert (alive.passed, alive.value) == (False, 1)
    plain = climbed(Small(), ["act:1"], Pixel(3, (SIDE, SIDE)), steps=1)  # one step has no redirection
    assert plain.dead == [True]


@pytest.mark.parametrize("call", [
    F.relu, torch.relu, Tensor.relu, nn.ReLU(), nn.ReLU(inplace=True), lambda x: F.relu(x, inplace=True),
    lambda x: torch.relu_(x), lambda x: x.clamp(min=0), lambda x: x.clamp_(0), lambda x: torch.clamp_min(x, 0),
    F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True), lambda x: F.hardtanh(x, 0, 6)], ids=range(14))
def test_a_redirected_relu_in_any_spelling(call: Callable[[Tensor], Tensor]) -> None:
    """Rows: all below zero, where upward pushes pass; mixed, where the plain gradient does."""
    x = torch.tensor([[-1.0, -2.0], [3.0, -2.0]], requires_grad=True)
    push = torch.tensor([[2.0, -5.0], [7.0, 11.0]])
    with Redirected():
        y = call(x * 1)
    assert_close(y, x.detach().clamp(min=0))
    (g,) = torch.autograd.grad((y * push).sum(), x)
    assert_close(g, torch.tensor([[2.0, 0.0], [7.0, 0.0]]))


def test_a_relu6_that_is_full_lets_downward_pushes_pass() -> None:
    x = torch.tensor([[8.0, 9.0]], requires_grad=True)
    with Redirected():
        y = F.relu6(x)
    (g,) = torch.autograd.grad((y * torch.tensor([[2.0, -3.0]])).sum(), x)
    assert_close(g, torch.tensor([[0.0, -3.0]]))


def test_clamps_that_are_no_relus_stay_as_they_are() -> None:
    x = torch.tensor([[-2.0, 2.0]], requires_grad=True)
    with Redirected():
        y = x.clamp(-1, 1) + x.clamp(max=5)
    assert_close(y, torch.tensor([[-3.0, 3.0]]))
    (g,) = torch.autograd.grad(y.sum(), x)
    assert_close(g, torch.ones(1, 2))


# --- quality ---
class Left(nn.Module):
    """Class 0 where the left half is brighter than the right, class 1 where the picture is bright."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        left, right = x[..., :half].mean((1, 2, 3)), x[..., half:].mean((1, 2, 3))
        return 50 * torch.stack([left - right, x.mean((1, 2, 3)) - 0.5], 1)


def test_a_picture_that_mirroring_spoils_fools_in_half_of_the_draws() -> None:
    own, units = Model(Left(), mean=[0.0] * 3, std=[1.0] * 3, size=SIDE), []
    units = [Unit(f"class:{i}", parse(f"class:{i}", own, own.example()).terms) for i in (0, 1)]
    sided = torch.zeros(3, SIDE, SIDE)
    sided[..., : SIDE // 2] = 1
    with Network(own, units, 0.0, 2).open() as network:
        score = _quality.under_others(network, torch.stack([sided, torch.ones(3, SIDE, SIDE)]), 0, draws=200)
    assert 0.4 < float(score.top[0]) < 0.6
    assert 0.4 < float(score.probability[0]) < 0.6
    assert float(score.top[1]) == 1
    assert float(score.probability[1]) > 0.99
    assert float(score.values[1]) > 10


def test_transfer_goes_by_the_class_name() -> None:
    own = Model(Left(), mean=[0.0] * 3, std=[1.0] * 3, size=SIDE, labels=("left", "bright"))
    judge = Model(Left(), mean=[0.5] * 3, std=[0.5] * 3, size=2 * SIDE, labels=("bright", "other"))
    units = [parse(text, own, own.example()) for text in ("left", "bright", "left - bright")]
    sided = torch.zeros(3, 3, SIDE, SIDE)
    sided[..., : SIDE // 2] = 1
    seen = _quality.transferred(judge, own, units, sided)
    assert math.isnan(float(seen[0]))
    assert float(seen[1]) > 0.99  # the judge calls "bright" what is brighter on the left
    assert math.isnan(float(seen[2]))
    result = made(Subject.of([own, judge]), units="bright", steps=2)
    assert f"probability in {judge.spec}" in next(p for p in result.panels if isinstance(p, Table)).columns[-1].name
    assert result.cost.forwards == 2 + 16 + 2 + 1 + 0


def test_natural_pictures_are_compared_with_and_give_the_spectrum() -> None:
    images = Images.of([Image.of(f"{i}.png", drawn(3, 20, 24, name=str(i)).numpy()) for i in range(3)])
    own = model()
    result = made(Subject.of(own, images), units="two:2", steps=30, parameterisation="maco")
    row = rows(result)["two:2"]
    values = torch.cat([batch.activations("two")[:, 2].mean((1, 2)) for batch in own.prepare(images)])
    assert row["best of 3 natural pictures"] == pytest.approx(float(values.max()), rel=1e-3)
    assert any("those of the images" in p.text for p in result.panels if isinstance(p, Text))
    assert len([p for p in result.panels if p.key.startswith("touched-")]) == 1


# --- what is chosen where nothing is named ---
def test_the_strongest_classes_and_live_channels_are_taken() -> None:
    result = made(model(), count=4, steps=2)
    names = list(rows(result))
    assert [name.split(":")[0] for name in names] == ["class", "class", "act", "act"]
    assert "act:0" not in names  # it is dead
    assert list(rows(made(Subject.of(model(), target="class:2"), steps=1))) == ["class:2"]
    contrast = Subject.of(model(labels=("a", "b", "c")), target="a - b")
    assert list(rows(made(contrast, steps=1))) == ["a - b"]
    assert next(iter(rows(made(model(Linear()), count=3, steps=1)))).startswith("class:")


def test_the_course_and_the_frames_tell_the_way() -> None:
    result = made(model(), units="two:2", steps=32)
    curve = next(p for p in result.panels if isinstance(p, Curve))
    assert curve.y.shape == (1, 32)
    assert curve.y[0, -8:].mean() > curve.y[0, :4].mean()
    frames = next(p for p in result.panels if p.key == "frames-0")
    assert isinstance(frames, Picture)
    assert frames.note == "After steps 1, 2, 4, 8, 16, 32."
    assert frames.pixels.shape == (SIDE, 6 * SIDE + 5 * 2, 3)
    assert np.array_equal(frames.pixels[:, -SIDE:], pictures(result)[0])


class Fixed(nn.Module):
    """Takes 160 x 160 only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 160:
            raise ValueError("160 only")
        return self.inner(x)


def test_the_size_is_what_the_network_takes() -> None:
    assert pictures(made(model(size=160), units="class:0", steps=1))[0].shape == (128, 128, 3)
    fixed = made(model(Fixed(), size=160), units="class:0", steps=1)
    assert pictures(fixed)[0].shape == (160, 160, 3)
    assert fixed.cost.forwards <= ActivationMaximization(units="class:0", steps=1).cost(
        Subject.of(model(Fixed(), size=160))).forwards
    with pytest.raises(XaiError, match=r"size must be one that .+ takes; got 96.+160 only.+Leave it out"):
        made(model(Fixed(), size=160), units="class:0", steps=1, size=96)


def test_one_channel_is_shown_in_grey() -> None:
    grey = Model(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), mean=[0.4],
                 std=[0.2], size=SIDE, channels=1)
    assert pictures(made(grey, units="class:1", steps=2))[0].shape == (SIDE, SIDE)


@pytest.mark.parametrize("spec", ["xai:photo20", "timm:vit_tiny_patch16_224"])
def test_the_defaults_run_on(spec: str) -> None:
    own = load(spec, weights=None if spec.startswith("xai:") else "random")
    result = made(own, steps=1, count=2)
    shown = pictures(result)
    assert len(shown) == 2
    assert shown[0].shape[0] in (64, 224)
    assert len(rows(result)) == 2


# --- the real network ---
@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared (weights and photographs)")
def test_pictures_of_squeezenet_excite_it_more_than_photographs_do() -> None:
    """Of 4 channels and 2 classes, in 128 steps at 96 pixels; all of it: examples/activation_maximization.py."""
    own = load("torchvision:squeezenet1_0", weights=str(SHARED / "models/squeezenet1_0_imagenet.safetensors"))
    result = made(Subject.of(own, str(SHARED / "images")), steps=128, size=96,
                  units="features.12:20, features.12:150, features.12:300, features.12:450, class:1, class:130")
    table = rows(result)
    channels = [row for name, row in table.items() if name.startswith("features")]
    assert sum(row["times that"] >= 3 for row in channels) >= 3  # type: ignore[operator]
    for row in [row for name, row in table.items() if not name.startswith("features")]:
        assert row["probability under them"] > 0.8  # type: ignore[operator]
