"""The weighted ridge of LIME: closed forms, equality with scikit-learn and the lime package, honest errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from xai.local_fit import masks
from xai.surrogate import Fit, bootstrap, distances, fit, kernel

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def drawn(n: int, count: int, seed: int = 0, paired: bool = False) -> Tensor:
    return torch.cat(list(masks(n, count, paired, torch.Generator().manual_seed(seed))))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved(z: Tensor, seed: int = 0) -> Tensor:
    """(N, 2): a smooth game with interactions of all orders, and the probability that is made of it."""
    z, n = z.double(), z.shape[1]
    a, q, r = noise(n, seed=seed) / n**0.5, noise(n, n, seed=seed + 1) / n, noise(n, 6, seed=seed + 2) / n

    def logit(z: Tensor) -> Tensor:
        return z @ a + ((z @ q) * z).sum(1) + torch.relu((z - 0.5) @ r).sum(1)

    middle = logit(torch.full((1, n), 0.5, dtype=torch.float64))
    return torch.stack([logit(z), torch.sigmoid(5 * (logit(z) - middle))], 1)


def every(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((0, 1), repeat=n)), dtype=torch.uint8)


def limit(n: int) -> Tensor:
    """(2, n): what LIME's weights of the game come to with ever more masks and no penalty."""
    return torch.stack([one.weights for one in fit(every(n), curved(every(n)), alpha=0)])


# --- closed forms ---
def test_distances_and_weights_are_those_of_limes_kernel() -> None:
    n = 50
    z = (torch.arange(n)[None] < torch.tensor([50, 40, 25, 10, 0])[:, None]).to(torch.uint8)
    assert_close(distances(z), torch.tensor([0, 1 - 0.8**0.5, 1 - 0.5**0.5, 1 - 0.2**0.5, 1], dtype=torch.float64))
    table = torch.tensor([1, 0.915, 0.503, 0.087, 3.4e-4], dtype=torch.float64)
    assert_close(kernel(z, 0.25), table, rtol=2e-2, atol=0)
    from sklearn.metrics import pairwise_distances

    rows = drawn(30, 200).numpy()
    theirs = pairwise_distances(rows, rows[:1], metric="cosine").ravel()
    assert_close(distances(torch.from_numpy(rows)), torch.from_numpy(theirs), **EXACT)
    weights = np.sqrt(np.exp(-(theirs**2) / 0.25**2))
    assert_close(kernel(torch.from_numpy(rows), 0.25), torch.from_numpy(weights), **EXACT)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("count", [24, 100])
def test_an_additive_game_is_found_exactly_without_a_penalty(count: int, paired: bool) -> None:
    z, a = drawn(10, count, paired=paired), noise(3, 10, seed=5)
    found = fit(z, 2.5 + z.double() @ a.T, alpha=0, paired=paired)
    for one, own in zip(found, a, strict=True):
        assert_close(one.weights, own, **EXACT)
        assert one.intercept == pytest.approx(2.5, abs=1e-9)
        assert one.r2 == pytest.approx(1)
        assert one.r2_out == pytest.approx(1)
        assert float(one.error.max()) < 1e-9
        assert one.masks == count


def test_a_huge_penalty_leaves_the_mean() -> None:
    z = drawn(10, 100)
    y, w = curved(z), kernel(z, 0.25)
    for one, own in zip(fit(z, y, alpha=1e12), y.T, strict=True):
        assert float(one.weights.abs().max()) < 1e-9
        assert one.intercept == pytest.approx(float((w * own).sum() / w.sum()))
        assert one.r2 == pytest.approx(0, abs=1e-9)


def test_the_penalty_shrinks_by_its_share_of_the_weighted_variance() -> None:
    n = 6
    z = every(n).repeat(4, 1)  # every mask equally often: the columns are all but uncorrelated
    w = kernel(z, 1e3)  # all weights one
    found = fit(z, z[:, :1].double(), width=1e3)[0]
    assert_close(found.weights[0], 1 - 1 / (1 + w.sum() / 4), rtol=1e-6, atol=0)
    n50 = drawn(50, 1000)
    weight = kernel(n50, 0.25)
    centred = n50.double() - (weight @ n50.double()) / weight.sum()
    assert float((weight[:, None] * centred**2).sum(0).mean()) == pytest.approx(126, rel=0.03)


