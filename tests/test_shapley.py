"""Shapley values: the design of the coalitions, what the fit gives exactly, and how its error falls and is told."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from xai.errors import XaiError
from xai.shapley import Shapley, coalitions, solve

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-10}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every(n: int) -> Tensor:
    """(2^n, n): row k holds the bits of k, the lowest first."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1


def place(z: Tensor) -> Tensor:
    """The row of `every` that each coalition is."""
    return (z.long() * 2 ** torch.arange(z.shape[1])).sum(1)


def brute_force(values: Tensor) -> Tensor:
    """(n, T) from the values (2^n, T) of all coalitions in the order of `every`, by the definition."""
    n = int(math.log2(len(values)))
    z, phi = every(n), torch.zeros(n, values.shape[1], dtype=torch.float64)
    for i in range(n):
        for k in range(2**n):
            if not z[k, i]:
                s = int(z[k].sum())
                weight = math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n)
                phi[i] += weight * (values[k + 2**i] - values[k])
    return phi


def game(n: int, games: int = 2, seed: int = 0, order: int | None = None) -> Tensor:
    """(2^n, games): random values, or random interactions of up to `order` players, falling with their number."""
    if order is None:
        return torch.randn(2**n, games, dtype=torch.float64, generator=seeded(seed))
    z, values = every(n).double(), torch.randn(1, games, dtype=torch.float64, generator=seeded(seed)).repeat(2**n, 1)
    for size in range(1, order + 1):
        for group in combinations(range(n), size):
            gain = torch.randn(games, dtype=torch.float64, generator=seeded(hash((seed, group)) % 2**31))
            values += z[:, list(group)].prod(1, keepdim=True) * gain / 2**size
    return values


def solved(values: Tensor, z: Tensor, weights: Tensor) -> Shapley:
    return solve(z, weights, values[place(z)], values[0], values[-1])


def sampled(values: Tensor, budget: int, seed: int = 0) -> Shapley:
    n = int(math.log2(len(values)))
    return solved(values, *coalitions(n, budget, seeded(seed)))


# --- the design ---
@pytest.mark.parametrize(("n", "budget"), [(2, 2), (3, 4), (4, 9), (5, 30), (6, 40), (7, 20), (12, 64), (12, 4000),
                                           (25, 600), (64, 1024), (200, 10_000)])
def test_the_coalitions_are_different_proper_ones_in_pairs_and_as_many_as_asked(n: int, budget: int) -> None:
    z, weights = coalitions(n, budget, seeded())
    sizes = z.long().sum(1)
    assert z.dtype == torch.uint8
    assert len(z) == len(weights) == min(budget - budget % 2, 2**n - 2)
    assert len({row.numpy().tobytes() for row in z}) == len(z)
    assert int(sizes.min()) >= 1
    assert int(sizes.max()) <= n - 1
    assert bool((z[::2] + z[1::2] == 1).all())
    assert bool((weights[::2] == weights[1::2]).all())
    assert bool((weights > 0).all())
    counts = Counter(sizes.tolist())
    partial = [counts[s] for s in range(1, n) if counts[s] < math.comb(n, s)]
    whole = [counts[s] for s in range(1, n) if counts[s] == math.comb(n, s)]
    assert not partial or max(partial) - min(partial) <= 2, "as many of every size that is not all in"
    assert not partial or not whole or max(whole) <= max(partial) + 2


@pytest.mark.parametrize(("n", "budget"), [(4, 6), (5, 12), (5, 26), (6, 14), (6, 50), (7, 40)])
def test_every_coalition_is_drawn_with_the_probability_that_its_weight_tells(n: int, budget: int) -> None:
    draws, seen, told = 1500, torch.zeros(2**n), torch.zeros(2**n, dtype=torch.float64)
    for seed in range(draws):
        z, weights = coalitions(n, budget, seeded(seed))
        sizes = z.long().sum(1)
        kernel = torch.tensor([(n - 1) / (math.comb(n, s) * s * (n - s)) for s in sizes.tolist()], dtype=torch.float64)
        seen[place(z)] += 1
        told[place(z)] = kernel / weights
    proper = slice(1, 2**n - 1)
    told = told[proper]
    sizes = every(n)[proper].sum(1)
    assert_close(told.sum(), torch.tensor(float(budget)).double(), **EXACT)
    levels = [{round(p, 9) for p in (told[sizes == s] * math.comb(n, s)).tolist()} for s in range(1, n)]
    assert all(len(level) == 1 for level in levels), "one number expected of each size"
    open_ = {c for level in levels for c in level if not any(abs(c - math.comb(n, s)) < 1e-6 for s in range(n))}
    assert len(open_) <= 1, "and the same for all that are not all in"
    spread = (told * (1 - told) / draws).sqrt().clamp_min(1e-12)
    off = (seen[proper] / draws - told).abs() / spread
    assert float(off.max()) < 4.5
    assert 0.2 < float(off[told < 1 - 1e-9].square().mean()) < 2.5, "neither too far off nor too near"


