"""The shipped networks for pictures: shapes, the order of the shuffle, the gain over plain means, y = F x + r, and the
measures that are read from F and r, on networks whose answer is known."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

import xai
from xai.errors import XaiError
from xai.images import load_images
from xai.linear import linearize
from xai.model import Model
from xai.zoo import shipped
from xai.zoo.nets.denoiser import Denoiser
from xai.zoo.nets.espcn import ESPCN

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
NAMES = {"espcn-x2": 2, "espcn-x3": 3, "denoiser": 1}
SAMPLES = ("astronaut", "coffee", "chelsea")
needs_shared = pytest.mark.skipif(not (SHARED / "images").is_dir(), reason="needs ../shared")


@pytest.fixture(scope="module")
def examples() -> Iterator[dict[str, ModuleType]]:
    """The examples that read F and r, and the evaluation, as modules."""
    names = ("linear_restoration", "evaluate_restoration", "train_restoration", "train_photo20")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        known = set(sys.modules)
        yield {name: importlib.import_module(name) for name in names}
        for name in set(sys.modules) - known:
            if name in names:
                del sys.modules[name]


def model_of(name: str, **options: str) -> Model:
    return xai.load(f"xai:{name}", device="cpu", **options)  # type: ignore[arg-type]  # options are texts


def sample(name: str) -> np.ndarray:
    """A picture of scikit-image, (h, w, 3) uint8, its sides multiples of six."""
    import skimage.data

    pixels: np.ndarray = getattr(skimage.data, name)()
    return pixels[: pixels.shape[0] // 6 * 6, : pixels.shape[1] // 6 * 6]


def decibels(made: np.ndarray, true: np.ndarray, border: int) -> float:
    """PSNR of two (h, w, 3) uint8, by its definition."""
    cut = slice(border, -border)
    wrong = made[cut, cut].astype(float) - true[cut, cut].astype(float)
    return 10 * math.log10(255**2 / np.mean(wrong**2))


def as_input(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255


def as_pixels(output: Tensor) -> np.ndarray:
    return (output[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


# The networks


@pytest.mark.parametrize(("height", "width"), [(64, 64), (7, 10), (1, 3)])
def test_shapes(height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width)
    for scale in (2, 3):
        assert ESPCN(scale)(x).shape == (2, 3, scale * height, scale * width)
    assert Denoiser()(x).shape == x.shape


@pytest.mark.parametrize("scale", [2, 3])
def test_the_shuffle_puts_each_channel_at_its_place(scale: int) -> None:
    """Shi et al. 2016, equation 4: position (y, x) of the last convolution holds a square of the large picture."""
    net, found = ESPCN(scale), []
    net.conv3.register_forward_hook(lambda *passed: found.append(passed[2]))
    made = net(torch.rand(1, 3, 4, 5)).detach()
    for c in range(3):
        for y in range(4 * scale):
            for x in range(5 * scale):
                channel = c * scale**2 + (y % scale) * scale + x % scale
                assert made[0, c, y, x] == found[0][0, channel, y // scale, x // scale]


def test_the_denoiser_subtracts_what_its_layers_say() -> None:
    net, x = Denoiser(), torch.rand(1, 3, 9, 9)
    with torch.no_grad():
        assert_close(net(x), x - net.noise(x))
        for part in net.noise:
            if isinstance(part, nn.Conv2d):
                part.weight.zero_()
                part.bias.zero_()  # type: ignore[union-attr]  # it has one
        assert_close(net(x), x, rtol=0, atol=0)


# What ships


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_and_cards_complete(name: str) -> None:
    path, card = shipped.weights_file(name), shipped.card(name)
    assert card is not None
    data = path.read_bytes()
    assert len(data) == card["weights"]["bytes"] <= 300_000
    assert hashlib.sha256(data).hexdigest() == card["weights"]["sha256"]
    state = load_file(path)
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert sum(value.numel() for value in state.values()) == card["parameters"]
    assert set(json.loads((shipped.FOLDER / "photo20.json").read_text())) - set(card) == {"wnids", "pictures"}
    assert "non-commercial" in card["data"]["terms"]
    assert card["training"]["cpu_minutes"] <= 12
    assert f"--net {name}" in card["command"]
    told = card["validation"]
    assert (told["n"], told["small"]["n"]) == (40, 1000)
    assert told["gain"] == pytest.approx(told["psnr"] - told["against"], abs=0.011)
    assert min(told["low"], told["luma_low"], told["small"]["low"]) > 0


@pytest.mark.parametrize(("name", "scale"), NAMES.items())
def test_a_picture_comes_out_of_any_size(name: str, scale: int) -> None:
    model = model_of(name)
    assert (model.head.kind, model.head.size) == ("image", 3)
    pixels = sample("coffee")[:64, :64]
    (batch,) = model.prepare(load_images(pixels))
    assert_close(batch.inputs, as_input(pixels), rtol=0, atol=0)  # no mean, no deviation
    assert model(batch.inputs).shape == (1, 3, 64 * scale, 64 * scale)
    assert any("dB" in note and "interval" in note for note in model.notes)
    assert any("non-commercial" in note for note in model.notes)
    other = xai.load(f"xai:{name}?size=48x40", device="cpu")
    (batch,) = other.prepare(load_images(pixels))
    assert batch.inputs.shape == (1, 3, 48, 40)
    assert other(batch.inputs).shape == (1, 3, 48 * scale, 40 * scale)
    with pytest.raises(XaiError, match="classes"):
        xai.load(f"xai:{name}?classes=5", device="cpu")


@pytest.mark.parametrize("name", ["espcn-x2", "espcn-x3"])
@pytest.mark.parametrize("picture", SAMPLES)
def test_enlarging_beats_bicubic(name: str, picture: str) -> None:
    """On pictures that no training read; cut to 240 pixels to be quick."""
    scale, true = NAMES[name], sample(picture)[:240, :240]
    small = Image.fromarray(true).resize((240 // scale, 240 // scale), Image.Resampling.BICUBIC)
    against = np.asarray(small.resize((240, 240), Image.Resampling.BICUBIC))
    made = as_pixels(model_of(name)(as_input(np.asarray(small))))
    gain = decibels(made, true, scale) - decibels(against, true, scale)
    told = shipped.card(name)
    assert told is not None
    assert gain > 0.5
    assert abs(gain - told["validation"]["pictures"][picture]["gain"]) < 1.5  # a part of the picture of the card


@pytest.mark.parametrize("picture", SAMPLES)
def test_the_denoiser_beats_the_noisy_picture_and_every_blur(picture: str) -> None:
    from scipy.ndimage import gaussian_filter

    true = sample(picture)[:240, :240]
    noise = np.random.default_rng(3).standard_normal(true.shape) * 25
    noisy = (true + noise).clip(0, 255).astype(np.float32)
    made = as_pixels(model_of("denoiser")(as_input(noisy)))
    blurs = [gaussian_filter(noisy, (s, s, 0)).round().astype(np.uint8) for s in (0, 0.6, 0.8, 1.0, 1.3)]
    scores = [decibels(one, true, 1) for one in blurs]
    assert decibels(made, true, 1) > scores[0] + 7
    assert decibels(made, true, 1) > max(scores) + 1.5


def test_a_clean_picture_stays_nearly_what_it_is() -> None:
    true = sample("chelsea")[:120, :120]
    assert decibels(as_pixels(model_of("denoiser")(as_input(true))), true, 1) > 32


# y = F x + r


@pytest.mark.parametrize(("name", "reach"), [("espcn-x2", 4), ("espcn-x3", 4), ("denoiser", 7)])
def test_a_network_is_its_affine_system(name: str, reach: int) -> None:
    """In float64 y = F x + r at every pixel, r from a replay; a row is the gradient, and zero beyond its field."""
    model, scale = model_of(name, precision="float64"), NAMES[name]
    x = as_input(sample("astronaut")[100:124, 200:224]).double()
    linear = linearize(model, x)
    assert_close(linear.y, model(x), rtol=0, atol=1e-14)
    size = float(linear.y.abs().max() + linear.offset.abs().max())
    assert float((linear.forward(x) + linear.offset - linear.y).abs().max()) <= 1e-12 * size
    u = torch.zeros(linear.y.shape[1:], dtype=torch.float64)
    place = (12 * scale + scale // 2, 11 * scale)
    u[1, place[0], place[1]] = 1
    assert linear.gap(u) <= 1e-12
    row = linear.transpose(u[None])[0]
    with model.opened() as module:
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(module(leaf)[0, 1, place[0], place[1]], leaf)
    assert_close(row, slope[0], rtol=0, atol=1e-14)
    outside = row.clone()
    outside[:, 12 - reach : 13 + reach, 11 - reach : 12 + reach] = 0
    assert row.abs().sum() > 0
    assert not outside.any()


# The measures, where the answer is known


class Shift(nn.Module):
    """Every pixel from `far` columns to the right, times `gain`, plus a fixed pattern."""

    def __init__(self, far: int, gain: float = 1.0, pattern: Tensor | None = None) -> None:
        super().__init__()
        self.far, self.gain, self.size = far, gain, 64
        self.pattern = nn.Parameter(torch.zeros(3, 64, 64) if pattern is None else pattern, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, -self.far, 3) * self.gain + self.pattern


def measured(examples: dict[str, ModuleType], net: nn.Module, x: Tensor | None = None) -> dict[str, float]:
    """All measures of the rows of a network, at 200 places of a picture of noise."""
    study = examples["linear_restoration"]
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) if x is None else x
    model = Model(net.eval(), mean=(0.0,), std=(1.0,), size=64)
    linear = linearize(model, x)
    parts = {**study.of_rows(linear, 1, 7, study.drawn(200, 1, 7, 0), False), **study.of_offset(linear, 1, 7, None)}
    return {name: top / bottom for name, (top, bottom) in parts.items()}


def test_a_copy_a_move_and_a_template_are_told_apart(examples: dict[str, ModuleType]) -> None:
    for far, share in ((0, "copied"), (1, "copied"), (5, "moved")):
        found = measured(examples, Shift(far))
        assert found[share] == pytest.approx(1, abs=0.02)
        assert found["copied"] + found["moved"] + found["made"] == pytest.approx(1, abs=1e-5)
        assert found["shift"] == pytest.approx(far, abs=1e-4)
        assert found["top near"] == found["weight near"] == (far <= 1)
        assert (found["sum"], found["offset"], found["flat gain"]) == pytest.approx((1, 0, 1), abs=1e-5)
    pattern = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(4))
    made = measured(examples, Shift(0, 1e-3, pattern))
    assert made["offset part"] > 0.99
    assert made["made"] > 0.99
    assert made["offset"] > 0.99
    half = measured(examples, Shift(0, 1.0, pattern))  # as much of the picture as of the pattern
    assert half["copied"] == pytest.approx(0.5, abs=0.1)
    assert half["made"] == pytest.approx(0.5, abs=0.1)


def test_the_offset_that_keeps_a_flat_level_is_found(examples: dict[str, ModuleType]) -> None:
    """F halves every picture, r is half the surroundings' mean of this one: r = m (1 - F 1) exactly."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    mean = functional.avg_pool2d(functional.pad(x, (7, 7, 7, 7), mode="reflect"), 15, 1)[0]
    found = measured(examples, Shift(0, 0.5, 0.5 * mean), x)
    assert found["flat gain"] == pytest.approx(0.5, abs=1e-5)
    assert found["flat"] == pytest.approx(1, abs=1e-4)
    assert found["made"] == pytest.approx(0, abs=1e-4)