def test_rows_that_come_twice_count_twice() -> None:
    z = drawn(8, 60)
    y = curved(z)
    for one, two in zip(fit(z, y, alpha=0.5), fit(torch.cat([z, z]), torch.cat([y, y]), alpha=1), strict=True):
        assert_close(one.weights, two.weights, **EXACT)
        assert one.intercept == pytest.approx(two.intercept)
        assert one.r2 == pytest.approx(two.r2)
        assert two.effective == pytest.approx(2 * one.effective)


@pytest.mark.parametrize("paired", [False, True])
def test_another_order_of_segments_is_another_order_of_weights(paired: bool) -> None:
    z, order = drawn(9, 80, paired=paired), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    for one, two in zip(fit(z, curved(z), paired=paired), fit(z[:, order], curved(z), paired=paired), strict=True):
        assert_close(one.weights[order], two.weights, **EXACT)
        assert_close(one.covariance[order][:, order], two.covariance, **EXACT)
        assert one.r2_out == pytest.approx(two.r2_out)


def test_targets_do_not_depend_on_each_other() -> None:
    z = drawn(9, 80)
    y = curved(z)
    for t, one in enumerate(fit(z, y)):
        (alone,) = fit(z, y[:, t : t + 1])
        assert_close(one.weights, alone.weights, **EXACT)
        assert (one.r2, one.r2_out) == (pytest.approx(alone.r2), pytest.approx(alone.r2_out))
    assert fit(z, y)[0].r2 != pytest.approx(fit(z, y)[1].r2)  # each its own, where lime keeps that of the last


def test_segments_that_are_always_shown_together_share_their_weight() -> None:
    z = drawn(5, 60)
    both = torch.cat([z, z[:, :1]], 1)
    y = z.double() @ torch.tensor([3.0, 1, -2, 0, 5], dtype=torch.float64)
    found = fit(both, y[:, None], alpha=0)[0]
    assert_close(found.weights, torch.tensor([1.5, 1, -2, 0, 5, 1.5], dtype=torch.float64), rtol=0, atol=1e-6)


# --- what is no fit ---
def test_a_constant_score_has_no_r2() -> None:
    z = drawn(8, 60)
    jitter = 1e-7 * noise(60, 1)
    for y in (torch.full((60, 1), 3.0), 5 + jitter, torch.zeros(60, 1)):
        (one,) = fit(z, y)
        assert one.constant
        assert (one.r2, one.r2_out) == (None, None)
        assert not one.weights.any()
        assert not one.error.any()
        assert one.intercept == pytest.approx(float(y[0, 0]))
    assert not bootstrap(z, 5 + jitter, 3, torch.Generator()).any()
    assert not fit(z, 1e-3 * jitter)[0].constant  # small, but all that there is


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_spoils_its_own_target_alone(bad: float) -> None:
    z = drawn(8, 60)
    y = curved(z)
    broken = y.clone()
    broken[7, 0] = bad
    lost, kept = fit(z, broken)
    assert not lost.constant
    assert (lost.r2, lost.r2_out) == (None, None)
    assert not lost.weights.isfinite().any()
    assert_close(kept.weights, fit(z, y)[1].weights, **EXACT)


def test_one_mask_that_weighs_all_tells_nothing() -> None:
    (one,) = fit(drawn(8, 60), curved(drawn(8, 60))[:, :1], width=1e-4)
    assert one.effective == pytest.approx(1)
    assert float(one.weights.abs().max()) < 1e-6


