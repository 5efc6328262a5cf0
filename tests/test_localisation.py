"""The pointing game, MaxBoxAcc, mass and rank accuracy: closed forms, identities, and slow versions written apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from analyzers.evaluation import _contours
from analyzers.evaluation.pointing_game import PointingGame
from analyzers.evaluation.relevance_accuracy import RelevanceAccuracy
from analyzers.evaluation.wsol import WSOL, average_precision, histograms, ious, overlap, resized, true_boxes, unit
from xai.analyzer import Maps
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import XaiError
from xai.images import Image, Images
from xai.metric import Case, Metric, case_of
from xai.model import Model
from xai.panels import Table, View, shown
from xai.subject import Subject, as_targets
from xai.targets import Bound, Target

HIGH, WIDE = 40, 60


@dataclass(frozen=True, eq=False)
class Fixed(Attribution):
    """Maps that were made before, one a picture, whatever is asked."""

    given: Any = None

    def maps(self, batch: Batch, target: Bound) -> Maps:
        return Maps(self.given)


@dataclass(frozen=True, eq=False)
class FixedRelu(Fixed):
    """The same, of which the positive part is shown."""

    view = "relu"


def model(size: tuple[int, int], **options: Any) -> Model:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    return Model(net.eval(), mean=[0.0] * 3, std=[1.0] * 3, size=size, **options)


def picture(i: int = 0, size: tuple[int, int] = (HIGH, WIDE), **known: Any) -> Image:
    pixels = np.random.default_rng(i).random((3, *size), dtype=np.float32)
    return Image.of(f"{i}.png", pixels, **{"label": i % 4, **known})


def box(*corners: float) -> np.ndarray:
    return np.array([corners], dtype=np.float32)


def case(maps: Any, pictures: list[Image], size: tuple[int, int] | None = None, view: View = "signed",
         crop: str = "center") -> Case:
    """One batch; the network takes the pictures as they are unless a size is given."""
    made = model(size or pictures[0].size)
    made.preprocessing = made.preprocessing.with_options(crop=crop)
    batch = next(made.prepare(Images.of(pictures)))
    method = (FixedRelu if view == "relu" else Fixed)(torch.as_tensor(np.asarray(maps), dtype=torch.float32))
    return case_of(method, batch, batch.bind(Target("label")))


def scores(metric: Metric, maps: Any, pictures: list[Image], **more: Any) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in metric.score(case(maps, pictures, **more)).values.items()}


def one(metric: Metric, shown: np.ndarray, known: Image, **more: Any) -> dict[str, float]:
    return {name: values[0] for name, values in scores(metric, shown[None], [known], **more).items()}


def pooled(metric: Metric, *cases: Case) -> dict[str, float]:
    traces = [metric.score(each).traces for each in cases]
    return metric.pooled({name: torch.cat([t[name] for t in traces]) for name in traces[0]})


def dot(row: int, column: int, size: tuple[int, int] = (HIGH, WIDE)) -> np.ndarray:
    found = np.zeros(size)
    found[row, column] = 1
    return found


def inside(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = (HIGH, WIDE)) -> np.ndarray:
    found = np.zeros(size)
    found[y0:y1, x0:x1] = 1
    return found


# --- the pointing game ---
@pytest.mark.parametrize(("away", "expected"), [(0, 1.0), (14, 1.0), (15, 0.0), (16, 0.0)])
@pytest.mark.parametrize("diagonal", [False, True])
def test_fourteen_pixels_beside_it_hit_and_fifteen_miss(away: int, expected: float, diagonal: bool) -> None:
    known = picture(boxes=box(0, 0, 10, 10))
    if diagonal:  # 9^2 + 12^2 = 15^2 is no hit, 9^2 + 11^2 is one
        found = [one(PointingGame(tolerance="15"), dot(9 + 9, 9 + 12 - k), known)["hit"] for k in (0, 1)]
        assert found == [0.0, 1.0]
    else:
        assert one(PointingGame(tolerance="15"), dot(4, 9 + away), known)["hit"] == expected


def test_a_tolerance_of_zero_never_hits_and_just_above_it_the_point_itself_does() -> None:
    known = picture(mask=inside(5, 5, 20, 20).astype(bool))
    shown = inside(5, 5, 20, 20)
    assert one(PointingGame(tolerance="0"), shown, known) == {"hit": 0.0, "energy": 1.0, "chance": 225 / 2400}
    assert one(PointingGame(tolerance="0.01"), shown, known)["hit"] == 1.0


def test_auto_is_fifteen_pixels_or_that_share_of_a_small_picture() -> None:
    small, large = picture(size=(64, 90), boxes=box(0, 0, 8, 8)), picture(size=(224, 300), boxes=box(0, 0, 8, 8))
    game = PointingGame()  # 15 / 224 * 64 = 4.29
    assert [one(game, dot(3, 7 + k, small.size), small)["hit"] for k in (4, 5)] == [1.0, 0.0]
    assert [one(game, dot(3, 7 + k, large.size), large)["hit"] for k in (14, 15)] == [1.0, 0.0]


def test_a_corner_of_a_picture_that_is_not_square_tells_x_from_y() -> None:
    known = picture(boxes=box(50, 0, 60, 6))
    game = PointingGame(tolerance="2")
    assert one(game, dot(3, 55), known) == {"hit": 1.0, "energy": 1.0, "chance": 60 / 2400}
    assert one(game, dot(35, 3), known) == {"hit": 0.0, "energy": 0.0, "chance": 60 / 2400}


def test_the_mean_over_classes_counts_each_class_alike() -> None:
    pictures = [picture(i, label=int(i == 0), boxes=box(0, 0, 10, 10)) for i in range(4)]
    maps = np.stack([dot(3, 3), *[dot(30, 50)] * 3])
    game = PointingGame()
    given = case(maps, pictures)
    assert game.score(given).values["hit"].tolist() == [1, 0, 0, 0]
    assert pooled(game, given) == {"by_class": 0.5}
    lost = picture(9, label=3)  # nothing known: no class of its own
    assert pooled(game, given, case(dot(3, 3)[None], [lost])) == {"by_class": 0.5}


def test_flat_and_unsound_and_negative_maps_miss() -> None:
    known = picture(mask=np.ones((HIGH, WIDE), dtype=bool))
    for bad in (np.ones((HIGH, WIDE)), np.zeros((HIGH, WIDE)), np.where(dot(1, 1) > 0, np.nan, 1.0),
                np.where(dot(1, 1) > 0, np.inf, 0.0)):
        assert one(PointingGame(), bad, known) == {"hit": 0.0, "energy": 0.0, "chance": 1.0}
        assert one(PointingGame(), bad, picture(boxes=box(0, 0, 5, 5)))["hit"] == 0.0
        assert one(RelevanceAccuracy(), bad, known) == {"mass": 0.0, "rank": 0.0, "chance": 1.0}
        assert one(WSOL(), bad, known)["iou"] == 0.0
    negative = -1 - dot(3, 3)
    for metric, names in ((PointingGame(), ("energy",)), (RelevanceAccuracy(), ("mass", "rank"))):
        assert all(one(metric, negative, known)[name] == 0.0 for name in names)


def test_pictures_without_a_region_have_no_score() -> None:
    away = picture(size=(40, 100), boxes=box(0, 0, 10, 10))  # the centre crop 40 x 40 leaves none of it
    difficult = picture(boxes=box(0, 0, 9, 9), difficult=np.array([True]))
    for metric in (PointingGame(), RelevanceAccuracy(), WSOL()):
        for known, size in ((away, (40, 40)), (difficult, None), (picture(), None),
                            (picture(mask=np.zeros((HIGH, WIDE), dtype=bool)), None)):
            maps = np.arange(12.0).reshape(1, 3, 4) if size is None else np.arange(9.0).reshape(1, 3, 3)
            given = case(maps, [known], size=size)
            assert all(math.isnan(v) for values in metric.score(given).values.values() for v in values.tolist())
            assert all(math.isnan(v) for v in metric.pooled(metric.score(given).traces).values())
    some = picture(boxes=np.array([[0, 0, 9, 9], [20, 20, 30, 30]], dtype=np.float32),
                   difficult=np.array([True, False]))
    assert one(PointingGame(tolerance="1"), dot(3, 3), some)["hit"] == 1.0, "as in TorchRay, one that counts is enough"


def test_of_several_highest_pixels_one_is_drawn_or_the_first_taken() -> None:
    half = picture(boxes=box(0, 0, 60, 20))
    both = dot(2, 2) + dot(38, 2)
    assert one(PointingGame(tolerance="1", ties="first"), both, half)["hit"] == 1.0
    pictures = [picture(i, boxes=box(0, 0, 60, 20)) for i in range(30)]
    drawn = scores(PointingGame(tolerance="1"), np.stack([both] * 30), pictures)["hit"]
    assert 5 < sum(drawn) < 25
    assert drawn == scores(PointingGame(tolerance="1"), np.stack([both] * 30), pictures)["hit"]
    assert drawn[3:] == scores(PointingGame(tolerance="1"), np.stack([both] * 27), pictures[3:])["hit"]


def slow_point(values: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """The first highest pixel of the map resized to (h, w)."""
    large = F.interpolate(values[None, None].double(), size, mode="bilinear", align_corners=False)[0, 0]
    top = max(float(v) for v in large.flatten())
    return next((y, x) for y in range(size[0]) for x in range(size[1]) if float(large[y, x]) >= top * (1 - 1e-12))


def slow_hit(mask: np.ndarray, point: tuple[int, int], tolerance: float) -> bool:
    """As the definition reads."""
    return any(mask[y, x] and (y - point[0]) ** 2 + (x - point[1]) ** 2 < tolerance**2
               for y in range(mask.shape[0]) for x in range(mask.shape[1]))


@pytest.mark.parametrize("seed", range(12))
def test_the_official_game_is_what_a_slow_version_plays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, cells = (int(rng.integers(20, 50)), int(rng.integers(20, 50))), (int(rng.integers(2, 9)), 7)
    mask = ndimage.gaussian_filter(rng.random(size), 3) > 0.5
    mask[rng.integers(size[0]), rng.integers(size[1])] = True
    maps = torch.from_numpy(rng.random((1, *cells))).float()
    tolerance = float(rng.integers(1, 12))
    given = case(maps, [picture(seed, size, mask=mask)], size=(24, 36), crop="squash")
    point = slow_point(given.raw[0], size)
    region = given.batch.region(0)
    assert region is not None
    if region.any():
        found = PointingGame(tolerance=str(tolerance), ties="first").score(given).values["hit"].item()
        assert found == float(slow_hit(mask, point, tolerance))


def test_the_point_lies_where_the_crop_saw_it() -> None:
    rng, tried = np.random.default_rng(3), 0
    for k in range(20):
        row, column = int(rng.integers(0, 80)), int(rng.integers(40, 120))  # the crop shows columns 40 to 119
        mask = np.zeros((80, 160), dtype=bool)
        mask[row, column] = True
        known = picture(k, (80, 160), mask=mask, boxes=box(column, row, column + 1, row + 1))
        shown = np.zeros((1, 20, 20))
        shown[0, row // 4, (column - 40) // 4] = 1
        given = case(shown, [known], size=(20, 20))  # a cell covers 4 x 4 pixels of the original
        assert given.batch.frames[0].x0 == 40
        if given.batch.region(0).any():  # a single pixel may fall between those of the input
            assert PointingGame(tolerance="4").score(given).values["hit"].item() == 1.0
            tried += 1
    assert tried


def test_the_energy_of_a_uniform_map_is_the_area_share() -> None:
    known = picture(boxes=box(10, 5, 40, 25))
    nearly = 1 + 1e-3 * np.add.outer(np.arange(HIGH) % 2, np.arange(WIDE) % 2)
    found = one(PointingGame(), nearly, known)
    assert found["energy"] == pytest.approx(600 / 2400, abs=1e-6)
    assert found["chance"] == 600 / 2400
    mixed = inside(10, 5, 40, 25) - inside(0, 30, 60, 40)
    assert one(PointingGame(), mixed, known)["energy"] == 1.0, "negative relevance is no energy"


def test_a_tolerance_that_is_no_number_gives_the_sentence() -> None:
    for wrong in ("near", "-1", "nan", "inf"):
        with pytest.raises(XaiError, match="pointing_game.tolerance must be auto or a number of pixels"):
            PointingGame(tolerance=wrong)


# --- mass and rank accuracy ---
def test_the_mask_itself_has_mass_and_rank_one() -> None:
    mask = inside(7, 3, 30, 17)
    assert one(RelevanceAccuracy(), mask, picture(mask=mask.astype(bool))) == {
        "mass": 1.0, "rank": 1.0, "chance": 23 * 14 / 2400}
    swapped = one(RelevanceAccuracy(), inside(0, 0, 6, 30), picture(boxes=box(0, 0, 30, 6)))
    assert swapped["mass"] == pytest.approx(0.2)


def slow_rank(values: np.ndarray, mask: np.ndarray) -> float:
    """The mean over many random orders of the ties."""
    rng, count, found = np.random.default_rng(0), int(mask.sum()), []
    for _ in range(400):
        order = np.lexsort((rng.random(values.size), -values.ravel()))
        found.append(mask.ravel()[order[:count]].mean())
    return float(np.mean(found))


def test_rank_accuracy_is_the_mean_over_random_orders_of_the_ties() -> None:
    rng = np.random.default_rng(0)
    values, mask = np.round(rng.random((12, 18)) * 4), rng.random((12, 18)) > 0.7
    found = one(RelevanceAccuracy(), values, picture(size=(12, 18), mask=mask))
    assert found["rank"] == pytest.approx(slow_rank(values, mask), abs=0.01)
    assert found["mass"] == pytest.approx(values[mask].sum() / values.sum(), abs=1e-6)


def test_random_maps_score_the_area_share() -> None:
    mask = inside(10, 5, 40, 25).astype(bool)
    rng = np.random.default_rng(0)
    pictures = [picture(i, mask=mask) for i in range(30)]
    found = scores(RelevanceAccuracy(), rng.random((30, HIGH, WIDE)), pictures)
    for name in ("mass", "rank"):
        assert np.mean(found[name]) == pytest.approx(0.25, abs=0.02)


# --- MaxBoxAcc ---
def official(scaled: np.ndarray, true: list[list[int]], step: float) -> tuple[np.ndarray, np.ndarray]:
    """(thresholds,) IoU of the largest contour's box and of the best contour's, as the official evaluation does it."""
    cv2 = pytest.importorskip("cv2")
    height, width = scaled.shape
    picture = np.expand_dims((scaled * 255).astype(np.uint8), 2)

    def iou(a: list[int], b: list[int]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
        common = max(0, w) * max(0, h)
        areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
        return common / (sum(areas) - common)

    found = []
    for tau in np.arange(0, 1, step):
        _, binary = cv2.threshold(picture, int(tau * np.max(picture)), 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        boxes = []
        for c in sorted(contours, key=cv2.contourArea, reverse=True):  # stable: the first of equal ones stays first
            x, y, w, h = cv2.boundingRect(c)
            boxes.append([x, y, min(x + w, width - 1), min(y + h, height - 1)])
        each = [max(iou(b, t) for t in true) for b in boxes or [[0, 0, 0, 0]]]
        found.append((each[0], max(each)))
    one, best = np.array(found).T
    return one, best


def awkward(kind: str, seed: int, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.random(size)
    return {"random": noise, "smooth": ndimage.gaussian_filter(noise, 2.0), "constant": np.ones(size),
            "nan": np.where(noise > 0.9, np.nan, noise), "steps": np.round(ndimage.gaussian_filter(noise, 1) * 8),
            "speckle": np.where(noise > 0.9, noise, 0),
            "rings": np.cos(np.hypot(*np.meshgrid(np.arange(size[1]) - 12, np.arange(size[0]) - 9)) + noise / 4)}[kind]


@pytest.mark.parametrize("size", [(23, 31), (40, 17)])
@pytest.mark.parametrize("kind", ["random", "smooth", "constant", "nan", "steps", "speckle", "rings"])
def test_maxboxacc_is_what_the_official_contours_give(kind: str, size: tuple[int, int]) -> None:
    metric, true = WSOL(step=0.013), [[2, 5, 12, 18], [10, 1, 15, 6]]
    boxes = np.array([[a, b, c + 1, d + 1] for a, b, c, d in true], dtype=np.float32)
    given = case(np.stack([awkward(kind, k, size) for k in range(3)]), [picture(k, size, boxes=boxes)
                                                                       for k in range(3)])
    scored = metric.score(given)
    levels = [int(tau * 255) for tau in np.arange(0, 1, 0.013)]
    places = [metric.levels().index(level) for level in levels]
    v1, v2 = [], []
    for k in range(3):
        one, best = official(unit(given.raw[k].double().numpy()), true, 0.013)
        v1.append(one)
        v2.append(best)
        if kind not in ("constant", "nan"):  # there the official box is one pixel, ours is none
            assert_close(scored.traces["iou_v1"][k, places], torch.from_numpy(one), rtol=0, atol=1e-9)
            assert_close(scored.traces["iou_v2"][k, places], torch.from_numpy(best), rtol=0, atol=1e-9)
    expected = {"maxboxacc_v1": (np.array(v1) >= 0.5).mean(0).max(),
                "maxboxacc_v2": np.mean([(np.array(v2) >= d).mean(0).max() for d in (0.3, 0.5, 0.7)])}
    found = metric.pooled(scored.traces)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["maxboxacc_v2"] >= 0
    assert math.isnan(found["pxap"])


@pytest.mark.parametrize("size", [(1, 9), (7, 1), (2, 2), (1, 1), (12, 15)])
def test_the_contours_of_every_threshold_are_those_of_the_binary_pictures(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(4)
    for top in (2, 256):
        picture = rng.integers(0, top, size).astype(np.uint8) * (255 if top == 2 else 1)
        found, large = _contours.outlines(picture), _contours.largest(picture)
        for t in range(255):
            contours = cv2.findContours(((picture > t) * 255).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
            rectangles = {(x, y, x + w - 1, y + h - 1) for x, y, w, h in map(cv2.boundingRect, contours[0])}
            seen = (found.low <= t) & (t < found.high)
            assert set(map(tuple, found.boxes[seen].tolist())) == rectangles
            assert (large[t, 0] >= 0) == bool(rectangles)


@pytest.mark.parametrize(("w", "h"), [(10, 10), (7, 12), (1, 1), (20, 3)])
def test_the_indicator_of_a_box_is_one_pixel_too_large(w: int, h: int) -> None:
    known = picture(boxes=box(20, 11, 20 + w, 11 + h))
    found = one(WSOL(), inside(20, 11, 20 + w, 11 + h), known)
    assert found["iou"] == pytest.approx(w * h / ((w + 1) * (h + 1)), abs=1e-12)
    edge = picture(boxes=box(WIDE - w, HIGH - h, WIDE, HIGH))
    assert one(WSOL(), inside(WIDE - w, HIGH - h, WIDE, HIGH), edge)["iou"] == pytest.approx(1.0)


def test_a_corner_of_a_picture_that_is_not_square_tells_width_from_height() -> None:
    known = picture(boxes=box(48, 0, 60, 6))
    assert one(WSOL(), inside(48, 0, 60, 6), known)["iou"] > 0.8
    assert one(WSOL(), inside(0, 34, 6, 40), known)["iou"] == 0.0


def two_levels(high: tuple[int, ...], low: tuple[int, ...]) -> np.ndarray:
    return 0.5 * inside(*low) + 0.5 * inside(*high)


def test_one_threshold_is_chosen_for_the_whole_set() -> None:
    small, large = (20, 10, 30, 20), (10, 5, 50, 35)
    maps = np.stack([two_levels(small, large)] * 2)
    first, second = picture(0, boxes=box(*small)), picture(1, boxes=box(*large))
    metric = WSOL()
    assert pooled(metric, case(maps[:1], [first]))["maxboxacc_v1"] == 1.0
    assert pooled(metric, case(maps[:1], [second]))["maxboxacc_v1"] == 1.0
    both = pooled(metric, case(maps, [first, second]))
    assert (both["maxboxacc_v1"], both["maxboxacc_v2"]) == (0.5, 0.5)


def test_several_contours_help_v2_alone_and_never_hurt_it() -> None:
    maps = inside(5, 5, 15, 15) + inside(25, 10, 50, 35)
    known = picture(boxes=box(5, 5, 15, 15))
    given = case(maps[None], [known])
    scored = WSOL().score(given)
    assert bool((scored.traces["iou_v2"] >= scored.traces["iou_v1"]).all())
    found = WSOL().pooled(scored.traces)
    assert (found["maxboxacc_v1"], found["maxboxacc_v2"]) == (0.0, 1.0)


def test_the_rim_of_a_hole_is_a_contour_of_v2() -> None:
    frame = inside(5, 5, 50, 38) - inside(20, 12, 32, 24)
    known = picture(boxes=box(19, 11, 33, 25))
    one, best = official(frame, [[19, 11, 32, 24]], 0.25)
    scored = WSOL(step=0.25).score(case(frame[None], [known]))
    assert_close(scored.traces["iou_v2"][0], torch.from_numpy(best))
    assert_close(scored.traces["iou_v1"][0], torch.from_numpy(one))
    assert best[0] > 0.8 > 0.3 > one[0]


def test_a_flat_map_gives_the_official_box_of_one_pixel() -> None:
    true = np.array([[0, 0, 3, 1]])
    for found in ious(unit(np.ones((9, 14))), true):
        assert found.tolist() == [1 / 8] * 255
    assert overlap(np.zeros((1, 4), dtype=np.int64), true).tolist() == [1 / 8]


def cubic(t: float) -> float:
    """Keys' kernel with a = -0.75, as OpenCV has it."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def slow_bicubic(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    def matrix(new: int, old: int) -> np.ndarray:
        found = np.zeros((new, old))
        for i in range(new):
            place = (i + 0.5) * old / new - 0.5
            for k in range(math.floor(place) - 1, math.floor(place) + 3):
                found[i, min(max(k, 0), old - 1)] += cubic(place - k)
        return found

    return matrix(size[0], values.shape[0]) @ values @ matrix(size[1], values.shape[1]).T


