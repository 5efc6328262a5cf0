"""TCAV: directions and sensitivities in closed form, a planted concept found, random ones called one at the level."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.concepts import _cav
from analyzers.concepts._rendered import CONCEPTS, HUES, rendered
from analyzers.concepts.tcav import TCAV
from xai import run, seeds
from xai.errors import XaiError
from xai.images import Image, Images
from xai.model import Model
from xai.panels import Table
from xai.result import Result
from xai.subject import Subject, as_targets


def generator(*parts: str) -> torch.Generator:
    return seeds.generator(5, *parts)


# --- the classifier ---
def slow(x: Tensor, gradients: Tensor, one: list[int], two: list[int], held: int) -> tuple[Tensor, float]:
    """S and the held-out accuracy of ridge regression on +1 and -1 in the space of activations itself."""
    fitted = [*one[:-held], *two[:-held]]
    a, y = x[fitted], torch.tensor([1.0] * (len(one) - held) + [-1.0] * (len(two) - held), dtype=torch.float64)
    middle = a.mean(0)
    a = a - middle
    penalty = _cav.RIDGE * a.square().sum() / len(a) * len(a)
    v = torch.linalg.solve(a.T @ a + penalty * torch.eye(a.shape[1], dtype=torch.float64), a.T @ y)
    said = (x[[*one[-held:], *two[-held:]]] - middle) @ v
    right = torch.cat([said[:held] > 0, said[held:] < 0])
    return gradients @ v / v.norm(), float(right.double().mean())


def test_fits_from_products_are_ridge_regression_in_the_layer() -> None:
    g = generator("ridge")
    x, gradients = (torch.randn(n, 7, generator=g, dtype=torch.float64) for n in (60, 9))
    x[:20, 0] += 1.5
    one, two = torch.arange(10).expand(3, -1), torch.stack([torch.arange(s, s + 10) for s in (10, 25, 50)])
    found = _cav.fit(x @ x.T, x @ gradients.T, one, two)
    for row in range(3):
        scores, accuracy = slow(x, gradients, one[row].tolist(), two[row].tolist(), 2)
        assert_close(found.scores[row], scores, rtol=1e-8, atol=1e-10)
        assert float(found.accuracy[row]) == accuracy


def test_the_direction_turned_round_gives_the_rest_of_the_pictures() -> None:
    g = generator("turned")
    x, gradients = torch.randn(40, 5, generator=g, dtype=torch.float64), torch.randn(8, 5, generator=g).double()
    one, two = torch.arange(20)[None], torch.arange(20, 40)[None]
    there, back = (_cav.fit(x @ x.T, x @ gradients.T, *pair) for pair in ((one, two), (two, one)))
    assert_close(there.scores, -back.scores)
    assert_close(_cav.share(there.scores) + _cav.share(back.scores), torch.ones(1, dtype=torch.float64))
    doubled = _cav.fit(4 * x @ x.T, 2 * x @ gradients.T, one, two)  # activations twice as large: the same normal
    assert_close(doubled.scores, there.scores)


def test_random_sets_and_their_counter_sets_share_no_picture() -> None:
    counter, sets, against = _cav.pairs(30, 4, 6, 11, generator("pairs"))
    assert counter.shape == (4, 6)
    assert sets.shape == (11, 6)
    assert against.shape == (44, 6)
    for row in range(44):
        assert not set(sets[row // 4].tolist()) & set(against[row].tolist())
    for some in (counter, sets, against):
        assert all(len(set(one)) == 6 for one in some.tolist())


# --- the level ---
def trial(number: int, shift: float, nulls: int) -> _cav.Tested:
    """Pictures are Gaussian; the concept's are moved along an axis that the gradients have a part in."""
    g = generator("trial", str(number), str(shift))
    x = torch.randn(100 + 10, 12, generator=g, dtype=torch.float64)
    x[100:, 0] += shift
    gradients = torch.randn(30, 12, generator=g, dtype=torch.float64)
    gradients[:, 0] += 1
    counter, sets, against = _cav.pairs(100, 8, 10, nulls, g)
    inner, products = x @ x.T, x @ gradients.T
    mine = _cav.fit(inner, products, torch.arange(100, 110).expand(8, -1), counter)
    return _cav.tested(mine, _cav.fit(inner, products, sets.repeat_interleave(8, 0), against), nulls)


