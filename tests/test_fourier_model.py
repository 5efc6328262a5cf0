"""The Fourier heat map against a slow version, the gradient's spectrum, filters, kernels, and models side by side."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analyzers.spectrum import _probes
from analyzers.spectrum._groups import spaced
from analyzers.spectrum._model_panels import first_kernels
from analyzers.spectrum.fourier_model import FourierModel
from xai import catalog, seeds, spectrum
from xai.errors import XaiError
from xai.images import Image, Images
from xai.model import Model
from xai.result import Result
from xai.subject import Subject

MEAN, STD = (0.4, 0.5, 0.3), (0.3, 0.2, 0.25)
NAMES = ("ant", "bee", "cat")


def net(seed: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(),
                             nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        for layer in (made[0], made[2], made[6]):
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        return made.eval()


def model(size: tuple[int, int] = (12, 14), module: nn.Module | None = None, **more: Any) -> Model:
    return Model(net() if module is None else module, mean=MEAN, std=STD, size=size, labels=NAMES, **more)


def images(count: int = 5, size: tuple[int, int] = (12, 14), labelled: bool = True) -> Images:
    rng = np.random.default_rng(0)
    return Images.of(Image.of(f"{i}", rng.random((3, *size), dtype=np.float32), label=i % 3 if labelled else None)
                     for i in range(count))


def panels(result: Result) -> dict[str, Any]:
    return {panel.key: panel for panel in result.panels}


def asked(*models: Model, pictures: Images | None = None, seed: int = 0, **fields: Any) -> Result:
    return FourierModel(**{"side": 31, "of": "none", **fields})(
        Subject(models, images() if pictures is None else pictures, seed=seed))


# --- waves ---
@pytest.mark.parametrize(("h", "w"), [(32, 32), (9, 12), (7, 7), (8, 5)])
def test_waves_are_an_orthonormal_basis_of_one_frequency_each(h: int, w: int) -> None:
    cells = _probes.grid(h, w, 99, "whole").cells
    assert len(cells) == sum(1 for a in range(h) for b in range(w) if (a, b) <= (-a % h, -b % w))
    waves = _probes.basis(h, w, cells).double()
    flat = waves.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(cells), dtype=torch.float64), rtol=0, atol=2e-6)
    for (fy, fx), wave in zip(cells[:20], waves, strict=False):
        power = np.abs(np.fft.fft2(wave.numpy())) ** 2
        there = {tuple(p) for p in np.argwhere(power > 1e-6 * power.max()).tolist()}
        assert there == {(fy, fx), (-fy % h, -fx % w)}
    mirrored = _probes.basis(h, w, [(-a, -b) for a, b in cells]).double()
    torch.testing.assert_close(mirrored, waves, rtol=0, atol=1e-6)


def test_the_largest_value_of_a_wave_at_32_pixels() -> None:
    generic, own, half = _probes.basis(32, 32, [(3, 5), (16, 0), (8, 0)]).abs().flatten(1).amax(1).tolist()
    assert generic == pytest.approx(math.sqrt(2) / 32, abs=1e-6)
    assert own == pytest.approx(1 / 32, abs=1e-6)
    assert half == pytest.approx(math.sqrt(2) / 32, abs=1e-6)


def test_the_grid_is_a_half_plane_whose_left_column_mirrors_itself() -> None:
    whole = _probes.grid(64, 64, 31, "whole")
    assert (whole.rows[0], whole.rows[-1], whole.columns[0], whole.columns[-1]) == (-32, 32, 0, 32)
    assert len(whole.rows) == 31
    assert len(whole.columns) == 16
    np.testing.assert_array_equal(whole.place[:, 0], whole.place[::-1, 0])
    centre = _probes.grid(64, 64, 31, "centre")
    assert centre.rows == tuple(range(-15, 16))
    assert len(centre.cells) == 31 * 15 + 16
    assert len(_probes.grid(32, 32, 99, "whole").cells) == (32 * 32 + 4) // 2


def test_published_norms() -> None:
    assert _probes.norm_for(32, 32) == pytest.approx(4)
    assert _probes.norm_for(224, 224) == pytest.approx(15.7)
    assert 4 < _probes.norm_for(64, 64) < 15.7


# --- the heat map ---
def slow(made: Model, pictures: Images, norm: float, labelled: bool) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Rate and mean loss by (row, column) of the half plane, one picture and one wave at a time, in float64 numpy but
    for the network."""
    h, w = made.preprocessing.size
    rows, columns = range(-(h // 2), h // 2 + 1), range(w // 2 + 1)
    rate, loss = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)))
    mean, std = (np.array(v)[:, None, None] for v in (MEAN, STD))
    predictions = []

    def outputs(x: np.ndarray) -> Tensor:
        return made(torch.from_numpy((x - mean) / std).float()[None])[0]

    for image in pictures:
        sign = torch.randint(2, (3,), generator=seeds.generator(0, image.hash, "fourier_model")).numpy() * 2 - 1
        x = image.pixels.astype(np.float64)
        predicted = int(outputs(x).argmax())
        predictions.append(predicted)
        truth = image.label if labelled else predicted
        for i, fy in enumerate(rows):
            for j, fx in enumerate(columns):
                wave = np.zeros((h, w))
                for y in range(h):
                    for z in range(w):
                        wave[y, z] = math.cos(2 * math.pi * (fy * y / h + fx * z / w))
                wave /= np.linalg.norm(wave)
                said = outputs((x + sign[:, None, None] * norm * wave).clip(0, 1))
                rate[i, j] += int(said.argmax()) != truth
                loss[i, j] += float(said.logsumexp(0) - said[truth])
    return rate / len(pictures), loss / len(pictures), predictions


