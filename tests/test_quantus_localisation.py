"""Localisation and complexity as Quantus computes them, where conventions match; and where they do not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

quantus = pytest.importorskip("quantus")

from analyzers.evaluation.complexity import Complexity  # noqa: E402
from analyzers.evaluation.pointing_game import PointingGame  # noqa: E402
from analyzers.evaluation.relevance_accuracy import RelevanceAccuracy  # noqa: E402
from tests.test_localisation import case, picture  # noqa: E402
from xai.metric import Case, Metric  # noqa: E402

SIZE, COUNT = (28, 28), 8


@pytest.fixture
def given() -> Case:
    rng = np.random.default_rng(0)
    maps, masks = rng.random((COUNT, *SIZE)), rng.random((COUNT, *SIZE)) > 0.6
    return case(maps, [picture(i, SIZE, mask=masks[i]) for i in range(COUNT)])


def theirs(name: str, given: Case, **more: Any) -> np.ndarray:
    masks = np.stack([image.mask for image in given.batch.images if image.mask is not None])[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = getattr(quantus, name)(disable_warnings=True, return_aggregate=False, **more)
        found = metric(model=None, x_batch=given.batch.inputs.numpy(), y_batch=np.zeros(len(masks), dtype=int),
                       a_batch=given.shown.numpy()[:, None], s_batch=masks)
    return np.asarray(found, dtype=float)


def ours(metric: Metric, name: str, given: Case) -> np.ndarray:
    return metric.score(given).values[name].numpy()


def test_mass_and_rank_accuracy_agree(given: Case) -> None:
    np.testing.assert_allclose(ours(RelevanceAccuracy(), "mass", given), theirs("RelevanceMassAccuracy", given),
                               rtol=1e-5)
    ties = [len(np.unique(one)) < one.numel() for one in given.shown]
    np.testing.assert_allclose(ours(RelevanceAccuracy(), "rank", given), theirs("RelevanceRankAccuracy", given),
                               rtol=0, atol=0.5 / 300 if any(ties) else 1e-9)


def test_the_pointing_game_agrees_where_the_tolerance_is_the_point_itself(given: Case) -> None:
    single = [int((one == one.max()).sum()) == 1 for one in given.shown]
    assert sum(single) > COUNT // 2
    mine = ours(PointingGame(tolerance="1"), "hit", given)
    np.testing.assert_array_equal(mine[single], theirs("PointingGame", given)[single])
    assert 0 < mine.sum() < COUNT


def test_a_flat_map_hits_there_and_misses_here() -> None:
    maps = np.arange(1.0, COUNT + 1)[:, None, None] * np.ones(SIZE)  # it refuses where all of a batch is one value
    flat = case(maps, [picture(i, SIZE, mask=np.eye(28, dtype=bool)) for i in range(COUNT)])
    assert theirs("PointingGame", flat).tolist() == [1.0] * COUNT
    assert ours(PointingGame(), "hit", flat).tolist() == [0.0] * COUNT


def test_complexity_agrees(given: Case) -> None:
    for name, other in (("sparseness", "Sparseness"), ("complexity", "Complexity")):
        np.testing.assert_allclose(ours(Complexity(), name, given), theirs(other, given), rtol=1e-5)
    for i, image in enumerate(given.batch.images):  # it divides by the largest value of the batch
        alone = case(given.raw[i : i + 1].numpy(), [image])
        np.testing.assert_allclose(SIZE[0] * SIZE[1] * ours(Complexity(eps=0.3), "effective_complexity", alone),
                                   theirs("EffectiveComplexity", alone, eps=0.3), atol=1e-9)
