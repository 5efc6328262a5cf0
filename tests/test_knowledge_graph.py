"""Knowledge-graph alignment: measures by hand and by slow versions, nulls that hold, planted faults that are found."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil
from torch import Tensor, nn
from torch.testing import assert_close

import xai
from analyzers.concepts._left import Left
from analyzers.concepts._parts import class_of, hiding, sheets
from analyzers.concepts.knowledge_graph import KnowledgeGraph
from tests.command_line import CommandLine
from xai.alignment import Alignment, Attributed, align, backprop_weights, column_null, contradicted, contradiction
from xai.errors import XaiError
from xai.images import Image, Images, load_images
from xai.model import Model
from xai.panels import Matrix, Number, Picture, Table
from xai.result import Result
from xai.shapley import of_vectors
from xai.subject import Subject

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
PARTS, STYLES = ("arch", "rose", "dome", "lamp"), ("gothic", "moorish", "modern")


def unused() -> torch.Generator:
    raise AssertionError("nothing is to be drawn")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attributed(attr: Tensor, graph: Tensor, present: Tensor | None = None, scope: Tensor | None = None,
               asked: Tensor | None = None) -> Attributed:
    n, f, k = attr.shape
    return Attributed(attr.double(), torch.ones(n, f).bool() if present is None else present.bool(),
                      torch.ones(n, f).bool() if asked is None else asked.bool(), graph,
                      torch.ones(n, k).bool() if scope is None else scope.bool())


# --- the measures ---
def test_the_worked_case() -> None:
    one = attributed(torch.tensor([0.5, -0.5, 0.5, -0.5]).view(1, 4, 1), torch.ones(4, 1),
                     torch.tensor([[1, 1, 0, 0]]))
    assert one.edges(0.001).flatten().tolist() == [True, False, False, True]
    found = align(one)
    assert float(found.distance) == 2
    assert float(found.normalised) == pytest.approx(1 / 3)
    assert float(found.mass) == 0.5
    assert (float(found.precision), float(found.recall)) == (1, 0.5)


def test_a_small_graph_by_hand() -> None:
    """Arch and rose are gothic, the lamp speaks against it, of the dome nothing is known; a picture with all but the
    rose, whose absence speaks for gothic: one edge missed (the rose), one too many (the lamp), and 0.4 of 1."""
    attr = torch.tensor([0.3, 0.1, 0.3, 0.3]).view(1, 4, 1)
    found = align(attributed(attr, torch.tensor([[1], [1], [0], [-1]]), torch.tensor([[1, 0, 1, 1]])))
    assert float(found.distance) == 2
    assert float(found.normalised) == 2 / (2 + 2)
    assert float(found.mass) == pytest.approx(0.1 + 0.3)
    assert float(found.unknown) == pytest.approx(0.3)
    assert (float(found.precision), float(found.recall)) == (0.5, 0.5)


def slow(one: Attributed, tau: float) -> list[tuple[float, float, float]]:
    """(mass, distance, normalised) of each picture: edges as sets, by the definition."""
    rows = []
    for i in range(len(one.attr)):
        mine, theirs, wrong, whole = set(), set(), 0.0, 0.0
        for j, c in itertools.product(*map(range, one.graph.shape)):
            if not (one.asked[i, j] and one.scope[i, c]):
                continue
            value, kg = float(one.attr[i, j, c]), int(one.graph[j, c])
            whole += abs(value)
            agrees = value * kg if one.present[i, j] else -value * kg
            wrong += max(0.0, -agrees)
            if kg and ((one.present[i, j] and value > tau) or (not one.present[i, j] and value < -tau)):
                mine.add((j, c))
            if kg == 1:
                theirs.add((j, c))
        edges = len(mine) + len(theirs)
        counted = bool((one.asked[i][:, None] & one.scope[i]).any())
        rows.append((wrong / whole if whole else math.nan, len(mine ^ theirs) if counted else math.nan,
                     len(mine ^ theirs) / edges if edges else math.nan))
    return rows


def drawn(seed: int, n: int = 6, f: int = 4, k: int = 3, zeros: bool = True) -> Attributed:
    made = seeded(seed)
    graph = torch.randint(-1 if zeros else 0, 2, (f, k), generator=made)
    return attributed(torch.randn(n, f, k, generator=made), graph if zeros else 2 * graph - 1,
                      torch.rand(n, f, generator=made) < 0.6, torch.rand(n, k, generator=made) < 0.5,
                      torch.rand(n, f, generator=made) < 0.8)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.001, 0.5]))
@settings(max_examples=60, deadline=None)
def test_the_measures_are_the_slow_ones_and_keep_their_bounds(seed: int, tau: float) -> None:
    one = drawn(seed)
    found = align(one, tau)
    assert_close(torch.stack([found.mass, found.distance, found.normalised], 1),
                 torch.tensor(slow(one, tau), dtype=torch.float64), rtol=0, atol=1e-12, equal_nan=True)
    for values in (found.mass, found.normalised, found.precision, found.recall, found.unknown):
        known = values[values.isfinite()]
        assert bool(((known >= 0) & (known <= 1 + 1e-12)).all())
    pairs = (one.pairs & (one.graph != 0)).sum((1, 2))
    assert bool((found.distance.nan_to_num(0) <= pairs).all())


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_what_the_measures_do_not_depend_on(seed: int, scale: float) -> None:
    one = drawn(seed)
    found = align(one, 0.0)
    rows, columns = torch.randperm(4, generator=seeded(seed)), torch.randperm(3, generator=seeded(seed + 1))
    moved = Attributed(one.attr[:, rows][:, :, columns], one.present[:, rows], one.asked[:, rows],
                       one.graph[rows][:, columns], one.scope[:, columns])
    scaled = Attributed(one.attr * scale, one.present, one.asked, one.graph, one.scope)
    for other in (align(moved, 0.0), align(scaled, 0.0)):
        for name in ("mass", "distance", "normalised"):
            assert_close(getattr(other, name), getattr(found, name), rtol=0, atol=1e-12, equal_nan=True)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_an_aligned_model_scores_nothing_and_its_opposite_all(seed: int) -> None:
    made = seeded(seed)
    graph = 2 * torch.randint(0, 2, (4, 3), generator=made) - 1
    present = torch.rand(5, 4, generator=made) < 0.5
    sign = torch.where(present, 1.0, -1.0)[:, :, None]
    attr = (0.1 + torch.rand(5, 4, 3, generator=made)) * graph * sign
    one = attributed(attr, graph, present)
    found = align(one)
    assert not found.distance.any()
    assert not found.mass.any()
    wrong = align(attributed(-attr, graph, present))
    assert_close(wrong.mass, torch.ones(5, dtype=torch.float64), **EXACT)
    assert bool((wrong.distance == 12).all())
    assert not found.normalised.nan_to_num(0).any()
    whole = drawn(seed, zeros=False)
    opposite = Attributed(whole.attr, whole.present, whole.asked, -whole.graph, whole.scope)
    total = align(whole).mass + align(opposite).mass
    assert_close(total[total.isfinite()], torch.ones(int(total.isfinite().sum()), dtype=torch.float64), **EXACT)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_distance_of_two_graphs_is_symmetric_and_a_metric(seed: int) -> None:
    """Attributions that are a graph themselves: d(a, b) = d(b, a), and the triangle holds."""
    a, b, c = (2 * torch.randint(0, 2, (1, 4, 3), generator=seeded(seed + i)) - 1 for i in range(3))

    def far(one: Tensor, two: Tensor) -> float:
        return float(align(attributed(one, two[0])).distance)

    assert far(a, b) == far(b, a)
    assert far(a, a) == 0
    assert far(a, c) <= far(a, b) + far(b, c)


def test_nothing_to_divide_by_is_no_number() -> None:
    found: Alignment = align(attributed(torch.zeros(1, 2, 2), -torch.ones(2, 2)))
    assert bool(found.mass.isnan() & found.normalised.isnan())
    assert float(found.distance) == 0
    with pytest.raises(XaiError, match="scope must be of shape"):
        attributed(torch.zeros(1, 2, 2), torch.zeros(2, 2), scope=torch.ones(1, 3))


# --- Shapley values of vectors ---
def by_orders(function: Any, x: Tensor, background: Tensor) -> Tensor:
    """(F, K): the mean gain over all orders of the features."""
    f, total = len(x), torch.zeros(len(x), function(x[None]).shape[1], dtype=torch.float64)
    orders = list(itertools.permutations(range(f)))
    for order in orders:
        there = background.clone()
        before = function(there).double().mean(0)
        for j in order:
            there[:, j] = x[j]
            after = function(there).double().mean(0)
            total[j] += (after - before) / len(orders)
            before = after
    return total


def test_shapley_values_of_vectors_are_those_of_all_orders() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, background = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    for rows in (3, 2**17):
        phi, error = of_vectors(net, x, background, rows=rows)
        for i in range(3):
            assert_close(phi[i], by_orders(net, x[i], background), rtol=0, atol=1e-10)
        assert not error.any()
    assert_close(phi.sum(1), (net(x) - net(background).mean(0)).detach(), rtol=0, atol=1e-10)


def test_a_linear_classifier_has_the_closed_form_and_its_mass_too() -> None:
    made = seeded(3)
    w, x, b = (torch.randn(*shape, dtype=torch.float64, generator=made) for shape in ((5, 3), (7, 5), (9, 5)))
    w[2] = 0
    expected = w[None] * (x - b.mean(0))[:, :, None]
    phi, _ = of_vectors(lambda rows: rows @ w, x, b)
    assert_close(phi, expected, rtol=0, atol=1e-10)
    assert float(phi[:, 2].abs().max()) < 1e-10
    drawn_few, error = of_vectors(lambda rows: rows @ w, x, b, budget=10, generator=seeded())
    assert_close(drawn_few, expected, rtol=0, atol=1e-8)  # an additive game is exact from few coalitions
    assert float(error.abs().max()) < 1e-6
    graph = torch.tensor([[1, -1, 0], [1, 1, -1], [1, 0, 1], [-1, 1, 1], [0, 1, 1]])
    against = torch.relu(-expected * graph).sum((1, 2)) / expected.abs().sum((1, 2))
    assert_close(align(attributed(phi, graph)).mass, against, rtol=0, atol=1e-10)


# --- the nulls ---
def test_the_permuted_measures_are_those_of_the_permuted_graph() -> None:
    one = drawn(5, n=9, f=5, k=4)
    nulls = column_null(one, 0.1, 99, unused)
    orders = list(itertools.permutations(range(4)))
    for null, name in zip(nulls, ("mass", "distance"), strict=True):
        expected = []
        for order in orders:
            values = getattr(align(Attributed(one.attr, one.present, one.asked, one.graph[:, list(order)], one.scope),
                                   0.1), name)
            expected.append(float(values[values.isfinite()].mean()))
        assert null.whole
        assert_close(null.values, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
        assert null.seen == pytest.approx(expected[0])


def linear(w: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """(attributions (n, F, K), presence) of a linear classifier over parts that come and go."""
    x = (torch.rand(n, len(w), generator=seeded(seed)) < 0.5).double()
    return w[None] * (x - x.mean(0))[:, :, None], x > 0.5


def test_the_null_of_the_classes_holds_its_level_on_random_models() -> None:
    """300 models whose weights know nothing of the graph: p at most 0.05 in about 5 % of them, at most 0.5 in half."""
    graph, found = 2 * torch.eye(5).long() - 1, []
    for seed in range(300):
        attr, present = linear(torch.randn(5, 5, dtype=torch.float64, generator=seeded(seed)), 20, seed + 1000)
        null, _ = column_null(attributed(attr, graph, present), 0.0, 120, unused)
        found.append(null.p_low())
    p = torch.tensor(found)
    assert 0.02 <= float((p <= 0.05).double().mean()) <= 0.085  # 3 standard errors of 300 to either side, about
    assert 0.41 <= float((p <= 0.5).double().mean()) <= 0.59


def test_random_permutations_and_flips_agree_with_all_of_them() -> None:
    one = drawn(11, n=7, f=4, k=5)
    whole, some = (column_null(one, 0.0, draws, lambda: seeded(1))[0] for draws in (120, 119))
    assert (whole.whole, some.whole) == (True, False)
    assert abs(whole.p_low() - some.p_low()) < 0.15
    every, few = (contradicted(one, draws, lambda: seeded(1)) for draws in (128, 127))
    assert float((every.p - few.p).abs().max()) < 0.15
    assert float(few.p.min()) >= 1 / 128


def test_links_are_held_to_one_level() -> None:
    """Attributions whose signs are drawn for each picture: any link of 12 is named in about 5 % of 300 data sets."""
    named = 0
    for seed in range(300):
        made = seeded(seed)
        sign = 1 - 2 * torch.randint(2, (30, 1, 1), generator=made).double()
        attr = sign * torch.randn(4, 3, dtype=torch.float64, generator=made) * (
            0.2 + torch.rand(30, 4, 3, dtype=torch.float64, generator=made))
        one = attributed(attr, 2 * torch.randint(0, 2, (4, 3), generator=made) - 1)
        named += bool((contradicted(one, 199, lambda s=seed: seeded(s + 5000)).p <= 0.05).any())
    assert named <= 26  # 5 % of 300 and 3 standard errors


GRAPH = torch.tensor([[1, 0, -1], [1, -1, 0], [-1, 1, 0], [-1, -1, -1]])  # PARTS by STYLES
RIGHT = torch.tensor([[2.0, 0.0, -1.0], [1.5, -1.0, 0.0], [-1.0, 2.0, 0.0], [-0.8, -0.8, -0.8]], dtype=torch.float64)


@pytest.mark.parametrize("planted", [None, (1, 0), (3, 2)], ids=["aligned", "a wrong sign", "a shortcut"])
def test_a_planted_misalignment_is_found_and_where(planted: tuple[int, int] | None) -> None:
    w = RIGHT.clone()
    if planted is not None:
        w[planted] = -w[planted]
    attr, present = linear(w, 60, 4)
    one = attributed(attr, GRAPH, present)
    links = contradicted(one, 999, lambda: seeded())
    wrong = (links.p < 0.05).nonzero().tolist()
    mass = float(align(one).mass.mean())
    assert wrong == ([] if planted is None else [list(planted)])
    assert (mass == 0) == (planted is None)
    assert float(links.p.min()) == (1.0 if planted is None else 1 / 1000)


# --- SHAP-Backprop ---
@given(st.integers(0, 10**6), st.floats(0, 3))
@settings(max_examples=30, deadline=None)
def test_the_weights_of_shap_backprop(seed: int, h: float) -> None:
    made = seeded(seed)
    attr, graph = torch.randn(6, 4, 3, generator=made), torch.randint(-1, 2, (4, 3), generator=made)
    labels = torch.randint(3, (6,), generator=made)
    against = contradiction(attr, graph, labels)
    for i in range(6):
        for j in range(4):
            assert float(against[i, j]) == min(0.0, float(attr[i, j, labels[i]]) * int(graph[j, labels[i]]))
    assert torch.equal(contradiction(-attr, -graph, labels), against)
    one, two = backprop_weights(against, h), backprop_weights(against, h, "exponential")
    assert bool((one >= 1).all() and (two >= one - 1e-6).all())
    assert bool((one[against == 0] == 1).all() and (two[against == 0] == 1).all())
    small = backprop_weights(against, 1e-4) - backprop_weights(against, 1e-4, "exponential")
    assert float(small.abs().max()) < 1e-6
    with pytest.raises(XaiError, match="linear or exponential"):
        backprop_weights(against, h, "square")


# --- the graph's file ---
@pytest.mark.parametrize(("text", "said"), [
    ("[1]", "graph.json must be a JSON object"),
    ("{", "graph.json must be a JSON file; got one that cannot be read"),
    ("{}", "graph.json: classes must be an object"),
    ('{"classes": {}}', "graph.json: classes must be an object"),
    ('{"class": {"gothic": {"arch": 1}}}', r"graph.json: 'class' must be one of the keys .* Did you mean classes"),
    ('{"classes": {"gothic": ["arch"]}}', "graph.json: classes.gothic must be an object of parts"),
    ('{"classes": {"gothic": {"arch": 2}}}', "graph.json: classes.gothic.arch must be one of 1, -1, 0; got 2"),
    ('{"classes": {"gothic": {"arch": true}}}', "classes.gothic.arch must be .* got true"),
    ('{"classes": {"gothic": {"arch": "yes"}}}', 'classes.gothic.arch must be .* got "yes"'),
    ('{"classes": {"gothic": {"arch": 1}}, "otherwise": 1}', "graph.json: otherwise must be one of 0, -1; got 1"),
    ('{"classes": {"gothic": {"arch": 0}}}', "links at least one part and class"),
    ('{"classes": {"gothic": {"arch": 1, "arch": -1}}}', "the key 'arch' must be written once"),
    ('{"classes": {"gotic": {"arch": 1}}}', "classes.gotic must be a class of the model.* Did you mean gothic"),
    ('{"classes": {"gothic": {"arch": 1}, "class:0": {"arch": 1}}}', "classes must be different classes"),
    ('{"classes": {"gothic": {"arc": 1}}}', r"the part 'arc' of the graph must be one of .* Did you mean arch"),
])
def test_a_bad_graph_is_refused_with_its_key(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(text)
    with pytest.raises(XaiError, match=said):
        analysed(Facade(RIGHT), tmp_path / "graph.json", facades(2))


# --- pictures: four quadrants, each a part, bright where it is there ---
class Facade(nn.Module):
    """Part scores are the quadrants' mean levels, classes a linear function of them."""

    part_names = PARTS

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.float())

    def parts(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x.mean(1, keepdim=True), 8).flatten(1)

    def classify(self, parts: Tensor) -> Tensor:
        return parts @ self.w

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.parts(x))