def test_shapes_of_filters_by_hand(examples: dict[str, ModuleType]) -> None:
    study = examples["linear_restoration"]
    filters = torch.zeros(4, 9, 9, dtype=torch.float64)
    filters[0, 4, 4] = 2.0  # a point
    filters[1, 4, 2:7] = 0.2  # a line along the row
    filters[2, 3:6, 4] = torch.tensor([-1.0, 2.0, -1.0])  # a second difference down
    filters[3, [2, 3, 4, 5, 6], [2, 3, 4, 5, 6]] = 1.0  # a diagonal
    found = study.shape_of(filters, torch.zeros(4, 2, dtype=torch.float64))
    assert_close(found["sum"], torch.tensor([2.0, 1, 0, 5]).double())
    assert_close(found["low"], torch.tensor([1.0, 1, 0, 1]).double())
    assert_close(found["radius"], torch.tensor([0, 2, 1 / 3, 4]).double().sqrt())
    angle = found["angle"][1:]
    assert_close((2 * angle).cos(), torch.tensor([1.0, -1, 0]).double(), atol=1e-12, rtol=0)
    assert float(angle[2]) == pytest.approx(math.pi / 4)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_the_direction_of_an_edge(degrees: int, examples: dict[str, ModuleType]) -> None:
    """Of waves whose crests run in that direction; a filter drawn along them has the same."""
    study, turn = examples["linear_restoration"], math.radians(degrees)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    wave = 0.5 + 0.4 * torch.sin(0.5 * (y * math.cos(turn) - x * math.sin(turn)))
    angle, coherence = study.edges(wave.expand(1, 3, -1, -1))
    inner = (slice(8, 56), slice(8, 56))
    assert float(coherence[inner].min()) > 0.95
    assert float((2 * (angle[inner] - turn)).cos().min()) > 0.99
    down, across = study.grid(4)
    along = down * math.sin(turn) + across * math.cos(turn)
    aside = down * math.cos(turn) - across * math.sin(turn)
    filters = (-(along / 3).square() - aside.square()).exp()[None]
    found = study.shape_of(filters, torch.zeros(1, 2).double())["angle"]
    assert float((2 * (found - turn)).cos()) > 0.99