@pytest.mark.parametrize("labelled", [True, False])
def test_the_heat_map_equals_a_slow_version(labelled: bool) -> None:
    made, pictures = model((6, 8)), images(3, (6, 8), labelled)
    rate, loss, predictions = slow(made, pictures, 2.0, labelled)
    found = panels(asked(made, pictures=pictures, norm=2.0))
    np.testing.assert_array_equal(found["heat-0"].values, rate)
    np.testing.assert_allclose(found["loss-0"].values, loss, rtol=1e-5, atol=1e-5)
    row = dict(zip([c.name for c in found["summary"].columns], found["summary"].rows[0], strict=True))
    assert row["clean error"] == (np.mean([p != i % 3 for i, p in enumerate(predictions)]) if labelled else None)
    assert ("Error rate" if labelled else "Share of changed predictions") in found["heat-0"].title
    assert 0 < rate.mean() < 1


def test_a_wave_of_no_size_gives_the_clean_error_everywhere() -> None:
    found = panels(asked(model(), norm=1e-12))
    clean = found["summary"].rows[0][2]
    np.testing.assert_array_equal(found["heat-0"].values, clean)
    np.testing.assert_allclose(found["loss-0"].values, found["loss-0"].values[0, 0], rtol=1e-6)


def test_the_numbers_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_chunk(size: int) -> Result:
        made = model()
        monkeypatch.setattr(made, "chunk", lambda memory_bytes=None: size)
        return asked(made)

    whole, single = panels(with_chunk(5)), panels(with_chunk(1))
    for key in ("heat-0", "loss-0", "gradient-0"):
        np.testing.assert_allclose(single[key].values, whole[key].values, rtol=1e-4, atol=1e-5)
    other = panels(asked(model(), seed=1))
    assert (other["loss-0"].values != whole["loss-0"].values).any()


def test_the_planned_cost_is_the_counted_cost() -> None:
    made = model((32, 32))
    analyzer = FourierModel(side=7, of="saliency", pictures=4)
    subject = Subject((made,), images(9, (32, 32)))
    planned = analyzer.cost(subject)
    counted = analyzer(subject).cost
    cells = 7 * 4 - 4 - 2 - 2  # rows of -Nyquist and Nyquist are one; two rows of the first and last column mirror
    assert planned.forwards == 4 * (1 + cells + 18 + 1 + catalog.find("saliency")().passes(made).forwards)
    assert (planned.forwards, planned.backwards) == (counted.forwards, counted.backwards)


def test_chosen_pictures_are_evenly_spaced() -> None:
    assert images(10).take(spaced(range(10), 4)).names == ("0", "2", "5", "7")
    assert len(spaced(range(3), 4)) == 3


# --- the gradient ---
class Waves(nn.Module):
    """Linear: class k reads wave k of a 16 x 16 picture."""

    def __init__(self, cells: list[tuple[int, int]]) -> None:
        super().__init__()
        self.waves = nn.Parameter(_probes.basis(16, 16, cells))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,khw->nk", x, self.waves)