def test_the_resize_is_opencvs_cubic_of_the_view() -> None:
    rng = np.random.default_rng(0)
    known = picture(boxes=box(3, 3, 20, 20))
    given = case(rng.standard_normal((1, 5, 7)), [known], view="relu")
    seen = shown(given.raw[0].double().numpy(), "relu")
    assert_close(resized(given, 0, "bicubic"), slow_bicubic(seen, (HIGH, WIDE)), rtol=0, atol=1e-12)
    cv2 = pytest.importorskip("cv2")
    theirs = cv2.resize(seen, (WIDE, HIGH), interpolation=cv2.INTER_CUBIC)
    assert_close(resized(given, 0, "bicubic"), theirs, rtol=0, atol=1e-5)
    assert_close(resized(given, 0, "bilinear"), given.shown[0].double().numpy())


def test_true_boxes_follow_the_crop_and_are_truncated_as_officially() -> None:
    known = picture(size=(80, 160), boxes=box(50, 10, 91, 41))  # last pixels 90 and 40; the crop begins at x = 40
    given = case(np.zeros((1, 2, 2)), [known], size=(20, 20))
    region = torch.ones(20, 20, dtype=torch.bool)
    assert true_boxes(given, 0, region).tolist() == [[int(10 / 4), int(10 / 4), int(50 / 4), int(40 / 4)]]
    mask = inside(3, 7, 30, 20).astype(bool)
    only = case(np.zeros((1, 2, 2)), [picture(mask=mask)])
    assert true_boxes(only, 0, torch.from_numpy(mask)).tolist() == [[3, 7, 29, 19]]


