"""SP-LIME: the pick against brute force and the package, words against planted ones, nothing by superpixel id."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.concepts import _drawn, _pick, _words
from analyzers.concepts.sp_lime import SPLIME, _outputs
from tests.command_line import CommandLine
from tests.test_zoo_programs import onnx_file
from xai import run
from xai.ask import Ask
from xai.errors import XaiError
from xai.images import Images, load_images
from xai.model import Model
from xai.panels import Curve, Number, Picture, Table, Text
from xai.plan import plan
from xai.result import Result
from xai.sampler import Sampler
from xai.subject import Subject
from xai.targets import Target
from xai.zoo.loading import load


# --- the pick ---
def sparse(m: int, d: int, seed: int, share: float = 0.3) -> Tensor:
    """(m, d) with about so many entries, of both signs."""
    draws = torch.Generator().manual_seed(seed)
    there = torch.rand(m, d, generator=draws) < share
    return torch.randn(m, d, generator=draws, dtype=torch.float64) * there


def together(w: Tensor) -> _pick.Coverage:
    return _pick.Coverage(w, torch.zeros(len(w), dtype=torch.long))


def covers(w: Tensor, rows: Sequence[int]) -> float:
    """c(V) as the paper writes it, slowly."""
    worth = [math.sqrt(sum(abs(float(w[i, j])) for i in range(len(w)))) for j in range(w.shape[1])]
    return sum(worth[j] for j in range(w.shape[1]) if any(abs(float(w[i, j])) > 0 for i in rows))


def slow_pick(w: Tensor, budget: int) -> list[int]:
    """The greedy pick written out: of equal rows the first, none without gain."""
    rows: list[int] = []
    while len(rows) < budget:
        gains = [covers(w, [*rows, i]) - covers(w, rows) if i not in rows else 0.0 for i in range(len(w))]
        if max(gains) <= 1e-12:
            break
        rows.append(next(i for i, gain in enumerate(gains) if gain >= max(gains) - 1e-12))
    return rows


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.1, 0.9))
def test_the_greedy_pick_is_as_good_as_it_must_be_and_its_gains_never_grow(seed: int, share: float) -> None:
    w = sparse(10, 8, seed, share)
    if not w.any():
        return
    coverage = together(w)
    pick = coverage.greedy([3])
    best = max(covers(w, rows) for rows in itertools.combinations(range(10), 3))
    assert covers(w, pick.rows) >= (1 - 1 / math.e) * best - 1e-12
    assert all(a >= b > 0 for a, b in itertools.pairwise([*pick.gains, pick.gains[-1]]))
    assert list(pick.rows) == slow_pick(w, 3)
    everything = covers(w, range(10))
    curve = [covers(w, pick.rows[:b]) / everything for b in range(len(pick.rows) + 1)]
    assert_close(coverage.of(pick.rows), curve)
    assert_close(list(itertools.accumulate(pick.gains)), curve[1:])
    for row, new, before in zip(pick.rows, pick.new, range(3), strict=False):
        known = {j for i in pick.rows[:before] for j in w[i].nonzero().flatten().tolist()}
        assert set(new) == set(w[row].nonzero().flatten().tolist()) - known


class Told:
    """What the package wants of an explanation: the row of a matrix."""

    mode = "classification"

    def __init__(self, row: Tensor) -> None:
        self.row = row

    def available_labels(self) -> list[int]:
        return [1]

    def as_list(self, label: int = 1) -> list[tuple[int, float]]:
        return [(j, float(v)) for j, v in enumerate(self.row)]


class Explainer:
    """Explains a row by itself."""

    def explain_instance(self, row: Tensor, *_: Any, **__: Any) -> Told:
        return Told(row)


def of_the_package(w: Tensor, budget: int) -> list[int]:
    from lime.submodular_pick import SubmodularPick

    return SubmodularPick(Explainer(), w, None, method="full", num_exps_desired=budget).V


def test_the_pick_is_that_of_the_lime_package() -> None:
    """Of equal rows the package takes the last: it is given them from the last to the first."""
    compared = 0
    for seed in range(12):
        w = sparse(15, 12, seed, 0.15)
        pick = together(w).greedy([4])
        compared += len(pick.rows)
        assert [14 - row for row in of_the_package(w.flip(0), 4)[: len(pick.rows)]] == list(pick.rows)
    assert compared > 40


def test_of_equal_rows_the_first_is_picked_and_never_the_second() -> None:
    """The package takes the last; and it picks on without any gain."""
    w = torch.tensor([[0.0, 1, 0], [1, 0, 1], [1, 0, 1], [0, 1, 0]])
    pick = together(w).greedy([4])
    assert pick.rows == (1, 0)
    assert pick.new == ((0, 2), (1,))
    assert of_the_package(w, 2)[0] == 2
    for seed in range(20):
        single = sparse(6, 7, seed, 0.4)
        if single.any():
            twice = together(single.repeat(2, 1)).greedy([12])
            assert not any(row >= 6 for row in twice.rows)
            assert twice.gains == pytest.approx(together(single).greedy([6]).gains)


def test_without_sparsification_one_picture_covers_everything() -> None:
    w = sparse(10, 12, 0, 1.0)
    assert together(w).greedy([5]).rows == (0,)
    few = _pick.sparsified(w, 3)
    assert ((few != 0).sum(1) == 3).all()
    assert_close(few.abs().sum(1), w.abs().topk(3, 1).values.sum(1))
    assert (few[few != 0] == w[few != 0]).all()
    assert len(together(few).greedy([5]).rows) > 2
    assert _pick.sparsified(torch.tensor([[1.0, -1, 1]]), 2).tolist() == [[1, -1, 0]]
    assert torch.equal(_pick.sparsified(w, 99), w)


def test_each_group_is_picked_as_if_it_were_alone() -> None:
    w, groups = sparse(12, 9, 3), torch.tensor([0, 1, 2] * 4)
    both = _pick.Coverage(w, groups).greedy([2, 3, 1])
    assert sorted(both.gains, reverse=True) == list(both.gains)
    for g, budget in enumerate((2, 3, 1)):
        rows = (groups == g).nonzero().flatten()
        alone = together(w[rows]).greedy([budget])
        assert [r for r in both.rows if groups[r] == g] == rows[list(alone.rows)].tolist()


def test_a_budget_is_shared_out_by_the_square_roots() -> None:
    assert _pick.shared_out(6, [100, 25, 25]) == [3, 2, 1]  # 10, 5, 5: 3, 1.5, 1.5, and of equal ones the first
    assert _pick.shared_out(12, [900, 100]) == [9, 3]
    assert _pick.shared_out(3, [1, 10_000, 4, 9]) == [0, 1, 1, 1]  # too few for all: the largest
    assert _pick.shared_out(5, [1, 10_000]) == [1, 4]
    assert _pick.shared_out(50, [2, 3]) == [2, 3]


def test_random_picks_cover_what_they_do_on_average() -> None:
    w, groups = sparse(7, 9, 5), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    coverage = _pick.Coverage(w, groups)
    pick = coverage.greedy([2, 1])
    mean, low, high = coverage.chance([2, 1], pick.rows, 4000, torch.Generator().manual_seed(0))
    order = [int(groups[r]) for r in pick.rows]
    picks = [rows for rows in itertools.permutations(range(7), 3) if [int(groups[r]) for r in rows] == order]
    exact = torch.tensor([coverage.of(rows) for rows in picks], dtype=torch.float64)
    assert_close(mean, exact.mean(0), rtol=0, atol=0.01)
    assert_close(torch.stack([low, high]), exact.quantile(torch.tensor([0.025, 0.975]).double(), 0), rtol=0, atol=0.05)
    full = coverage.chance([4, 3], pick.rows, 5, torch.Generator().manual_seed(0))
    assert_close(torch.stack([one[-1] for one in full]), torch.ones(3, dtype=torch.float64))


def test_agreement_by_chance_is_the_mean_over_all_pairs_of_picks() -> None:
    assert _pick.jaccard([1, 2, 3], [3, 4]) == 0.25
    assert _pick.jaccard([], []) is None
    ones, twos = list(itertools.combinations(range(6), 2)), list(itertools.combinations(range(6), 3))
    mean = np.mean([_pick.jaccard(a, b) for a in ones for b in twos])
    assert _pick.expected_jaccard([2], [3], [6]) == pytest.approx(mean)
    grouped = list(itertools.product(range(3), range(3, 7)))
    mean = np.mean([_pick.jaccard(a, b) for a in grouped for b in grouped])
    assert _pick.expected_jaccard([1, 1], [1, 1], [3, 4]) == pytest.approx(mean)


# --- the words ---
@pytest.mark.parametrize(("grid", "size"), [((4, 4), (12, 12)), ((3, 5), (7, 12)), ((2, 7), (9, 5))])
def test_a_superpixel_is_the_mean_of_the_map_over_its_area(grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Slowly: every cell spread over its pixels, each pixel cut fine enough for the cells' borders."""
    draws = torch.Generator().manual_seed(0)
    features, labels = torch.randn(3, *grid, generator=draws), torch.randint(5, size, generator=draws)
    (h, w), (high, wide) = grid, size
    fine = features.double().repeat_interleave(high, 1).repeat_interleave(wide, 2)
    spread = labels.repeat_interleave(h, 0).repeat_interleave(w, 1)
    expected = torch.stack([fine[:, spread == s].mean(1) for s in range(5)])
    assert_close(_words.pooled(features, labels), expected)
    assert_close(_words.overlap(grid[0], size[0]).sum(0), torch.ones(size[0], dtype=torch.float64))
    many = torch.arange(high * wide).view(size)  # more than fit into a block of masks
    assert_close(_words.pooled(features, many).mean(0), features.double().mean((1, 2)))


