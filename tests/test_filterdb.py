"""The filter database: what is collected, that sums add up, what measures are, that files are whole, HDF5 both ways."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import filterdb
from filterdb import measures, store
from filterdb.banks import banks
from filterdb.published import _strings, export, read_published
from filterdb.records import entries
from filterdb.shift import groups_by, named_groups, refitted, shift
from filterdb.sums import BINS, CHUNK, MOMENTS, added, basis_histogram, dct, edges, layer_sums, nothing
from xai.errors import XaiError
from xai.model import Model
from xai.panels import Matrix, Number, Table

EVR = np.array([.39815, .18326, .11704, .09853, .06576, .05522, .03008, .02823, .02374])  # all filters of the data base
ROBUST = [.3922, .2102, .1379, .0899, .0606, .0562, .0221, .0214, .0096]  # of the robustness set, measured
NORMAL = [.6695, .1218, .0818, .0501, .0251, .0236, .0105, .0102, .0075]


def white(n: int, k: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k * k)).astype(np.float32)


def model(module: nn.Module, size: int = 12, **more: Any) -> Model:
    return Model(module, mean=[0.4] * 3, std=[0.3] * 3, size=size, **more)


# --- which filters, where ---
class Standardised(nn.Conv2d):
    """A convolution that uses another weight than it holds."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias, 1, self.padding)


class Varied(nn.Module):
    """A stem, two branches unlike in length, a shared module, a grouped and a depthwise one; and what is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.long = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2))
        self.short = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.own = Standardised(8, 8, 3, padding=1)
        self.narrow, self.point = nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), nn.Conv2d(8, 4, 1)
        self.up, self.idle = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, 4, 3)
        self.line = nn.Conv1d(4, 4, 3)
        self.loose = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = self.long(x) + self.short(x)
        x = self.own(self.shared(self.shared(x)))
        x = F.conv2d(self.up(self.point(self.narrow(x))), self.loose)
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def varied() -> Varied:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = Varied().eval()
        nn.init.uniform_(made.norm.running_var, 0.5, 2)
        nn.init.uniform_(made.norm.weight, -1, 1)
    return made


def test_every_square_convolution_is_taken_once_and_the_rest_is_named(varied: Varied) -> None:
    kept, left = banks(model(varied))
    found = {bank.layer.name: bank.layer for bank in kept}
    assert {name: (one.k, one.groups, one.depthwise, one.n) for name, one in found.items()} == {
        "stem": (3, 1, False, 24), "long.0": (3, 2, False, 32), "long.2": (5, 1, False, 64),
        "short": (3, 8, True, 8), "shared": (3, 1, False, 64), "own": (3, 1, False, 64), "idle": (3, 1, False, 16)}
    assert {one.name: one.left_out for one in left} == {
        "narrow": "not square: 1 x 3", "point": "1 x 1", "up": "transposed", "line": "1-D",
        "loose": "called as a function"}
    assert found["stem"].stride == (2, 2)
    assert all(bank.filters.shape == (bank.layer.n, bank.layer.k**2) for bank in kept)


def test_depth_is_the_longest_path(varied: Varied) -> None:
    depth = {bank.layer.name: bank.layer.depth for bank in banks(model(varied))[0]}
    assert depth["idle"] is None
    order = sorted((d, name) for name, d in depth.items() if d is not None)
    assert [name for _, name in order] == ["stem", "long.0", "short", "long.2", "shared", "own"]
    assert depth["long.0"] == depth["short"] == 1
    assert depth["shared"] == 3  # its first run; the second is a depth of its own
    assert depth["own"] == 5


def test_a_single_convolution_has_depth_0() -> None:
    (bank,), _ = banks(model(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    assert (bank.layer.depth, bank.layer.depth_norm) == (0, 0.0)


def test_weights_are_those_that_the_forward_uses(varied: Varied) -> None:
    kept = {bank.layer.name: bank.weight for bank in banks(model(varied))[0]}
    assert_close(kept["own"], (varied.own.weight - varied.own.weight.mean((1, 2, 3), keepdim=True)).detach())
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(2)
    (bank,), _ = banks(model(nn.Sequential(normed, nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    assert_close(bank.weight, normed.weight.detach())


def test_folding_multiplies_the_norm_in_and_only_where_one_follows(varied: Varied) -> None:
    plain, folded = ({b.layer.name: b for b in banks(model(varied), fold)[0]} for fold in (False, True))
    norm = varied.norm
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    assert_close(folded["stem"].weight, plain["stem"].weight * gain[:, None, None, None])
    assert {name for name, bank in folded.items() if bank.layer.bn_folded} == {"stem"}
    assert all(torch.equal(folded[name].weight, plain[name].weight) for name in plain.keys() - {"stem"})
    x = torch.randn(2, 3, 8, 8)
    whole = norm(varied.stem(x))
    rest = whole - F.conv2d(x, folded["stem"].weight, None, 2, 1)
    assert_close(rest, rest[:1, :, :1, :1].expand_as(rest), rtol=0, atol=1e-5)  # a constant for each channel


def test_half_precision_is_told_and_weights_that_two_modules_share_are_taken_once() -> None:
    one, two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    two.weight = one.weight
    net = nn.Sequential(one, two, nn.AdaptiveAvgPool2d(1), nn.Flatten()).bfloat16()
    kept, left = banks(model(net))
    assert [(bank.layer.name, bank.layer.dtype) for bank in kept] == [("0", "bfloat16")]
    assert [(layer.name, layer.left_out) for layer in left] == [("1", "has the weights of 0")]


# --- sums ---
def slow(filters: np.ndarray, k: int) -> dict[str, Any]:
    """All sums again, filter by filter or by numpy's own functions, in float64."""
    exact = filters.astype(np.float64)
    top = np.abs(exact).max(1) if len(exact) else np.zeros(0)
    scaled = np.array([f / t if t > 0 else f for f, t in zip(exact, top, strict=True)]).reshape(-1, k * k)
    few = top <= 0.01 * top.max(initial=0)
    found: dict[str, Any] = {"n_sparse": int(few.sum())}
    for name, part in (("raw", exact), ("scaled", scaled), ("clean", scaled[~few])):
        found[f"{name}_sum"], found[f"{name}_gram"] = part.sum(0), part.T @ part
    c = scaled @ dct(k).T + 1e-4 * np.diff(edges(k))[0]  # 0 is an edge
    found["histogram"] = np.stack([np.histogram(c[:, i], edges(k))[0] for i in range(k * k)])
    found["phase"] = np.histogram2d(c[:, 0], c[:, 1], (edges(k), edges(k)))[0]
    return found


