"""Network dissection: exact thresholds and overlaps, denominators by hand, planted detectors, controls, more scores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from analyzers.concepts import _overlap, _scores, _thresholds, network_dissection
from analyzers.concepts.network_dissection import NetworkDissection
from xai import seeds
from xai.cli import main
from xai.concept_maps import COLOURS, NONE, ConceptMaps
from xai.concept_scenes import CATEGORIES, CONCEPTS, NUMBER, SIDE, render
from xai.errors import XaiError
from xai.images import Image, Images, load_images
from xai.model import Model
from xai.panels import Number, Picture, Table
from xai.result import Result
from xai.streaming import Left, blocks
from xai.subject import Subject
from xai.zoo.loading import load

Array = np.ndarray


# --- thresholds ---
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(20, 4000), st.sampled_from([0.005, 0.01, 0.1, 0.5]), st.integers(1, 9),
       st.booleans(), st.integers(0, 10**6))
def test_thresholds_are_the_exact_quantiles(units: int, count: int, share: float, parts: int, ties: bool,
                                            seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((units, count)).astype(np.float32)
    if ties:
        values = values.round(0).clip(0)
    tops = _thresholds.start(units, _thresholds.above(share, count), 1 << 30)
    for piece in np.array_split(values, parts, axis=1):
        _thresholds.add(tops, np.ascontiguousarray(piece))
    found = _thresholds.found(tops, share)
    above = int(share * count + 1e-9)
    assert np.array_equal(found, np.sort(values, axis=1)[:, count - 1 - above])
    if (share * count) % 1:  # else 1 - share, rounded, may fall on either side of a place
        assert np.array_equal(found, np.quantile(values, 1 - share, axis=1, method="inverted_cdf"))
    assert ((values > found[:, None]).sum(1) <= above).all()
    assert ties or ((values > found[:, None]).sum(1) == above).all()


def test_a_long_stream_is_compacted_keeps_its_room_and_may_lie_in_a_file() -> None:
    values = np.random.default_rng(0).standard_normal((4, 60_000)).astype(np.float32)
    values[1].sort()  # each value is the largest so far: the hardest order
    for budget, kind in ((1 << 30, np.ndarray), (1000, np.memmap)):
        tops = _thresholds.start(4, _thresholds.above(0.005, 60_000), budget)
        room = tops["kept"].shape
        assert type(tops["kept"]) is kind
        assert room[1] == 2 * 301 + _thresholds.EXTRA  # not of the number of values, but of what lies above
        for piece in np.array_split(values, 50, axis=1):
            _thresholds.add(tops, np.ascontiguousarray(piece))
        assert tops["kept"].shape == room
        assert np.array_equal(_thresholds.found(tops, 0.005), np.sort(values, axis=1)[:, -301])


def test_thresholds_of_parts_are_those_of_the_whole() -> None:
    values = np.random.default_rng(1).standard_normal((3, 9000)).astype(np.float32)
    parts = []
    for piece in np.array_split(values, 4, axis=1):
        parts.append(_thresholds.start(3, 90, 1 << 30))
        _thresholds.add(parts[-1], np.ascontiguousarray(piece))
    assert np.array_equal(_thresholds.found(_thresholds.merged(parts, 1 << 30), 0.01), np.sort(values, axis=1)[:, -91])


# --- overlaps ---
def naive(maps: Array, thresholds: Array, planes: Sequence[Array], size: tuple[int, int]) -> tuple[Array, Array]:
    """(pictures, units, 50) shared pixels and (pictures, units) areas: a unit, picture and concept at a time."""
    shared = np.zeros((*maps.shape[:2], len(CONCEPTS)), np.int64)
    areas = np.zeros(maps.shape[:2], np.int64)
    for i, labels in enumerate(planes):
        for k in range(maps.shape[1]):
            up = F.interpolate(torch.from_numpy(maps[i : i + 1, k : k + 1]).double(), size, mode="bilinear",
                               align_corners=False)
            mask = up[0, 0].numpy() > thresholds[k]
            areas[i, k] = mask.sum()
            for c in range(len(CONCEPTS)):
                shared[i, k, c] = (mask & (labels == c).any(0)).sum()
    return shared, areas


@pytest.mark.parametrize("grid", [(7, 7), (1, 1), (5, 9), (13, 13), (28, 28), (112, 112), (150, 120)])
@pytest.mark.parametrize("level", [0.5, 0.98])
def test_overlaps_are_those_of_a_naive_loop(grid: tuple[int, int], level: float) -> None:
    rng = np.random.default_rng(3)
    maps = rng.standard_normal((2, 4, *grid)).astype(np.float32)
    maps[:, 3] = maps[:, 3].clip(0)  # sparse: its threshold is 0 and 0 is not above it
    thresholds = np.quantile(maps, level, axis=(0, 2, 3)).astype(np.float32)
    thresholds[3] = 0
    scenes = [render(i)[1] for i in range(2)]
    tiles = _overlap.tiling(grid, (SIDE, SIDE))
    found = _overlap.active(maps, thresholds, tiles)
    shelf = _overlap.Shelf.of([_overlap.pack(one, one.planes, tiles, NUMBER, CATEGORIES) for one in scenes])
    shared, areas = naive(maps, thresholds, [one.planes for one in scenes], (SIDE, SIDE))
    assert np.array_equal(found.areas(2, 4), areas)
    assert np.array_equal(_overlap.overlaps(found, shelf, 4, 50, row=np.arange(2), rows=2), shared)
    swapped, _ = naive(maps, thresholds, [one.planes for one in scenes[::-1]], (SIDE, SIDE))
    assert np.array_equal(_overlap.overlaps(found, shelf, 4, 50, of=np.array([1, 0]))[0], swapped.sum(0))
    mine = (found.picture == 1) & (found.unit == 2)
    assert _overlap.unpacked(found.bits[:, mine], found.tile[mine], tiles).sum() == areas[1, 2]


def test_a_concept_in_two_planes_counts_a_pixel_once() -> None:
    planes = np.zeros((2, 4, 4), np.int32)
    tiles = _overlap.tiling((2, 2), (4, 4))
    packed = _overlap.pack(ConceptMaps((("a", "x"),), planes), planes, tiles, {("a", "x"): 0}, ["a"])
    assert packed.area.tolist() == [16]
    found = _overlap.active(np.ones((1, 1, 2, 2), np.float32), np.zeros(1, np.float32), tiles)
    assert _overlap.overlaps(found, _overlap.Shelf.of([packed]), 1, 1).tolist() == [[[16]]]


# --- the whole, on networks whose units are known ---
class Shown(nn.Module):
    """Its one layer gives the picture's own channels, so that activations are what a test writes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.units, self.head = nn.Conv2d(channels, channels, 1, bias=False), nn.Linear(channels, 2)
        self.units.weight.data = torch.eye(channels)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.units(x).mean((2, 3)))
        return y