def clusters(sizes: Sequence[int], dims: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Unit vectors around orthogonal directions, shuffled, and the direction of each."""
    draws = torch.Generator().manual_seed(seed)
    truth = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    truth = truth[torch.randperm(len(truth), generator=draws)]
    noise = spread * torch.randn(len(truth), dims, generator=draws, dtype=torch.float64)
    return _words.unit(torch.eye(len(sizes), dims, dtype=torch.float64)[truth] + noise), truth


def same_groups(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one[:, None] == one, two[:, None] == two)


def test_planted_words_are_found_whatever_the_order_and_the_seed() -> None:
    vectors, truth = clusters([30, 12, 5, 3], 8, 0.1, 0)
    for seed in range(5):
        found = _words.group(vectors, 4, torch.Generator().manual_seed(seed))
        assert same_groups(found.of, truth)
        order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))
        again = _words.group(vectors[order], 4, torch.Generator().manual_seed(9))
        assert same_groups(again.of, truth[order])
    for j in range(4):
        assert_close(found.centres[j], torch.nn.functional.normalize(vectors[found.of == j].mean(0), dim=0))
    cosine = vectors @ found.centres.T
    assert_close(found.likeness, cosine.amax(1))
    assert_close(found.other, cosine.sort(1).values[:, -2])


def test_more_runs_are_never_worse_and_sharp_ones_are_the_best_there_is() -> None:
    vectors = _words.unit(torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    best = max(sum(float(vectors[[i for i in range(9) if part[i] == j]].sum(0).norm()) for j in set(part))
               for part in itertools.product(range(2), repeat=9))  # the sum of cosines to a mean at length 1
    few, many = (_words.group(vectors, 2, torch.Generator().manual_seed(0), runs) for runs in (1, 30))
    assert float(many.likeness.sum()) >= float(few.likeness.sum()) - 1e-12
    assert_close(float(many.likeness.sum()), best)


def test_there_are_no_more_words_than_distinct_vectors() -> None:
    vectors = torch.eye(3)[[0, 1, 1, 0, 2]].float()
    vectors[3] *= 1 + 1e-6
    found = _words.group(vectors, 7, torch.Generator().manual_seed(0))
    assert len(found.centres) == 3
    assert same_groups(found.of, torch.tensor([0, 1, 1, 0, 2]))
    alone = _words.group(vectors[:1], 5, torch.Generator().manual_seed(0))
    assert alone.of.tolist() == [0]
    assert alone.other.tolist() == [-1]


def test_nothing_is_drawn_from_the_callers_random_numbers() -> None:
    vectors, _ = clusters([9, 9], 5, 0.4, 0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = _words.group(vectors, 6, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again = _words.group(vectors, 6, torch.Generator().manual_seed(0))
    assert torch.equal(first.of, again.of)
    assert torch.equal(first.centres, again.centres)


def test_superpixels_are_numbered_where_they_first_appear() -> None:
    labels = torch.tensor([[3, 3, 1], [0, 3, 1], [0, 2, 2]])
    assert _words.raster(labels).tolist() == [[0, 0, 1], [2, 0, 1], [2, 3, 3]]
    names = torch.tensor([2, 0, 3, 1])
    assert torch.equal(_words.raster(names[labels]), _words.raster(labels))


# --- what is drawn ---
def test_what_is_kept_of_a_picture_comes_back() -> None:
    values = np.random.default_rng(0).integers(0, 60_000, (40, 30)).astype(np.uint16)
    assert (_drawn.Packed.of(values).array() == values).all()
    large = np.random.default_rng(0).integers(0, 255, (700, 20, 3)).astype(np.uint8)
    assert (_drawn.Packed.of(large).array() == large[::3, ::3]).all()


def test_words_are_outlined_on_their_superpixels() -> None:
    seen = np.full((96, 96, 3), 100, dtype=np.uint8)
    labels = (np.arange(96)[:, None] // 48 * 2 + np.arange(96) // 48).astype(np.uint16)
    pixels, marks = _drawn.numbered(seen, labels, [("7", [0, 1]), ("2", [3])])
    assert pixels.shape == (192, 192, 3)
    assert [mark.label for mark in marks] == ["word 7", "word 2"]
    assert set(marks[0].points) == {(0, 0), (192, 0), (192, 96), (0, 96)}
    written = (pixels > 230).all(2)
    assert written[:96].any() and written[96:, 96:].any()  # noqa: PT018  # both names
    assert not written[96:, :96].any()


def test_a_strip_shows_superpixels_sharp_and_the_rest_faded() -> None:
    seen = np.zeros((40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:20, 12:22] = True
    seen[mask] = 255
    sheet = _drawn.strip([(seen, mask)], 3)
    assert sheet.shape == (_drawn.TILE, 3 * _drawn.TILE + 2 * _drawn.GAP, 3)
    assert (sheet[_drawn.TILE // 2, _drawn.TILE // 2] == 255).all()
    assert (sheet[1, 1] == round(_drawn.GREY * (1 - _drawn.FADED))).all()
    assert (sheet[:, _drawn.TILE :] == _drawn.GREY).all()


# --- the whole, on planted pictures ---
COLOURS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0)}


class Lamps(nn.Module):
    """How much red there is, and how much green; its one layer has a channel for either."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.head = nn.Conv2d(3, 2, 8, stride=8), nn.Linear(2, 2)
        with torch.no_grad():
            self.look.weight.zero_()
            self.look.bias.fill_(-0.05)
            for c in range(2):
                self.look.weight[c, c] = 1 / 64
                self.look.weight[c, 1 - c] = -1 / 64
            self.head.weight.copy_(torch.eye(2) * 8)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.look(x).relu().mean((2, 3)))


