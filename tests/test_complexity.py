"""Sparseness and complexity: closed forms and slow versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from analyzers.evaluation.complexity import Complexity
from tests.test_localisation import case, picture
from xai.images import Images
from xai.model import Model
from xai.panels import Table
from xai.subject import Subject

SIZE = (12, 18)
COUNT = SIZE[0] * SIZE[1]


def scores(values: np.ndarray, eps: float = 1e-5) -> dict[str, float]:
    given = case(values[None], [picture(size=SIZE)])
    return {name: found.item() for name, found in Complexity(eps=eps).score(given).values.items()}


def test_one_pixel_is_as_sparse_as_can_be() -> None:
    values = np.zeros(SIZE)
    values[3, 5] = 7
    assert scores(values) == pytest.approx({"sparseness": 1 - 1 / COUNT, "complexity": 0.0,
                                            "effective_complexity": 1 / COUNT}, abs=1e-12)


def test_a_flat_map_is_as_complex_as_can_be_and_an_empty_one_has_no_score() -> None:
    assert scores(np.full(SIZE, -3.0)) == pytest.approx({"sparseness": 0.0, "complexity": math.log(COUNT),
                                                         "effective_complexity": 1.0}, abs=1e-12)
    assert all(math.isnan(v) for v in scores(np.zeros(SIZE)).values())


@pytest.mark.parametrize("on", [1, 9, 100])
def test_equal_values_on_a_part_are_closed_forms(on: int) -> None:
    values = np.zeros(COUNT)
    values[:on] = 2.0
    signs = np.where(np.arange(COUNT) % 2, 1.0, -1.0)
    assert scores((values * signs).reshape(SIZE)) == pytest.approx(
        {"sparseness": 1 - on / COUNT, "complexity": math.log(on), "effective_complexity": on / COUNT}, abs=1e-9)


def test_the_gini_index_is_half_the_mean_difference_over_the_mean() -> None:
    given = case(np.random.default_rng(0).standard_normal((1, *SIZE)), [picture(size=SIZE)])
    found = {name: one.item() for name, one in Complexity().score(given).values.items()}
    a = given.shown[0].double().abs().flatten()
    slow = sum(abs(float(x) - float(y)) for x in a for y in a) / (2 * COUNT**2 * float(a.mean()))
    assert found["sparseness"] == pytest.approx(slow, abs=1e-9)
    p = [float(v) / float(a.sum()) for v in a]
    assert found["complexity"] == pytest.approx(-sum(v * math.log(v) for v in p if v > 0), abs=1e-9)


def test_the_threshold_is_a_share_of_the_maximum_and_scale_changes_nothing() -> None:
    values = np.arange(1, COUNT + 1, dtype=float).reshape(SIZE)
    assert scores(values, eps=0.5)["effective_complexity"] == pytest.approx(0.5, abs=1 / COUNT)
    assert scores(1e6 * values) == pytest.approx(scores(values), abs=1e-9)


def test_values_that_are_no_numbers_do_not_reach_the_scores() -> None:
    values = np.ones(SIZE)
    values[0, 0] = np.nan
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    with torch.no_grad():
        net[4].weight.fill_(float("nan"))
    made = Model(net.eval(), mean=[0.4] * 3, std=[0.3] * 3, size=SIZE)
    result = Complexity(of="saliency")(Subject((made,), Images.of([picture(i) for i in range(2)])))
    table = next(p for p in result.panels if isinstance(p, Table) and p.key == "scores")
    assert [row[2] for row in table.rows if row[0] == "saliency"] == [None] * 3
    assert all(row[2] is not None for row in table.rows if row[0] == "random")
    assert any(v.name == "scored" and not v.passed for v in result.verdicts)
