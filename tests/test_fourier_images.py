"""Spectra of folders: what is read and counted, slow versions of the sums, two groups and their tests, detectors."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from scipy.stats import ttest_ind

from analyzers.spectrum import _detectors
from analyzers.spectrum._groups import grouped, spaced
from analyzers.spectrum._image_panels import Sums, exponent, holm, welch
from analyzers.spectrum.fourier_images import FourierImages
from xai import spectrum
from xai.errors import XaiError
from xai.image_entries import Entry, Raw
from xai.images import Image, Images, load_images
from xai.result import Result
from xai.run import analyze
from xai.subject import Subject


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def enlarged(seed: int, side: int) -> np.ndarray:
    return pixels(seed, 3, side // 2, side // 2).repeat(2, 1).repeat(2, 2)


def folder(where: Path, pictures: list[np.ndarray]) -> str:
    where.mkdir(parents=True)
    for i, one in enumerate(pictures):
        Pil.fromarray(np.moveaxis(one, 0, 2) if len(one) > 1 else one[0]).save(where / f"{i:03}.png")
    return str(where)


def panels(result: Result) -> dict[str, Any]:
    return {panel.key: panel for panel in result.panels}


def rows(result: Result, key: str) -> list[dict[str, Any]]:
    table = panels(result)[key]
    return [dict(zip([c.name for c in table.columns], row, strict=True)) for row in table.rows]


def seen(source: Any, **fields: Any) -> Result:
    return FourierImages(**fields)(Subject((), load_images(source)))


# --- what is read ---
def test_odd_pictures_are_handled_and_counted(tmp_path: Path) -> None:
    where = Path(folder(tmp_path / "mixed", [pixels(i, 3, 64 + i, 72) for i in range(30)]))
    Pil.fromarray(pixels(50, 80, 70)).save(where / "grey.png")
    Pil.fromarray(pixels(51, 90, 64, 4)).save(where / "alpha.png")
    Pil.fromarray(pixels(52, 70, 70).astype(np.uint16) * 256).save(where / "deep.png")
    Pil.fromarray(pixels(53, 4, 5, 3)).save(where / "tiny.png")
    Pil.fromarray(np.full((66, 66, 3), 7, np.uint8)).save(where / "flat.png")
    (where / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (where / "notes.txt").write_text("no picture")
    done = analyze("fourier_images", data=str(where))
    assert [failure.name for failure in done.failures] == ["broken.png"]
    (counts,) = rows(done.result, "counts")
    assert counts == {"group": "all", "used": 33, "unreadable": 0, "too small": 1, "constant": 1, "not finite": 0,
                      "grey": 2, "colour": 31, "other channels": 0, "alpha": 1, "8 bits": 32, "16 bits": 1,
                      "float": 0}
    assert "Cut to 64 x 64" in panels(done.result)["counts"].note
    (alone,) = rows(seen(str(where)), "counts")
    assert (alone["used"], alone["unreadable"]) == (33, 1)


def test_a_named_size_cuts_the_middle_on_the_grid_of_eight() -> None:
    big = pixels(0, 3, 100, 90)
    (one,) = Images.of([Image.of("a", big)])
    groups = grouped(Subject((), Images.of([one])), "none", 64, "x")
    (cut,) = groups.pictures(Images.of([one]), groups.groups[0])
    np.testing.assert_array_equal(cut.pixels, big[:, 16:80, 8:72])
    with pytest.raises(XaiError, match="has 128 x 128 pixels that vary; got too small: 2"):
        seen([big, big], size=128)
    with pytest.raises(XaiError, match=r"fourier_images.size must be 0 or at least 8; got 5"):
        FourierImages(size=5)
    with pytest.raises(XaiError, match=r"one can be read and has 8 pixels a side"):
        seen(pixels(0, 3, 5, 5))


def test_spaced_takes_evenly() -> None:
    assert spaced(tuple(range(10)), 4) == [0, 2, 5, 7]
    assert spaced((3, 4), 4) == [3, 4]


def lazily(count: int, side: int) -> Images:
    """Pictures that are made when they are read and take no memory before."""
    return Images(Entry(f"{i}", lambda i=i: Raw(pixels(i, 3, side, side))) for i in range(count))  # type: ignore[misc]


def test_memory_does_not_grow_with_the_folder() -> None:
    peaks = []
    FourierImages()(Subject((), lazily(2, 96)))
    for count in (6, 60):
        asked = Subject((), lazily(count, 96))  # the list itself takes half a kilobyte a picture
        tracemalloc.start()
        FourierImages()(asked)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 30_000  # one picture more at a time would be 27,648 bytes each, its spectrum 73,728


# --- sums ---
@pytest.mark.parametrize(("h", "w"), [(33, 48), (40, 40)])
@pytest.mark.parametrize("window", ["hann", "none"])
def test_the_profile_equals_a_slow_version(h: int, w: int, window: str) -> None:
    pictures = [pixels(i, 3, h, w) for i in range(5)]
    result = seen([np.moveaxis(one, 0, 2) for one in pictures], window=window)
    curve = panels(result)["profile"]
    taper = np.outer(*(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) for n in (h, w))) if window == "hann" else \
        np.ones((h, w))
    taper = taper / np.sqrt((taper**2).mean())
    sums: dict[int, list[float]] = {}
    powers = []
    for one in pictures:
        grey = (0.299 * one[0] + 0.587 * one[1] + 0.114 * one[2].astype(float)) / 255
        powers.append(np.abs(np.fft.fft2((grey - grey.mean()) * taper)) ** 2 / (h * w))
    mean = np.mean(powers, axis=0)
    for i, fy in enumerate(np.fft.fftfreq(h)):
        for j, fx in enumerate(np.fft.fftfreq(w)):
            if 0 < np.hypot(fy, fx) <= 0.5 + 1e-12:
                sums.setdefault(max(1, round(np.hypot(fy, fx) * min(h, w))), []).append(mean[i, j])
    np.testing.assert_allclose(curve.y[0], [10 * np.log10(np.mean(sums[k])) for k in sorted(sums)], rtol=1e-9)
    assert (curve.low[0] < curve.y[0]).all()
    assert (curve.y[0] < curve.high[0]).all()
    floor = 10 * np.log10((0.299**2 + 0.587**2 + 0.114**2) / 12 / 255**2)
    np.testing.assert_allclose(curve.y[1], floor)


def test_channels_have_lines_of_their_own() -> None:
    picture = pixels(3, 3, 32, 32)
    picture[0] = 9  # no red variation
    curve = panels(seen(picture, channels="each"))["profile"]
    assert curve.names == ("grey", "red", "green", "blue", "rounding")
    assert curve.y[1].max() < -200
    alone = panels(seen(picture[1], channels="grey"))["profile"]
    np.testing.assert_allclose(curve.y[2], alone.y[0])


def test_a_tail_of_rounding_is_called_near_the_floor() -> None:
    smooth = 0.5 + 0.3 * np.sin(np.linspace(0, 9, 128))[:, None] * np.cos(np.linspace(0, 7, 128))
    stored = np.rint(255 * smooth).astype(np.uint8)
    for same in (stored, np.stack([stored] * 3)):  # grey in three channels rounds as one
        (near,) = rows(seen(same), "decay")
        assert near["rings near rounding"] == "33 of 33"
        assert near["rounding, dB"] == pytest.approx(10 * np.log10(1 / 12 / 255**2), abs=0.01)
    (clear,) = rows(seen(pixels(0, 3, 128, 128)), "decay")
    assert clear["rings near rounding"] == "0 of 33"
    assert clear["rounding, dB"] == pytest.approx(-62.42, abs=0.01)


def test_the_exponent_and_its_interval_over_pictures() -> None:
    on = spectrum.rings(64, 64)
    sums = Sums.none("x", on, 1)
    for value in (1.0, 2.0, 4.0, float("nan")):
        sums.add(np.ones((1, len(on.counts))), np.ones((64, 64)), spectrum.Decay(value, 1, 0, 0, 9), 0.0, [1, 1, 1])
    mean, low, high, sd = exponent(sums)
    assert mean == pytest.approx(7 / 3)
    assert sd == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert high - mean == pytest.approx(4.302653 * sd / np.sqrt(3), rel=1e-6)  # Student's t, 2 degrees of freedom
    assert low == pytest.approx(2 * mean - high)


def test_lines_and_grids_of_an_enlarged_folder() -> None:
    y, x = np.mgrid[:64, :64]
    wave = 30 * np.cos(2 * np.pi * x / 4)
    pictures = [(pixels(i, 64, 64) // 2 + 60 + wave).astype(np.uint8) for i in range(8)]
    found = rows(seen(pictures), "lines")
    assert [(row["horizontal"], row["vertical"], row["repeats every"]) for row in found] == [(0.25, 0.0, 4.0)]
    combs = {row["grid"]: row for row in rows(seen(pictures), "grids")}
    assert combs[4]["comb"] > 15
    assert combs[4]["mean F"] > 10
    assert abs(combs[2]["comb"]) < 6
    assert panels(seen([pixels(i, 64, 64) for i in range(8)]))["lines"].text == "No frequency stands out."
    del y


# --- two groups ---
def test_groups_come_from_sources_or_labels(tmp_path: Path) -> None:
    a = folder(tmp_path / "data" / "real", [pixels(i, 3, 16, 16) for i in range(3)])
    b = folder(tmp_path / "data" / "made", [pixels(i, 3, 16, 16) for i in range(4)])
    for source in ([a, b], str(tmp_path / "data")):
        groups = grouped(Subject((), load_images(source)), "auto", 0, "x").groups
        assert {g.name: len(g.members) for g in groups} == {"real": 3, "made": 4}
    (one,) = grouped(Subject((), load_images([a, b])), "none", 0, "x").groups
    assert len(one.members) == 7
    assert load_images([a, b]).sources == (a,) * 3 + (b,) * 4
    assert load_images(a).sources == ("",) * 3
    with pytest.raises(XaiError, match=r"x.groups must be source only where the pictures have two of them; got 1"):
        grouped(Subject((), load_images(a)), "source", 0, "x")
    same = str(tmp_path / "other" / "real")
    folder(Path(same), [pixels(9, 3, 16, 16)])
    names = [g.name for g in grouped(Subject((), load_images([a, same])), "auto", 0, "x").groups]
    assert names == [a, same]


@pytest.mark.parametrize("seed", range(3))
def test_welch_equals_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, (9, 5)), rng.normal(0.5, 3, (14, 5))
    difference, half, p = welch(a.sum(0), (a**2).sum(0), 9, b.sum(0), (b**2).sum(0), 14)
    found = ttest_ind(b, a, equal_var=False)
    np.testing.assert_allclose(p, found.pvalue, rtol=1e-9)
    interval = found.confidence_interval(0.95)
    np.testing.assert_allclose(difference - half, interval.low, rtol=1e-9)
    np.testing.assert_allclose(difference + half, interval.high, rtol=1e-9)


def test_welch_without_variation() -> None:
    equal = welch(np.array([4.0]), np.array([8.0]), 2, np.array([6.0]), np.array([12.0]), 3)
    other = welch(np.array([4.0]), np.array([8.0]), 2, np.array([9.0]), np.array([27.0]), 3)
    assert (equal[2], other[2]) == (1, 0)
    assert np.isnan(welch(np.array([4.0]), np.array([8.0]), 1, np.array([9.0]), np.array([27.0]), 3)[2])


def test_holm_is_the_step_down_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(7) ** 3
        order = sorted(range(7), key=lambda i: p[i])
        expected, worst = np.zeros(7), 0.0
        for k, i in enumerate(order):
            worst = max(worst, min(1.0, (7 - k) * p[i]))
            expected[i] = worst
        np.testing.assert_allclose(holm(p), expected)


def test_alike_groups_are_rarely_told_apart_and_enlarged_ones_always() -> None:
    def least(change: Any, seed: int) -> float:
        made = [Image.of(f"{k} {i}", change(1000 * seed + 100 * k + i, k), label=k) for k in (0, 1) for i in range(8)]
        result = FourierImages(detectors="none")(Subject((), Images.of(made)))
        return float(panels(result)["p"].value)

    alike = [least(lambda s, k: pixels(s, 3, 24, 24), seed) for seed in range(30)]
    assert np.mean([p < 0.05 for p in alike]) <= 0.17  # 5 of 30: 0.3 % of the time beyond it at a true 5 %
    apart = [least(lambda s, k: enlarged(s, 24) if k else pixels(s, 3, 24, 24), seed) for seed in range(3)]
    assert max(apart) < 1e-6


def test_a_pair_of_pictures_has_no_test() -> None:
    result = FourierImages()(Subject((), Images.of([Image.of(str(k), pixels(k, 3, 16, 16), label=k) for k in (0, 1)])))
    assert "A test needs two pictures in each group" in panels(result)["compared"].text
    assert "it takes 10 pictures of each group" in panels(result)["detectors"].text


# --- detectors ---
@pytest.mark.parametrize(("n", "length"), [(64, 43), (128, 88), (256, 179), (512, 360), (1024, 722)])
def test_the_published_lengths_of_the_azimuthal_profile(n: int, length: int) -> None:
    assert len(_detectors.azimuthal(np.random.default_rng(0).random((n, n)))) == length


def test_the_azimuthal_profile_of_a_moved_and_of_a_doubled_picture() -> None:
    x = np.random.default_rng(0).random((64, 64)) * 100
    found = _detectors.azimuthal(x)
    np.testing.assert_allclose(_detectors.azimuthal(np.roll(x, (3, 9), (0, 1))), found, rtol=1e-6)
    np.testing.assert_allclose(_detectors.azimuthal(2 * x) - found, 20 * np.log(2), rtol=1e-6)
    image = Image.of("a", np.random.default_rng(0).integers(0, 256, (3, 40, 66), np.uint8))
    assert _detectors.rounded_grey(image).shape == (40, 40)
    assert _detectors.durall(image)[0] == 1


@pytest.mark.parametrize("b", [-4.0, -2.0, -0.5, 0.0, 1.0])
def test_the_fitted_power_comes_back(b: float) -> None:
    radius = np.linspace(0.5001, 1, 20000)
    found = _detectors.fitted(*_detectors.reduced(radius, 100 * radius**b))
    assert found[0] == pytest.approx(b, abs=0.02)
    assert found[1] == pytest.approx(100 * 0.8525**b, rel=0.01)


def test_white_noise_has_no_decay_and_the_corner_holds_the_published_shares() -> None:
    powers = [_detectors.fitted(*_detectors.far_corner(np.random.default_rng(s).standard_normal((256, 256))))[0]
              for s in range(24)]
    assert abs(np.mean(powers)) < 3 * np.std(powers) / np.sqrt(24) + 0.05
    n = 1024
    y, x = np.mgrid[:n, :n] - n // 2
    radius = np.hypot(y, x) / np.hypot(n / 2, n / 2)
    for threshold, expected in ((0.5, 0.607), (0.75, 0.145), (0.85, 0.048)):
        assert (radius > threshold).mean() == pytest.approx(expected, abs=0.001)


def test_folds_keep_copies_together_whatever_the_order() -> None:
    hashes = [f"h{i % 20}" for i in range(60)]
    found = _detectors.folds(hashes, 0)
    assert len({(h, f) for h, f in zip(hashes, found, strict=True)}) == 20
    assert np.bincount(found).tolist() == [12] * 5
    back = _detectors.folds(hashes[::-1], 0)
    np.testing.assert_array_equal(back[::-1], found)
    assert (_detectors.folds(hashes, 1) != found).any()


def test_detectors_find_what_differs_and_nothing_where_nothing_does() -> None:
    def judged(change: Any) -> list[dict[str, Any]]:
        made = [Image.of(f"{k} {i}", change(100 * k + i, k), label=k) for k in (0, 1) for i in range(40)]
        result = FourierImages(detectors="durall,dzanic")(Subject((), Images.of(made)))
        assert "Do not trust such a detector" in panels(result)["trust"].text
        return rows(result, "detectors")

    for row in judged(lambda s, k: enlarged(s, 32) if k else pixels(s, 3, 32, 32)):
        assert row["accuracy"] > 0.95
        assert 0.3 < row["accuracy, names shuffled"] < 0.7
        assert row["average precision"] > 0.95
    for row in judged(lambda s, k: pixels(s, 3, 32, 32)):
        assert row["low"] < 0.5 < row["high"] or 0.33 < row["accuracy"] < 0.67
    with pytest.raises(XaiError, match="fourier_images.detectors must be of durall, dzanic, or none; got 'wang'"):
        FourierImages(detectors="durall,wang")