def lit(names: Sequence[str], seed: int = 0) -> Images:
    """Dim noise, 32 x 32, in each of whose pictures one cell of the 8 x 8 ones is lit."""
    rng, made = np.random.default_rng(seed), []
    for name in names:
        pixels = 0.1 + 0.02 * rng.random((3, 32, 32))
        y, x = 8 * rng.integers(4, size=2)
        pixels[:, y : y + 8, x : x + 8] = 0.1 + 0.9 * np.array(COLOURS[name])[:, None, None]
        made.append(pixels.astype(np.float32))
    return load_images(made, names=[f"{name} {i}" for i, name in enumerate(names)])


def lamps(**options: Any) -> Model:
    return Model(Lamps().eval(), mean=[0.0] * 3, std=[1.0] * 3, size=32, labels=("red", "green"), **options)


def called() -> Model:
    return Model(forward=Lamps().eval(), mean=[0.0] * 3, std=[1.0] * 3, size=32, labels=("red", "green"))


MIXED = ("red", "red", "green", "red", "green", "red")


def picked(result: Result, number: int = 0) -> list[str]:
    (table,) = [p for p in result.panels if isinstance(p, Table) and p.key == f"picks_{number}"]
    return [str(row[1]) for row in table.rows]


def panel(result: Result, key: str) -> Any:
    return next(p for p in result.panels if p.key == key)