class Pixel(nn.Module):
    """Reads one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, 3, 5], -x[:, 0, 3, 5]], 1)


def gradient_of(module: nn.Module) -> np.ndarray:
    made = Model(module, mean=MEAN, std=STD, size=16)
    batch = next(made.prepare(images(3, (16, 16))))
    return _probes.gradient_power(batch, torch.tensor([0, 1, 0]))


def test_the_gradient_of_a_linear_model_lies_at_its_waves() -> None:
    power = gradient_of(Waves([(2, 3), (0, 5)]))
    total = power.sum((1, 2))
    there = power[:, [2, 14, 0, 0], [3, 13, 5, 11]].sum(1)
    np.testing.assert_allclose(there, total, rtol=1e-6)
    share = spectrum.shares(power, spectrum.rings(16, 16, corners=True))
    np.testing.assert_allclose(share.sum(1), 1)


def test_a_model_that_reads_one_pixel_is_as_sensitive_to_every_wave() -> None:
    power = gradient_of(Pixel())
    flat = power.reshape(3, -1)[:, 1:]
    np.testing.assert_allclose(flat, flat[:, :1].repeat(255, 1), rtol=1e-5)
    on = spectrum.rings(16, 16, corners=True)
    np.testing.assert_allclose(spectrum.shares(power, on)[:, 1:], np.tile(on.counts[1:] / 255, (3, 1)), rtol=1e-5)


def test_the_gradient_equals_differences_of_the_loss_in_the_units_of_the_picture() -> None:
    made = Model(net().double(), mean=MEAN, std=STD, size=(8, 8), labels=NAMES)
    rng = np.random.default_rng(1)
    image = Image.of("x", (0.2 + 0.6 * rng.random((3, 8, 8))).astype(np.float32))
    batch = next(made.prepare([image]))
    last = int(made(batch.inputs).argmin())  # where the loss is far from flat
    power = _probes.gradient_power(batch, torch.tensor([last]))[0]
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    x, gradient = torch.from_numpy(image.pixels.astype(np.float64)), np.zeros((3, 8, 8))
    for place in np.ndindex(3, 8, 8):
        step = torch.zeros_like(x)
        step[place] = 1e-5
        up, down = (nn.functional.cross_entropy(made(((x + s - mean) / std)[None]), torch.tensor([last]))
                    for s in (step, -step))
        gradient[place] = float(up - down) / 2e-5
    expected = (np.abs(np.fft.fft2(gradient, norm="ortho")) ** 2).mean(0)
    expected[0, 0] = 0
    np.testing.assert_allclose(power, expected, rtol=1e-3, atol=1e-6 * expected.max())


# --- filters ---
def test_low_and_high_pass_make_the_picture_and_are_idempotent() -> None:
    made = Model(net(), mean=MEAN, std=STD, size=(12, 15))
    rng = np.random.default_rng(2)
    calm = Images.of([Image.of("x", (0.45 + 0.1 * rng.random((3, 12, 15))).astype(np.float32))])  # never clipped
    batch = next(made.prepare(calm))
    mean = batch.inputs.mean((2, 3), keepdim=True)
    for smooth in (False, True):
        low, high = (_probes.filtered(batch, 0.2, one, smooth) for one in (False, True))
        torch.testing.assert_close(low + high - mean, batch.inputs, rtol=0, atol=1e-5)
    torch.testing.assert_close(_probes.filtered(batch, 0.75, False, False), batch.inputs, rtol=0, atol=1e-5)
    torch.testing.assert_close(_probes.filtered(batch, 0.0, False, False), mean.expand_as(batch.inputs), rtol=0,
                               atol=1e-5)
    low = _probes.filtered(batch, 0.2, False, False)
    torch.testing.assert_close(_probes.filtered(batch.like(low), 0.2, False, False), low, rtol=0, atol=1e-5)
    black = next(made.prepare(Images.of([Image.of("y", np.eye(15, dtype=np.float32)[None, :12].repeat(3, 0))])))
    clipped = _probes.filtered(black, 0.2, True, False)
    scale = _probes.Scale.of(made)
    assert (clipped >= scale.low - 1e-6).all()
    assert (clipped <= scale.high + 1e-6).all()


def test_accuracy_by_cut_ends_at_that_of_the_picture() -> None:
    found = panels(asked(model(), pictures=images(12)))
    clean = 1 - found["summary"].rows[0][2]
    assert found["low-pass"].y.shape == (1, len(_probes.CUTS))
    assert 0 <= found["low-pass"].y.min() <= found["low-pass"].y.max() <= 1
    assert (found["low-pass"].low <= found["low-pass"].y).all()
    assert abs(found["high-pass"].y[0, 0] - clean) <= 1e-9  # below one cycle a picture nothing is taken away


# --- kernels, maps, models side by side ---
def test_first_kernels_and_what_their_stride_aliases() -> None:
    made = model()
    name, kernels, stride = first_kernels(made) or ("", np.zeros(0), 0)
    assert (name, stride, kernels.shape) == ("0", 2, (15, 3, 3))
    row = panels(asked(made))["kernels"].rows[0]
    fine = (np.abs(np.fft.fft2(kernels, (512, 512))) ** 2).mean(0)
    f = np.abs(np.fft.fftfreq(512))
    inside = fine[np.ix_(f < 0.25, f < 0.25)].sum() / fine.sum()
    assert row[4] == pytest.approx(1 - inside, abs=6e-3)
    assert row[5] == 0.75
    assert first_kernels(Model(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), mean=MEAN, std=STD, size=1)) is None


def test_two_models_stand_side_by_side_with_their_difference() -> None:
    one, two = model(spec="one"), model(module=net(8), spec="two")
    both = panels(asked(one, two))
    assert [row[0] for row in both["summary"].rows] == ["one", "two"]
    np.testing.assert_array_equal(both["difference"].values, both["heat-1"].values - both["heat-0"].values)
    np.testing.assert_array_equal(both["heat-1"].values, panels(asked(two))["heat-0"].values)
    assert both["rate"].names == ("one", "two")
    other = model((10, 10), net(8), spec="small")
    assert "difference" not in panels(asked(one, other))


def test_spectra_of_maps_and_methods_that_a_model_cannot_serve() -> None:
    found = panels(asked(model(), of="saliency,gradcam"))
    assert [row[1] for row in found["maps"].rows] == ["saliency", "gradcam"]
    assert all(0 < row[4] < 0.75 for row in found["maps"].rows)
    bare = Model(forward=model()._module, mean=MEAN, std=STD, size=(12, 14), labels=NAMES, spec="bare")
    found = panels(asked(bare, of="saliency"))
    assert "gradient-0" not in found
    assert "maps" not in found
    assert "got bare, which does not" in found["missing"].text
    np.testing.assert_allclose(found["heat-0"].values, panels(asked(model()))["heat-0"].values)


def test_labels_that_are_no_classes_of_the_model_count_changes() -> None:
    strange = Images.of(Image.of(f"{i}", image.pixels, label="zebra") for i, image in enumerate(images()))
    found = panels(asked(model(), pictures=strange))
    assert "changed predictions are counted" in found["summary"].note
    np.testing.assert_array_equal(found["heat-0"].values,
                                  panels(asked(model(), pictures=images(labelled=False)))["heat-0"].values)


@pytest.mark.slow
def test_the_benchmark_names_every_ratio_and_exits_by_its_goals(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parent / "benchmarks" / "fourier.py"
    done = subprocess.run([sys.executable, str(script), "--smoke", "--data", "planted:4", "--table",
                           str(tmp_path / "table.md")], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    text = (tmp_path / "table.md").read_text()
    assert done.returncode == int("| NO |" in text)
    for what in ("heat map over its pure forwards", "heat map over the gradient's spectrum", "Spearman of gradient"):
        assert f"| {what}" in text


def test_refusals() -> None:
    with pytest.raises(XaiError, match="the model must be a classifier of at least two classes"):
        asked(Model(nn.Sequential(nn.Flatten(), nn.Linear(504, 1)), mean=MEAN, std=STD, size=(12, 14)))
    with pytest.raises(XaiError, match="the models for fourier_model must be given"):
        asked()
    with pytest.raises(XaiError, match="known for a baseline in pixel units|known before a picture"):
        asked(Model(net(), size=(12, 14)))
    with pytest.raises(XaiError, match="what is judged must be an attribution"):
        FourierModel(of="npr")
