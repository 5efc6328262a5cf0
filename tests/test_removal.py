"""Removing pixels: the order, the fills and the curves, by slow versions of them and by what must hold exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.testing import assert_close

from tests.gradient_nets import EXACT, batch_of, conv_net, made, pictures
from xai.batch import Batch
from xai.errors import XaiError
from xai.removal import (
    Course,
    area,
    curves,
    filled,
    imputed,
    in_steps,
    kept,
    lead,
    order,
    order_of_regions,
    rise_blur,
    rise_kernel,
    walked,
)
from xai.sampler import Sampler
from xai.targets import Target

SIZE = 12


def drawing(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampler_of(size: int = SIZE, value: str = "probability", n: int = 1) -> Sampler:
    net = conv_net()
    net[-1].weight.data *= 20  # so that the scores move
    batch = batch_of(made(net, size=size), pictures(n, size))
    return Sampler(batch, 0, [batch.bind(Target("top1")), batch.bind(Target("class:2"))], value)


# --- the order ---
def test_the_order_is_a_lexsort_with_a_random_second_key() -> None:
    values = torch.randint(4, (9, 7), generator=drawing(3)).float()
    second = np.empty(63, dtype=int)
    second[torch.randperm(63, generator=drawing(5)).numpy()] = np.arange(63)
    expected = np.lexsort((second, -values.flatten().numpy()))
    found = order(values, drawing(5))
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()


def test_ties_of_an_enlarged_map_fall_at_random_by_the_seed() -> None:
    cam = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).repeat_interleave(6, 0).repeat_interleave(6, 1)
    one, same, other = (order(cam, drawing(seed)) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()
    block = set(cam.flatten().nonzero()[:, 0].tolist())
    assert set(one[:36].tolist()) == set(other[:36].tolist()) == block
    rows = one[36:] // 12  # the zeros' first half comes from everywhere, not from the top of the picture
    assert abs(float(rows[:54].double().mean() - rows[54:].double().mean())) < 2


def test_what_is_no_number_comes_last_and_infinities_where_they_belong() -> None:
    values = torch.tensor([[math.nan, 1.0, -math.inf], [math.inf, math.nan, -0.0]])
    found = order(values, drawing()).tolist()
    assert found[:4] == [3, 1, 5, 2]
    assert set(found[4:]) == {0, 4}
    assert sorted(order(torch.full((3, 3), math.nan), drawing()).tolist()) == list(range(9))
    large = torch.tensor([[16777216.0, 16777217.0]], dtype=torch.float64)  # equal in float32
    assert order(large, drawing(0)).tolist() == order(large, drawing(1)).tolist() == [1, 0]


def test_regions_go_whole_by_their_means() -> None:
    labels = torch.tensor([[0, 0, 1], [2, 2, 1]])
    values = torch.tensor([[1.0, 3.0, 9.0], [5.0, 5.0, 1.0]])  # means 2, 5, 5
    seen = set()
    for seed in range(20):
        pixels, sizes = order_of_regions(values, labels, drawing(seed))
        regions = labels.flatten()[pixels].tolist()
        assert regions[4:] == [0, 0]
        assert sizes.tolist() == [2, 2, 2]
        seen.add(tuple(regions[:4]))
    assert seen == {(1, 1, 2, 2), (2, 2, 1, 1)}


# --- the curves ---
def slowly(sampler: Sampler, ordered: Tensor, start: Tensor, end: Tensor, counts: tuple[int, ...]) -> Tensor:
    """One copy, one pixel after the other, one forward a count."""
    found = []
    for count in counts:
        x = start.clone()
        for pixel in ordered[:count].tolist():
            x[:, pixel // x.shape[2], pixel % x.shape[2]] = end[:, pixel // x.shape[2], pixel % x.shape[2]]
        found.append(sampler.read(sampler.model(x[None]))[0])
    return torch.stack(found)


def test_curves_by_a_pixel_loop_and_together_as_one_by_one() -> None:
    sampler = sampler_of()
    x, fill = sampler.x, filled(sampler, "grey", "test")
    orders = [order(torch.rand(SIZE, SIZE, generator=drawing(k)), drawing()) for k in range(3)]
    courses = [Course(orders[0], x, fill, in_steps(144, 13)), Course(orders[1], rise_blur(x), x, (0, 1, 143, 144)),
               Course(orders[2], fill, x, (70,)), Course(orders[0].flip(0), x, fill, in_steps(144, 48))]
    together = walked(sampler, courses)
    for one, found in zip(courses, together, strict=True):
        assert_close(found, slowly(sampler, one.order, one.start, one.end, one.counts), rtol=0, atol=1e-12)
        assert_close(walked(sampler, [one])[0], found, rtol=0, atol=1e-12)
    assert found.dtype == torch.float64
    short = curves(sampler, orders[:2], fill, (5, 100))
    assert_close(short[1], slowly(sampler, orders[1], x, fill, (5, 100)), rtol=0, atol=1e-12)
    back = curves(sampler, orders[:1], fill, (5, 100), insert=True)
    assert_close(back[0], slowly(sampler, orders[0], fill, x, (5, 100)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_the_chunk_does_not_matter(chunk: int) -> None:
    net = conv_net()
    net[-1].weight.data *= 20
    model = made(net, size=SIZE)
    batch = batch_of(model, pictures(1, SIZE), chunk=chunk)
    sampler = Sampler(batch, 0, [batch.bind(Target("top1"))], "probability")
    first = order(torch.rand(SIZE, SIZE, generator=drawing()), drawing())
    found = curves(sampler, [first, first.flip(0)], torch.zeros_like(sampler.x), in_steps(144, 10))
    for one, ordered in zip(found, (first, first.flip(0)), strict=True):
        expected = slowly(sampler, ordered, sampler.x, torch.zeros_like(sampler.x), in_steps(144, 10))
        assert_close(one, expected, rtol=0, atol=1e-12)


def test_the_picture_itself_costs_nothing_and_every_other_point_one_forward() -> None:
    sampler = sampler_of()
    x, fill = sampler.x, torch.zeros_like(sampler.x)
    first = torch.arange(144)
    before = sampler.model.cost.forwards
    found = walked(sampler, [Course(first, x, fill, (0, 72, 144)), Course(first, fill, x, (0, 72, 144)),
                             Course(first, x, fill, (0,))])
    assert sampler.model.cost.forwards - before == 4
    for scores in (found[0][0], found[1][2], found[2][0]):
        assert_close(scores, sampler.here, rtol=0, atol=0)
    assert_close(found[0][2], found[1][0], rtol=0, atol=0)
    assert walked(sampler, []) == []


def test_with_one_fill_deletion_is_insertion_backwards() -> None:
    sampler = sampler_of()
    first = order(torch.rand(SIZE, SIZE, generator=drawing()), drawing())
    fill = filled(sampler, "black", "test")
    deleted = curves(sampler, [first], fill, in_steps(144, 12))[0]
    inserted = curves(sampler, [first.flip(0)], fill, in_steps(144, 12), insert=True)[0]
    assert_close(deleted, inserted.flip(0), rtol=0, atol=1e-12)
    assert float(deleted.std(0)[0]) > 1e-3  # the curve moves


def test_steps_and_areas() -> None:
    assert in_steps(10, 5) == (0, 5, 10)
    assert in_steps(10, 4) == (0, 4, 8, 10)
    assert in_steps(3, 9) == (0, 3)
    y = torch.rand(4, 30, generator=drawing(), dtype=torch.float64)
    assert_close(area(y), torch.from_numpy(np.trapezoid(y.numpy(), dx=1 / 29)), **EXACT)
    assert_close(area(torch.full((7,), 0.3, dtype=torch.float64)), torch.tensor(0.3, dtype=torch.float64), **EXACT)
    line = torch.linspace(0.2, 0.8, 9, dtype=torch.float64)
    assert_close(area(line), torch.tensor(0.5, dtype=torch.float64), **EXACT)


def test_the_lead_and_whether_the_class_is_kept() -> None:
    output = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    classes = torch.tensor([0, 2])
    assert lead(classes, 0)(output).tolist() == [1.0, -5.0]
    assert lead(classes, 1).take([1, 1])(output).tolist() == [-1.0, -1.0]
    assert kept(classes, 0)(output).tolist() == [1.0, 0.0]
    assert output[0, 0] == 3  # nothing was written into the output


# --- the fills ---
def test_the_kernel_is_that_of_the_authors() -> None:
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = rise_kernel()
    assert np.array_equal(kernel, gaussian_filter(point, 5))
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    assert kernel.min() == pytest.approx(0.0077366, abs=5e-8)
    assert kernel.max() == pytest.approx(0.0088326, abs=5e-8)


def test_the_blur_by_a_pixel_loop_with_zeros_around() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 9, 14)))
    padded, kernel = np.zeros((2, 19, 24)), rise_kernel()
    padded[:, 5:14, 5:19] = x.numpy()
    expected = np.empty((2, 9, 14))
    for i in range(9):
        for j in range(14):
            expected[:, i, j] = (padded[:, i : i + 11, j : j + 11] * kernel).sum((1, 2))
    assert_close(rise_blur(x), torch.from_numpy(expected), **EXACT)


def by_loops(x: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The imputation as a dense system, written pixel by pixel."""
    height, width = missing.shape
    places = [(i, j) for i in range(height) for j in range(width) if missing[i, j]]
    a, b = np.zeros((len(places),) * 2), np.zeros((len(places), len(x)))
    for row, (i, j) in enumerate(places):
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                weight = {0: 0.0, 1: 1 / 6, 2: 1 / 12}[abs(di) + abs(dj)]
                if weight and 0 <= i + di < height and 0 <= j + dj < width:
                    a[row, row] += weight
                    if missing[i + di, j + dj]:
                        a[row, places.index((i + di, j + dj))] -= weight
                    else:
                        b[row] += weight * x[:, i + di, j + dj]
    found = x.copy()
    if places:
        found[:, missing] = np.linalg.solve(a, b).T
    return found


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.98])
def test_the_imputation_by_a_dense_system(share: float) -> None:
    rng = np.random.default_rng(1)
    x, missing = rng.normal(size=(3, 11, 8)), np.zeros(88, dtype=bool)
    missing[rng.permutation(88)[: round(share * 88)]] = True
    missing = missing.reshape(11, 8)
    found = imputed(torch.from_numpy(x), torch.from_numpy(missing), noise=0.0)
    assert_close(found, torch.from_numpy(by_loops(x, missing)), **EXACT)
    if not share:
        assert torch.equal(found, torch.from_numpy(x))