def test_random_concepts_are_called_concepts_at_the_stated_level_and_by_the_t_test_over_runs_far_more_often() -> None:
    """Of 200 random sets: at most 5 % and three standard errors (binomial); the published test calls a fifth."""
    trials = [trial(number, 0.0, 19) for number in range(200)]
    ours, theirs = (sum(p <= 0.05 for p in ps) for ps in zip(*((t.p, t.published) for t in trials), strict=True))
    assert ours <= 10 + 3 * (200 * 0.05 * 0.95) ** 0.5
    assert ours >= 2  # a test that never speaks holds any level
    assert theirs >= 40
    assert abs(float(np.mean([t.tcav for t in trials])) - 0.5) < 0.05


def test_a_planted_concept_is_found_for_and_against() -> None:
    for shift in (3.0, -3.0):
        found = trial(1, shift, 199)
        assert found.p == 1 / 200
        assert found.accuracy > 0.6
        assert (found.tcav > 0.7) == (shift > 0)


# --- the analyzer ---
class Reddish(nn.Module):
    """The first output grows with red, the second falls with it by as much: nothing else counts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.seen.weight.copy_(torch.eye(3)[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        red = self.seen(x).mean((2, 3)) @ torch.tensor([2.0, -1, -1])
        return torch.stack([red, -red], 1)


def model(module: nn.Module | None = None) -> Model:
    return Model(Reddish() if module is None else module, mean=[0.5] * 3, std=[0.25] * 3, size=16,
                 labels=("red", "other"), spec="a:net")


def pictures(count: int = 12) -> Images:
    return rendered(count, (16, 16), 77)


def rows(result: Result) -> dict[tuple[str, str], tuple[object, ...]]:
    (table,) = (p for p in result.panels if p.key == "tcav")
    assert isinstance(table, Table)
    return {(str(row[0]), str(row[1])): row for row in table.rows}


def test_of_rendered_concepts_the_colour_matters_with_its_sign_and_the_texture_does_not() -> None:
    """A linear network: S = gradient . v is the same for all pictures of a class, and its sign is known."""
    made = TCAV(concept="red,stripes,cyan", layer="seen", pooling="mean")
    result = made(Subject((model(),), pictures()))
    found = rows(result)
    assert {key: found[key][4] for key in found if key[1] in ("red", "cyan")} == {
        ("red", "red"): 1.0, ("red", "cyan"): 0.0, ("other", "red"): 0.0, ("other", "cyan"): 1.0}
    for (_, concept), row in found.items():
        assert row[8] == ("yes" if concept in ("red", "cyan") else "no")
    assert found["red", "red"][7] == pytest.approx(6 / 200)  # six tests


def test_a_target_that_is_a_class_passes_other_classes_by() -> None:
    images = pictures(10)
    wanted = sum(batch.output().argmax(1).eq(0).sum().item() for batch in model().prepare(images))
    made = TCAV(concept="red", layer="seen", pooling="mean", nulls=19)
    found = rows(made(Subject((model(),), images, as_targets("red"))))
    assert found["red", "red"][2] == wanted
    named = Images.of([dataclasses.replace(image, label=i % 2) for i, image in enumerate(images)])
    found = rows(made(Subject((model(),), named, as_targets("class:0"))))
    assert found["red", "red"][2] == 5
    with pytest.raises(XaiError, match=r"The pictures must be such that one is of other|the pictures must be such"):
        made(Subject((model(),), Images.of([dataclasses.replace(images[0], label=0)]), as_targets("other")))


def folder(path: Path, count: int, colour: tuple[int, int, int]) -> str:
    path.mkdir()
    rng = np.random.default_rng(3)
    for i in range(count):
        noisy = np.array(colour) + rng.integers(-25, 25, (16, 16, 3))
        Pil.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path / f"{i}.png")
    return str(path)


def test_concepts_and_random_pictures_from_folders(tmp_path: Path) -> None:
    concept = folder(tmp_path / "reds", 8, (210, 60, 60))
    settings = {"concept": concept, "layer": "seen", "pooling": "mean", "size": "8", "nulls": "39"}
    found = run.analyze("tcav", model(), pictures(40), settings=settings).result
    assert rows(found)["red", "reds"][4] == 1
    greys = folder(tmp_path / "greys", 30, (120, 120, 120))
    found = run.analyze("tcav", model(), pictures(9), settings={**settings, "random": greys}).result
    assert rows(found)["other", "reds"][4] == 0
    assert any("greys" in panel.title for panel in found.panels)


def test_too_few_pictures_and_no_gradient_are_refused(tmp_path: Path) -> None:
    few = folder(tmp_path / "few", 3, (210, 60, 60))
    with pytest.raises(XaiError, match=r"the concept few must be at least 5 pictures .* got 3\."):
        TCAV(concept=few, layer="seen")(Subject((model(),), pictures(40)))
    some = folder(tmp_path / "some", 9, (210, 60, 60))
    with pytest.raises(XaiError, match=r"the random pictures must be at least 27, 3 sets of 9; got 12"):
        TCAV(concept=some, layer="seen")(Subject((model(),), pictures(12)))

    class Dead(Reddish):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * super().forward(x)

    with pytest.raises(XaiError, match="got a gradient of 0 for every picture"):
        TCAV(concept="red", layer="seen")(Subject((model(Dead()),), pictures()))


def test_a_classifier_at_chance_gives_no_tcav() -> None:
    class Blind(Reddish):
        """The layer's activations are the same for all pictures but for one pixel's noise."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(1 + 1e-3 * torch.sin(1e5 * x[:, :, :1, :1]) + 0 * x)

    result = TCAV(concept="stripes", layer="seen", pooling="mean")(Subject((model(Blind()),), pictures()))
    for (_, concept), row in rows(result).items():
        (verdict,) = (v for v in result.verdicts if v.name == f"{concept} is told apart")
        chance = isinstance(row[3], float) and row[3] <= 0.5
        assert (row[4] is None) == (row[7] is None) == (row[8] == "at chance") == chance
        assert verdict.passed == (not chance)
        assert row[8] != "yes"