def test_players_are_balanced_within_a_size() -> None:
    n, budget = 16, 240
    z = coalitions(n, budget, seeded())[0][::2]
    for s in (2, 4):
        rows = z[z.sum(1) == s].long()
        whole = len(rows) // (n // s) * (n // s)
        assert whole >= n // s
        assert int(rows[:whole].sum(0).max() - rows[:whole].sum(0).min()) == 0, "every player once in a shuffled row"


def test_the_design_depends_on_its_arguments_alone() -> None:
    before = torch.get_rng_state()
    first = coalitions(20, 100, seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(11)
    again, other = coalitions(20, 100, seeded(3)), coalitions(20, 100, seeded(4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    generator = seeded(5)
    kept = generator.get_state()
    coalitions(6, 62, generator)
    assert torch.equal(generator.get_state(), kept), "where all are asked nothing is drawn"


def test_one_player_has_everything_and_none_is_refused() -> None:
    z, weights = coalitions(1, 10)
    assert z.shape == (0, 1)
    found = solve(z, weights, torch.zeros(0, 2), torch.tensor([1.0, 2.0]), torch.tensor([4.0, 1.0]))
    assert_close(found.phi, torch.tensor([[3.0, -1.0]]).double(), **EXACT)
    assert (found.rank, found.full) == (0, 0)
    with pytest.raises(XaiError, match="players must be at least 1; got 0"):
        coalitions(0, 10)
    with pytest.raises(XaiError, match="coalitions must be at least 2; got 1"):
        coalitions(5, 1)


# --- what is exact ---
@pytest.mark.parametrize("n", range(2, 11))
def test_all_coalitions_give_the_definition_whatever_the_game(n: int) -> None:
    values = game(n, 3, seed=n)
    found = sampled(values, 2**n)
    assert_close(found.phi, brute_force(values), rtol=0, atol=1e-12)
    assert_close(found.error, torch.zeros(n, 3).double(), rtol=0, atol=0)
    assert (found.rank, found.full) == (n - 1, n - 1)


@pytest.mark.parametrize(("n", "budget"), [(3, 4), (6, 20), (10, 40), (12, 300)])
def test_shares_add_up_to_rounding(n: int, budget: int) -> None:
    values = 100 * game(n, 3)
    found = sampled(values, budget)
    assert_close(found.phi.sum(0), values[-1] - values[0], **EXACT)
    assert_close(found.gap, torch.zeros(3).double(), **EXACT)


def test_a_dummy_gets_nothing_and_equals_get_the_same() -> None:
    n = 8
    z, small = every(n), game(n - 2)
    count = place(z[:, : n - 2])
    values = small[count] + (z[:, n - 2] * z[:, n - 3] + z[:, n - 2] + z[:, n - 3])[:, None]
    values = values - small[count] + game(n - 3)[place(z[:, : n - 3])]  # players n - 3 and n - 2 alike, n - 1 a dummy
    found = sampled(values, 2**n)
    assert_close(found.phi[n - 1], torch.zeros(2).double(), rtol=0, atol=1e-12)
    assert_close(found.phi[n - 2], found.phi[n - 3], rtol=0, atol=1e-12)
    assert_close(found.phi[n - 2], torch.full((2,), 1.5).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_an_additive_game_is_exact_for_any_sample_that_tells_the_players_apart(paired: bool, seed: int) -> None:
    n = 9
    gains = torch.randn(n, 2, dtype=torch.float64, generator=seeded(seed))
    values = 3 + every(n).double() @ gains
    if paired:
        z, weights = coalitions(n, 30, seeded(seed))
    else:
        chosen = torch.randperm(2**n - 2, generator=seeded(seed))[:17] + 1
        z, weights = every(n)[chosen], 0.1 + torch.rand(17, dtype=torch.float64, generator=seeded(seed))
    found = solved(values, z, weights)
    assert found.rank == found.full
    assert_close(found.phi, gains, **EXACT)
    assert float(found.error.max()) < 1e-10


def test_pairs_are_exact_for_interactions_of_two_and_single_coalitions_are_not() -> None:
    n = 9
    values = game(n, order=2)
    truth = brute_force(values)
    z, weights = coalitions(n, 2 * n, seeded())
    found = solved(values, z, weights)
    assert found.rank == found.full
    assert_close(found.phi, truth, **EXACT)
    half = solved(values, torch.cat([z[::2], 1 - z[1::4]]), torch.cat([weights[::2], weights[1::4]]))
    assert float((half.phi - truth).abs().max()) > 1e-3
    cubic = game(n, order=3)
    assert float((solved(cubic, z, weights).phi - brute_force(cubic)).abs().max()) > 1e-3


def test_games_that_add_up_have_values_that_add_up() -> None:
    one, two = game(8, seed=1), game(8, seed=2)
    parts = [sampled(values, 60).phi for values in (one, two, one + 3 * two)]
    assert_close(parts[0] + 3 * parts[1], parts[2], **EXACT)
    both = sampled(torch.cat([one, two], 1), 60).phi
    assert_close(both, torch.cat(parts[:2], 1), **EXACT)


def test_too_few_coalitions_are_told_and_give_the_smallest_shares_that_fit() -> None:
    n = 10
    values = game(n, 1)
    z, weights = coalitions(n, 8, seeded())
    found = solved(values, z, weights)
    assert found.rank == 4
    assert found.full == n - 1
    assert bool(found.error.isinf().all())
    assert_close(found.phi.sum(0), values[-1] - values[0], **EXACT)
    a = z.double() - z.double().mean(1, keepdim=True)
    fitted = a @ found.phi
    halves = (values[place(z[::2])] - values[place(z[1::2])]) / 2
    rise = (values[-1] - values[0]) * (z[::2].double().mean(1, keepdim=True) - 0.5)
    assert_close(fitted[::2], halves - rise, **EXACT)
    directions = torch.linalg.svd(a)[2][4:]
    beside = directions @ (found.phi - found.phi.mean(0))
    assert_close(beside, torch.zeros_like(beside), **EXACT)


def test_as_many_pairs_as_directions_fit_exactly_and_tell_nothing_of_the_error() -> None:
    n = 6
    values = game(n, 1)
    every_seed = [sampled(values, 2 * (n - 1), seed) for seed in range(20)]
    found = next(one for one in every_seed if one.rank == one.full)
    assert bool(found.error.isinf().all())
    assert float((found.phi - brute_force(values)).abs().max()) > 1e-3


def test_half_precision_and_single_precision_scores_are_solved_in_double() -> None:
    values = game(6).float()
    z, weights = coalitions(6, 62)
    found = solve(z, weights.float(), values[place(z)], values[0], values[-1])
    assert found.phi.dtype == torch.float64
    assert_close(found.phi, brute_force(values.double()), rtol=0, atol=1e-6)


# --- what is sampled ---
def test_the_squared_error_falls_as_one_over_the_number_of_coalitions() -> None:
    n = 12
    values = game(n, 1, order=4)
    truth = brute_force(values)
    mean = [sum(float((sampled(values, budget, seed).phi - truth).square().sum()) for seed in range(40)) / 40
            for budget in (100, 200, 400, 800)]
    rates = [a / b for a, b in pairwise(mean)]
    assert all(1.4 < rate < 4 for rate in rates), rates
    assert 6 < mean[0] / mean[-1] < 20, mean


def test_the_standard_error_covers_the_truth() -> None:
    n = 12
    values = game(n, 1, order=4)
    truth = brute_force(values)
    for budget in (60, 200, 800, 3600):  # of 4094: where nearly all are asked little is left to chance
        found = [sampled(values, budget, seed) for seed in range(60)]
        off = torch.stack([(one.phi - truth).abs() for one in found])
        error = torch.stack([one.error for one in found])
        covered = float((off <= 1.96 * error).double().mean())
        assert 0.92 < covered < 0.995, (budget, covered)
        real = float(off.square().mean().sqrt())
        assert 0.9 < float(error.square().median().sqrt()) / real < 1.8, budget