def spoken(model: Model, images: Images, **more: Any) -> Result:
    """On cells of the lamps' size, with weights that are exact; a lamp in its mean colour would not be hidden."""
    fields = {"segmentation": "grid", "segments": 16, "samples": 64, "baseline": "black", "alpha": 0.0, "words": 2,
              "picks": 2, **more}
    target = fields.pop("target", Target())
    return SPLIME(**fields)(Subject((model,), images, (target,)))


@pytest.mark.parametrize("make", [lamps, called], ids=["layer", "outputs"])
def test_of_two_planted_words_the_pick_has_one_of_each(make: Callable[[], Model]) -> None:
    result = spoken(make(), lit(MIXED))
    assert picked(result) == ["red 0", "green 2"]  # the word of four pictures first, and of equal pictures the first
    curve = panel(result, "coverage")
    weight = np.sqrt([4, 2]) / np.sqrt([4, 2]).sum()
    assert_close(curve.y[0], np.array([0, weight[0], 1]), rtol=1e-3, atol=0)
    ways = [weight[0], weight[1]]
    expected = [0, (4 * ways[0] + 2 * ways[1]) / 6, (12 * ways[0] + 2 * ways[1] + 16 * 1) / 30]
    assert_close(curve.y[1], np.array(expected), rtol=0, atol=0.05)
    words = panel(result, "words_0")
    assert [(row[0], row[2], row[3]) for row in words.rows] == [("1", 4, 1), ("2", 2, 2)]
    assert [row[-1] for row in words.rows] == pytest.approx([4 / 6, 2 / 6])
    first = panel(result, "pick_0_1")
    place = np.argwhere(np.asarray(lit(MIXED)[0].pixels)[0] > 0.9)
    (y0, x0), (y1, x1) = place.min(0), place.max(0) + 1
    (mark,) = first.marks
    assert mark.label == "word 1"
    assert set(mark.points) == {(6 * x, 6 * y) for x in (x0, x1) for y in (y0, y1)}


