"""Spectra: closed forms, identities of upsampling, power laws, floors, grids, peaks and kernels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d
from scipy.stats import f as f_distribution

from xai import spectrum
from xai.errors import XaiError

SHAPES = [(64, 64), (33, 48), (15, 21), (8, 31), (1, 9)]
sides = st.integers(2, 40)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def wave(h: int, w: int, fy: int, fx: int, phase: float = 0.3) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.cos(2 * np.pi * (fy * y / h + fx * x / w) + phase)


def power_law(n: int, m: int, a: float, seed: int = 0) -> np.ndarray:
    """A real picture whose power is exactly f^-a, with the phases of noise."""
    radius = spectrum.radii(n, m)
    radius[0, 0] = 1
    random = np.fft.fft2(noise(n, m, seed=seed))
    return np.fft.ifft2(random / np.abs(random) * radius ** (-a / 2)).real


# --- power and rings ---
@given(sides, sides, st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_parseval_and_the_counts_of_the_rings(h: int, w: int, seed: int) -> None:
    x = noise(h, w, seed=seed)
    found = spectrum.power(x)
    assert found.sum() == pytest.approx(((x - x.mean()) ** 2).sum(), rel=1e-6)
    every, inner = spectrum.rings(h, w, corners=True), spectrum.rings(h, w)
    assert every.counts.sum() == h * w
    assert inner.counts.sum() == (spectrum.radii(h, w) <= 0.5 + 1e-12).sum()
    assert every.counts[0] == 1
    assert (every.counts > 0).all()
    assert (np.diff(every.frequency) > 0).all()
    np.testing.assert_allclose(every.sums(found), every.means(found) * every.counts)
    assert every.sums(found).sum() == pytest.approx(found.sum())


@pytest.mark.parametrize(("h", "w"), SHAPES)
def test_power_equals_the_sum_of_the_definition(h: int, w: int) -> None:
    x = noise(h, w)
    y, r = np.mgrid[:h, :w]
    taper = spectrum.window(h, w)
    for fy, fx in ((0, 0), (0, w // 2), (h // 2, 1), (h - 1, w - 1)):
        direct = ((x - x.mean()) * taper * np.exp(-2j * np.pi * (fy * y / h + fx * r / w))).sum() / math.sqrt(h * w)
        assert spectrum.power(x, taper)[fy, fx] == pytest.approx(abs(direct) ** 2, abs=1e-12)


@pytest.mark.parametrize(("h", "w", "fy", "fx"), [(64, 64, 5, 9), (33, 48, 0, 7), (48, 33, 11, 3), (21, 21, 10, 0)])
def test_a_wave_is_one_spike_and_one_ring(h: int, w: int, fy: int, fx: int) -> None:
    found = spectrum.power(wave(h, w, fy, fx))
    there = np.argwhere(found > 1e-9 * found.max())
    assert sorted(map(tuple, there.tolist())) == sorted({(fy, fx), (-fy % h, -fx % w)})
    on = spectrum.rings(h, w, corners=True)
    share = spectrum.shares(found, on)
    assert share.max() == pytest.approx(1)
    assert on.index[fy, fx] == share.argmax()


def test_moving_and_turning_a_picture_and_constants() -> None:
    x = noise(24, 24)
    on = spectrum.rings(24, 24)
    np.testing.assert_allclose(spectrum.power(np.roll(x, (5, 7), (0, 1))), spectrum.power(x), atol=1e-12)
    np.testing.assert_allclose(on.means(spectrum.power(np.rot90(x))), on.means(spectrum.power(x)), atol=1e-12)
    assert spectrum.power(np.full((9, 12), 0.3)).max() < 1e-28
    assert (spectrum.shares(np.zeros((9, 12)), spectrum.rings(9, 12)) == 0).all()


def test_white_noise_is_flat_within_its_interval() -> None:
    n, size = 40, 64
    on, taper = spectrum.rings(size, size), spectrum.window(size, size)
    for weights in (None, taper):
        means = np.stack([on.means(spectrum.power(noise(size, size, seed=s), weights)) for s in range(n)])[:, 2:]
        error = means.std(0, ddof=1) / math.sqrt(n)
        assert (np.abs(means.mean(0) - 1) < 4.5 * error).all()  # of 31 rings
    fits = [spectrum.decay(on.frequency, on.means(spectrum.power(noise(size, size, seed=s))), on.counts)
            for s in range(200)]
    inside = np.mean([one.low <= 0 <= one.high for one in fits])
    assert 0.90 <= inside <= 0.99  # a 95 % interval, and 200 trials


def test_a_window_keeps_the_mean_square_and_refuses_a_name() -> None:
    for h, w in SHAPES:
        assert (spectrum.window(h, w) ** 2).mean() == pytest.approx(1)
    assert (spectrum.window(5, 7, "none") == 1).all()
    with pytest.raises(XaiError, match="the window must be hann or none; got 'hamming'"):
        spectrum.window(5, 7, "hamming")


# --- power laws ---
@pytest.mark.parametrize("a", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize(("h", "w"), [(128, 128), (129, 200)])
def test_the_exponent_of_a_power_law_comes_back(a: float, h: int, w: int) -> None:
    on = spectrum.rings(h, w)
    found = spectrum.decay(on.frequency, on.means(spectrum.power(power_law(h, w, a))), on.counts)
    assert found.exponent == pytest.approx(a, abs=0.02)
    taper = spectrum.window(h, w)
    mean = np.mean([on.means(spectrum.power(power_law(h, w, a, seed), taper)) for seed in range(40)], axis=0)
    assert spectrum.decay(on.frequency, mean, on.counts, 0.1).exponent == pytest.approx(a, abs=0.02)


def test_a_power_law_needs_three_rings_and_a_tail() -> None:
    on = spectrum.rings(8, 8)
    assert math.isnan(spectrum.decay(on.frequency, np.zeros(len(on.counts)), on.counts).exponent)
    with pytest.raises(XaiError, match="the tail must be from a lower to a higher frequency"):
        spectrum.decay(on.frequency, np.ones(len(on.counts)), on.counts, 0.5, 0.25)


def test_the_floor_of_rounding() -> None:
    ramp = noise(256, 256) * 0.1 + 0.5
    for channels, weights in ((1, (1.0,)), (3, spectrum.LUMA)):
        exact = np.stack([ramp] + [noise(256, 256, seed=s) * 0.1 + 0.5 for s in range(1, channels)])
        stored = np.rint(255 * exact.clip(0, 1)).astype(np.uint8)
        error = spectrum.grey(stored) - spectrum.grey(exact.clip(0, 1))
        assert spectrum.power(error).mean() == pytest.approx(spectrum.rounding_floor("uint8", weights), rel=0.02)
    assert spectrum.rounding_floor("uint16") * 257**2 == pytest.approx(spectrum.rounding_floor("uint8"))
    assert spectrum.rounding_floor("float32") == 0
    # the handbook's figure, in another scale: mean |F| of the unnormalised FFT of 0..255 at 1024 pixels
    v = spectrum.rounding_floor("uint8", spectrum.LUMA) * 255**2 + 1 / 12  # grey rounded once more
    assert math.sqrt(math.pi) / 2 * math.sqrt(v) * 1024 == pytest.approx(315, abs=1)


def test_grey_is_the_unrounded_luma_or_the_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), np.uint8)
    np.testing.assert_allclose(spectrum.grey(pixels),
                               (0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2].astype(float)) / 255)
    np.testing.assert_allclose(spectrum.grey(pixels[:1]), pixels[0] / 255)
    np.testing.assert_allclose(spectrum.grey(pixels[:2]), pixels[:2].mean(0) / 255)
    np.testing.assert_allclose(spectrum.unit(np.array([0, 65535], np.uint16)), [0, 1])


# --- upsampling, exactly ---
def tiled(x: np.ndarray) -> np.ndarray:
    return np.tile(np.fft.fft2(x), (2, 2))


def test_zero_insertion_tiles_the_spectrum() -> None:
    x = noise(16, 16)
    up = np.zeros((32, 32))
    up[::2, ::2] = x
    np.testing.assert_allclose(np.fft.fft2(up), tiled(x), atol=1e-12)


def test_nearest_multiplies_the_tiling_by_cosines() -> None:
    x = noise(16, 18)
    up = x.repeat(2, 0).repeat(2, 1)
    rows, columns = (np.abs(2 * np.cos(np.pi * np.arange(n) / n)) for n in up.shape)
    np.testing.assert_allclose(np.abs(np.fft.fft2(up)), np.abs(tiled(x)) * np.outer(rows, columns), atol=1e-11)
    found = spectrum.power(up)
    assert found[16].max() < 1e-25
    assert found[:, 18].max() < 1e-25


def test_bilinear_multiplies_the_tiling_by_squared_cosines() -> None:
    """Periodic, with the old pixels kept: the triangle 1/2, 1, 1/2 along each axis."""
    x = noise(16, 16)
    up = np.zeros((32, 32))
    up[::2, ::2] = x
    for axis in (0, 1):
        up = up + 0.5 * (np.roll(up, 1, axis) + np.roll(up, -1, axis))
    lobe = 2 * np.cos(np.pi * np.arange(32) / 32) ** 2
    np.testing.assert_allclose(np.fft.fft2(up), tiled(x) * np.outer(lobe, lobe), atol=1e-12)


# --- grids and peaks ---
def test_f_is_that_of_an_analysis_of_variance_and_follows_its_null() -> None:
    x = noise(17, 22)
    groups = [x[a:16:2, b:22:2].ravel() for a in (0, 1) for b in (0, 1)]
    from scipy.stats import f_oneway

    assert spectrum.grid_f(x, 2) == pytest.approx(f_oneway(*groups).statistic)
    high = f_distribution.ppf(0.95, 15, 16 * 15)
    assert 0.01 < np.mean([spectrum.grid_f(noise(16, 16, seed=s), 4) > high for s in range(400)]) < 0.10


def test_a_grid_raises_f_at_its_step_and_multiples_and_the_comb_only_there() -> None:
    x = noise(60, 60)
    x[::2, ::2] += 1
    assert spectrum.grid_f(x, 2) > 50
    assert spectrum.grid_f(x, 4) > 10
    assert spectrum.grid_f(x, 3) < 3
    found = spectrum.power(x, spectrum.window(60, 60))
    assert spectrum.comb(found, 2) > 15
    assert abs(spectrum.comb(found, 3)) < 6
    assert math.isnan(spectrum.comb(found[:9, :9], 2))
    assert math.isnan(spectrum.grid_f(x[:2, :2], 2))
    assert spectrum.grid_f(np.tile([[1.0, 0.0], [0.0, 0.0]], (3, 3)), 2) == math.inf
    assert math.isnan(spectrum.grid_f(np.ones((6, 6)), 2))


@pytest.mark.parametrize(("h", "w", "fy", "fx"), [(64, 64, 16, 0), (64, 48, -7, 12), (63, 65, 20, 30), (64, 64, 32, 32),
                                                  (64, 64, 32, 8)])
def test_peaks_finds_a_wave_in_noise_and_none_without(h: int, w: int, fy: int, fx: int) -> None:
    x = noise(h, w)
    taper = spectrum.window(h, w)
    assert spectrum.peaks(np.mean([spectrum.power(noise(h, w, seed=s), taper) for s in range(8)], axis=0)) == []
    hidden = np.mean([spectrum.power(noise(h, w, seed=s) + wave(h, w, fy, fx, s), taper) for s in range(8)], axis=0)
    found = spectrum.peaks(hidden)
    assert len(found) == 1
    assert found[0].fy == pytest.approx(fy / h)
    assert found[0].fx == pytest.approx(fx / w)
    assert spectrum.peaks(spectrum.power(x[:8, :8])) == []
    assert spectrum.peaks(np.zeros((32, 32))) == []


@given(st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=30, deadline=None)
def test_the_plane_keeps_the_power_and_puts_zero_in_the_middle(h: int, w: int) -> None:
    found = np.zeros((h, w))
    found[0, 0] = 1
    values, rows, columns = spectrum.plane(found, 16)
    assert max(values.shape) <= 18
    assert values.shape == (len(rows), len(columns))
    y, x = np.unravel_index(values.argmax(), values.shape)
    assert (rows[y], columns[x]) == (0, 0)
    whole, _, _ = spectrum.plane(np.ones((h, w)), 16)
    np.testing.assert_allclose(whole, 1)


def test_relief_is_zero_or_more_and_not_deeper_than_asked() -> None:
    found = spectrum.relief(np.array([0.0, 1e-20, 1e-3, 1.0]))
    np.testing.assert_allclose(found, [0, 0, 50, 80])
    np.testing.assert_allclose(spectrum.relief(np.array([2.0, 20.0])), [0, 10])
    assert (spectrum.relief(np.zeros(3)) == 0).all()


# --- kernels and filters ---
def test_a_kernels_power_equals_that_of_its_padded_transform() -> None:
    kernels = noise(20, 3, 5)
    lags = spectrum.autocorrelation(kernels)
    f = np.fft.fftfreq(64)
    padded = (np.abs(np.fft.fft2(kernels, (64, 64))) ** 2).mean(0)
    np.testing.assert_allclose(spectrum.kernel_power(lags, f, f), padded, atol=1e-12)
    assert spectrum.kernel_power(lags, f, f).mean() == pytest.approx((kernels**2).sum((1, 2)).mean())
    np.testing.assert_allclose(lags, np.mean([convolve2d(k, k[::-1, ::-1]) for k in kernels], axis=0), atol=1e-12)


def test_the_share_below_a_cut() -> None:
    kernels = noise(6, 3, 3)
    lags = spectrum.autocorrelation(kernels)
    f = (np.arange(1024) + 0.5) / 1024 - 0.5
    inside = np.abs(f) < 0.2
    all_ = spectrum.kernel_power(lags, f, f)
    assert spectrum.kernel_share(lags, 0.2) == pytest.approx(all_[np.ix_(inside, inside)].sum() / all_.sum(), abs=5e-3)
    assert spectrum.kernel_share(lags, 0.5) == pytest.approx(1)
    delta = np.zeros((1, 3, 3))
    delta[0, 1, 1] = 2
    assert spectrum.kernel_share(spectrum.autocorrelation(delta), 0.25) == pytest.approx(0.25)
    assert spectrum.kernel_share(spectrum.autocorrelation(np.ones((1, 3, 3))), 0.25) > 0.7
    assert math.isnan(spectrum.kernel_share(np.zeros((5, 5)), 0.25))


def test_low_pass_masks() -> None:
    for shape in ((9, 12), (16, 16)):
        assert (spectrum.low_pass(*shape, 0.75) == 1).all()
        assert spectrum.low_pass(*shape, 0).sum() == 1
        soft = spectrum.low_pass(*shape, 0.2, 4)
        assert soft[0, 0] == 1
        radius = spectrum.radii(*shape)
        order = np.argsort(radius.ravel())
        assert (np.diff(soft.ravel()[order]) <= 1e-12).all()
    assert spectrum.low_pass(20, 20, 0.2, 4)[0, 4] == pytest.approx(math.sqrt(0.5))