def as_it_is(pixels: Array, concepts: ConceptMaps | None, name: str, **more: Any) -> Image:
    return Image.of(name, pixels.astype(np.float32), normalised=True, concepts=concepts, **more)


def dissected(module: nn.Module, pictures: Images | None, size: int, channels: int = 3, seed: int = 0,
              **fields: Any) -> Result:
    model = Model(module.eval(), mean=[0.0] * channels, std=[1.0] * channels, size=size, channels=channels)
    return NetworkDissection(**fields)(Subject((model,), pictures, seed=seed))


def units(result: Result) -> dict[int, dict[str, Any]]:
    """The rows of the first table of units, by unit."""
    table = next(p for p in result.panels if isinstance(p, Table) and p.key.startswith("units "))
    rows = {row[0]: dict(zip([c.name for c in table.columns], row, strict=True)) for row in table.rows}
    for row in rows.values():  # "red (color)"
        row["concept"], _, kind = (row["concept"] or "").rpartition(" (")
        row["category"] = kind.rstrip(")")
    return rows


def number(result: Result, key: str) -> float | None:
    return next(p.value for p in result.panels if isinstance(p, Number) and p.key == key)


def test_denominators_know_which_pictures_were_annotated_for_a_category() -> None:
    # Two pictures of 8 x 8, one unit that is high on the left half of both. The first is annotated for objects (its
    # left half is a cat) and colours (all red); the second only for colours (its left half is blue, the rest red).
    concepts = (("color", "blue"), ("color", "red"), ("object", "cat"))
    pixels = np.zeros((1, 8, 8))
    pixels[:, :, :4] = np.linspace(1, 2, 32).reshape(8, 4)
    one, two = np.full((2, 8, 8), NONE, np.int32), np.full((2, 8, 8), NONE, np.int32)
    one[0], one[1, :, :4] = 1, 2
    two[0] = 1
    two[0, :, :4] = 0
    pictures = Images.of([as_it_is(pixels, ConceptMaps(concepts, one), "one"),
                          as_it_is(pixels, ConceptMaps(concepts, two), "two")])
    result = dissected(Shown(1), pictures, 8, 1, quantile=0.5, permutations=0, layer="units")
    # The threshold is the 65-th largest of 128 values, 0; strictly above it are 32 pixels of each picture.
    row = units(result)[0]
    assert row["threshold"] == 0
    assert (row["concept"], row["IoU"]) == ("cat", 1.0)  # 32 / (32 + 32 - 32): the second picture does not count
    # blue: 32 / (64 + 32 - 32); red, 32 of whose 96 pixels are under the mask: 32 / (64 + 96 - 32)
    assert row["next concepts"] == "blue 0.500, red 0.250"
    told = ConceptMaps(concepts, two, annotated=("color", "object"))  # now somebody looked, and there is no cat
    pictures = Images.of([pictures[0], as_it_is(pixels, told, "two")])
    row = units(dissected(Shown(1), pictures, 8, 1, quantile=0.5, permutations=0, layer="units"))[0]
    assert row["next concepts"] in ("cat 0.500, red 0.250", "blue 0.500, red 0.250")  # 32 / (64 + 32 - 32)
    assert row["IoU"] == 0.5