def slow_precision(maps: list[np.ndarray], masks: list[np.ndarray], step: float) -> float:
    """Precision and recall of the pixels at or above each threshold, counted one threshold at a time."""
    values, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    points = []
    for tau in [*np.arange(0, 1, step), 1.0][::-1]:
        chosen = values >= tau
        points.append(((chosen & truth).sum() / max(1, chosen.sum()), (chosen & truth).sum() / truth.sum()))
    before, total = 0.0, 0.0
    for precision, recall in points:
        before, total = recall, total + precision * (recall - before)
    return total


def test_pxap_is_the_area_under_precision_and_recall() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((HIGH, WIDE)) > 0.7 for _ in range(3)]
    maps = [unit(rng.random((HIGH, WIDE)) + 0.5 * mask) for mask in masks]
    counts = sum(histograms(m, mask, 0.01) for m, mask in zip(maps, masks, strict=True))
    assert average_precision(counts) == pytest.approx(slow_precision(maps, masks, 0.01), abs=1e-9)
    known = [picture(k, mask=mask) for k, mask in enumerate(masks)]
    assert pooled(WSOL(), case(np.stack(masks), known))["pxap"] == pytest.approx(1.0)


# --- as they run ---
@pytest.mark.parametrize("metric", [PointingGame, RelevanceAccuracy, WSOL])
def test_a_run_shows_the_methods_beside_the_controls(metric: type[Metric]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(4, 4))
    made = Model(net.eval(), mean=[0.4] * 3, std=[0.3] * 3, size=(20, 30))
    pictures = Images.of([picture(i, boxes=box(2, 2, 30, 30), mask=inside(2, 2, 30, 30).astype(bool))
                          for i in range(4)])
    result = metric(of="saliency")(Subject((made,), pictures, as_targets("label")))
    table = next(p for p in result.panels if isinstance(p, Table) and p.key == "scores")
    assert {row[0] for row in table.rows} == {"saliency", "random", "centre", "sobel"}
    assert {row[1] for row in table.rows} == set(metric.scores)
    assert all(row[2] is None or -1e-9 <= row[2] <= 1 for row in table.rows)