# --- rendered pictures ---
@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_rendered_concept_fixes_its_property_and_nothing_else(concept: str) -> None:
    made = rendered(6, (24, 32), 1, concept)
    assert [image.hash for image in made] == [image.hash for image in rendered(6, (24, 32), 1, concept)]
    assert len({image.hash for image in made}) == 6
    assert made[2].hash == rendered(1, (24, 32), 1, concept, first=2)[0].hash
    assert made[0].pixels.shape == (3, 24, 32)
    if concept in HUES:
        for image in made:
            r, g, b = image.pixels.reshape(3, -1).astype(float).mean(1)
            hue = np.arctan2(3**0.5 * (g - b), 2 * r - g - b) / (2 * np.pi)
            off = abs((hue - HUES[concept] + 0.5) % 1 - 0.5)
            assert off < 0.06
    else:
        assert np.ptp([image.pixels.mean((1, 2)) for image in made]) > 30  # colours of all kinds


def test_a_broken_picture_is_left_out_and_named(tmp_path: Path) -> None:
    good = folder(tmp_path / "mixed", 6, (210, 60, 60))
    (tmp_path / "mixed" / "7.png").write_bytes(b"no picture")
    result = TCAV(concept=good, layer="seen", pooling="mean", random="rendered", nulls=19)(
        Subject((model(),), pictures(4)))
    (left,) = (p for p in result.panels if p.key == "left")
    assert "7.png" in str(vars(left))
    assert Image.of("x", pictures(1)[0].pixels).hash == pictures(1)[0].hash