class Planted(nn.Module):
    """Units set by hand: red, green, blue, yellow, edges along x, edges along y; and two of noise-like weights."""

    names = ("red", "green", "blue", "yellow", "horizontal stripes", "vertical stripes")

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 9, padding=4), nn.Linear(6, 2)
        with torch.no_grad():
            for part in (self.one, self.two):
                part.weight.zero_()
                assert part.bias is not None
                part.bias.zero_()
            for unit, colour in enumerate([(1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 2, -3)]):
                self.one.weight[unit, :, 1, 1] = torch.tensor(colour, dtype=torch.float32)
                self.two.weight[unit, unit, 4, 4] = 1
            for unit, sign, along in ((4, 1, 0), (5, -1, 0), (6, 1, 1), (7, -1, 1)):
                for place in (0, 2):
                    where = (place, 1) if along == 0 else (1, place)
                    self.one.weight[(unit, slice(None), *where)] = float(sign * (place - 1))
                self.two.weight[4, unit] = (1 if along == 0 else -2) / 81
                self.two.weight[5, unit] = (1 if along == 1 else -2) / 81

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))
        return y


COUNT, SHARE = 64, 0.02
PICTURES = Images.of(load_images(f"concepts:{COUNT}"))  # rendered once


@pytest.fixture(scope="module")
def planted() -> Result:
    return dissected(Planted(), PICTURES, SIDE, layer="two", quantile=SHARE)


def test_planted_detectors_are_found_and_named(planted: Result) -> None:
    rows = units(planted)
    assert [rows[k]["concept"] for k in range(6)] == list(Planted.names)
    assert [rows[k]["category"] for k in range(6)] == ["color"] * 4 + ["texture"] * 2
    assert all(row["IoU"] > 0.04 and row["label of one half"] == row["concept"] for row in rows.values())
    assert all(row["share of the mask"] > 0.9 for unit, row in rows.items() if unit < 4)
    assert number(planted, "unique") == number(planted, "detectors") == 6
    assert number(planted, "stable") == 1
    assert planted.verdicts[0].passed
    assert planted.cost.forwards == 2 * COUNT


def test_the_best_possible_iou_of_a_colour_is_reached(planted: Result) -> None:
    # Nearly q of all pixels lie above the threshold (some are equal), and all of them are red: q / (share of red).
    red = np.mean([(image.concepts.planes[0] == NUMBER["color", "red"]).mean() for image in PICTURES if image.concepts])
    assert 0.9 * SHARE / red <= units(planted)[0]["IoU"] <= SHARE / red + 1e-4


def test_no_detector_matches_the_concepts_of_other_pictures(planted: Result) -> None:
    chance = number(planted, "chance")
    assert chance is not None
    assert chance <= 3  # of 6: with 64 pictures a stripe may well lie where another picture has one
    assert all(row["p"] == pytest.approx(1 / 21, abs=1e-4) for row in units(planted).values())


def test_pictures_of_a_unit_are_bright_only_in_its_mask(planted: Result) -> None:
    drawn = {p.key: p for p in planted.panels if isinstance(p, Picture)}
    assert len(drawn) == 6
    pixels = drawn["unit 0"].pixels.astype(int)
    assert pixels.shape == (112, 5 * 112 + 4 * 4, 3)
    bright = pixels[:, :112].max(2) > 150
    assert bright.any()
    red, green, blue = pixels[:, :112][bright].T
    assert (red > green + 60).all()
    assert (red > blue + 60).all()