def test_measures_of_singular_pictures_by_hand(examples: dict[str, ModuleType]) -> None:
    study = examples["linear_restoration"]
    flat, point, wave = (torch.zeros(1, 3, 64, 64) for _ in range(3))
    flat += 1 / math.sqrt(3 * 64 * 64)
    point[0, 1, 20, 30] = 1
    wave[0] = torch.cos(2 * math.pi * torch.arange(64) * 8 / 64)
    wave /= wave.norm()
    for picture, mean, area, frequency in ((flat, 1, 1, 0), (point, 1 / 4096, 1 / 4096, None), (wave, 0, 2 / 3, 1 / 8)):
        found = {name: top / bottom for name, (top, bottom) in study.of_pictures(picture).items()}
        assert found["v mean"] == pytest.approx(mean, abs=1e-6)
        assert found["v area"] == pytest.approx(area, abs=1e-5)
        assert frequency is None or found["v frequency"] == pytest.approx(frequency, abs=1e-6)


def test_a_ratio_of_equal_denominators_is_the_mean_with_its_interval(examples: dict[str, ModuleType]) -> None:
    from xai.statistics import interval

    values = torch.tensor([0.1, 0.4, 0.2, 0.9, 0.3], dtype=torch.float64)
    share, low, high = examples["linear_restoration"].ratio([(2 * float(v), 2.0) for v in values])
    assert share == pytest.approx(float(values.mean()))
    assert (low, high) == pytest.approx(interval(values))
    weighted = examples["linear_restoration"].ratio([(1.0, 1.0), (0.0, 3.0)])
    assert weighted[0] == pytest.approx(0.25)