def test_the_page_says_what_makes_pictures_comparable_and_what_is_no_pick() -> None:
    told = {make: panel(spoken(make(), lit(MIXED)), "comparable").text for make in (lamps, called)}
    for text in told.values():
        assert "What makes the pictures comparable here are visual words" in text
        assert "To choose a segmentation and explain one picture with it is plain LIME, not SP-LIME." in text
    assert "mean activations in the layer look" in told[lamps]
    assert "one forward for each of them" in told[called]


def test_without_layers_each_superpixel_that_counts_costs_a_forward_and_the_plan_allows_for_it() -> None:
    for make, more in ((lamps, 0), (called, 1 + 1)):  # one counts in each picture, and the picture without any
        model = make()
        analyzer = SPLIME(segmentation="grid,slic", segments=16, samples=64, words=2, baseline="black", alpha=0)
        result = analyzer(Subject((model,), lit(MIXED)))
        least = len(MIXED) * (1 + 2 * (63 + more))
        assert result.cost.forwards >= least
        assert result.cost.forwards == least or make is called  # where SLIC may cut a lamp in two
        assert analyzer.cost(Subject((model,), lit(MIXED))).forwards >= result.cost.forwards
    exact = spoken(called(), lit(MIXED))
    assert exact.cost.forwards == len(MIXED) * (1 + 63 + 2)
    rows = plan(Ask(models=(called(),), images=(lit(MIXED),), methods=("sp_lime",))).rows
    assert sum(row.forwards for row in rows) >= exact.cost.forwards
    with pytest.raises(XaiError, match="access to its layers"):
        spoken(called(), lit(MIXED), embed="layer")
    asked = spoken(lamps(), lit(MIXED), embed="outputs")
    assert picked(asked) == picked(exact)
    assert asked.cost.forwards == exact.cost.forwards


