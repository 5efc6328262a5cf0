"""CRAFT: factors of planted activations, Sobol indices in closed form, worth and maps in networks of known parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analyzers.concepts._crops import Grid, nearest_crops
from analyzers.concepts._nmf import agreement, coefficients, factorise
from analyzers.concepts.craft import CRAFT
from xai.errors import XaiError
from xai.images import Image, Images
from xai.model import Model
from xai.panels import Heatmap, Number, Table
from xai.result import Result
from xai.sobol_indices import designs, jansen
from xai.subject import Subject, as_targets

WEIGHTS = (3.0, 2.0, 1.0)


# --- factors ---
def planted(rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Sparse codes and separated concepts, both non-negative."""
    rng = np.random.default_rng(0)
    u = rng.random((rows, 3)) * (rng.random((rows, 3)) < 0.6)
    u[:3] = np.eye(3)
    w = np.zeros((3, 12))
    for j in range(3):
        w[j, 4 * j : 4 * j + 4] = rng.random(4) + 0.2
    return u, w / np.linalg.norm(w, axis=1)[:, None]


def test_planted_factors_are_found_and_multiply_back() -> None:
    u, w = planted()
    found = factorise(torch.from_numpy(u @ w).float(), 3, 1)
    assert found.error < 1e-3
    assert found.error == pytest.approx(np.linalg.norm(u @ w - found.u @ found.w) / np.linalg.norm(u @ w), abs=1e-6)
    assert agreement(found.w, w) > 0.999
    assert (found.u >= 0).all()
    assert (found.w >= 0).all()
    assert np.linalg.norm(found.w, axis=1) == pytest.approx(np.ones(3))
    assert found.ended
    again = factorise(torch.from_numpy(u @ w).float(), 3, 1)
    assert np.array_equal(again.u, found.u)


def test_more_factors_leave_out_no_more_and_too_many_are_cut() -> None:
    values = torch.rand(9, 5, generator=torch.Generator().manual_seed(0))
    errors = [factorise(values, k, 0).error for k in (1, 2, 4)]
    assert errors == sorted(errors, reverse=True)
    assert factorise(values, 50, 0).w.shape == (5, 5)


def test_a_bank_agrees_with_itself_in_any_order_and_not_with_another() -> None:
    _, w = planted()
    assert agreement(w, 7 * w[[2, 0, 1]]) == pytest.approx(1)
    assert agreement(w, np.roll(w, 2, axis=1)) < 0.9


def test_coefficients_at_each_place_are_those_that_the_map_was_made_of() -> None:
    _, w = planted()
    u = np.random.default_rng(1).random((3, 4, 5))
    maps = torch.from_numpy(np.einsum("jhw,jk->khw", u, w))
    assert coefficients(maps, w) == pytest.approx(u, abs=1e-9)
    assert (coefficients(-maps, w) == 0).all()


# --- Sobol indices ---
def indices(f: object, count: int, samples: int) -> Tensor:
    points = torch.cat(list(designs(count, samples, 3))).double()
    assert len(points) == samples * (count + 2)
    return jansen(f(points)[:, None], samples)[0][:, 0]  # type: ignore[operator]


def test_the_indices_of_an_additive_function_are_its_shares_and_an_ignored_input_has_exactly_none() -> None:
    found = indices(lambda m: m @ torch.tensor([3.0, 2, 1, 0], dtype=torch.float64), 4, 4096)
    assert found[:3].tolist() == pytest.approx([9 / 14, 4 / 14, 1 / 14], abs=0.002)
    assert float(found.sum()) == pytest.approx(1, abs=0.003)
    assert found[3] == 0


def test_inputs_that_act_together_have_indices_that_add_up_to_more_than_one() -> None:
    """m1 m2 of uniform inputs: Var = 7/144, each input is part of 1 - (1/48)/(7/144) = 4/7."""
    assert indices(lambda m: m[:, 0] * m[:, 1], 2, 4096).tolist() == pytest.approx([4 / 7, 4 / 7], abs=0.01)
    assert indices(lambda m: 0 * m[:, 0] + 5, 2, 16).tolist() == [0, 0]


def test_jansens_formula_by_a_loop() -> None:
    points = torch.cat(list(designs(3, 16, 9))).double()
    a, b = points[:16], points[16:32]
    scores = (points**2 @ torch.tensor([1.0, 2, 3], dtype=torch.float64)).sin()
    spread = torch.cat([scores[:16], scores[16:32]]).var(unbiased=False)
    total, _, variance = jansen(scores[:, None], 16)
    assert float(variance) == pytest.approx(float(spread))
    for i in range(3):
        mixed = a.clone()
        mixed[:, i] = b[:, i]
        f = (mixed**2 @ torch.tensor([1.0, 2, 3], dtype=torch.float64)).sin()
        assert float(total[i, 0]) == pytest.approx(float(((scores[:16] - f) ** 2).mean() / 2 / spread))


# --- crops ---
def test_crops_are_those_of_the_paper_at_224_pixels() -> None:
    grid = Grid.of((224, 224), 0)
    assert (grid.side, grid.step, len(grid.places)) == (64, 51, 16)
    assert Grid.of((224, 224), 500).places == [(0, 0)]
    x = torch.arange(3 * 8 * 8.0).view(3, 8, 8)
    small = Grid.of((8, 8), 4)
    assert small.step == 3
    assert torch.equal(small.crops(x)[1][:, 0, 0], x[:, 0, 3])
    assert small.crops(x).shape == (4, 3, 8, 8)