# Training, evaluation, tables


@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_writes_what_the_zoo_reads(name: str, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "examples/train_restoration.py"), "--net", name, "--smoke", "--out", "out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = model_of(name, weights=str(tmp_path / "out" / f"{name}.safetensors"))
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8 * NAMES[name], 8 * NAMES[name])
    card, told = json.loads((tmp_path / "out" / f"{name}.json").read_text()), shipped.card(name)
    assert told is not None
    assert set(card) == set(told)
    assert (tmp_path / "out" / f"{name}.csv").read_text().count("\n") >= 24


def test_spoiling_is_as_stated(examples: dict[str, ModuleType]) -> None:
    train = examples["train_restoration"]
    grey = torch.full((1, 3, 200, 200), 128, dtype=torch.uint8)
    noisy, clean = train.spoilt(grey, 1, torch.Generator().manual_seed(1))
    assert float((noisy - clean).std()) == pytest.approx(25 / 255, rel=0.01)
    pixels = torch.from_numpy(sample("coffee")[:65, :64].copy()).permute(2, 0, 1)[None]
    given, true = train.spoilt(pixels, 3, torch.Generator())
    assert (given.shape, true.shape) == ((1, 3, 21, 21), (1, 3, 63, 63))
    small = Image.fromarray(sample("coffee")[:63, :63]).resize((21, 21), Image.Resampling.BICUBIC)
    assert_close(given, as_input(np.asarray(small)), rtol=0, atol=0)
    one, two = (torch.from_numpy(sample(name)[:60, :60].copy()).permute(2, 0, 1)[None] for name in SAMPLES[:2])
    score = float(train.psnr(one / 255, two / 255, 2))
    assert score == pytest.approx(decibels(sample(SAMPLES[0])[:60, :60], sample(SAMPLES[1])[:60, :60], 2), abs=1e-4)


def test_the_stored_tables_hold_every_network_and_control() -> None:
    tables = ROOT / "examples/tables"
    plain, linear = ((tables / f"{name}.md").read_text() for name in ("restoration", "linear_restoration"))
    assert "python examples/evaluate_restoration.py" in plain
    assert "python examples/linear_restoration.py" in linear
    for name in NAMES:
        card = shipped.card(name)
        assert card is not None
        (row,) = re.findall(rf"^\| `xai:{name}` \| photographs at native size \| 40 .*$", plain, re.MULTILINE)
        assert f"{card['validation']['gain']:+.2f} ({card['validation']['low']:+.2f} to" in row
        assert f"`xai:{name}`, untrained" in plain
        assert linear.count(f"| `xai:{name}` |") == linear.count(f"| `xai:{name}`, random |") == 5


@needs_shared
@pytest.mark.parametrize("name", NAMES)
def test_photographs_gain_as_the_card_says(name: str, examples: dict[str, ModuleType]) -> None:
    """The first eight of forty: each gains, and the mean lies where the card's does."""
    evaluate, card = examples["evaluate_restoration"], shipped.card(name)
    assert card is not None
    some = [one for one, _ in zip(evaluate.native(SHARED / "images"), range(8), strict=False)]
    found = evaluate.measure(model_of(name), NAMES[name], iter(some))
    gain = (found.made - found.against)[:, 0]
    assert float(gain.min()) > 0
    assert abs(float(gain.mean()) - card["validation"]["gain"]) < 1.0