def labelled(folder: Path, images: Images, permuted: bool) -> Path:
    """A label map for each picture: the grid's cells, by their row or numbered at random."""
    folder.mkdir()
    rng = np.random.default_rng(8)
    for name in images.names:
        cells = np.arange(32)[:, None] // 8 * 4 + np.arange(32) // 8
        np.save(folder / f"{name}.npy", rng.permutation(16)[cells] if permuted else cells)
    return folder


def by_id(folder: Path, images: Images, model: Model) -> list[int]:
    """The pick with a column for each superpixel id, as the package would make it of pictures."""
    w = torch.zeros(len(images), 16)
    for i, batch in enumerate(model.prepare(images, chunk=1)):
        labels = np.load(folder / f"{images.names[i]}.npy")
        place = np.argwhere(batch.seen[0].max(2) > 200)[0]
        w[i, int(labels[tuple(place)])] = 1.0
    return slow_pick(w, 3)


def test_how_superpixels_are_numbered_does_not_matter(tmp_path: Path) -> None:
    images = lit(["red", "green"] * 3)
    folders = [labelled(tmp_path / str(permuted), images, permuted) for permuted in (False, True)]
    results = [spoken(lamps(), images, segmentation=str(folder)) for folder in folders]
    assert picked(results[0]) == picked(results[1])
    plain = [[p for p in result.panels if not isinstance(p, Text)] for result in results]
    for one, two in zip(*plain, strict=True):
        for key, value in vars(one).items():
            if isinstance(value, np.ndarray):
                assert (value == getattr(two, key)).all()
        if isinstance(one, Table) and one.key != "segmentations":
            assert one.rows == two.rows  # type: ignore[attr-defined]  # of the same kind
    assert by_id(folders[0], images, lamps()) != by_id(folders[1], images, lamps())


def test_two_segmentations_stand_side_by_side_and_each_is_as_it_is_alone() -> None:
    images = lit(MIXED, 3)
    both = spoken(lamps(), images, segmentation="grid, slic", words=3)
    for number, how in enumerate(("grid", "slic")):
        alone = spoken(lamps(), images, segmentation=how, words=3)
        assert picked(both, number) == picked(alone)
        line = panel(both, "coverage").y[2 * number]
        assert_close(line[: len(panel(alone, "coverage").x)], panel(alone, "coverage").y[0])
    curve = panel(both, "coverage")
    assert curve.names == ("grid", "grid, random", "slic", "slic, random")
    agreement = panel(both, "agreement_0_1")
    mine, theirs = set(picked(both, 0)), set(picked(both, 1))
    assert agreement.value == pytest.approx(len(mine & theirs) / len(mine | theirs))
    table = panel(both, "segmentations")
    assert [column.name for column in table.columns] == ["", "grid", "slic"]
    assert not [p for p in spoken(lamps(), images).panels if isinstance(p, Number)]