def test_imputation_keeps_what_is_flat_and_continues_a_ramp() -> None:
    missing = torch.rand(16, 20, generator=drawing()) < 0.8
    missing[:5, :5] = True  # a hole at the corner
    flat = torch.tensor([0.3, -2.0], dtype=torch.float64)[:, None, None].expand(2, 16, 20)
    assert_close(imputed(flat, missing, 0.0), flat.clone(), **EXACT)
    ramp = (2 * torch.arange(16.0)[:, None] - 3 * torch.arange(20.0) + 1).double()[None]
    inside = missing.clone()
    inside[[0, -1]] = False
    inside[:, [0, -1]] = False
    assert_close(imputed(ramp, inside, 0.0), ramp, **EXACT)
    assert float((imputed(ramp, missing, 0.0) - ramp).abs().max()) > 0.1  # at the border it bends


def test_with_everything_missing_each_channel_shows_its_mean() -> None:
    x = torch.rand(3, 5, 6, generator=drawing(), dtype=torch.float64)
    found = imputed(x, torch.ones(5, 6, dtype=torch.bool), 0.0)
    assert_close(found, x.mean((1, 2), keepdim=True).expand_as(x).clone(), **EXACT)
    one = torch.ones(5, 6, dtype=torch.bool)
    one[2, 3] = False  # all that is left to see
    assert_close(imputed(x, one, 0.0), x[:, 2:3, 3:4].expand_as(x).clone(), **EXACT)
    tiny = torch.rand(3, 1, 1)
    assert torch.equal(imputed(tiny, torch.ones(1, 1, dtype=torch.bool), 0.0), tiny)