class Plain(nn.Module):
    """The same without telling its parts."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.inner = Facade(w)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


QUADRANTS = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]], dtype=np.float32)


def facades(count: int, seed: int = 0) -> Images:
    """Pictures of which each part is there or not, with boxes and names of the parts that are."""
    rng, made = np.random.default_rng(seed), []
    for i in range(count):
        there = rng.random(4) < 0.6
        there[i % 4] = True
        level = np.where(there, rng.uniform(0.8, 1, 4), 0).reshape(2, 2)
        pixels = np.repeat(np.kron(level, np.ones((8, 8)))[None], 3, 0).astype(np.float32)
        made.append(Image.of(f"facade {i}.png", pixels, label=i % 3, boxes=QUADRANTS[there],
                             box_labels=tuple(np.array(PARTS)[there].tolist())))
    return Images.of(made)


def graph_file(folder: Path) -> Path:
    signs = {style: {part: int(GRAPH[j, c]) for j, part in enumerate(PARTS) if GRAPH[j, c]}
             for c, style in enumerate(STYLES)}
    (folder / "graph.json").write_text(json.dumps({"classes": signs}))
    return folder / "graph.json"


def analysed(module: nn.Module, graph: Path | str, pictures: Images | None, **more: Any) -> Result:
    made = Model(module, mean=[0.0], std=[1.0], size=16, labels=STYLES, spec="test:net")
    return KnowledgeGraph(graph=str(graph), **{"value": "logit", **more})(Subject((made,), pictures))


def verdicts(result: Result) -> dict[str, Any]:
    return {one.name: one for one in result.verdicts}


def panel(result: Result, key: str) -> Any:
    return next(one for one in result.panels if one.key == key)


@pytest.mark.parametrize("form", [Facade, Plain])
@pytest.mark.parametrize("planted", [None, (1, 0), (3, 2)], ids=["aligned", "a wrong sign", "a shortcut"])
def test_the_analyzer_finds_the_planted_link(form: Any, planted: tuple[int, int] | None, tmp_path: Path) -> None:
    w = RIGHT.clone()
    if planted is not None:
        w[planted] = -w[planted]
    result = analysed(form(w), graph_file(tmp_path), facades(80), scope="all", baseline="black")
    if form is Facade:
        assert result.cost.forwards == 2 * 80
    said = verdicts(result)["no link is contradicted"]
    assert said.passed == (planted is None)
    table: Table = panel(result, "links")
    wrong = [row[:2] for row in table.rows if row[-1]]
    assert wrong == ([] if planted is None else [(PARTS[planted[0]], STYLES[planted[1]])])
    mass: Number = panel(result, "mass")
    assert (mass.value == pytest.approx(0, abs=1e-6)) == (planted is None)
    if planted is not None:
        assert said.value < 0.05
        assert table.rows[0][:2] == wrong[0]


def test_boxes_that_are_hidden_have_the_closed_form(tmp_path: Path) -> None:
    """Scores are linear in the pixels: hidden in black, a part's value is its level times its weight."""
    pictures = facades(5)
    result = analysed(Plain(RIGHT), graph_file(tmp_path), pictures, scope="all", baseline="black")
    level = torch.stack([torch.tensor(one.pixels).double().mean(0).view(2, 8, 2, 8).mean((1, 3)).flatten()
                         for one in pictures])
    phi = level[:, :, None] * RIGHT
    there = level > 0
    share = torch.where(there[:, :, None], phi, 0.0) / phi.abs().sum((1, 2))[:, None, None]
    matrix: Matrix = panel(result, "attributed")
    mean = share.sum(0) / there.sum(0)[:, None]
    assert_close(torch.from_numpy(matrix.values).double(), mean, rtol=0, atol=1e-6)
    assert result.cost.forwards == sum(1 + 1 + max(0, 2 ** int(row.sum()) - 2) for row in there)
    drawn_pictures = [one for one in result.panels if isinstance(one, Picture)]
    assert len(drawn_pictures) == 3