def test_each_class_can_have_a_pick_of_its_own() -> None:
    """Red is in four pictures, green in two; one word serves all of a class, so that a second picture adds nothing."""
    each = spoken(lamps(), lit(MIXED), by_class="each", picks=1)
    assert sorted(picked(each)) == ["green 2", "red 0"]
    only = spoken(lamps(), lit(MIXED), by_class="sqrt", picks=1)
    assert picked(only) == ["red 0"]
    spread = spoken(lamps(), lit(MIXED), by_class="sqrt", picks=4)
    assert sorted(picked(spread)) == ["green 2", "red 0"]
    assert "Each predicted class has a pick of its own" in panel(spread, "picks_0").note
    torch.manual_seed(0)
    one = Model(nn.Sequential(nn.Conv2d(3, 2, 4, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                              nn.Linear(2, 1)).eval(), mean=[0.0] * 3, std=[1.0] * 3, size=32)  # fmt: skip
    with pytest.raises(XaiError, match=r"by_class must be no for a model that has no classes; got 'sqrt'\."):
        spoken(one, lit(MIXED), by_class="sqrt")
    assert picked(spoken(one, lit(MIXED), signs="both"))


def test_what_speaks_against_a_class_has_columns_of_its_own() -> None:
    """For red, a green lamp changes nothing, and for red less green it speaks against."""
    images = lit(("red", "green"))
    contrast = {"target": Target("red - green")}
    positive = spoken(lamps(), images, **contrast)
    assert [row[0] for row in panel(positive, "words_0").rows] == ["1"]
    assert picked(positive) == ["red 0"]
    both = spoken(lamps(), images, signs="both", **contrast)
    rows = panel(both, "words_0").rows
    assert sorted((str(row[0])[-1], row[2]) for row in rows) == [("+", 1), ("\u2212", 1)]
    assert sorted(picked(both)) == ["green 1", "red 0"]
    drawn = [p for p in both.panels if p.key.startswith("pick_")]
    signs = {p.title.split(": ")[1]: [mark.label[-1] for mark in p.marks] for p in drawn}
    assert signs == {"red 0": ["+"], "green 1": ["\u2212"]}


def test_w_is_the_sum_of_the_weights_in_a_word() -> None:
    draws = torch.Generator().manual_seed(2)
    weights = [torch.randn(n, generator=draws, dtype=torch.float64) / 5 for n in (4, 0, 7, 2)]
    of = torch.randint(3, (13,), generator=draws)
    words = _words.Words(torch.eye(3), of, torch.ones(13), torch.zeros(13))
    for signs, columns in (("positive", 3), ("both", 6)):
        mine = [one.clamp_min(0) if signs == "positive" else one for one in weights]
        found, split, w = SPLIME(signs=signs, kept=2)._matrix(words, mine)
        slow = torch.zeros(4, columns, dtype=torch.float64)
        rows = [(i, float(v)) for i, one in enumerate(mine) for v in one]
        for (i, value), word in zip(rows, of.tolist(), strict=True):
            slow[i, word + (3 if value < 0 else 0)] += value
        slow = _pick.sparsified(slow, 2)
        worth = _pick.importance(slow).view(-1, 3).sum(0)
        order = [int(j) for j in np.argsort(-worth.numpy(), kind="stable")]
        assert_close(w, slow.view(4, -1, 3)[:, :, order].flatten(1))
        assert_close(found.centres, torch.eye(3)[order])
        assert [order[j] for part in split for j in part.tolist()] == of.tolist()


def test_what_is_small_does_not_count() -> None:
    weights = torch.tensor([0.05, 0.6, -0.5, 0.3, 0.05, 0.0])
    assert SPLIME()._counting(weights).tolist() == [1, 3]  # .9 of 1.0
    assert SPLIME(signs="both")._counting(weights).tolist() == [1, 2, 3]
    assert SPLIME()._counting(-weights.abs()).tolist() == []


def test_the_size_of_the_batches_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(8, 8, 3, padding=1),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()  # fmt: skip
    images, results = lit(["red", "green"] * 4), []
    for size in (1, 3, 32):
        monkeypatch.setattr(Model, "chunk", lambda self, memory_bytes=None, size=size: size)
        results.append(spoken(Model(net, mean=[0.4] * 3, std=[0.3] * 3, size=32), images, words=6, picks=5))
    for result in results[1:]:
        assert picked(result) == picked(results[0])
        assert_close(panel(result, "coverage").y, panel(results[0], "coverage").y, rtol=0, atol=1e-4)


# --- pictures and models that do not fit ---
def test_a_picture_that_cannot_take_part_is_named_and_the_others_go_on() -> None:
    names = [*MIXED, "grey", "of five channels"]
    flat = [np.full((3, 32, 32), 0.3, dtype=np.float32), np.zeros((5, 32, 32), dtype=np.float32)]
    images = load_images([*(image.pixels for image in lit(MIXED)), *flat], names=names)
    result = spoken(lamps(), images, segmentation="grid,quickshift")
    text = panel(result, "left")
    assert text.tone == "warning"
    assert "quickshift, fewer than two superpixels: " in text.text
    assert "of five channels" in text.text
    assert picked(result)
    assert panel(result, "segmentations").rows[0][1] == 7


def test_pictures_of_which_none_can_be_explained_give_the_sentence() -> None:
    constant = lamps()
    for parameter in constant._module.parameters():  # type: ignore[union-attr]  # it was made from a module
        parameter.data.zero_()
    broken = Lamps().eval()
    broken.head.weight.data.fill_(float("nan"))
    unsound = Model(broken, mean=[0.0] * 3, std=[1.0] * 3, size=32, layer="look")
    for model, said in ((constant, "grid, nothing that is shown speaks"),
                        (unsound, "grid, the model gives what is no finite")):
        with pytest.raises(XaiError, match="such that one of them can be explained") as told:
            spoken(model, lit(MIXED))
        assert said in str(told.value)
    with pytest.raises(XaiError, match="as many superpixels as the 8 pairs"):
        spoken(lamps(), lit(MIXED), samples=16)
    with pytest.raises(XaiError, match=r"sp_lime\.segmentation must be one of slic"):
        SPLIME(segmentation="slic,quikshift")
    with pytest.raises(XaiError, match=r"sp_lime\.baseline"):
        SPLIME(baseline="pink")
    with pytest.raises(XaiError, match="the pictures must be given for a pick"):
        SPLIME()(Subject((lamps(),), None))


def test_an_onnx_file_is_picked_from(tmp_path: Path) -> None:
    onnx_file(tmp_path / "net.onnx", "n")
    model = load(f"{tmp_path / 'net.onnx'}?mean=0.5&std=0.25", device="cpu")
    result = spoken(model, lit(MIXED))
    assert picked(result)
    assert "when shown alone" in panel(result, "comparable").text


def test_a_superpixel_is_embedded_by_what_the_outputs_change_by_when_it_is_shown_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, 5)).eval()
    batch = next(Model(forward=net, mean=[0.4] * 3, std=[0.3] * 3, size=32).prepare(lit(("red",))))
    labels = torch.arange(32)[:, None] // 8 * 4 + torch.arange(32) // 8
    fill, ids = torch.full((3, 32, 32), -0.5), torch.tensor([1, 6, 15])
    bound = batch.bind(Target())
    found = _outputs(Sampler(batch, 0, [bound]), bound, labels, fill, ids)
    with torch.no_grad():
        alone = torch.cat([net(torch.where(labels == s, batch.inputs[0], fill)[None]) for s in ids.tolist()])
        expected = (alone - net(fill[None])).double()
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_outputs_with_places_embed_by_their_channels() -> None:
    """A class map, its layer not used: what a superpixel does to the mean of each channel."""
    maps = nn.Sequential(Lamps().look, nn.ReLU()).eval()
    model = Model(maps, mean=[0.0] * 3, std=[1.0] * 3, size=32, head="map")
    assert picked(spoken(model, lit(MIXED), embed="outputs"))


