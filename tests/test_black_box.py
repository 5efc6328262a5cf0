"""Methods that only ask for scores run on whatever gives scores: grey, five channels, regression, ONNX, a callable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.test_zoo_programs import onnx_file
from xai import catalog, run
from xai.attribution import Attribution
from xai.errors import XaiError
from xai.images import Images, load_images
from xai.model import Model
from xai.panels import Heatmap
from xai.result import Result
from xai.zoo.loading import load

MAPPERS = [name for name in sorted(catalog.entries()) if issubclass(catalog.find(name), Attribution)]
BLACK = [name for name in MAPPERS if catalog.find(name).needs <= {"forward", "images"}]
ASKED = {"rise", "occlusion", "lime", "shap_kernel", "shap_partition", "sobol", "hsic"}


def conv(channels: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(),
                         nn.Linear(6 * 64, outputs)).eval()  # fmt: skip


def picture(channels: int = 3) -> Images:
    """Seeded noise with a bright disc, 40 x 36."""
    y, x = np.mgrid[:40, :36]
    noise = np.random.default_rng(0).random((channels, 40, 36), dtype=np.float32) * 0.5
    disc = (y - 14) ** 2 + (x - 20) ** 2 < 90
    return load_images(torch.from_numpy((noise + 0.5 * disc).astype(np.float32))[None])


def grey(_: Path) -> tuple[Model, Images]:
    return Model(conv(1, 4), mean=[0.5], std=[0.25], size=32, channels=1), picture(1)


def five(_: Path) -> tuple[Model, Images]:
    return Model(conv(5, 4), mean=[0.5] * 5, std=[0.25] * 5, size=32, channels=5), picture(5)


def regression(_: Path) -> tuple[Model, Images]:
    return Model(conv(3, 1), mean=[0.5] * 3, std=[0.25] * 3, size=32), picture()


def called(_: Path) -> tuple[Model, Images]:
    return Model(forward=conv(3, 4), mean=[0.5] * 3, std=[0.25] * 3, size=32), picture()


def onnx(folder: Path) -> tuple[Model, Images]:
    onnx_file(folder / "net.onnx", "n")
    return load(f"{folder / 'net.onnx'}?mean=0.5&std=0.25", device="cpu"), picture()


def onnx_of_one(folder: Path) -> tuple[Model, Images]:
    onnx_file(folder / "net.onnx", 1)
    return load(f"{folder / 'net.onnx'}?mean=0.5&std=0.25", device="cpu"), picture()


SUBJECTS: list[Callable[[Path], tuple[Model, Images]]] = [grey, five, regression, called, onnx, onnx_of_one]


def explained(name: str, model: Model, images: Images) -> Result:
    small = {"samples": "128"} if "samples" in catalog.find(name)().parameters() and name != "sobol" else {}
    return run.explain(model, images, name, settings=small).result


def heat(result: Result) -> Tensor:
    (panel,) = [p for p in result.panels if isinstance(p, Heatmap)]
    return torch.as_tensor(panel.values)


def test_the_methods_that_need_only_scores_are_all_here() -> None:
    assert set(BLACK) >= ASKED


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("name", BLACK)
def test_it_runs_on_whatever_gives_scores(
    name: str, subject: Callable[[Path], tuple[Model, Images]], tmp_path: Path
) -> None:
    model, images = subject(tmp_path)
    before = model.cost.forwards
    result = explained(name, model, images)
    values = heat(result)
    assert torch.isfinite(values).all()
    assert float(values.max() - values.min()) > 1e-3 * float(values.abs().max()) > 0
    assert result.cost.backwards == 0
    assert result.cost.forwards + result.cost.check_forwards == model.cost.forwards - before
    assert_close(heat(explained(name, model, images)), values, rtol=0, atol=0)


@pytest.mark.parametrize("name", BLACK)
def test_an_onnx_file_is_explained_as_the_network_that_it_holds(name: str, tmp_path: Path) -> None:
    held = {key: torch.from_numpy(value) for key, value in onnx_file(tmp_path / "net.onnx", "n").items()}

    class Held(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, held["W"], padding=1).relu().mean((2, 3)) @ held["F"]

    found = heat(explained(name, load(f"{tmp_path / 'net.onnx'}?mean=0.5&std=0.25", device="cpu"), picture()))
    expected = heat(explained(name, Model(Held(), mean=[0.5] * 3, std=[0.25] * 3, size=32), picture()))
    scale = float(expected.abs().max())
    assert_close(found, expected, rtol=0, atol=2e-4 * scale)  # two libraries round a score's small changes differently


@pytest.mark.parametrize("name", [n for n in MAPPERS if n not in BLACK])
def test_the_others_name_what_an_onnx_file_lacks(name: str, tmp_path: Path) -> None:
    model, images = onnx(tmp_path)
    with pytest.raises(XaiError, match=r"must be one that gives .* for this method; got .*net\.onnx"):
        explained(name, model, images)


def test_sp_lime_embeds_by_outputs_where_there_are_no_layers(tmp_path: Path) -> None:
    model, _ = onnx_of_one(tmp_path)
    noise = np.random.default_rng(1).random((4, 3, 32, 32), dtype=np.float32)
    settings = {"segmentation": "grid", "segments": "9", "samples": "64", "words": "3", "picks": "2"}
    before = model.cost.forwards
    result = run.analyze("sp_lime", model, torch.from_numpy(noise), settings=settings).result
    assert any(p.key.startswith("picks_") and p.rows for p in result.panels if p.kind == "table")
    assert 4 * 63 < result.cost.forwards == model.cost.forwards - before