# --- against other implementations ---
@pytest.mark.parametrize("alpha", [1.0, 0.01, 30.0])
def test_it_is_the_ridge_of_scikit_learn(alpha: float) -> None:
    from sklearn.linear_model import Ridge

    z = drawn(50, 1000)
    y, w = curved(z), kernel(z, 0.25).numpy()
    for one, own in zip(fit(z, y, alpha=alpha), y.T.numpy(), strict=True):
        ridge = Ridge(alpha=alpha).fit(z.numpy(), own, sample_weight=w)
        assert_close(one.weights, torch.from_numpy(ridge.coef_), rtol=0, atol=1e-12)
        assert one.intercept == pytest.approx(ridge.intercept_, abs=1e-12)
        assert one.r2 == pytest.approx(ridge.score(z.numpy(), own, sample_weight=w), abs=1e-12)


def test_it_is_what_limes_own_fit_gives() -> None:
    from lime.lime_base import LimeBase

    z = drawn(40, 500)
    y, width = curved(z), 0.25
    base = LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / width**2)), random_state=np.random.RandomState(0))
    for t, one in enumerate(fit(z, y, width)):
        intercept, weights, score, prediction = base.explain_instance_with_data(
            z.numpy(), y.numpy(), distances(z).numpy(), t, num_features=100000)
        theirs = torch.zeros(40, dtype=torch.float64)
        for s, weight in weights:
            theirs[s] = weight
        assert_close(one.weights, theirs, rtol=0, atol=1e-10)
        assert one.intercept == pytest.approx(intercept, abs=1e-10)
        assert one.r2 == pytest.approx(score, abs=1e-10)
        assert one.intercept + float(one.weights.sum()) == pytest.approx(float(prediction[0]), abs=1e-10)
        order = [s for s, _ in weights]
        assert one.top(40).tolist() == order


def slow(z: Tensor, y: Tensor, w: Tensor, alpha: float) -> tuple[Tensor, float]:
    """(weights, intercept) with the intercept as a column that bears no penalty."""
    rows = torch.cat([torch.ones(len(z), 1, dtype=torch.float64), z.double()], 1)
    penalty = alpha * torch.eye(rows.shape[1], dtype=torch.float64)
    penalty[0, 0] = 0
    found = torch.linalg.solve(rows.T @ (w[:, None] * rows) + penalty, rows.T @ (w * y))
    return found[1:], float(found[0])


@pytest.mark.parametrize(("paired", "count"), [(False, 41), (True, 60), (True, 41)])
def test_out_of_sample_is_every_draw_told_by_the_fit_to_the_others(paired: bool, count: int) -> None:
    z = drawn(9, count, paired=paired)
    y, w = curved(z), kernel(z, 0.25)
    draw = torch.arange(count) // (2 if paired else 1)
    for one, own in zip(fit(z, y, paired=paired), y.T, strict=True):
        off, pushed = torch.zeros(count, dtype=torch.float64), []
        mean = (w[:, None] * z).sum(0) / w.sum()
        for g in draw.unique():
            rest = draw != g
            weights, intercept = slow(z[rest], own[rest], w[rest], 1.0)
            off[~rest] = own[~rest] - intercept - z[~rest].double() @ weights
            pushed.append(((w * off)[~rest, None] * (z[~rest] - mean)).sum(0))
        middle = (w * own).sum() / w.sum()
        assert one.r2_out == pytest.approx(float(1 - (w * off**2).sum() / (w * (own - middle) ** 2).sum()), abs=1e-9)
        centred = z - mean
        inverse = torch.linalg.inv(centred.T @ (w[:, None] * centred) + torch.eye(9, dtype=torch.float64))
        scores = torch.stack(pushed)
        assert_close(one.covariance, inverse @ scores.T @ scores @ inverse, **EXACT)
        assert one.r2 is not None
        assert one.r2_out < one.r2


@pytest.mark.parametrize("paired", [False, True])
def test_a_draw_of_the_bootstrap_is_a_fit_with_its_rows_repeated(paired: bool) -> None:
    z = drawn(9, 60, paired=paired)
    y, w, size = curved(z), kernel(z, 0.25), 2 if paired else 1
    found = bootstrap(z, y, 3, torch.Generator().manual_seed(4), paired=paired)
    generator, count = torch.Generator().manual_seed(4), 60 // size
    for once in found:
        chosen = torch.randint(count, (count,), generator=generator)
        rows = (chosen[:, None] * size + torch.arange(size)).flatten()
        for one, own in zip(once, y.T, strict=True):
            assert_close(one, slow(z[rows], own[rows], w[rows], 1.0)[0], **EXACT)


