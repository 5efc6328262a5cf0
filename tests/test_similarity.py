"""Likeness of representations: closed forms, invariances, the three forms of unbiased HSIC, slow versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from torch import Tensor
from torch.testing import assert_close

from xai.similarity import (
    COLUMNS,
    Measure,
    centred,
    gaussian,
    gram,
    inner,
    measures,
    neighbours,
    roots,
    similarity,
    ucentred,
)

ALL = measures(k=5)
every = pytest.mark.parametrize("measure", ALL.values(), ids=list(ALL))
quick = hypothesis_settings(max_examples=40, deadline=None)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, p: int) -> Tensor:
    return torch.linalg.qr(noise(seed, p, p))[0]


def three_terms(k: np.ndarray, el: np.ndarray) -> float:
    """Unbiased HSIC as Song et al. write it."""
    n = len(k)
    k, el = k - np.diag(np.diag(k)), el - np.diag(np.diag(el))
    one = np.ones(n)
    found = np.trace(k @ el) + (one @ k @ one) * (one @ el @ one) / ((n - 1) * (n - 2)) \
        - 2 / (n - 2) * (one @ k @ el @ one)
    return float(found / (n * (n - 3)))


def of_features(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased HSIC of linear kernels from centred features alone."""
    n = len(x)
    x, y = x - x.mean(0), y - y.mean(0)
    a, b = (x**2).sum(1), (y**2).sum(1)
    found = ((y.T @ x) ** 2).sum() - n / (n - 2) * (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2))
    return float(found / (n * (n - 3)))


def u_statistic(k: np.ndarray, el: np.ndarray) -> float:
    """The mean over all quadruples of different inputs, straight from the definition."""
    n, total, count = len(k), 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * el[i, j] + k[i, j] * el[q, r] - 2 * k[i, j] * el[i, q]
                        count += 1
    return total / count


def hsic(x: Tensor, y: Tensor) -> float:
    n = len(x)
    a, b = ucentred(gram(x)[0][None]), ucentred(gram(y)[0][None])
    return float(inner(a, b)) / (n * (n - 3))