def test_the_noise_is_on_the_missing_pixels_alone() -> None:
    x = torch.zeros(3, 60, 60)
    missing = torch.rand(60, 60, generator=drawing()) < 0.5
    one, same, other = (imputed(x, missing, 0.01, drawing(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not one[:, ~missing].any()
    assert float(one[:, missing].std()) == pytest.approx(0.01, rel=0.05)
    few = imputed(x, missing & (torch.arange(60) < 30), 0.01, drawing(1))  # which pixels are missing moves no number
    assert torch.equal(few[:, :, :30], one[:, :, :30])


def test_bad_fills_and_masks_are_told() -> None:
    sampler = sampler_of()
    assert torch.equal(filled(sampler, "rise_blur", "test"), rise_blur(sampler.x))
    with pytest.raises(XaiError, match="black, zero, grey"):
        filled(sampler, "purple", "test")
    with pytest.raises(XaiError, match="mask of missing pixels"):
        imputed(sampler.x, torch.ones(3, 3, dtype=torch.bool))


def test_nothing_global_is_drawn() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # legacy state
    order(torch.zeros(5, 5), drawing())
    imputed(torch.rand(3, 5, 5, generator=drawing()), torch.ones(5, 5, dtype=torch.bool), 0.01, drawing())
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_another_seed_another_curve_of_a_flat_map() -> None:
    def curve(seed: int) -> Tensor:
        net = conv_net()
        net[-1].weight.data *= 20
        batch: Batch = batch_of(made(net, size=SIZE), pictures(1, SIZE), seed=seed)
        sampler = Sampler(batch, 0, [batch.bind(Target("top1"))], "probability")
        return curves(sampler, [order(torch.ones(SIZE, SIZE), batch.generator(0, "test"))],
                      torch.zeros_like(sampler.x), in_steps(144, 12))[0]

    assert torch.equal(curve(0), curve(0))
    assert float((curve(0) - curve(1)).abs().max()) > 1e-6


def test_a_grey_picture_has_one_channel() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    batch = batch_of(made(net, size=SIZE, channels=1), pictures(1, SIZE, channels=1))
    sampler = Sampler(batch, 0, [batch.bind(Target("top1"))])
    first = order(torch.rand(SIZE, SIZE, generator=drawing()), drawing())
    found = curves(sampler, [first], rise_blur(sampler.x), in_steps(144, 50))[0]
    assert_close(found, slowly(sampler, first, sampler.x, rise_blur(sampler.x), in_steps(144, 50)), rtol=0, atol=1e-12)