@pytest.mark.parametrize(("n", "k"), [(1, 3), (500, 3), (CHUNK + 7, 3), (300, 2), (200, 5), (60, 7)])
def test_sums_are_those_of_the_slow_way(n: int, k: int) -> None:
    filters = white(n, k)
    filters[: n // 3] *= 1e-4
    found, wanted = layer_sums(filters, k), slow(filters, k)
    assert found.n_sparse == wanted["n_sparse"]
    for name in MOMENTS:
        np.testing.assert_allclose(getattr(found, name), wanted[name], rtol=1e-6, atol=1e-6 * n)
    moved = np.abs(np.cumsum(found.histogram - wanted["histogram"], 1)).max()
    assert moved <= max(2, 1e-4 * n), "single precision moves a coefficient over an edge now and then"
    assert np.abs(found.phase - wanted["phase"]).sum() <= max(4, 4e-4 * n)
    assert (found.histogram.sum(1) == n).all()
    assert_close(np.trace(found.raw_gram), float((filters.astype(np.float64) ** 2).sum()), rtol=1e-12, atol=0)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_sums_of_parts_are_the_sum(sizes: list[int], seed: int) -> None:
    parts = [white(n, seed=seed + i) for i, n in enumerate(sizes)]
    parts = [np.concatenate([part, np.full((1, 9), 9, np.float32)]) for part in parts]  # the same peak: the same sparse
    together = layer_sums(np.concatenate(parts), 3)
    for order in (parts, parts[::-1]):
        apart = added((layer_sums(part, 3) for part in order), 3)
        assert (apart.n, apart.n_sparse, apart.max_abs) == (together.n, together.n_sparse, together.max_abs)
        for name in MOMENTS:
            np.testing.assert_allclose(getattr(apart, name), getattr(together, name), rtol=1e-11, atol=1e-9)
        assert (apart.histogram == together.histogram).all()
        assert (apart.phase == together.phase).all()


def test_what_is_zero_but_for_rounding_has_one_bin_however_filters_are_cut() -> None:
    filters = np.tile(np.array([1, 2, 1, 2, 4, 2, 1, 2, 1], np.float32) / 3, (5000, 1))  # even: odd coefficients are 0
    whole = layer_sums(filters, 3).histogram
    cut = added((layer_sums(part, 3) for part in np.array_split(filters, 77)), 3).histogram
    assert (whole == cut).all()
    assert whole[1, BINS // 2] == 5000


def test_filters_that_are_no_numbers_are_in_no_histogram() -> None:
    filters = white(20)
    filters[3, 4] = np.nan
    found = layer_sums(filters, 3)
    assert (found.histogram.sum(1) == 19).all()
    assert measures.raw_entropy(found) is None


# --- basis ---
@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_dct_basis_is_the_orthonormal_one(k: int) -> None:
    filters = white(10, k)
    np.testing.assert_allclose(filters @ dct(k).T, dctn(filters.reshape(-1, k, k), type=2, norm="ortho",
                                                        axes=(1, 2)).reshape(10, -1), atol=1e-5)
    np.testing.assert_allclose(dct(k) @ dct(k).T, np.eye(k * k), atol=1e-12)
    np.testing.assert_allclose(dct(k) @ np.full(k * k, 2.0), [2.0 * k, *[0] * (k * k - 1)], atol=1e-12)


def test_pca_from_sums_is_pca_from_data() -> None:
    filters = white(4000) @ np.diag(np.arange(1, 10)).astype(np.float32)
    found = measures.pca(layer_sums(filters, 3))
    scaled = filters / np.abs(filters).max(1, keepdims=True)
    wanted = PCA(svd_solver="full").fit(scaled.astype(np.float64))
    np.testing.assert_allclose(found.variances, wanted.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(found.explained, wanted.explained_variance_ratio_, rtol=1e-6)
    np.testing.assert_allclose(np.abs((found.vectors * wanted.components_).sum(1)), 1, atol=1e-6)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(9), atol=1e-10)
    assert (found.vectors[np.arange(9), np.abs(found.vectors).argmax(1)] > 0).all()
    assert (np.diff(found.variances) <= 0).all()


def test_shares_in_the_dct_basis_are_those_of_the_coefficients() -> None:
    filters = white(3000)
    scaled = filters / np.abs(filters).max(1, keepdims=True)
    variances = (scaled.astype(np.float64) @ dct(3).T).var(0)
    np.testing.assert_allclose(measures.dct_explained(layer_sums(filters, 3)), variances / variances.sum(), rtol=1e-6)


# --- entropy ---
def by_svd(filters: np.ndarray) -> float:
    s = np.linalg.svd(filters - filters.mean(0), compute_uv=False) ** 2
    p = s[s > 1e-12 * s.max()] / s.sum()
    return float(-(p * np.log10(p)).sum())


@pytest.mark.parametrize("n", [2, 3, 9, 40, 3000])
def test_entropy_is_that_of_the_singular_values(n: int) -> None:
    filters = (white(n) @ np.diag(1.5 ** np.arange(9))).astype(np.float32)
    found = measures.raw_entropy(layer_sums(filters, 3))
    assert found == pytest.approx(by_svd(filters.astype(np.float64)), abs=1e-6)
    assert found <= np.log10(min(9, n - 1)) + 1e-9
    turned = filters @ np.linalg.qr(white(9).astype(np.float64))[0].astype(np.float32)
    assert measures.raw_entropy(layer_sums(turned, 3)) == pytest.approx(found, abs=1e-5)
    assert measures.raw_entropy(layer_sums(-7 * filters[::-1].copy(), 3)) == pytest.approx(found, abs=1e-6)


def test_entropy_in_closed_form() -> None:
    spread = np.concatenate([np.eye(9), -np.eye(9)])  # centred, covariance proportional to the identity
    assert measures.raw_entropy(layer_sums(spread, 3)) == pytest.approx(np.log10(9), abs=1e-12)
    assert measures.raw_entropy(layer_sums(np.outer(np.arange(5), np.arange(9)) + 1.0, 3)) == pytest.approx(0, abs=1e-9)
    assert measures.raw_entropy(layer_sums(np.ones((5, 9)), 3)) is None
    assert measures.raw_entropy(layer_sums(np.ones((1, 9)), 3)) is None
    assert measures.raw_entropy(layer_sums(np.zeros((4, 9)), 3)) is None


@pytest.mark.parametrize(("n", "wanted"), [(2, -.009), (3, .126), (4, .236), (8, .509), (9, .552), (16, .722),
                                           (32, .846), (64, .906), (128, .932), (256, .943), (1024, .9499),
                                           (4096, .951)])
def test_the_published_threshold(n: int, wanted: float) -> None:
    assert measures.threshold(n) == pytest.approx(wanted, abs=7e-4)


@pytest.mark.parametrize(("n", "mean"), [(9, .698), (64, .921), (1024, .9521), (65536, .9542)])
def test_random_entropies_by_width(n: int, mean: float) -> None:
    null = measures.null_entropies(n, 3, 2000, np.random.default_rng(0))
    assert null.mean() == pytest.approx(mean, abs=2e-3)
    if n <= 1024:  # the same law as that of white noise, drawn the long way
        rng = np.random.default_rng(1)
        drawn = [by_svd(rng.standard_normal((n, 9))) for _ in range(400)]
        assert null.mean() == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 20 + 1e-4)
        assert null.std() == pytest.approx(np.std(drawn), rel=0.15)


@pytest.mark.parametrize(("shares", "wanted"), [(ROBUST, .750), (NORMAL, .518)])
def test_entropies_of_the_published_explained_variances(shares: list[float], wanted: float) -> None:
    n = 20
    gram = np.diag(shares) * (n - 1)
    found = measures.entropy(n, np.zeros(9), gram)
    assert found == pytest.approx(wanted, abs=1e-3)


# --- sparsity, orthogonality, degeneration ---
def test_sparsity_at_its_edges() -> None:
    assert measures.sparsity(layer_sums(np.zeros((4, 9)), 3)) == 1
    assert measures.sparsity(layer_sums(np.ones((1, 9)), 3)) == 0
    assert measures.sparsity(nothing(3)) is None
    filters = white(50) + np.sign(white(50))
    filters[:7] = 0
    assert measures.sparsity(layer_sums(filters, 3)) == 7 / 50
    assert layer_sums(-1e3 * filters, 3).n_sparse == 7
    edge = np.full((3, 9), 1.0)
    edge[0], edge[1] = 0.01, 0.0100001
    assert layer_sums(edge, 3).n_sparse == 1


def test_orthogonality() -> None:
    assert measures.orthogonality(torch.eye(4).reshape(4, 1, 2, 2)) == 1
    assert measures.orthogonality(torch.stack([torch.ones(2, 3, 3), -2 * torch.ones(2, 3, 3)])) == pytest.approx(0)
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    rows = F.normalize(weight.flatten(1), dim=1)
    off = [abs(float(rows[a] @ rows[b])) for a, b in itertools.permutations(range(6), 2)]
    assert measures.orthogonality(weight) == pytest.approx(1 - np.mean(off), abs=1e-6)
    assert measures.orthogonality(torch.cat([weight, torch.zeros(1, 3, 3, 3)])) == pytest.approx(1 - np.mean(off),
                                                                                              abs=1e-6)
    assert measures.orthogonality(weight[:1]) is None


@pytest.mark.parametrize(("h", "s", "wanted"), [(.94, 0, True), (.905, 0, False), (.49, .2, True), (.49, .1, False),
                                                (.6, .9, False)])
def test_the_rule_for_degenerate_layers(h: float, s: float, wanted: bool) -> None:
    assert measures.degenerate(3, 256, h, s) is wanted
    assert measures.degenerate(5, 256, h, s) is None
    assert measures.degenerate(3, 8, h, s) is None


def test_white_layers_are_random_like_and_planted_ones_not() -> None:
    drawn = layer_sums(white(4096), 3)
    assert measures.findings(3, 4096, measures.raw_entropy(drawn), measures.sparsity(drawn)) == ("random-like",)
    few = np.outer(white(4096)[:, 0], dct(3)[1]) + 0.05 * white(4096, seed=1)
    few[:1000] = 0
    planted = layer_sums(few, 3)
    assert measures.findings(3, 4096, measures.raw_entropy(planted), measures.sparsity(planted)) == (
        "low entropy", "sparse")


# --- drift ---
def test_drift_of_shifted_normal_coefficients_is_the_closed_form() -> None:
    sigma, shift_by, k = 0.5, 0.4, 3
    middle = (edges(k)[:-1] + edges(k)[1:]) / 2
    one, two = (np.tile(np.exp(-((middle - m) ** 2) / (2 * sigma**2)), (9, 1)) for m in (0.0, shift_by))
    weights = np.arange(1, 10) / 45
    assert measures.drift(one, two, weights, k) == pytest.approx((shift_by / sigma) ** 2, rel=2e-3)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_drift_is_symmetric_and_zero_for_the_same(seed: int) -> None:
    one, two = layer_sums(white(200, seed=seed), 3).histogram, layer_sums(white(90, seed=seed + 1), 3).histogram
    d = measures.drift(one, two, EVR, 3)
    assert d >= 0
    assert d == pytest.approx(measures.drift(two, one, EVR, 3))
    assert measures.drift(one, 3 * one, EVR, 3) == pytest.approx(0, abs=1e-12)


def test_drift_does_not_see_the_scale_of_a_filter() -> None:
    filters = white(300)
    scales = np.random.default_rng(5).uniform(0.1, 9, (300, 1)).astype(np.float32)
    one, two = layer_sums(filters, 3).histogram, layer_sums(filters * scales, 3).histogram
    assert np.abs(one - two).sum() <= 2
    assert measures.drift(one, two, EVR, 3) < 0.05


def sampled(n: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian filters with the data base's explained variances, in the DCT basis."""
    return (rng.standard_normal((n, 9)) * np.sqrt(EVR)) @ dct(3)


@pytest.mark.parametrize("n", [256, 4096, 16384])
def test_the_noise_floor_is_that_of_the_long_way(n: int) -> None:
    rng = np.random.default_rng(n)
    pooled = layer_sums(sampled(200_000, rng), 3)
    explained = measures.dct_explained(pooled)
    floor = measures.drift_floor(pooled.histogram, n, n, explained, 3, rng, 60)
    two = [[layer_sums(sampled(n, rng), 3).histogram for _ in range(2)] for _ in range(20)]
    long = np.mean([measures.drift(one, other, explained, 3) for one, other in two])
    assert floor.mean() == pytest.approx(long, rel=0.15)


@pytest.mark.parametrize(("n", "wanted"), [(64, 7.4), (256, 1.03), (1024, .195), (4096, .0425), (16384, .00945)])
def test_the_noise_floor_over_the_range_of_the_data_is_the_published_one(n: int, wanted: float) -> None:
    rng, end = np.random.default_rng(n), 2.1
    values = sampled(60_000, rng)
    c = values / np.abs(values).max(1, keepdims=True) @ dct(3).T
    pooled = np.stack([np.histogram(c[:, i], BINS, (-end, end))[0] for i in range(9)])
    floor = measures.drift_floor(pooled, n, n, c.var(0) / c.var(0).sum(), end / 1.1, rng, 100)  # reach(end / 1.1) = end
    assert floor.mean() == pytest.approx(wanted, rel=0.2)


# --- spectra ---
@pytest.mark.parametrize("k", [3, 5])
def test_the_power_spectrum_is_that_of_padded_transforms(k: int) -> None:
    filters = white(8, k).astype(np.float64)
    gram = filters.T @ filters
    padded = np.fft.fftshift(np.abs(np.fft.fft2(filters.reshape(-1, k, k), (32, 32))) ** 2, axes=(1, 2)).sum(0)
    found = measures.power(gram, k, 32)
    np.testing.assert_allclose(found, padded, rtol=1e-10)
    assert found.mean() == pytest.approx(np.trace(gram))
    share = measures.below(gram, k, 0.25, 0.25)
    fine = np.fft.fftshift(np.abs(np.fft.fft2(filters.reshape(-1, k, k), (256, 256))) ** 2, axes=(1, 2)).sum(0)
    assert share == pytest.approx(fine[65:192, 65:192].sum() / fine.sum(), abs=1e-2)
    assert measures.below(gram, k, 0.5, 0.5) == pytest.approx(1)
    assert measures.bands(gram, k).sum() == pytest.approx(1)


def test_aliasing_of_known_kernels() -> None:
    delta, box = np.eye(9)[4], np.ones(9)
    assert measures.aliasing(np.outer(delta, delta), 3, (2, 2)) == pytest.approx(0.75)
    assert measures.aliasing(np.outer(delta, delta), 3, (2, 1)) == pytest.approx(0.5)
    assert measures.aliasing(np.outer(box, box), 3, (1, 1)) == pytest.approx(0)
    assert measures.aliasing(np.outer(box, box), 3, (2, 2)) < 0.3
    filters = white(100_000).astype(np.float64)
    assert measures.aliasing(filters.T @ filters, 3, (2, 2)) == pytest.approx(0.75, abs=5e-3)
    assert measures.aliasing(np.zeros((9, 9)), 3, (2, 2)) is None


# --- files ---
class Plain(nn.Sequential):
    """Two layers of 3 x 3 and one of 5 x 5."""

    def __init__(self, width: int = 6) -> None:
        super().__init__(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
                         nn.Conv2d(width, 4, 5, padding=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def plain(seed: int = 0, **more: Any) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(Plain().eval(), spec=f"test:plain{seed}", **more)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of three models."""
    path = tmp_path_factory.mktemp("db")
    for seed in range(3):
        filterdb.collect(plain(seed, random_weights=seed == 2), path, task="odd" if seed else "even")
    return path


def test_filters_and_sums_come_back_as_they_were(root: Path) -> None:
    database = filterdb.open(root)
    found = {entry.key: entry for entry in database.entries("spec = 'test:plain1'")}
    wanted = [(entry, bank) for entry, bank in entries(plain(1), task="odd") if bank is not None]
    assert len(found) == len(wanted) == 3
    (model_key,) = {key[0] for key in found}
    for (entry, bank), (key, back) in zip(wanted, sorted(found.items()), strict=True):
        assert (back.layer, back.facts, back.orthogonality) == (entry.layer, entry.facts, entry.orthogonality)
        for name in (*MOMENTS, "histogram", "phase"):
            np.testing.assert_array_equal(getattr(back.counted, name), getattr(entry.counted, name))
        values = np.concatenate([f[ids == key[1]] for m, ids, f in database.filters(entry.layer.k) if m == model_key])
        np.testing.assert_array_equal(values, bank.filters.numpy())


def test_sums_counted_again_from_the_files_are_those_that_were_stored(root: Path, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "GROUP", 20)  # layers begin and end inside row groups
    filterdb.collect(plain(3), tmp_path)
    for place in (root, tmp_path):
        database = filterdb.open(place)
        stored = {entry.key: entry.counted for entry in database.entries("k = 3")}
        again = dict(database.recounted(3))
        assert again.keys() == stored.keys()
        for key, sums in stored.items():
            assert (again[key].n, again[key].n_sparse) == (sums.n, sums.n_sparse)
            np.testing.assert_allclose(again[key].raw_gram, sums.raw_gram, rtol=1e-12)
            np.testing.assert_array_equal(again[key].histogram, sums.histogram)


def test_sql_and_views(root: Path) -> None:
    database = filterdb.open(root)
    names, rows = database.sql("FROM by_task WHERE k = 3")
    assert names == ["task", "k", "models", "layers", "filters", "sparsity", "entropy", "orthogonality", "degenerate"]
    assert [row[:5] for row in rows] == [("even", 3, 1, 2, 54), ("odd", 3, 2, 4, 108)]
    assert database.sql('SELECT max("out"), max("in"), count(*) FROM filters_5')[1] == [(3, 5, 3 * 24)]
    by_hand = database.sql("SELECT sum(w0 * w0 + w4 * w4) FROM filters")[1][0][0]
    gram = added((e.counted for e in database.entries("k = 3")), 3).raw_gram
    assert by_hand == pytest.approx(gram[0, 0] + gram[4, 4], rel=1e-5)
    assert [row[0] for row in database.sql("SELECT training FROM by_training WHERE k = 5")[1]] == ["random", "trained"]
    with pytest.raises(XaiError, match=r"the query must be SQL .*; got 'FROM nowhere'"):
        database.sql("FROM nowhere")
    with pytest.raises(XaiError, match="must be a folder that"):
        filterdb.open(root / "nothing")


def test_the_same_weights_are_taken_once_and_damaged_ones_anew(tmp_path: Path) -> None:
    first = filterdb.collect(plain(), tmp_path)
    stamp = {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}
    again = filterdb.collect(plain(), tmp_path)
    assert (first.new, again.new, again.folder) == (True, False, first.folder)
    assert {p: p.stat().st_mtime_ns for p in first.folder.iterdir()} == stamp
    assert filterdb.collect(plain(), tmp_path, folded=True).folder != first.folder
    part = first.folder / "filters-k3-000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    assert list(filterdb.open(tmp_path).damaged) == [str(part)]
    assert filterdb.collect(plain(), tmp_path).new
    assert not filterdb.open(tmp_path, deep=True).damaged


def test_a_damaged_part_is_left_out_and_the_rest_is_read(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    part = next(copy.glob("*/filters-k3-000.parquet"))
    data = bytearray(part.read_bytes())
    at = parquet.read_metadata(part).row_group(0).column(7).data_page_offset + 40
    data[at : at + 10] = bytes(10)  # inside a page of w4: neither the size nor the end of the file tells
    part.write_bytes(data)
    shallow, deep = filterdb.open(copy), filterdb.open(copy, deep=True)
    assert not shallow.damaged
    assert list(deep.damaged) == [str(part)]
    assert deep.sql("SELECT count(*) FROM filters")[1] == [(108,)]
    assert sum(len(f) for *_, f in shallow.filters(3)) == 108
    assert list(shallow.damaged) == [str(part)]
    assert len(deep.entries()) == 9, "sums stand in another file"
    layers = next(copy.glob("*/layers.parquet"))
    layers.write_bytes(layers.read_bytes()[:100])
    assert len(filterdb.open(copy).entries()) == 6


def test_a_file_that_lies_is_found_by_the_query_that_reads_it(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    part = next(copy.glob("*/filters-k3-000.parquet"))
    part.write_bytes(bytes(len(part.read_bytes())))
    database = filterdb.open(copy)
    assert database.sql("SELECT count(w0) FROM filters")[1] == [(108,)]
    assert list(database.damaged) == [str(part)]


def test_large_layers_go_into_row_groups_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "GROUP", 20)
    monkeypatch.setattr(store, "FILE", 40)
    found = filterdb.collect(plain(), tmp_path)
    assert len(list(found.folder.glob("filters-k3-*.parquet"))) > 1
    database = filterdb.open(tmp_path)
    kept = np.concatenate([b.filters.numpy() for _, b in entries(plain()) if b is not None and b.layer.k == 3])
    np.testing.assert_array_equal(np.concatenate([f for *_, f in database.filters(3)]), kept)


def test_parts_take_less_than_the_raw_bytes(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = model(nn.Sequential(nn.Conv2d(3, 256, 3), nn.Conv2d(256, 512, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    found = filterdb.collect(net, tmp_path)
    assert sum(p.stat().st_size for p in found.folder.glob("filters-*")) <= 0.9 * 36 * found.filters


# --- groups ---
def test_shift_of_two_groups_and_of_many(root: Path, tmp_path: Path) -> None:
    database = filterdb.open(root)
    pair = shift(database, named_groups(database, ["task = 'odd'", "test:plain0"], 3), draws=20)
    said = {panel.key: panel for panel in pair.panels}
    drift = said["drift"]
    assert isinstance(drift, Number)
    parts = said["parts"]
    assert isinstance(parts, Table)
    assert drift.value == pytest.approx(sum(float(row[3]) for row in parts.rows), rel=1e-9)
    one, two = ([e for e in database.entries("k = 3") if (e.facts.task == "odd") == odd] for odd in (True, False))
    sums = [added((e.counted for e in some), 3) for some in (one, two)]
    explained = measures.dct_explained(sums[0] + sums[1])
    assert drift.value == pytest.approx(measures.drift(sums[0].histogram, sums[1].histogram, explained, 3))
    many = shift(database, groups_by(database, "spec", 3), draws=20)
    matrix = next(panel for panel in many.panels if panel.key == "drift")
    assert isinstance(matrix, Matrix)
    assert matrix.values.shape == (3, 3)
    assert (matrix.values == matrix.values.T).all()
    assert not matrix.values.diagonal().any()
    assert many.record()[0]["analyzer"] == "filters_shift"
    with torch.random.fork_rng():
        torch.manual_seed(9)
        filterdb.collect(model(Plain(), spec="file:net.py:make?size=12"), tmp_path)
    (own,) = named_groups(filterdb.open(tmp_path), ["file:net.py:make?size=12"], 3)
    assert len(own.entries) == 2, "a spec with options is no condition"
    with pytest.raises(XaiError, match="--by must be one of"):
        groups_by(database, "colour", 3)
    with pytest.raises(XaiError, match=r"Did you mean .*test:plain0"):
        named_groups(database, ["test:plain", "test:plain0"], 3)


def test_a_fitted_basis_reads_the_filters_once_more(root: Path) -> None:
    database = filterdb.open(root)
    groups, basis = refitted(database, groups_by(database, "spec", 3))
    for group in groups:
        keys = {entry.key for entry in group.entries}
        own = np.concatenate([f[[(m, int(i)) in keys for i in ids]] for m, ids, f in database.filters(3)])
        np.testing.assert_array_equal(group.histogram, basis_histogram(own, basis.vectors, basis.mean))
        assert (group.histogram.sum(1) == group.sums.n).all()
    again = basis_histogram(white(200), dct(3), np.zeros(9))
    assert np.abs(again - layer_sums(white(200), 3).histogram).sum() <= 2


# --- HDF5 ---
def pandas_like(file: Any, filters: np.ndarray, rows: list[dict[str, Any]], order: str) -> None:
    """As pandas' fixed format lays a frame out: text in one block that is a pickled array of objects."""
    import h5py

    file["filters"] = filters
    group = file.create_group("meta")
    group["axis0"] = np.array([b"model", b"filter_ids", b"Task", b"depth"])
    for i, name in enumerate(("model_id", "conv_depth", "conv_depth_norm")):
        levels = sorted({row[name] for row in rows})
        group[f"axis1_level{i}"], group[f"axis1_label{i}"] = levels, [levels.index(row[name]) for row in rows]
    group.attrs["nblocks"] = 2
    group["block0_items"], group["block0_values"] = np.array([b"depth"]), np.array([[7]] * len(rows))
    group["block1_items"] = np.array([b"model", b"filter_ids", b"Task"])
    text = np.array([[row[c] for c in ("model", "filter_ids", "Task")] for row in rows], dtype=object, order=order)
    block = group.create_dataset("block1_values", (1,), dtype=h5py.vlen_dtype(np.uint8))
    block[0] = np.frombuffer(pickle.dumps(text, protocol=4 if order == "C" else 5), np.uint8)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_published_layout_is_read_without_unpickling(order: str, tmp_path: Path) -> None:
    import h5py

    filters = white(60).reshape(-1, 3, 3).astype(np.float64)
    filters[10:20] += 1e-12  # what float32 does not hold
    rows = [{"model_id": i // 2, "conv_depth": i % 2, "conv_depth_norm": float(i % 2), "model": f"net{i // 2}",
             "filter_ids": f"{10 * i}:{10 * i + 9}", "Task": "Segmentation" if i > 3 else float("nan")}
            for i in range(6)]
    with h5py.File(tmp_path / "data.h5", "w") as file:
        pandas_like(file, filters, rows, order)
    found = list(read_published(tmp_path / "data.h5", tmp_path / "db"))
    assert [(one.spec, one.layers, one.filters) for one in found] == [(f"hdf5:net{i}", 2, 20) for i in range(3)]
    assert not any(one.new for one in read_published(tmp_path / "data.h5", tmp_path / "db"))
    database = filterdb.open(tmp_path / "db")
    back = {entry.facts.spec: database.entries(f"spec = '{entry.facts.spec}'") for entry in database.entries()}
    assert [e.layer.dtype for e in back["hdf5:net0"]] == ["float32", "float64"]
    assert [e.layer.depth_norm for e in back["hdf5:net2"]] == [0.0, 1.0]
    assert {spec: e[0].facts.task for spec, e in back.items()} == {
        "hdf5:net0": "unknown", "hdf5:net1": "unknown", "hdf5:net2": "Segmentation"}
    taken = np.concatenate([e.counted.raw_sum[None] for e in back["hdf5:net1"]])
    np.testing.assert_allclose(taken, filters[20:40].reshape(2, 10, 9).sum(1), rtol=1e-6)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for trap in (Trap(), [Trap()]):
        with pytest.raises(ValueError, match="no array"):
            _strings(pickle.dumps(trap))
    hidden = np.array([["a", Trap()]], dtype=object)
    assert _strings(pickle.dumps(hidden)).tolist() == [["a", "unknown"]]
    assert not (tmp_path / "sprung").exists()


def test_a_database_goes_out_to_hdf5_and_comes_back(root: Path, tmp_path: Path) -> None:
    import h5py

    database = filterdb.open(root)
    assert export(database, tmp_path / "out.h5") == 162
    with h5py.File(tmp_path / "out.h5") as file:
        assert (file["filters"].shape, file["filters"].dtype) == ((162, 3, 3), np.float64)
        assert file["meta/filter_ids"].asstr()[:2].tolist() == ["0:17", "18:53"]
    list(read_published(tmp_path / "out.h5", tmp_path / "db"))
    back = filterdb.open(tmp_path / "db")
    one, two = (added((e.counted for e in db.entries("k = 3")), 3) for db in (database, back))
    np.testing.assert_allclose(one.raw_gram, two.raw_gram)
    np.testing.assert_array_equal(one.histogram, two.histogram)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(XaiError, match="must be HDF5 with /filters and /meta"):
        list(read_published(tmp_path / "other.h5", tmp_path / "db"))


def test_without_h5py_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(XaiError, match=r"installed to read or write HDF5; got nothing\. Run pip install"):
        list(read_published(tmp_path / "data.h5", tmp_path / "db"))


@pytest.mark.slow
def test_the_benchmark_names_every_figure_beside_its_goal(tmp_path: Path) -> None:
    script, table = Path(__file__).parent / "benchmarks/filters.py", tmp_path / "table.md"
    done = subprocess.run([sys.executable, str(script), "--filters", "0.5", "--rounds", "1", "--table", str(table)],
                          capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    text = table.read_text()
    assert all(goal in text for goal in ("at least 5", "at most 0.9", "at most 1000", "at most 1.15"))
    assert done.returncode == int("| NO |" in text)