@quick
@given(st.integers(4, 40), st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_the_three_forms_of_unbiased_hsic_are_equal(n: int, p: int, q: int, seed: int) -> None:
    x, y = noise(seed, n, p), noise(seed + 1, n, q)
    y[:, 0] += x[:, 0]
    scale = math.sqrt(hsic(x, x) * hsic(y, y)) + 1
    k, el = (x @ x.T).numpy(), (y @ y.T).numpy()
    assert abs(hsic(x, y) - three_terms(k, el)) <= 1e-8 * scale
    assert abs(hsic(x, y) - of_features(x.numpy(), y.numpy())) <= 1e-8 * scale


@pytest.mark.parametrize("seed", range(3))
def test_unbiased_hsic_is_the_u_statistic(seed: int) -> None:
    x, y = noise(seed, 7, 3), noise(seed + 9, 7, 2)
    y[:, 0] += x[:, 1]
    assert hsic(x, y) == pytest.approx(u_statistic((x @ x.T).numpy(), (y @ y.T).numpy()), rel=1e-10)


@quick
@given(st.integers(4, 30), st.integers(0, 10**6))
def test_a_u_centred_matrix_has_rows_that_sum_to_zero_and_forgets_additions(n: int, seed: int) -> None:
    k = noise(seed, n, n)
    k = k + k.T
    a = noise(seed + 1, n)
    found = ucentred(k)
    assert float(found.sum(0).abs().max()) < 1e-10
    assert not found.diagonal().any()
    assert_close(ucentred(k + a[:, None] + a), found)
    assert_close(ucentred(torch.stack([k, 2 * k])), torch.stack([found, 2 * found]))


def test_centring_gives_the_biased_form() -> None:
    x, y = noise(0, 12, 5), noise(1, 12, 4)
    h = torch.eye(12, dtype=torch.float64) - 1 / 12
    expected = torch.trace((x @ x.T) @ h @ (y @ y.T) @ h)
    assert_close(inner(centred(x @ x.T)[None], centred(y @ y.T)[None])[0, 0], expected)


# --- invariances and closed forms ---
@every
@quick
@given(seed=st.integers(0, 10**6))
def test_rotation_scale_and_shift_change_nothing(measure: Measure, seed: int) -> None:
    x, y = noise(seed, 24, 6), noise(seed + 1, 24, 6)
    moved = 3.7 * x @ rotation(seed + 2, 6) + noise(seed + 3, 6)
    assert float(similarity(x, moved, measure)) == pytest.approx(1, abs=1e-6)
    assert float(similarity(moved, y, measure)) == pytest.approx(float(similarity(x, y, measure)), abs=1e-6)
    assert float(similarity(x, y, measure)) == pytest.approx(float(similarity(y, x, measure)), abs=1e-9)
    assert abs(float(similarity(x, y, measure))) <= 1 + 1e-9


@pytest.mark.parametrize("name", ["linear", "rbf", "procrustes", "rsa", "knn"])
def test_the_scale_of_a_feature_matters(name: str) -> None:
    x = noise(0, 40, 6)
    assert float(similarity(x, x * torch.tensor([30.0, 1, 1, 1, 1, 1]), ALL[name])) < 0.9


@quick
@given(st.integers(3, 6), st.integers(0, 10**6))
def test_one_hot_features(classes: int, seed: int) -> None:
    """Of labels that only bear other numbers CKA is 1, with either kernel, and the kernels agree between labellings: a
    Gaussian of one-hot features takes two values, so it is the linear kernel up to a factor and a constant."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(30) % classes
    others = labels[torch.randperm(30, generator=random)]
    hot = torch.nn.functional.one_hot(labels).double()
    renamed = torch.nn.functional.one_hot(torch.randperm(classes, generator=random)[labels]).double()
    other = torch.nn.functional.one_hot(others).double()
    for name in ("linear", "rbf"):
        assert float(similarity(hot, renamed, ALL[name])) == pytest.approx(1, abs=1e-9)
    assert float(similarity(hot, other, ALL["linear"])) == pytest.approx(float(similarity(hot, other, ALL["rbf"])),
                                                                         abs=1e-9)


def test_one_hot_of_classes_against_their_merger() -> None:
    """Four classes of m against the two pairs of them: K~ and L~ are blocks of ones, and all three terms are counted by
    hand."""
    m, n = 5, 20
    labels = torch.arange(n) // m
    four, two = (torch.nn.functional.one_hot(v).double() for v in (labels, labels // 2))
    def term(a: int, b: int) -> float:  # sizes of the classes: a divides b
        pairs = n * (a - 1)  # ordered pairs of one class in the finer labelling, which are so in the coarser one
        sums = n * (a - 1) * n * (b - 1)
        rows = n * (a - 1) * (b - 1)
        return pairs + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows
    expected = term(m, 2 * m) / math.sqrt(term(m, m) * term(2 * m, 2 * m))
    assert float(similarity(four, two, ALL["linear"])) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("p", [2, 10, 100, 2000])
@pytest.mark.parametrize("name", ["linear", "rbf"])
def test_unrelated_representations_have_no_cka_at_any_width(p: int, name: str) -> None:
    for seed in range(5):
        x, y = noise(seed, 256, p), noise(seed + 50, 256, p)
        assert abs(float(similarity(x, y, ALL[name]))) < 0.05
    biased = inner(centred(gram(x)[0])[None], centred(gram(y)[0])[None])
    own = [inner(centred(gram(v)[0])[None], centred(gram(v)[0])[None]) for v in (x, y)]
    assert p < 2000 or float(biased / (own[0] * own[1]).sqrt()) > 0.8  # what debiasing is for


@pytest.mark.parametrize("name", ["linear", "rbf", "rsa"])
def test_blocks_of_32_to_512_agree(name: str) -> None:
    """2,048 inputs whose two representations share a part: the ratio of sums over blocks is the same within 0.01."""
    z = noise(0, 2048, 40)
    x = z @ noise(1, 40, 60) + 0.5 * noise(2, 2048, 60)
    y = z @ noise(3, 40, 60) + 0.5 * noise(4, 2048, 60)
    measure, seen = ALL[name], []
    for size in (32, 64, 128, 256, 512):
        sums = torch.zeros(2, 2, dtype=torch.float64)
        for start in range(0, 2048, size):
            form = measure.form(torch.stack([gram(v[start : start + size])[0] for v in (x, y)]))
            sums += measure.product(form, form)
        seen.append(float(sums[0, 1] / (sums[0, 0] * sums[1, 1]).sqrt()))
    assert max(seen) - min(seen) < 0.01
    assert 0.2 < seen[0] < 0.99


def test_linear_cka_is_that_of_the_covariances() -> None:
    """X = Z, Y = Z A + noise, Gaussian: ||S_xy||^2 / (||S_xx|| ||S_yy||) of the true covariances."""
    a = noise(1, 8, 5)
    z = noise(2, 3000, 8)
    y = z @ a + 0.7 * noise(3, 3000, 5)
    syy = a.T @ a + 0.49 * torch.eye(5, dtype=torch.float64)
    expected = float(a.square().sum() / (math.sqrt(8) * syy.norm()))
    assert float(similarity(z, y, ALL["linear"])) == pytest.approx(expected, abs=0.015)


# --- against slow versions ---
def test_the_gaussian_kernel_is_that_of_the_distances() -> None:
    x = noise(0, 15, 4)
    d = squareform(pdist(x.numpy())) ** 2
    middle = torch.tensor(d[np.triu_indices(15, 1)]).median()
    assert_close(gaussian(gram(x)[0], 0.5), torch.exp(-torch.tensor(d) / (2 * 0.25 * middle)))


def test_procrustes_is_scipys_best_rotation_and_its_distance_a_metric() -> None:
    """scipy's scale is the nuclear norm of X'Y; d^2 = 2 - 2 s of representations of norm 1."""
    def distance(x: Tensor, y: Tensor) -> float:
        return math.sqrt(max(0.0, 2 - 2 * float(similarity(x, y, ALL["procrustes"]))))

    def unit(x: Tensor) -> np.ndarray:
        x = x - x.mean(0)
        return (x / x.norm()).numpy()

    for seed in range(10):
        x, y, z = noise(seed, 14, 6), noise(seed + 100, 14, 6), noise(seed + 200, 14, 6)
        turn, scale = orthogonal_procrustes(unit(x), unit(y))
        assert float(similarity(x, y, ALL["procrustes"])) == pytest.approx(float(scale), rel=1e-8)
        assert distance(x, y) == pytest.approx(float(np.linalg.norm(unit(x) @ turn - unit(y))), rel=1e-6)
        assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-9


def test_procrustes_of_stretched_axes() -> None:
    """Orthonormal columns stretched by s: sum s / (sqrt(p) ||s||)."""
    q = torch.linalg.qr(noise(0, 20, 5) - noise(0, 20, 5).mean(0))[0]
    q = torch.linalg.qr(q - q.mean(0))[0]
    s = torch.tensor([5.0, 3, 1, 0.5, 0.1], dtype=torch.float64)
    expected = float(s.sum() / (math.sqrt(5) * s.norm()))
    assert float(similarity(q, q * s, ALL["procrustes"])) == pytest.approx(expected, rel=1e-8)


@quick
@given(st.integers(5, 30), st.integers(0, 10**6))
def test_rsa_is_spearmans_correlation_of_the_distances(n: int, seed: int) -> None:
    x, y = noise(seed, n, 7), noise(seed + 1, n, 3)
    y[:, 0] += x[:, 0]
    expected = spearmanr(pdist(x.numpy()), pdist(y.numpy())).statistic
    assert float(similarity(x, y, ALL["rsa"])) == pytest.approx(expected, abs=1e-9)


def test_rsa_of_a_line_against_its_fold() -> None:
    """Points 0, 1, 3 (distances 1, 3, 2) against 0, 2, 1 (2, 1, 1): ranks 1, 3, 2 and 3, 1.5, 1.5."""
    x, y = (torch.tensor(v, dtype=torch.float64)[:, None] for v in ([0.0, 1, 3], [0.0, 2, 1]))
    expected = np.corrcoef([1, 3, 2], [3, 1.5, 1.5])[0, 1]
    assert float(similarity(x, y, ALL["rsa"])) == pytest.approx(expected, abs=1e-12)


@quick
@given(st.integers(8, 30), st.integers(1, 5), st.integers(0, 10**6))
def test_mutual_neighbours_are_counted(n: int, k: int, seed: int) -> None:
    x, y = noise(seed, n, 7), noise(seed + 1, n, 3)
    y[:, 0] += 2 * x[:, 0]
    total = 0
    for i in range(n):
        sets = []
        for v in (x, y):
            d = [(float((v[i] - v[j]).norm()), j) for j in range(n) if j != i]
            sets.append({j for _, j in sorted(d)[:k]})
        total += len(sets[0] & sets[1])
    assert float(similarity(x, y, measures(k)["knn"])) == pytest.approx(total / (n * k), abs=1e-12)


def test_mutual_neighbours_of_unrelated_features_are_k_in_n_minus_1() -> None:
    seen = [float(similarity(noise(s, 64, 9), noise(s + 99, 64, 9), measures(8)["knn"])) for s in range(20)]
    assert np.mean(seen) == pytest.approx(8 / 63, abs=3 * np.std(seen) / math.sqrt(20))


def test_duplicates_are_neighbours_of_each_other_never_of_themselves() -> None:
    x = torch.zeros(6, 2, dtype=torch.float64)
    near = neighbours(gram(x)[0], 3)
    assert not near.diagonal().any()
    assert (near.sum(1) == 3).all()


def test_roots() -> None:
    k = gram(noise(0, 9, 4))[0]
    r = roots(k)
    assert_close(r.T @ r, k)


# --- numbers that are hard on a Gram matrix ---
def test_a_large_mean_and_many_features_do_not_spoil_single_precision() -> None:
    x, y = noise(0, 64, COLUMNS + 77), noise(1, 64, 50)
    y += x[:, :50]
    exact = float(similarity(x, y, ALL["linear"]))
    rough = float(similarity((x + 300).float(), (y + 300).float(), ALL["linear"]))
    assert rough == pytest.approx(exact, abs=1e-4)
    matrix, away = gram(x + 300)
    assert float(away) == pytest.approx(float((x + 300).square().sum(1).mean()), rel=1e-10)
    assert_close(matrix, (x - x.mean(0)) @ (x - x.mean(0)).T)


def test_layout_and_half_precision_change_no_more_than_rounding() -> None:
    x = noise(0, 16, 6 * 5 * 4).view(16, 6, 5, 4)
    expected = gram(x)[0]
    assert_close(gram(x.to(memory_format=torch.channels_last))[0], expected)
    assert_close(gram(x.bfloat16())[0], gram(x.bfloat16().double())[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "rbf"])
def test_likeness_has_the_gradient_of_its_differences(name: str) -> None:
    x, y = noise(0, 9, 4).requires_grad_(), noise(1, 9, 12)
    assert torch.autograd.gradcheck(lambda v: similarity(v, y, ALL[name]), (x,), atol=1e-5)