def test_random_weights_detect_nearly_nothing() -> None:
    detectors = {}
    for weights in (None, "random"):
        result = NetworkDissection(permutations=2)(Subject((load("xai:photo20", weights=weights),), PICTURES[:48]))
        detectors[weights] = number(result, "detectors") or 0
    assert len(units(result)) == 208
    assert detectors["random"] <= 0.08 * 208  # Bau et al. found 9 of 256 in an untrained AlexNet
    assert detectors[None] >= 4 * detectors["random"]
    noise = torch.rand(COUNT, 6, 7, 7, generator=torch.Generator().manual_seed(1)).numpy()
    blind = Images.of([as_it_is(one, image.concepts, f"{i}") for i, (one, image) in
                       enumerate(zip(noise, PICTURES, strict=True))])  # units that see nothing of the concepts
    result = dissected(Shown(6), blind, 7, 6, layer="units", permutations=10)
    assert all(row["p"] > 1 / 11 or row["IoU"] < 0.04 for row in units(result).values())


def test_both_halves_and_the_table_are_sums_over_pictures() -> None:
    """Everything that the analyzer counts, against a slow version of the whole."""
    noise = torch.rand(12, 3, 9, 9, generator=torch.Generator().manual_seed(2)).numpy()
    concepts = (("color", "p"), ("color", "q"), ("scene", "s"))
    rng = np.random.default_rng(4)
    maps = [ConceptMaps(concepts, rng.integers(-1, 2, (1, 9, 9)).astype(np.int32), (2,) if i % 3 else ())
            for i in range(12)]
    pictures = Images.of([as_it_is(one, own, f"{i}") for i, (one, own) in enumerate(zip(noise, maps, strict=True))])
    rows = units(dissected(Shown(3), pictures, 9, 3, quantile=0.1, permutations=3, layer="units", seed=7))
    order = torch.randperm(12, generator=seeds.generator(7, "network_dissection order")).tolist()
    flat = noise.transpose(1, 0, 2, 3).reshape(3, -1)
    cut = np.sort(flat, axis=1)[:, -(int(0.1 * flat.shape[1]) + 1)]
    table, halves = np.zeros((3, 3)), np.zeros((2, 3, 3))
    for half, which in ((None, order), (0, order[::2]), (1, order[1::2])):
        for k in range(3):
            for c in range(3):
                shared = mask = area = 0
                for i in which:
                    own = (maps[i].planes[0] == c) if c < 2 else np.full((9, 9), 2 in maps[i].whole)
                    unit = noise[i, k] > cut[k]
                    shared, area = shared + int((own & unit).sum()), area + int(own.sum())
                    mask += int(unit.sum()) if c < 2 or own.any() else 0  # scenes: only where one was named
                target = table if half is None else halves[half]
                target[k, c] = shared / (mask + area - shared)
    for k, row in rows.items():
        assert row["IoU"] == round(float(table[k].max()), 4)
        assert row["concept"] == concepts[table[k].argmax()][1]
        assert row["label of one half"] == concepts[halves[0, k].argmax()][1]
        assert row["its IoU on the other"] == round(float(halves[1, k, halves[0, k].argmax()]), 4)


def test_memory_does_not_grow_with_the_pictures_but_for_what_lies_above(monkeypatch: pytest.MonkeyPatch) -> None:
    def held(count: int) -> dict[str, Array]:
        model = Model(Planted().eval(), mean=[0.0] * 3, std=[1.0] * 3, size=32)
        subject = Subject((model,), PICTURES[:count])
        method = NetworkDissection(layer="two", permutations=2)
        state = method.start(subject)
        for stage in range(2):
            for block in blocks(subject, method.block, Left()):
                method.update(state, block, stage)
        return state

    few, many = held(8), held(40)
    fixed = {key for key in few if few[key].shape == many[key].shape}
    assert {key for key in few if key not in fixed} == {"names", "place", "shown", "0/kept", "0/pooled"}
    assert many["0/kept"].shape == (6, 2 * (int(0.005 * 40 * 32 * 32) + 1) + _thresholds.EXTRA)
    monkeypatch.setattr(network_dissection, "HELD", 1000)
    tight = held(8)
    assert isinstance(tight["0/kept"], np.memmap)
    assert isinstance(tight["0/null"], np.memmap)
    for key in ("0/shared", "0/thresholds", "0/null", "pixels"):
        assert np.array_equal(tight[key], few[key])


