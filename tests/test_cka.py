"""`cka`: every pair of layers against a slow version, each in its own row; intervals, runs, path, refusals."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image as Pil
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from torch import Tensor, nn

from analyzers.representation import _alike
from analyzers.representation.cka import CKA, GROUPS
from tests.command_line import CommandLine
from xai.errors import XaiError
from xai.images import Image, Images
from xai.model import Model
from xai.panels import Curve, Matrix, Panel, Table, Text
from xai.result import Result
from xai.similarity import gram, inner, ucentred
from xai.streaming import Left, State, blocks
from xai.subject import Subject

SIZE = 8


class Net(nn.Module):
    """Two convolutions, the first followed by a ReLU in place, one that never runs, a linear head."""

    def __init__(self, seed: int, widths: Sequence[int] = (5, 7)) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.never = nn.Conv2d(3, 3, 1)
            self.head = nn.Linear(widths[1], 4)
            self.two = nn.Conv2d(widths[0], widths[1], 3, stride=2)
            self.norm = nn.BatchNorm2d(widths[0])
            self.one = nn.Conv2d(3, widths[0], 3)
            nn.init.uniform_(self.norm.running_var, 0.3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.one(x)), inplace=True)
        return self.head(self.two(x).relu_().mean((2, 3)))


class Planted(nn.Module):
    """Layers whose likeness to the pixels is known: `late` is a rotation of them, `early` noise that each picture's own
    pixels draw, `same` tells of no picture. Registered in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.same, self.early = nn.Linear(192, 192), nn.Linear(192, 6), nn.Linear(192, 30)
        turn = torch.linalg.qr(torch.randn(192, 192, generator=torch.Generator().manual_seed(0)))[0]
        self.late.weight.data, self.same.weight.data[:] = 2.5 * turn, 0

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y = self.early((1e4 * x).sin())
        z = self.late(x) + 0 * y.sum()
        return self.same(z) + z[:, :6]


def model(module: nn.Module, size: int = SIZE, mean: float = 0.4, **more: Any) -> Model:
    return Model(module.eval(), mean=[mean] * 3, std=[0.3] * 3, size=size, **more)


def pictures(count: int, seed: int = 0, size: int = SIZE) -> Images:
    """Noise with a common part, so that layers have something to share."""
    rng = np.random.default_rng(seed)
    shapes = rng.random((6, 3, size, size))
    return Images.of(Image.of(f"{i}", np.clip(0.5 * rng.random((3, size, size)) + shapes[rng.integers(6)] / 2, 0, 1)
                              .astype(np.float32)) for i in range(count))


def panel(result: Result, key: str) -> Any:
    found, = (p for p in result.panels if p.key == key)
    return found


def matrix(result: Result, key: str = "linear") -> np.ndarray:
    found = panel(result, key)
    assert isinstance(found, Matrix)
    return np.asarray(found.values, np.float64)


def keys(panels: Sequence[Panel]) -> list[str]:
    return [p.key for p in panels]