# --- is what is said of the error true ---
def repeated(n: int, count: int, paired: bool, runs: int, score: Callable[[Tensor, int], Tensor]) -> list[list[Fit]]:
    return [fit(z, score(z, run), alpha=0.01, paired=paired) for run in range(runs)
            for z in [drawn(n, count, 100 + run, paired)]]


@pytest.mark.parametrize("paired", [False, True])
def test_intervals_hold_the_truth_of_an_additive_game_with_noise(paired: bool) -> None:
    a = noise(12, seed=9)
    runs = repeated(12, 200, paired, 60, lambda z, run: (z.double() @ a + noise(len(z), seed=1000 + run) / 2)[:, None])
    inside = torch.stack([(one.weights - a).abs() < 1.96 * one.error for (one,) in runs])
    assert 0.92 < float(inside.double().mean()) < 0.98


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("count", "most"), [(60, 1.5), (400, 1.15)])  # with few masks they are on the safe side
def test_standard_errors_are_the_spread_over_other_masks(paired: bool, count: int, most: float) -> None:
    truth = limit(10)
    runs = repeated(10, count, paired, 80, lambda z, run: curved(z))
    for t in range(2):
        weights, errors = (torch.stack([getattr(one[t], name) for one in runs]) for name in ("weights", "error"))
        ratio = errors.square().mean().sqrt() / weights.std(0).square().mean().sqrt()
        assert 0.9 < float(ratio) < most
        inside = ((weights - truth[t]).abs() < 1.96 * errors).double().mean()
        assert 0.9 < float(inside) < 0.99


def test_masks_in_pairs_take_a_third_of_the_squared_error_or_more() -> None:
    truth, error = limit(10), {}
    for paired in (False, True):
        runs = repeated(10, 500, paired, 40, lambda z, run: curved(z))
        off = torch.stack([torch.stack([one.weights for one in run]) - truth for run in runs])
        error[paired] = off.square().mean((0, 2))
    assert (error[True] < 0.67 * error[False]).all()  # of the logit and of the probability


def test_the_bootstrap_spreads_as_the_errors_say() -> None:
    z = drawn(10, 400, paired=True)
    y = curved(z)
    again = bootstrap(z, y, 300, torch.Generator().manual_seed(0), paired=True)
    for t, one in enumerate(fit(z, y, paired=True)):
        assert_close(again[:, t].std(0), one.error, rtol=0.25, atol=0)
        assert_close(again[:, t].mean(0), one.weights, rtol=0, atol=0.3 * float(one.error.max()))


# --- the top segments ---
def made(weights: list[float], covariance: Tensor) -> Fit:
    return Fit(torch.tensor(weights, dtype=torch.float64), 0.0, covariance.double(), 1.0, 1.0, False, 10.0, 10)


def test_top_segments_are_apart_by_the_errors_of_differences() -> None:
    independent = made([1.0, -4.0, 2.5, 0.5], torch.eye(4) * 0.5)
    assert independent.top(2).tolist() == [1, 2]
    assert_close(independent.apart(2), torch.tensor([3.0, 1.5], dtype=torch.float64))
    assert independent.apart(4).isinf().all()
    tied = made([1.0, -1.0, 1.0], torch.eye(3))
    assert tied.top(2).tolist() == [0, 1]
    assert tied.apart(2).tolist() == [0, 0]
    # two that go up and down together (with opposite signs) are told apart more surely than their errors suggest
    together = torch.tensor([[1.0, -0.9], [-0.9, 1.0]])
    assert_close(made([3.0, -2.0], together).apart(1), torch.tensor([1 / 0.2**0.5], dtype=torch.float64))
    nearest = made([3.0, 2.0, 1.0], torch.diag(torch.tensor([0.0, 1.0, 100.0])))
    assert_close(nearest.apart(1), torch.tensor([0.2], dtype=torch.float64))  # the one that is least surely below