def test_parts_counted_alone_add_up() -> None:
    model = Model(Planted().eval(), mean=[0.0] * 3, std=[1.0] * 3, size=32)
    subject, method = Subject((model,), PICTURES), NetworkDissection(layer="two", permutations=2)
    whole = merged = method.start(subject)
    for stage in range(2):
        parts = []
        for block in blocks(subject, 32, Left()):
            part = {key: value.copy() for key, value in merged.items()}
            part["count"][stage] = block.first
            method.update(part, block, stage)
            parts.append(part)
        whole = {key: value.copy() for key, value in merged.items()} if stage == 0 else whole
        for block in blocks(subject, 32, Left()):
            method.update(whole, block, stage)
        merged = method.merge(parts)
        skip = ("0/kept", "0/filled", "0/floor")  # what is kept beyond need depends on the order
        assert set(merged) == set(whole)
        for key in set(whole) - set(skip):
            assert np.array_equal(merged[key], whole[key]), key
    assert merged["count"].tolist() == [64, 64]


def test_several_layers_are_counted_in_the_same_passes() -> None:
    result = dissected(Planted(), PICTURES[:12], 32, layer="two", also="one", permutations=2)
    alone = dissected(Planted(), PICTURES[:12], 32, layer="one", permutations=2)
    keys = [p.key for p in result.panels if isinstance(p, Table)]
    assert keys == ["categories", "units two", "units one"]
    assert result.cost.forwards == 24
    tables = {p.key: p for p in [*result.panels, *alone.panels] if isinstance(p, Table) and p.key == "units one"}
    assert tables["units one"].rows == next(p.rows for p in result.panels if p.key == "units one")  # type: ignore[union-attr]


# --- INVERT and CLIP-Dissect ---
def test_aucs_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((70, 90)).round(1).astype(np.float32)  # ties
    shown = rng.random((90, 5)) < [0.5, 0.1, 0.02, 1, 0]
    shown[:2, 2] = True
    found = _scores.aucs(values, shown, 2)
    assert found is not None
    for c in range(3):
        for k in (0, 63, 64, 69):
            assert found[k, c] == pytest.approx(roc_auc_score(shown[:, c], values[k]), abs=1e-12)
    assert np.isnan(found[:, 3:]).all()
    assert _scores.aucs(values, shown, 60) is None


def slow_wpmi(values: Array, likeness: Array) -> Array:
    """Soft-WPMI as the paper's code has it, one unit and word at a time."""
    match = torch.softmax(torch.from_numpy(10 * likeness), 1).numpy()
    said = np.zeros((len(values), likeness.shape[1]))
    for k, own in enumerate(values):
        top = sorted(range(len(own)), key=lambda i: -own[i])[:100]
        for c in range(likeness.shape[1]):
            said[k, c] = sum(np.log(1 + (0.998 - r / len(top) * 0.028) * (match[i, c] - 1) + 1e-7)
                             for r, i in enumerate(top))
    prior = np.log(np.exp(said - said.max()).sum(0)) + said.max() - np.log(len(values))
    return np.asarray(said - prior)


def test_words_are_scored_as_by_a_slow_version() -> None:
    rng = np.random.default_rng(1)
    values, likeness = rng.standard_normal((4, 130)), rng.uniform(-0.1, 0.4, (130, 6))
    found = _scores.soft_wpmi(values, likeness)
    np.testing.assert_allclose(found, slow_wpmi(values, likeness), rtol=1e-9)
    np.testing.assert_allclose(_scores.soft_wpmi(np.exp(values), likeness), found)  # only the order counts
    np.testing.assert_allclose(_scores.soft_wpmi(values, likeness[:, ::-1]), found[:, ::-1])
    np.testing.assert_allclose(_scores.soft_wpmi(values[:1], likeness), 0, atol=1e-9)  # one unit is its own prior


def embedded(folder: Path, count: int, red: Array) -> dict[str, str]:
    """Embeddings in which the word red lies beside pictures that are red."""
    angle = np.where(red > np.quantile(red, 0.8), 0.1, 1.4)
    save_file({"images": np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)[:count],
               "texts": np.eye(2, dtype=np.float32)}, folder / "clip.safetensors")
    (folder / "words.txt").write_text("scarlet\nanything\n")
    return {"embeddings": str(folder / "clip.safetensors"), "words": str(folder / "words.txt")}