def test_the_crops_of_a_concept_come_from_different_pictures_first() -> None:
    where = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (2, 0, 0)]
    assert nearest_crops(np.array([5.0, 4, 3, 0]), where, 3) == [0, 2, 1]


# --- the analyzer ---
class Colours(nn.Module):
    """Three detectors, each of one colour, and a score that adds them with known weights; a fourth counts for nothing.
    """

    def __init__(self, weights: tuple[float, ...] = WEIGHTS) -> None:
        super().__init__()
        self.early, self.first = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.pool, self.late, self.relu = nn.AvgPool2d(4), nn.Conv2d(3, 3, 1, bias=False), nn.ReLU()
        with torch.no_grad():
            self.early.weight.copy_(2 * torch.eye(3)[..., None, None] - 1)
            self.early.bias.fill_(-1)
            self.late.weight.copy_(torch.eye(3)[..., None, None])
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.relu(self.late(self.pool(self.first(self.early(x)))))
        score = seen.mean((2, 3)) @ self.weights
        return torch.stack([score, -score], 1)


def model(weights: tuple[float, ...] = WEIGHTS) -> Model:
    return Model(Colours(weights), mean=[0.5] * 3, std=[0.5] * 3, size=32, labels=("much", "little"))


def pictures() -> Images:
    """On black, a square of each colour in a place of its own; as many pixels of each."""
    made, rng = [], np.random.default_rng(0)
    for i in range(10):
        pixels = np.zeros((3, 32, 32), dtype=np.float32)
        for channel, cell in enumerate(rng.permutation(16)[:3]):
            y, x = (8 * int(part) for part in divmod(cell, 4))
            pixels[channel, y : y + 8, x : x + 8] = 1
        made.append(Image.of(f"{i}.png", pixels))
    return Images.of(made)


def explained(weights: tuple[float, ...] = WEIGHTS, **more: int) -> Result:
    return CRAFT(concepts=3, layer="relu", patch=8, samples=512, pictures=3, **more)(
        Subject((model(weights),), pictures(), as_targets("much")))


def rows(result: Result) -> list[tuple[object, ...]]:
    (table,) = (p for p in result.panels if p.key == "worth")
    assert isinstance(table, Table)
    return list(table.rows)


def test_known_concepts_are_found_with_their_places_and_their_worth() -> None:
    """The score is additive and each colour covers as much: the indices are 9, 4 and 1 of 14."""
    result = explained()
    assert [row[1] for row in rows(result)] == pytest.approx([9 / 14, 4 / 14, 1 / 14], abs=0.02)
    for image in pictures()[:3]:
        for rank, channel in ((1, 0), (2, 1), (3, 2)):
            (found,) = (p for p in result.panels if p.key == f"concept_{rank}" and p.picture == image.hash)
            assert isinstance(found, Heatmap)
            there = image.pixels[channel].reshape(8, 4, 8, 4).mean((1, 3)) > 0.5
            assert found.values.shape == (8, 8)
            assert (found.values[there] > 0.5).all()
            assert found.values[~there] == pytest.approx(0, abs=1e-3)
    (dropped,) = (p for p in result.panels if p.key == "dropped")
    assert isinstance(dropped, Number)
    assert dropped.value == pytest.approx(0, abs=1e-3)
    assert {v.name: v.passed for v in result.verdicts} == {"stable": True}
    assert (result.cost.forwards, result.cost.backwards) == (10 * 25 + 3 * (2 + 512 * 5 + 1), 0)


def test_a_concept_that_the_score_ignores_is_worth_nothing_and_a_constant_score_is_no_number() -> None:
    assert [row[1] for row in rows(explained((1.0, 0.0, 0.0)))] == pytest.approx([1, 0, 0], abs=1e-3)
    assert [row[1] for row in rows(explained((0.0, 0.0, 0.0)))] == [None] * 3


def test_the_worthiest_concept_is_split_at_a_lower_layer_with_more_places() -> None:
    result = explained(recurse=1, parts=2)
    titles = [p.title for p in result.panels if p.key.startswith("crops_1_")]
    assert titles == ["Concept 1, part 1 (layer first)", "Concept 1, part 2 (layer first)"]
    low = CRAFT(concepts=3, layer="first", patch=8, recurse=1)(Subject((model(),), pictures(), as_targets("much")))
    assert any(p.key == "split" and "No layer below" in str(vars(p)) for p in low.panels)


def test_signed_and_dead_activations_are_refused() -> None:
    subject = Subject((model(),), pictures())
    with pytest.raises(XaiError, match=r"the activations of early must be nowhere negative .* Name a layer after a"):
        CRAFT(layer="early")(subject)
    with pytest.raises(XaiError, match="the activations of relu must be not zero everywhere"):
        CRAFT(layer="relu")(Subject((Model(Dead(), mean=[0.5] * 3, std=[0.5] * 3, size=32),), pictures()))
    with pytest.raises(XaiError, match=r"craft\.samples must be a power of two; got 33"):
        CRAFT(samples=33)


class Dead(Colours):
    """Its last layer never speaks."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.late.weight.fill_(-1)
