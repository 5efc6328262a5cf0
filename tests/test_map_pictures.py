"""Maps as pictures: the two colour maps, the scale, resampling, palette PNG, overlay and the exported files."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reports import colours, pixels
from reports.export import export
from tests.sample_records import blob, heatmap, photograph, result
from xai.errors import XaiError
from xai.panels import Heatmap, Picture

# Linear sRGB seen with each full colour deficiency: Machado, Oliveira and Fernandes 2009, table 1, severity 1.0.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def oklab(rgb: np.ndarray, seen_by: str = "none") -> np.ndarray:
    """sRGB (n, 3) uint8 to OKLab, by way of the forward formulas of the paper (the package computes their inverse)."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ DEFICIENCIES[seen_by].T, 0, 1)
    m1 = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
          [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    m2 = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
          [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(linear @ np.array(m1).T) @ np.array(m2).T


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_lightness_orders_the_colours_for_every_eye(deficiency: str) -> None:
    """Both maps rise in lightness away from zero, also for the colour blind, so that more always looks like more."""
    table = colours.diverging()
    for ramp in (colours.sequential(), table[127:], table[127::-1]):
        lightness = oklab(ramp, deficiency)[::8, 0]
        assert (np.diff(lightness) > 0).all()


def test_equal_steps_look_equally_different() -> None:
    """Steps of 16 colours along each map are equal to within a quarter in OKLab."""
    table = colours.diverging()
    for ramp in (colours.sequential(), table[127:], table[127::-1]):
        steps = np.linalg.norm(np.diff(oklab(ramp)[::16], axis=0), axis=1)
        assert steps.max() / steps.min() < 1.25


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_against_and_favour_are_told_apart(deficiency: str) -> None:
    """At equal distance from zero the sides are equally light and at least 0.08 apart (a just visible step is 0.02)."""
    lab = oklab(colours.diverging(), deficiency)
    below, above = lab[127 - 96 : 127 - 31][::-1], lab[127 + 32 : 127 + 97]
    assert np.linalg.norm(below - above, axis=1).min() > 0.08
    if deficiency == "none":
        assert np.abs(below[:, 0] - above[:, 0]).max() < 0.04


@pytest.mark.parametrize(
    ("values", "view", "given", "expected"),
    [
        ([[0.0, 2.0]], "signed", None, (0, 2, "sequential", 0)),
        ([[-1.0, 2.0]], "signed", None, (-2, 2, "diverging", 0)),
        ([[-3.0, 2.0]], "relu", None, (0, 2, "sequential", 0)),
        ([[-3.0, 2.0]], "abs", None, (0, 3, "sequential", 0)),
        ([[-3.0, 2.0]], "signed", (-1.0, 0.5), (-1, 1, "diverging", 2)),
        ([[0.5, 2.0]], "relu", (1.0, 4.0), (1, 4, "sequential", 1)),
        ([[-2.0, -1.0]], "relu", None, (0, 0, "sequential", 0)),
        ([[np.nan, -1.0]], "signed", None, (-1, 1, "diverging", 0)),
    ],
)
def test_the_scale(
    values: list[list[float]], view: str, given: tuple[float, float] | None, expected: tuple[object, ...]
) -> None:
    """From 0 up, or symmetric about 0; given ends are kept."""
    scale = pixels.scale_of(np.array(values), view, given)  # type: ignore[arg-type]
    assert (scale.low, scale.high, scale.kind, scale.beyond) == expected


def test_a_fine_map_ends_at_its_995th_permille() -> None:
    """Of 100 x 100 cells the 50 largest lie beyond the scale; a map of 64 x 64 spans its range."""
    values = np.arange(10_000, dtype=np.float64).reshape(100, 100)
    scale = pixels.scale_of(values, "relu")
    assert (scale.beyond, scale.high) == (50, pytest.approx(0.995 * 9999))
    assert pixels.scale_of(values[:64, :64], "relu").beyond == 0


@pytest.mark.parametrize(
    ("size", "to"), [((13, 13), (224, 224)), ((7, 9), (63, 40)), ((16, 16), (8, 5)), ((1, 1), (4, 4))]
)
def test_resampling_is_torchs_bilinear(size: tuple[int, int], to: tuple[int, int]) -> None:
    """The same numbers as interpolate(mode="bilinear", align_corners=False)."""
    values = torch.rand(1, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(values, to, mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(torch.from_numpy(pixels.resize(values[0, 0].numpy(), *to)), expected)


def test_a_missing_cell_does_not_bleed() -> None:
    """One NaN among ones: its own square is missing, everything else stays one."""
    values = np.ones((4, 4))
    values[1, 2] = np.nan
    large = pixels.resize(values, 16, 16)
    assert np.isnan(large[4:8, 8:12]).all()
    assert np.nanmin(large) == pytest.approx(1)
    assert np.nanmax(large) == pytest.approx(1)
    assert np.isnan(large).sum() == 16


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_a_map_is_a_palette_png_of_its_own_size() -> None:
    """One pixel a cell, 256 colours, zero in the middle of the signed map, grey where a value is missing."""
    values = np.array([[-2.0, 0.0, 2.0], [1.0, np.nan, np.inf]], np.float32)
    image = _open(pixels.heatmap_png(Heatmap(key="m", title="m", values=values)))
    assert (image.mode, image.size) == ("P", (3, 2))
    assert np.asarray(image).tolist() == [[0, 127, 254], [190, 255, 255]]
    rgb = np.asarray(image.convert("RGB"))
    table = colours.diverging()
    assert rgb[0, 0].tolist() == table[0].tolist()
    assert rgb[0, 1].max() < 30
    assert rgb[1, 1].tolist() == [128, 128, 128]


def test_magnified_maps_hold_no_steep_step() -> None:
    """A 4 x 4 checkerboard, magnified to 112 pixels, keeps its extremes; neighbours differ by at most 1 / 28 of it."""
    values = (np.indices((4, 4)).sum(0) % 2).astype(np.float32)
    image = np.asarray(_open(pixels.heatmap_png(Heatmap(key="m", title="m", values=values, view="relu"), least=112)))
    assert image.shape == (112, 112)
    assert (image.min(), image.max()) == (0, 254)
    assert np.abs(np.diff(image.astype(int), axis=0)).max() <= 254 / 28 + 1


def test_an_overlay_mixes_the_map_with_the_grey_photograph() -> None:
    """At 0 the photograph in grey, at 1 the map alone, at 0.25 a quarter of the way between them."""
    photo = Picture(key="seen", title="s", pixels=photograph("coffee")[:100, :120])
    panel = Heatmap(key="m", title="m", values=blob(5, 6, 0.4, 0.5), view="relu")
    grey, mixed, full = (np.asarray(_open(pixels.overlay_png(panel, photo, o))).astype(float) for o in (0, 0.25, 1))
    assert grey.shape == (100, 120, 3)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    weights = photo.pixels @ np.array([0.2126, 0.7152, 0.0722])
    np.testing.assert_allclose(grey[..., 0], weights, atol=0.51)
    np.testing.assert_allclose(mixed, 0.75 * grey + 0.25 * full, atol=1.01)
    peak = np.unravel_index(np.argmax(full.sum(2)), full.shape[:2])
    assert abs(peak[0] / 100 - 0.4) < 0.11
    assert abs(peak[1] / 120 - 0.5) < 0.11


def test_exports_are_raw_values_their_colours_and_an_overlay(tmp_path: Path) -> None:
    """npy holds raw signed float32 values whatever the view; overlays have the picture's size; names hold the hash."""
    one = result(("chelsea",), view="relu")
    digest = one.images[0].hash
    raw = dataclasses.replace(heatmap("chelsea", digest, 13, "signed"), view="relu")
    one = dataclasses.replace(one, panels=(*one.panels[:3], raw))
    files = export(one, tmp_path / "maps", ["npy", "overlay", "png", "npy"])
    assert [f.name for f in files] == [f"{digest}-map.npy", f"{digest}-map-overlay.png", f"{digest}-map.png"]
    saved = np.load(files[0])
    np.testing.assert_array_equal(saved, raw.values)
    assert saved.dtype == np.float32
    assert saved.min() < 0
    assert [Image.open(f).size for f in files[1:]] == [(224, 224), (13, 13)]


def test_an_export_without_a_picture_or_of_an_odd_name(tmp_path: Path) -> None:
    """A map over no known picture has no overlay; a key cannot leave the folder; an unknown format is named."""
    odd = Heatmap(key="../../x y", title="m", values=np.ones((2, 2), np.float32), over="nothing")
    files = export(result((), panels=(odd,), images=()), tmp_path / "maps")
    assert sorted(f.name for f in files) == ["_.._x_y.npy", "_.._x_y.png"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)
    with pytest.raises(XaiError, match="must be one of npy, png, overlay; got 'tiff'"):
        export(result(), tmp_path, ["tiff"])
    assert export(result(), tmp_path, []) == []
