"""Network inversion: penalties in closed form, layers that can be undone, what is left open, and a trained network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.visualization import _prior
from analyzers.visualization._prior import MIDDLE, TYPICAL, alpha_norm, natural, total_variation
from analyzers.visualization._until import until
from analyzers.visualization.inversion import Inversion, blocks
from xai.errors import XaiError
from xai.images import Images, load_images
from xai.model import Model
from xai.panels import Curve, Heatmap, Panel, Picture, Table, Text
from xai.result import Result
from xai.streaming import Left
from xai.subject import Subject
from xai.zoo.loading import load

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "models/squeezenet1_0_imagenet.safetensors"
SIZE = 8


def pictures(count: int = 1, size: int = SIZE) -> Images:
    return load_images(torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3)))


def model(*parts: nn.Module, size: int = SIZE) -> Model:
    """A network whose first part is looked at; scores follow from the mean of what the last part gives."""
    torch.manual_seed(0)
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4))
    net(torch.zeros(1, 3, size, size))
    return Model(net.eval(), mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3], size=size)


def mixing(weight: Tensor) -> nn.Conv2d:
    """A 1x1 convolution with that matrix."""
    made = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    with torch.no_grad():
        made.weight.copy_(weight[..., None, None])
        made.bias.fill_(0.3)
    return made


FREE: dict[str, Any] = {"smooth": 0.0, "bound": 0.0}


def inverted(made: Model, images: Images, **more: Any) -> Result:
    return Inversion(**more)(Subject((made,), images))


def panels(result: Result, kind: type[Panel], prefix: str = "") -> list[Any]:
    return [p for p in result.panels if isinstance(p, kind) and p.key.startswith(prefix)]


# --- penalties ---
def test_total_variation_by_hand() -> None:
    """The numbers of an 8 x 8 edge and ramp; 2 prefers the blurred one, 1 does not care."""
    edge = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], 1).double()[None, None]
    ramp = torch.linspace(0, 1, 8).double().expand(8, 8)[None, None]
    for beta, of_edge, of_ramp in ((1.0, 8, 8), (2.0, 8, 8 / 7)):
        assert_close(total_variation(torch.cat([edge, ramp]), beta), torch.tensor([of_edge, of_ramp]).double(),
                     rtol=1e-6, atol=0)
    corner = torch.zeros(1, 1, 3, 3).double()
    corner[0, 0, 0, 0] = 1  # both differences of one pixel go into one root
    assert_close(total_variation(corner, 1.0), torch.tensor([math.sqrt(2)]).double())


def test_the_gradient_of_total_variation_is_minus_twice_the_laplacian() -> None:
    x = torch.rand(1, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (found,) = torch.autograd.grad(total_variation(x).sum(), x)
    around = nn.functional.pad(x.detach(), (1, 1, 1, 1), mode="replicate")
    laplacian = (around[..., :-2, 1:-1] + around[..., 2:, 1:-1] + around[..., 1:-1, :-2] + around[..., 1:-1, 2:]
                 - 4 * x.detach())
    assert_close(found, -2 * laplacian)
    assert torch.autograd.gradcheck(lambda x: total_variation(x, 1.0), x)
    assert torch.autograd.gradcheck(lambda x: alpha_norm(x - 0.5, 5.0), x)


def test_a_flat_picture_has_a_gradient_of_zero_even_under_a_root() -> None:
    x = torch.full((1, 3, 4, 4), 0.5).requires_grad_()
    (found,) = torch.autograd.grad(natural(x, 8e-10, 6, 1, 1.0).sum(), x)
    assert not found.any()


def test_the_alpha_norm_by_hand() -> None:
    x = torch.tensor([-2.0, 1.0, 0.5, 0.0]).double().view(1, 1, 2, 2)
    assert float(alpha_norm(x, 6.0)) == 64 + 1 + 1 / 64
    assert float(alpha_norm(x, 3.0)) == 8 + 1 + 1 / 8  # odd: of the size


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_the_prior_is_the_papers_on_pictures_of_0_to_255_less_their_mean(beta: float) -> None:
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    paper = 255 * (x - MIDDLE)
    sigma2 = (255 * TYPICAL) ** 2 * 3 * 81
    expected = (10 / 2 * total_variation(paper, beta) + 8e-10 / 2 * alpha_norm(paper, 6)) / sigma2
    assert_close(natural(x, 8e-10, 6, 10, beta), expected)
    assert float(natural(torch.full((1, 3, 9, 9), MIDDLE), 1, 6, 1, beta)) == 0
    assert _prior.LEAST < (1 / 255) ** 2  # a step of one grey level has its gradient


# --- layers ---
def test_a_layer_that_can_be_undone_gives_the_picture_back() -> None:
    weight = torch.tensor([[1.0, 0.3, -0.2], [0.1, 0.8, 0.4], [-0.3, 0.2, 0.9]])
    result = inverted(model(mixing(weight)), pictures(), layers="0", steps=500, restarts=2, **FREE)
    (table,) = panels(result, Table, "errors")
    row = table.rows[0]
    assert row[0] == "0"
    assert row[2] < 1e-3
    assert row[6] < 1e-2
    (seen,), (found,) = panels(result, Picture, "seen"), panels(result, Picture, "inverted")
    assert np.abs(seen.pixels.astype(int) - found.pixels.astype(int)).max() <= 2
    assert panels(result, Heatmap, "open")[0].values.max() < 0.02


def test_the_objective_is_at_its_closed_form_minimum() -> None:
    """An orthogonal layer and a = 2: x* = 1/2 + A^-1 (what is left of code) / (1 + l), as each value is by itself."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5)))[0]
    net = nn.Sequential(mixing(turn), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    made = Model(net, mean=[0.5] * 3, std=[1.0] * 3, size=SIZE)
    batch = next(made.prepare(pictures(), seed=0))
    view = made.view("0")
    with torch.no_grad():
        code = until(made, view, batch.inputs)
    sigma2, size = 3 * SIZE * SIZE * TYPICAL**2, float(code.square().sum())
    one = Inversion(layers="0", steps=600, restarts=1, smooth=0, alpha=2, bound=2 * sigma2 / size)  # l = 1
    start = torch.full((1, 3, SIZE, SIZE), 0.4)
    found = one.invert(made, lambda x: until(made, view, x - 0.5), code, start)
    assert_close(found - 0.5, batch.inputs / 2, rtol=0, atol=1e-3)


def test_what_a_layer_does_not_read_differs_from_start_to_start() -> None:
    only_red = torch.tensor([[1.0, 0.0, 0.0]])
    result = inverted(model(mixing(only_red)), pictures(), layers="0", steps=400, restarts=3, **FREE)
    row = panels(result, Table, "errors")[0].rows[0]
    assert row[2] < 1e-3, "the layer's value is matched"
    assert row[6] > 0.5, "two of three channels are not"
    (seen,), (found,) = panels(result, Picture, "seen"), panels(result, Picture, "inverted")
    gap = np.abs(seen.pixels.astype(int) - found.pixels.astype(int))
    assert gap[..., 0].max() <= 2
    assert gap[..., 1:].mean() > 20
    assert panels(result, Heatmap, "open")[0].values.mean() > 0.015, "of the noise of the start"


def test_a_start_depends_neither_on_how_many_there_are_nor_on_the_batch() -> None:
    made = model(mixing(torch.eye(3)))
    view = made.view("0")

    def starts(restarts: int, images: Images, i: int) -> Tensor:
        batch = next(made.prepare(images, seed=1))
        found = Inversion(steps=3, restarts=restarts)._inverted(batch, i, view, Left())
        assert found is not None
        return found.pictures

    both = pictures(2)
    assert_close(starts(1, both, 1)[0], starts(3, both, 1)[0])
    assert_close(starts(2, both[1:], 0), starts(2, both, 1))
    assert float((starts(2, both, 1)[0] - starts(2, both, 1)[1]).abs().max()) > 0.1


# --- which layers, and how far the network runs ---
class Deep(nn.Module):
    """Two stages in a container, the second with a branch of its own inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                                  nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def deep(last: nn.Module | None = None) -> Model:
    torch.manual_seed(0)
    net = Deep()
    if last is not None:
        net.body.append(last)
    return Model(net.eval(), mean=[0.4] * 3, std=[0.3] * 3, size=SIZE)


def test_blocks_are_stages_in_the_order_in_which_they_run() -> None:
    made = deep()
    assert [view.name for view in blocks(made)] == ["stem", "body.0", "body.1", "body.2", "body.3", "body.4"]
    assert [view.name for view in Inversion(count=3).views(made)] == ["stem", "body.1", "body.4"]
    assert [view.name for view in Inversion(layers="body.3, stem").views(made)] == ["body.3", "stem"]
    assert len(Inversion(count=99).views(made)) == 6
    with pytest.raises(XaiError, match="The layer must be a module of the network; got 'nose'"):
        inverted(made, pictures(), layers="nose")


class Loud(nn.Module):
    """Counts its forwards."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        Loud.count += 1
        return x * 1.0


def test_nothing_above_the_layer_runs_and_a_pass_is_counted() -> None:
    made = deep(Loud())
    one = Inversion(layers="body.1", steps=4, restarts=2)
    planned = one.cost(Subject((made,), pictures(2)))
    one(Subject((made,), pictures()))  # the resolver is asked, the size of a batch found
    Loud.count = 0
    result = one(Subject((made,), pictures(2)))
    assert Loud.count == 0
    assert (result.cost.forwards, result.cost.backwards) == (planned.forwards, planned.backwards) == (2 * 11, 2 * 8)


def test_a_dead_layer_is_left_out_and_named() -> None:
    made = deep(nn.Threshold(1e9, 0.0))
    result = inverted(made, pictures(2), layers="stem,body.5", steps=3)
    (text,) = panels(result, Text, "left")
    assert text.text.count("layer body.5: what it holds is zero everywhere") == 2
    assert [row[0] for row in panels(result, Table, "errors")[0].rows] == ["stem"]
    with pytest.raises(XaiError, match="zero everywhere"):
        inverted(made, pictures(), layers="body.5", steps=3)


def test_the_summary_is_that_of_the_pictures() -> None:
    result = inverted(deep(), pictures(3), layers="stem,body.2,body.4", steps=30, restarts=1)
    (curve,) = panels(result, Curve)
    table = panels(result, Table, "errors")[0]
    assert_close(torch.tensor(curve.y[0]), torch.tensor([row[2] for row in table.rows], dtype=torch.float64))
    assert (curve.low <= curve.y).all()
    assert (curve.y <= curve.high).all()
    courses = [[row[1] for row in p.rows] for p in panels(result, Table, "layers")]
    count = sum(a < b < c for a, b, c in courses)
    assert_close(torch.tensor(courses).mean(0), torch.tensor(curve.y[0]).float())
    assert f"deep to shallow for {count} of 3" in panels(result, Text, "course")[0].text
    assert not panels(result, Heatmap), "one start leaves nothing open that could be seen"


# --- a trained network ---
def squeezenet(weights: str) -> Model:
    """At half its side: a quarter of the time."""
    return load("torchvision:squeezenet1_0?size=112", weights=weights, device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ../shared (weights and photographs)")
def test_the_error_falls_from_deep_to_shallow_on_squeezenet_and_with_random_weights_it_does_not() -> None:
    photographs = load_images(str(SHARED / "images"))
    chosen = Images.of(photographs[i] for i in (0, 13, 26))
    how = Inversion(steps=60, restarts=1)
    for weights, falls in ((str(WEIGHTS), True), ("random", False)):
        result = how(Subject((squeezenet(weights),), chosen if falls else chosen[:1]))
        courses = [[row[1] for row in p.rows] for p in panels(result, Table, "layers")]
        assert all(len(course) == 4 for course in courses)
        assert all(list(course) == sorted(course) for course in courses) == falls