# --- against an independent slow version ---
def activations(module: nn.Module, names: Sequence[str], x: Tensor) -> list[np.ndarray]:
    """The input, and what the named layers gave, cloned; in the analyzer's forwards of 15, so that ranks of what is
    nearly equal do not turn on rounding."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [module.get_submodule(name).register_forward_hook(
        lambda _, __, out, name=name: found[name].append(out.detach().clone().flatten(1).double()))
        for name in names]
    with torch.no_grad():
        for part in x.split(15 if len(x) == 30 else len(x)):
            module(part)
    for handle in handles:
        handle.remove()
    return [x.flatten(1).double().numpy(), *(torch.cat(found[name]).numpy() for name in names)]


def u_centred(k: np.ndarray) -> np.ndarray:
    n = len(k)
    found = np.zeros((n, n))
    rows = [sum(k[i, j] for j in range(n) if j != i) for i in range(n)]
    for i in range(n):
        for j in range(n):
            if i != j:
                found[i, j] = k[i, j] - (rows[i] + rows[j]) / (n - 2) + sum(rows) / ((n - 1) * (n - 2))
    return found


def products(name: str, x: np.ndarray, y: np.ndarray, k: int) -> float:
    """What one block adds for one pair of layers."""
    x, y = x - x.mean(0), y - y.mean(0)
    d = [squareform(pdist(v)) for v in (x, y)]
    if name == "procrustes":
        return float(np.linalg.svd(x.T @ y, compute_uv=False).sum())
    if name == "rsa":
        from scipy.stats import rankdata

        r = [rankdata(one[np.triu_indices(len(x), 1)].round(9)) for one in d]
        return float(2 * ((r[0] - r[0].mean()) * (r[1] - r[1].mean())).sum())
    if name == "knn":
        near = [[set(np.argsort(np.where(np.arange(len(x)) == i, np.inf, row), kind="stable")[:k])
                 for i, row in enumerate(one)] for one in d]
        return float(sum(len(a & b) for a, b in zip(*near, strict=True)))
    if name == "rbf":
        kernels = [np.exp(-one**2 / (2 * np.sort((one**2)[np.triu_indices(len(x), 1)])[
            (len(x) * (len(x) - 1) // 2 - 1) // 2])) for one in d]
    else:
        kernels = [x @ x.T, y @ y.T]
    return float((u_centred(kernels[0]) * u_centred(kernels[1])).sum())


def slowly(name: str, one: list[np.ndarray], two: list[np.ndarray], sizes: Sequence[int], k: int) -> np.ndarray:
    """Every pair of layers by itself, block after block."""
    edges = np.cumsum([0, *sizes])
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    found = np.zeros((len(one), len(two)))
    for i, x in enumerate(one):
        for j, y in enumerate(two):
            xy, xx, yy = (sum(products(name, a[part], b[part], k) for part in parts)
                          for a, b in ((x, y), (x, x), (y, y)))
            found[i, j] = xy / math.sqrt(xx * yy)
    return found


@pytest.mark.parametrize("name", ["linear", "rbf", "procrustes", "rsa", "knn"])
def test_every_pair_of_two_models_equals_the_slow_version(name: str) -> None:
    one, two = Net(0), Net(4, (6, 9))
    images = pictures(30, size=10)  # 30 in blocks of at most 16 are two of 15
    models = (model(one), model(two, size=6, mean=0.2))  # each prepares the same pictures as it wants them
    subject = Subject(models, images)
    result = CKA(measures=f"{name},linear", minibatch=16, neighbours=4)(subject)
    names = ("one", "two", "head")
    seen = [activations(net, names, torch.stack([m.preprocessing(image).input for image in images]))
            for net, m in zip((one, two), models, strict=True)]
    assert seen[0][0].shape != seen[1][0].shape
    loose = 1e-4 if name == "procrustes" else 2e-5  # its smallest directions are roots of rounding
    np.testing.assert_allclose(matrix(result, name), slowly(name, seen[0], seen[1], (15, 15), 4), atol=loose)
    heat = panel(result, name)
    assert heat.rows == heat.columns == ("(pixels)", *names)
    assert result.cost.forwards == 60 == CKA().cost(subject).forwards


def test_one_model_is_compared_with_itself() -> None:
    net, images = Net(0), pictures(20)
    result = CKA(minibatch=20, layers="one,two")(Subject((model(net),), images))
    x = torch.stack([model(net).preprocessing(image).input for image in images])
    seen = activations(net, ("one", "two"), x)
    np.testing.assert_allclose(matrix(result), slowly("linear", seen, seen, (20,), 0), atol=2e-5)
    np.testing.assert_allclose(np.diag(matrix(result)), 1, atol=1e-6)
    np.testing.assert_allclose(matrix(result), matrix(result).T, atol=1e-7)
    assert result.cost.forwards == 20
    twice = CKA(minibatch=20, layers="one,two")(Subject((model(net), model(Net(0))), images))
    np.testing.assert_allclose(matrix(twice), matrix(result), atol=1e-6)


def test_row_i_is_layer_i() -> None:
    result = CKA(minibatch=32, layers="*")(Subject((model(Planted()),), pictures(64)))
    heat = panel(result, "linear")
    assert heat.rows == ("(pixels)", "early", "late", "same")  # as they run, not as they are registered
    values = matrix(result)
    assert values[0, 2] == pytest.approx(1, abs=1e-4)
    assert abs(values[0, 1]) < 0.2
    assert np.isnan(values[3]).all()
    assert np.isnan(values[:, 3]).all()
    verdict = next(v for v in result.verdicts if v.name == "not constant")
    assert not verdict.passed
    assert "same of" in verdict.sentence


def test_a_layer_that_runs_twice_is_named_twice_and_one_without_a_row_a_picture_is_left_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.rows, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(8, 8), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.again(self.again(x).relu()).relu()
            x = x + self.rows(x.flatten(0, 2)).view_as(x)
            return self.head(x.mean((2, 3)))

    result = CKA(minibatch=16)(Subject((model(Twice()),), pictures(16)))
    assert panel(result, "linear").rows == ("(pixels)", "again", "again:1", "head")


def test_values_that_are_no_numbers_are_named() -> None:
    net = Net(0)
    net.two.weight.data[0, 0, 0, 0] = float("nan")
    result = CKA(measures="linear,rbf,procrustes,rsa,knn", minibatch=16)(Subject((model(net),), pictures(16)))
    for name in ("linear", "rbf", "procrustes", "rsa", "knn"):
        values = matrix(result, name)
        assert np.isnan(values[2:]).all()
        assert np.isnan(values[:, 2:]).all()
        assert np.isfinite(values[:2, :2]).all()
    verdict = next(v for v in result.verdicts if v.name == "finite")
    assert (verdict.passed, verdict.value) == (False, 2.0)


# --- blocks ---
@pytest.mark.slow
def test_blocks_of_32_to_512_agree_over_2048_pictures() -> None:
    subject = Subject((model(Net(0)), model(Net(1))), pictures(2048))
    seen = [matrix(CKA(minibatch=size, measures="linear,rbf")(subject), name)
            for size in (32, 64, 128, 256, 512) for name in ("linear", "rbf")]
    for one in (seen[::2], seen[1::2]):
        assert np.ptp(np.stack(one), axis=0).max() < 0.01


def run_parts(method: CKA, subject: Subject, parts: Sequence[Sequence[int]]) -> State:
    states = []
    for numbers in parts:
        state = method.start(subject)
        for block in blocks(subject, method.block_size(subject), Left(), numbers):
            method.update(state, block, 0)
        states.append(state)
    return method.merge(states)


def test_parts_of_workers_merge_to_one_pass() -> None:
    subject = Subject((model(Net(0)), model(Net(1))), pictures(8 * 20 + 3))
    method = CKA(minibatch=9, measures="linear,rsa")  # 163 pictures: nineteen blocks of at most nine
    assert method.block_size(subject) == 9
    result = method(subject)
    for parts in ([range(7), range(7, 19)], [[18], [], range(18)]):
        state = run_parts(method, subject, parts)
        panels = [p for p in method.panels(subject, state) if isinstance(p, Panel)]
        assert keys(panels) == keys(result.panels)
        for one, two in zip(panels, result.panels, strict=True):
            if isinstance(one, Matrix):
                np.testing.assert_allclose(one.values, two.values, atol=1e-6)
            elif isinstance(one, Text):
                assert one == two
    with pytest.raises(XaiError, match="with the same layers; got others"):
        method.merge([run_parts(method, subject, [[0]]),
                      run_parts(CKA(minibatch=9, measures="linear,rsa", layers="one"), subject, [[1]])])


def test_more_blocks_than_groups_share_them() -> None:
    images = pictures(8 * (GROUPS + 6))
    subject = Subject((model(Net(0)),), images)
    method = CKA(minibatch=8, layers="one")
    state = run_parts(method, subject, [range(GROUPS + 6)])
    assert state["linear"].shape[0] == GROUPS
    assert list(state["blocks"]) == [2] * 6 + [1] * (GROUPS - 6)
    x = torch.stack([model(Net(0)).preprocessing(image).input for image in images])
    sums = torch.zeros(3)
    for start in range(0, len(images), 8):
        part = x[start : start + 8]
        a, b = (ucentred(gram(v)[0][None]) for v in (part, Net(0).eval().one(part).detach()))
        sums += torch.tensor([float(inner(a, b)), float(inner(a, a)), float(inner(b, b))])
    expected = float(sums[0] / (sums[1] * sums[2]).sqrt())
    assert matrix(method(subject))[0, 1] == pytest.approx(expected, abs=1e-5)


# --- intervals ---
@pytest.mark.parametrize(("count", "there"), [(8 * 15, False), (8 * 16, True)])
def test_intervals_come_with_sixteen_blocks(count: int, there: bool) -> None:
    result = CKA(minibatch=8, measures="linear,knn", neighbours=3)(Subject((model(Net(0)),), pictures(count)))
    verdict = next(v for v in result.verdicts if v.name == "interval")
    assert (verdict.passed, verdict.value) == (True if there else None, count / 8)
    assert ("linear lower" in keys(result.panels)) == there
    assert ("No interval: it takes 16 blocks" in panel(result, "linear").note) != there
    curve = panel(result, "linear path")
    assert isinstance(curve, Curve)
    assert (curve.low is not None) == there
    if there:
        low, high = matrix(result, "linear lower"), matrix(result, "linear upper")
        value = matrix(result)
        assert (low <= value + 1e-6).all()
        assert (value <= high + 1e-6).all()
        off = ~np.eye(len(low), dtype=bool)
        assert (high - low)[off].min() > 1e-4
        np.testing.assert_allclose(np.diag(low), 1, atol=1e-6)


def test_the_interval_covers_the_true_value() -> None:
    """Gaussian X and Y = X A + noise, whose CKA is known from their covariances; 16 blocks of 24, 300 data sets."""
    random = torch.Generator().manual_seed(0)
    a = torch.randn(4, 3, generator=random, dtype=torch.float64)
    syy = a.T @ a + torch.eye(3, dtype=torch.float64)
    truth, hits = float(a.square().sum() / (2 * syy.norm())), 0
    for trial in range(300):
        x = torch.randn(16, 24, 4, generator=random, dtype=torch.float64)
        y = x @ a + torch.randn(16, 24, 3, generator=random, dtype=torch.float64)
        forms = [ucentred((v - v.mean(1, keepdim=True)) @ (v - v.mean(1, keepdim=True)).mT).flatten(1) for v in (x, y)]
        both = torch.stack(forms, 1)
        low, high = _alike.bootstrap((both @ both.mT).numpy(), np.array([0]), np.array([1]), trial, 300)
        hits += int(low[0, 0] <= truth <= high[0, 0])
    assert 0.90 <= hits / 300 <= 0.985  # of 95 %, four standard errors are 0.05


def test_unrelated_pictures_give_nothing() -> None:
    result = CKA(minibatch=32, measures="linear,rbf,knn", neighbours=6)(
        Subject((model(Net(0)), model(Net(1))), pictures(256)))
    rows = {row[0]: row for row in panel(result, "chance").rows}
    assert abs(rows["Linear CKA"][2]) < 0.02
    assert abs(rows["RBF CKA"][2]) < 0.02
    assert rows["Mutual 6-nearest neighbours"][2] == pytest.approx(6 / 31, abs=0.02)
    assert rows["Mutual 6-nearest neighbours"][1] == f"{6 / 31:.3f}"
    assert matrix(result)[0, 1] > 5 * rows["Linear CKA"][3]


# --- runs and path ---
@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 10**6), st.floats(0.1, 0.9))
def test_runs_are_the_fewest(count: int, seed: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((count, count)) ** 0.3
    values = np.maximum(values, values.T)
    np.fill_diagonal(values, 1)
    found = _alike.runs(values, least)
    assert [i for a, b in found for i in range(a, b + 1)] == list(range(count))
    assert all((values[a : b + 1, a : b + 1] >= least).all() for a, b in found)
    fewest = count
    for cuts in range(2 ** (count - 1)):
        edges = [0, *(i + 1 for i in range(count - 1) if cuts >> i & 1), count]
        parts = list(itertools.pairwise(edges))
        if all((values[a:b, a:b] >= least).all() for a, b in parts):
            fewest = min(fewest, len(parts))
    assert len(found) == fewest


def paths(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """All that go from corner to corner."""
    def on(i: int, j: int) -> list[list[tuple[int, int]]]:
        if (i, j) == (rows - 1, columns - 1):
            return [[(i, j)]]
        return [[(i, j), *rest] for a, b in ((1, 0), (0, 1), (1, 1)) if i + a < rows and j + b < columns
                for rest in on(i + a, j + b)]
    return on(0, 0)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
def test_the_path_is_the_best_of_all(rows: int, columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((rows, columns))
    found = _alike.aligned(values)
    every = paths(rows, columns)
    assert found in every
    def cost(path: list[tuple[int, int]]) -> float:
        return sum(1 - values[i, j] for i, j in path)
    assert cost(found) == pytest.approx(min(map(cost, every)))


def test_a_model_against_its_copy_is_aligned_along_the_diagonal() -> None:
    result = CKA(minibatch=16)(Subject((model(Net(0)), model(Net(0))), pictures(32)))
    table = panel(result, "linear path layers")
    assert isinstance(table, Table)
    assert [row[1:3] for row in table.rows] == [(name, name) for name in ("one", "two", "head")]
    assert [c.name for c in table.columns][1:3] == ["module:Net (1)", "module:Net (2)"]
    runs = panel(CKA(minibatch=16, together=0.0)(Subject((model(Net(0)),), pictures(32))), "linear runs")
    assert [row[1:4] for row in runs.rows] == [("one", "head", 3)]


# --- refusals, and the door ---
@pytest.mark.parametrize(("asked", "said"), [
    ({"measures": "linear,cca"}, "one or several of linear, rbf, procrustes, rsa, knn; got 'cca'"),
    ({"measures": " , "}, "got none"),
    ({"measures": "knn", "neighbours": 7, "minibatch": 8}, "at most 6"),
    ({"minibatch": 4}, "at least 8"),
    ({"layers": "on"}, "got 'on'. Did you mean one"),
    ({"layers": "never"}, "layers that run"),
])  # fmt: skip
def test_what_cannot_be_done_gives_a_sentence(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(XaiError, match=said):
        CKA(**asked)(Subject((model(Net(0)),), pictures(16)))


def test_models_are_one_or_two() -> None:
    for count in (0, 3):
        with pytest.raises(XaiError, match=f"one or two for this method; got {count}"):
            CKA()(Subject((model(Net(0)),) * count, pictures(16)))


def test_a_model_without_such_layers_is_named() -> None:
    other = model(Planted(), spec="other:net")
    with pytest.raises(XaiError, match="other:net"):
        CKA(layers="two")(Subject((model(Net(0)), other), pictures(16)))


def test_pictures_of_several_sizes_give_a_sentence() -> None:
    images = Images.of([Image.of(f"{i}", np.zeros((3, 8 + i % 2, 8), np.float32), normalised=True) for i in range(16)])
    with pytest.raises(XaiError, match="must be of one size"):
        CKA()(Subject((model(Net(0)),), images))


def test_memory_that_is_too_little_names_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(Net):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 8:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
            return super().forward(x)

    with pytest.raises(XaiError, match=r"enough for 16 pictures in one forward; got too little\. Lower cka\.minibatch"):
        CKA()(Subject((model(Greedy(0)),), pictures(16)))


@pytest.mark.parametrize("models", [["xai:tinyvgg"], ["xai:tinyvgg", "xai:planted"]])
def test_the_command_line_takes_one_model_or_two(models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(16):
        Pil.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"photos/{i:02}.png")
    line = CommandLine(tmp_path, monkeypatch, capfd)
    done = line("analyze", "cka", *(w for m in models for w in ("--model", m)), "--data", "photos", "--set",
                "minibatch=8", "--device", "cpu", "--out", "there")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "there/result.json").read_text())
    assert [m["spec"] for m in found["models"]] == models
    assert found["cost"]["forwards"] == 16 * len(models)
    assert "analyze cka" in found["provenance"]["command"]
    page = (tmp_path / "there/index.html").read_text()
    for name in ("(pixels)", "Block structure", "What chance gives"):
        assert name in page


def test_spearman_of_one_block_is_scipys() -> None:
    """The door as a whole: one block, RSA of the pixels and the first layer."""
    net, images = Net(0), pictures(24)
    x = torch.stack([model(net).preprocessing(image).input for image in images])
    pixels, one = activations(net.eval(), ("one",), x)
    result = CKA(measures="rsa", layers="one")(Subject((model(net),), images))
    assert matrix(result, "rsa")[0, 1] == pytest.approx(spearmanr(pdist(pixels), pdist(one)).statistic, abs=2e-4)
