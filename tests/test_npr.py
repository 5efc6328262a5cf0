"""NPR: its identities, the published input of the network, its training, and two groups."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from analyzers.spectrum import _npr
from analyzers.spectrum.npr import NPR
from xai.errors import XaiError
from xai.images import Image, Images, load_images
from xai.subject import Subject


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("side", [224, 225, 7])
def test_it_is_the_difference_to_the_picture_made_small_and_large_again(side: int) -> None:
    x = pixels(0, 3, side, side + 2)
    found = _npr.npr(x)
    even = torch.from_numpy(x[:, : side // 2 * 2, : (side + 2) // 2 * 2]).double()[None] / 255
    small = F.interpolate(even, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
    expected = even - F.interpolate(small, scale_factor=2, mode="nearest", recompute_scale_factor=True)
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-15)
    assert (found[:, ::2, ::2] == 0).all()


def test_what_it_is_zero_on_and_what_it_does_not_see() -> None:
    small = pixels(1, 3, 9, 11)
    assert (_npr.npr(small.repeat(2, 1).repeat(2, 2)) == 0).all()
    assert (_npr.npr(np.full((3, 8, 8), 77, np.uint8)) == 0).all()
    x = pixels(2, 3, 16, 16) // 2
    shifted = x + np.array([3, 50, 101], np.uint8)[:, None, None]
    np.testing.assert_allclose(_npr.npr(shifted), _npr.npr(x), atol=1e-15)


def test_statistics_by_place() -> None:
    x = np.zeros((1, 4, 6), np.float32)
    x[0, ::2, 1::2] = 0.25
    x[0, 1, 1] = 1.0
    (mean, zeros) = _npr.by_phase(_npr.npr(x))
    np.testing.assert_allclose(mean, [0.25, 0, 1 / 6])
    np.testing.assert_allclose(zeros, [0, 1, 5 / 6])


def test_the_network_sees_two_thirds_of_the_normalised_pictures_map() -> None:
    x = pixels(3, 3, 40, 40)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    normalised = ((torch.from_numpy(x).float() / 255 - mean) / std)[None]
    small = F.interpolate(normalised, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
    expected = (normalised - F.interpolate(small, scale_factor=2, mode="nearest", recompute_scale_factor=True)) * 2 / 3
    torch.testing.assert_close(_npr.network_input(_npr.npr(x), 64), expected[0], rtol=0, atol=1e-6)
    assert _npr.network_input(_npr.npr(x[:1, :, :30]), 17).shape == (3, 16, 16)


def test_training_repeats_and_leaves_the_callers_randomness_alone() -> None:
    inputs = torch.stack([_npr.network_input(_npr.npr(pixels(i, 3, 16, 16)), 16) for i in range(8)])
    truth = torch.tensor([0, 1] * 4)
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    one, again, other = (_npr.trained(inputs, truth, seed, steps=1) for seed in (0, 0, 1))
    after = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.one.weight, other.one.weight)


def asked(change: Any, count: int = 24) -> dict[str, Any]:
    made = [Image.of(f"{k} {i}", change(100 * k + i, k), label=k) for k in (0, 1) for i in range(count)]
    return {panel.key: panel for panel in NPR()(Subject((), Images.of(made))).panels}


def test_two_groups_are_told_apart_by_their_map_and_alike_ones_are_not() -> None:
    def smooth(seed: int, k: int) -> np.ndarray:
        x = pixels(seed, 3, 24, 24)
        return x if not k else ((x.astype(int) + np.roll(x, 1, 1) + np.roll(x, 1, 2)) // 3).astype(np.uint8)

    found = asked(smooth)
    accuracy, low, _, precision, control = found["detector"].rows[0]
    assert accuracy > 0.9
    assert low < accuracy
    assert precision > 0.9
    assert 0.2 < control < 0.8
    assert "Do not trust" in found["trust"].text
    assert found["means"].values.shape == (2, 3)
    accuracy, low, high, _, _ = asked(lambda seed, k: pixels(seed, 3, 24, 24))["detector"].rows[0]
    assert low < 0.55
    assert high > 0.45
    assert accuracy < 0.75


def test_few_pictures_one_group_and_none() -> None:
    assert "it takes 10 pictures of each group; there are 3 of 0 and 3 of 1" in asked(
        lambda seed, k: pixels(seed, 3, 12, 12), 3)["detector"].text
    alone = {panel.key for panel in NPR()(Subject((), load_images(pixels(0, 3, 31, 18)))).panels}
    assert alone == {"counts", "places", "means", "map-all-0"}
    with pytest.raises(XaiError, match="the pictures for npr must be given; got none"):
        NPR()(Subject(()))