def test_words_of_the_users_embeddings_are_told(tmp_path: Path) -> None:
    pictures = PICTURES[:40]
    channels = [image.pixels.astype(float) / 255 for image in pictures]
    red = np.array([np.maximum(0, one[0] - one[1] - one[2]).mean() for one in channels])
    given = embedded(tmp_path, 40, red)
    result = dissected(Planted(), pictures, 32, layer="two", permutations=0, **given)
    assert {unit: row["word"] for unit, row in units(result).items()}[0] == "scarlet"  # in the order of the data


@pytest.mark.parametrize(("breaks", "says"), [
    (lambda f: (f / "clip.safetensors").write_bytes(b"x"), "a .safetensors file"),
    (lambda f: (f / "words.txt").write_text("one\n"), "2 texts and 1 words"),
    (lambda f: (f / "words.txt").unlink(), "a text file, one a line"),
    (lambda f: save_file({"images": np.zeros((4, 2), np.float32)}, f / "clip.safetensors"), "named images and texts"),
    (lambda f: embedded(f, 3, np.arange(4.0)), "of the 4 pictures"),
    (lambda f: save_file({"images": np.full((4, 2), np.nan, np.float32), "texts": np.eye(2, dtype=np.float32)},
                         f / "clip.safetensors"), "finite"),
])
def test_damaged_embeddings_give_a_sentence(tmp_path: Path, breaks: Any, says: str) -> None:
    given = embedded(tmp_path, 4, np.arange(4.0))
    breaks(tmp_path)
    with pytest.raises(XaiError, match=says):
        dissected(Planted(), PICTURES[:4], 32, layer="two", **given)


# --- other pictures, bad values, the command line ---
def test_pictures_without_concepts_have_their_colours_and_their_labels() -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(10):
        pixels = rng.integers(100, 120, (3, 32, 32)).astype(np.uint8)
        pixels[:, :, :9] = np.array(COLOURS["red"])[:, None, None] - rng.integers(0, 12, (3, 32, 9))
        mask = np.zeros((32, 32), bool)
        y, x = rng.integers(4, 20, 2)
        mask[y : y + 6, x + 6 : x + 12] = True
        pixels[:, mask] = np.array(COLOURS["green"])[:, None] - rng.integers(0, 12, (3, 36))
        pictures.append(Image.of(f"{i}", pixels, label="leaf", mask=mask))
    rows = units(dissected(Planted(), Images.of(pictures), 32, layer="two", quantile=0.02, permutations=2))
    assert rows[0]["concept"] == "red"
    assert rows[1]["concept"] in ("green", "leaf")
    assert {one.split()[0] for one in rows[1]["next concepts"].split(", ")} >= {"leaf"} or rows[1]["concept"] == "leaf"


def test_activations_that_are_not_finite_give_a_sentence() -> None:
    module = Planted()
    module.two.bias.data.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(XaiError, match=r"activations of two must be finite; got NaN"):
        dissected(module, PICTURES[:2], 32, layer="two")


def test_inputs_of_several_sizes_give_a_sentence() -> None:
    pictures = Images.of([as_it_is(np.ones((3, n, n)), None, str(n)) for n in (8, 10)])
    with pytest.raises(XaiError, match=r"inputs must be of one size; got"):
        dissected(Shown(3), pictures, 8, layer="units")


def test_one_picture_has_no_other_to_be_compared_with() -> None:
    result = dissected(Planted(), PICTURES[:1], 32, layer="two")
    assert "chance" not in {p.key for p in result.panels}
    assert {row["p"] for row in units(result).values()} == {None}
    assert result.verdicts[0].passed is None


def test_the_command_line_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, more in enumerate((["--data", "concepts:6@3"], ["--set", "pictures=6", "--seed", "3"])):
        words = ["analyze", "network_dissection", "--model", "xai:photo20", "--set", "permutations=2", "--out"]
        monkeypatch.setattr(sys, "argv", ["xai", *words, f"page{number}", *more])
        assert main() == 0
    one, two = (Result.load(tmp_path / f"page{number}") for number in range(2))
    assert one.analyzer == "network_dissection"
    assert len(units(one)) == 208
    assert {row["threshold"] for row in units(one).values()} == {row["threshold"] for row in units(two).values()}
    assert (tmp_path / "page0" / "index.html").read_text().count("Unit ") >= 16
