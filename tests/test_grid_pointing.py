"""Grid pointing: grids of different classes, shares of their cells, and heads that see one cell alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from analyzers.evaluation.grid_pointing import GridPointing
from xai.errors import XaiError
from xai.images import Image, Images, load_images
from xai.model import Model
from xai.panels import Matrix, Picture, Table, Text
from xai.result import Result
from xai.subject import Subject
from xai.zoo.loading import load

SIZE, CLASSES = (8, 12), 5


class Colours(nn.Module):
    """Class k is told by how much of channel k there is; fully convolutional and surely right."""

    def __init__(self, sharp: float = 60.0) -> None:
        super().__init__()
        self.point, self.pool, self.flat = nn.Conv2d(CLASSES, CLASSES, 1, bias=False), nn.AdaptiveAvgPool2d(1), \
            nn.Flatten()
        self.relu = nn.ReLU()
        with torch.no_grad():
            self.point.weight.copy_(sharp * torch.eye(CLASSES)[:, :, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flat(self.pool(self.relu(self.point(x))))


class Blind(Colours):
    """The same, of one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(SIZE)
        self.flat = nn.Sequential(nn.Flatten(), nn.Linear(CLASSES, CLASSES, bias=False))
        with torch.no_grad():
            self.flat[1].weight.copy_(torch.eye(CLASSES))


def model(net: nn.Module | None = None) -> Model:
    return Model((net or Colours()).eval(), mean=[0.0] * CLASSES, std=[1.0] * CLASSES, size=SIZE, channels=CLASSES)


def pictures(count: int = 15) -> Images:
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        pixels = 0.2 * rng.random((CLASSES, *SIZE), dtype=np.float32)
        pixels[i % CLASSES] += 0.5
        made.append(Image.of(f"{i}.png", pixels))
    return Images.of(made)


def ran(net: nn.Module | None = None, images: Images | None = None, seed: int = 0, **more: Any) -> Result:
    return GridPointing(**{"grids": 6, **more})(Subject((model(net),), images or pictures(), seed=seed))


def means(result: Result) -> dict[str, float | None]:
    table = next(p for p in result.panels if isinstance(p, Table) and p.key == "scores")
    return {row[0]: row[1] for row in table.rows}


def test_a_map_of_the_class_finds_its_cell_and_the_controls_score_chance() -> None:
    found = means(ran(of="input_x_gradient,gradcam(layer=relu)"))
    assert found["input_x_gradient"] > 0.6
    assert found["gradcam(layer=relu)"] > 0.6
    for control in ("random", "centre", "sobel"):
        assert found[control] == pytest.approx(0.25, abs=0.06)


def test_nine_cells_have_a_chance_of_a_ninth() -> None:
    with pytest.raises(XaiError, match="at most 5"):
        GridPointing(side=6)
    few = ran(side=3)  # five classes are not nine
    assert any(isinstance(p, Text) and p.key == "too few" for p in few.panels)
    assert not any(isinstance(p, Picture) for p in few.panels)
    assert any(not v.passed for v in few.verdicts)


@pytest.mark.parametrize("of", ["saliency", "input_x_gradient", "integrated_gradients(steps=5)",
                                "smoothgrad(samples=3)", "guided_backprop"])
def test_gradients_of_the_input_score_exactly_one_where_the_head_sees_its_cell_alone(of: str) -> None:
    result = ran(of=of, setting="difull")
    table = next(p for p in result.panels if isinstance(p, Table) and p.key == "scores")
    assert table.rows[0][1] == 1.0
    cells = next(p for p in result.panels if isinstance(p, Matrix))
    assert cells.columns == ("cell 1", "cell 4")
    assert cells.values[0].tolist() == [1.0, 1.0]


def test_a_method_that_reads_a_layer_is_left_out_of_difull_with_a_sentence() -> None:
    result = ran(of="saliency,gradcam", setting="difull")
    assert means(result)["gradcam"] is None
    told = next(p for p in result.panels if isinstance(p, Text) and p.key == "problem gradcam")
    assert "must be a method that does not read a layer" in told.text
    with pytest.raises(XaiError, match="must be a method that does not read a layer"):
        ran(of="gradcam", setting="difull")


def test_a_network_of_one_size_is_refused_for_gridpg_and_runs_difull() -> None:
    with pytest.raises(XaiError, match="must be one that can run a grid of 16 x 24 pixels"):
        ran(Blind(), of="saliency")
    assert means(ran(Blind(), of="saliency", setting="difull"))["saliency"] == 1.0


def test_photographs_that_are_not_predicted_surely_are_left_out() -> None:
    result = ran(Colours(sharp=1.0))
    assert any(isinstance(p, Text) and p.key == "too few" and "there are 0 of 0" in p.text for p in result.panels)


def test_grids_hold_different_classes_and_follow_the_seed() -> None:
    first, again, other = (ran(of="saliency", seed=s) for s in (0, 0, 1))
    grids = [next(p for p in r.panels if isinstance(p, Picture)) for r in (first, again, other)]
    assert all(len(set(p.note.split(": ")[1].rstrip(".").split(", "))) == 4 for p in grids)
    assert grids[0].pixels.shape == (16, 24, 3)
    assert np.array_equal(grids[0].pixels, grids[1].pixels)
    assert not np.array_equal(grids[0].pixels, grids[2].pixels)
    assert means(first) == means(again)


@pytest.mark.parametrize("setting", ["gridpg", "difull"])
def test_the_network_stays_as_it_was_and_the_plan_is_never_exceeded(setting: str) -> None:
    net = Colours()
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = Model(net, mean=[0.0] * CLASSES, std=[1.0] * CLASSES, size=SIZE, channels=CLASSES)
    analyzer, subject = GridPointing(of="saliency", setting=setting), Subject((made,), pictures())
    result = analyzer(subject)
    planned = analyzer.cost(subject)
    assert 15 < result.cost.forwards <= planned.forwards
    assert 0 < result.cost.backwards <= planned.backwards
    assert net.training
    assert not net._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


# --- real photographs ---
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared")
def test_on_photographs_gradcam_finds_its_cell_and_gradients_never_leave_a_cell_that_the_head_sees() -> None:
    model = load("torchvision:squeezenet1_0", weights=str(SHARED / "models/squeezenet1_0_imagenet.safetensors"))
    images = load_images(str(SHARED / "images"))
    shown = GridPointing(of="gradcam", grids=12, confidence=0.9)(Subject((model,), images))
    rows = {row[0]: row for p in shown.panels if isinstance(p, Table) and p.key == "scores" for row in p.rows}
    assert rows["gradcam"][2] > 0.25, "the interval lies above chance"
    assert rows["gradcam"][2] > max(rows[control][3] for control in ("random", "centre", "sobel"))
    assert rows["random"][1] == pytest.approx(0.25, abs=0.01)
    alone = GridPointing(of="saliency,integrated_gradients(steps=8)", grids=4, confidence=0.9, setting="difull")(
        Subject((model,), images))
    for row in next(p for p in alone.panels if isinstance(p, Table) and p.key == "scores").rows[:2]:
        assert row[1] == 1.0