def test_the_command_writes_one_page_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image as Pil

    (tmp_path / "photos").mkdir()
    for i, image in enumerate(lit(MIXED[:4])):
        Pil.fromarray(image.rgb()).resize((64, 64)).save(tmp_path / "photos" / f"{i}.png")
    xai = CommandLine(tmp_path, monkeypatch, capfd)
    words = ["analyze", "sp_lime", "--model", "xai:photo20", "--data", "photos", "--set", "samples=32", "--set",
             "segments=12", "--set", "segmentation=slic", "--layer", "auto"]
    planned = xai(*words, "--dry-run")
    assert planned.code == 0
    done = xai(*words)
    assert done.code == 0
    page = (done.folder / "index.html").read_text(encoding="utf-8")
    assert "slic, pick 1: " in page
    assert "visual words" in page
    result = Result.load(done.folder)
    assert result.cost.forwards == 4 * (1 + 31)
    assert [p for p in result.panels if isinstance(p, Picture) and p.key.startswith("word_0_")]
    assert isinstance(panel(result, "coverage"), Curve)


ARCHITECTURES = (pytest.param("vgg16", marks=pytest.mark.slow), "resnet50", "inception_v3", "densenet121")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_networks_of_the_sonar_paper_run_on_pictures_of_one_channel(name: str) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    try:
        from sp_lime_sonar import pictures
    finally:
        sys.path.pop(0)
    values, _ = pictures(1, 0)
    images = load_images(values[:3, None], names=["a", "b", "c"])
    done = run.analyze("sp_lime", f"torchvision:{name}?size=96", images, weights=("random",),
                       settings={"samples": "32", "segments": "9", "words": "5", "picks": "2"})
    assert picked(done.result)
    assert all(np.isfinite(a).all() for a in done.result.record()[1].values() if a.dtype.kind == "f")