def test_hidden_parts_hide_what_they_share() -> None:
    x, fill = torch.ones(1, 1, 4), torch.zeros(1, 1, 4)
    regions = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]]]).bool()
    out = torch.empty(4, 1, 1, 4)
    hiding(x, fill, regions)(torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0]], dtype=torch.uint8), out)
    assert out[:, 0, 0].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1]]


def test_more_parts_than_can_be_asked_in_full_come_with_their_error(tmp_path: Path) -> None:
    result = analysed(Plain(RIGHT), graph_file(tmp_path), facades(6), samples=10, baseline="black")
    whole = analysed(Plain(RIGHT), graph_file(tmp_path), facades(6), baseline="black")
    assert "Not all coalitions were asked" in panel(result, "basis").text
    assert "Not all coalitions" not in panel(whole, "basis").text
    assert panel(result, "mass").value == pytest.approx(panel(whole, "mass").value, abs=1e-5)  # the game is additive
    assert result.cost.forwards < whole.cost.forwards


def test_annotation_files_and_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A CSV has an entry a picture and part; together they are one picture, and what comes is what memory gives."""
    rows = []
    for i, one in enumerate(facades(12)):
        Pil.fromarray(one.rgb()).save(tmp_path / f"{i}.png")
        assert one.boxes is not None
        assert one.box_labels is not None
        rows += [(f"{i}.png", *map(int, box), kind) for box, kind in zip(one.boxes, one.box_labels, strict=True)]
    with (tmp_path / "boxes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "x0", "y0", "x1", "y1", "label"), *rows])
    read = list(sheets(load_images(str(tmp_path / "boxes.csv")), Left()))
    assert [one.image.name for one in read] == [f"{i}.png" for i in range(12)]
    assert {kind for one in read for kind in one.parts} == set(PARTS)
    (tmp_path / "net.py").write_text(
        f"import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    part_names = {PARTS}\n"
        "    def __init__(self):\n        super().__init__()\n"
        f"        self.w = nn.Parameter(torch.tensor({RIGHT.tolist()}))\n"
        "    def parts(self, x):\n        return nn.functional.avg_pool2d(x.mean(1, keepdim=True), 8).flatten(1)\n"
        "    def classify(self, parts):\n        return parts @ self.w\n"
        "    def forward(self, x):\n        return self.classify(self.parts(x))\n\n\n"
        "class Plain(Net):\n    parts = classify = None\n"
        "    def forward(self, x):\n        return Net.classify(self, Net.parts(self, x))\n\n\n"
        "def plain():\n    net = Plain()\n    return nn.Sequential(net)\n")
    (tmp_path / "styles.txt").write_text("\n".join(STYLES))
    graph = graph_file(tmp_path)
    for make in ("Net", "plain"):
        spec = f"file:{tmp_path}/net.py:{make}?size=16&mean=0&std=1&labels={tmp_path}/styles.txt"
        xai_command = CommandLine(tmp_path, monkeypatch, capfd)
        xai_command.fine("analyze", "knowledge_graph", "--model", spec, "--data", "boxes.csv", "--set",
                         f"graph={graph}", "--set", "scope=all", "--set", "baseline=black", "--set", "value=logit",
                         "--out", make)
        result = Result.load(tmp_path / make)
        assert panel(result, "mass").value == pytest.approx(0, abs=1e-6)
        assert (tmp_path / make / "index.html").is_file()


def test_a_mask_is_a_part_only_where_the_picture_is_labelled_with_it() -> None:
    """Annotation files give a mask of the class of an entry; a mask of the whole object beside named boxes is none."""
    pixels, mask = np.zeros((3, 16, 16), np.float32), np.eye(16, dtype=bool)
    part = Image.of("a.png#arch", pixels, label="arch", boxes=QUADRANTS[:1], box_labels=("arch",), mask=mask)
    other = Image.of("a.png#gothic", pixels, label="gothic", boxes=QUADRANTS[1:2], box_labels=("gothic",))
    whole = Image.of("b.png", pixels + 1, label="gothic", boxes=QUADRANTS[:1], box_labels=("arch",), mask=mask)
    left = Left()
    one, two = sheets(Images.of([part, other, whole]), left)
    assert (one.image.name, two.image.name) == ("a.png", "b.png")
    assert one.labels == ("arch", "gothic")
    assert one.parts["arch"][1] is not None
    assert two.parts["arch"][1] is None
    made = Model(Plain(RIGHT), mean=[0.0], std=[1.0], size=16, labels=STYLES)
    assert [class_of(sheet.labels, made) for sheet in (one, two)] == [0, 0]
    assert not left.names


def test_without_a_graph_the_annotations_tell_one() -> None:
    result = analysed(Plain(RIGHT), "", facades(9), baseline="black")
    assert "No expert graph was named" in panel(result, "basis").text
    matrix: Matrix = panel(result, "graph")
    assert set(matrix.rows) == set(PARTS)
    assert set(np.unique(matrix.values)) <= {0.0, 1.0}


# --- refusals ---
class Off(Facade):
    """A network whose output is not that of its classifier."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def unlabelled() -> Images:
    return Images.of(Image.of(f"{i}.png", np.full((3, 16, 16), 0.1 * i, np.float32)) for i in range(3))


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    graph = graph_file(tmp_path)
    for module, file, pictures, more, said in (
        (Facade(RIGHT), "", facades(2), {}, "graph must be a JSON file for a model that tells its parts"),
        (Facade(RIGHT), tmp_path / "none.json", facades(2), {}, "graph must be a JSON file; got .*No such file"),
        (Off(RIGHT), graph, facades(2), {}, r"classify\(parts\(x\)\) of test:net must be the model's output"),
        (Plain(RIGHT), graph, unlabelled(), {}, "no box is labelled with a part of the graph"),
        (Plain(RIGHT), "", unlabelled(), {}, "must be a JSON file, where the pictures' annotations do not tell"),
        (Plain(0 * RIGHT), graph, facades(2), {"baseline": "black"}, "one whose scores depend on the parts"),
        (Plain(RIGHT), graph, unlabelled(), {"baseline": "pink"}, "baseline must be"),
    ):
        with pytest.raises(XaiError, match=said):
            analysed(module, file, pictures, **more)


def test_bad_part_models_are_refused(tmp_path: Path) -> None:
    graph, module = graph_file(tmp_path), Facade(RIGHT)
    for names, said in ((("arch", "arch"), "part_names of test:net must be different"),
                        (("arch", "rose", "dome"), "parts.x. of test:net must be scores of shape")):
        module.part_names = names  # type: ignore[assignment]  # of another length on purpose
        text = json.dumps({"classes": {"gothic": {"arch": 1}}})
        graph.write_text(text)
        with pytest.raises(XaiError, match=said):
            analysed(module, graph, facades(2))


def test_the_face_knows_the_method(tmp_path: Path) -> None:
    made = Model(Facade(RIGHT), mean=[0.0], std=[1.0], size=16, labels=STYLES)
    done = xai.analyze("knowledge_graph", made, facades(24), settings={"graph": str(graph_file(tmp_path)),
                       "value": "logit"}, out=tmp_path / "out")
    assert panel(done.result, "mass").value == pytest.approx(0, abs=1e-6)
