"""From the sums of `cka` to panels: similarities, bounds, runs of alike layers, the alignment path, chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xai import seeds
from xai.panels import AnyPanel, Axis, Cell, Column, Curve, Matrix, Table, Text
from xai.result import Verdict
from xai.similarity import Measure
from xai.streaming import State

ENOUGH = 16  # groups of blocks that a bootstrap needs
DRAWS = 1000
Bounds = tuple[np.ndarray, np.ndarray]  # the lower and the upper ones, (r, c) each
DEAD = 1e-28  # of the squared mean squared norm: a smaller self term is rounding


def ratio(products: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """products (..., a, b) over the roots of the self terms (..., a) and (..., b); NaN where one of these is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.sqrt(one[..., :, None] * two[..., None, :])
        return np.asarray(np.where(size > 0, products / size, np.nan))


def bootstrap(groups: np.ndarray, rows: np.ndarray, columns: np.ndarray, seed: int,
              draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """95 % bounds (r, c) of the ratios of sums (groups, L, L) whose groups are drawn again, the percentiles widened for
    few groups (Hesterberg 2015, arXiv:1411.5279, 4.2)."""
    from scipy.stats import norm, t

    count = len(groups)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    own = weights @ np.diagonal(groups, axis1=1, axis2=2)
    level = float(norm.cdf(-np.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1)))
    low, high = (np.empty((len(rows), len(columns))) for _ in range(2))
    for i, row in enumerate(rows):
        drawn = ratio((weights @ groups[:, row, columns])[:, None], own[:, [row]], own[:, columns])[:, 0]
        low[i], high[i] = np.quantile(drawn, [level, 1 - level], axis=0)
    return low, high


def runs(values: np.ndarray, least: float) -> list[tuple[int, int]]:
    """(first, last) of the fewest runs of layers (L, L) in which every two have at least that similarity."""
    found: list[tuple[int, int]] = []
    start = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or not (values[start:i, i] >= least).all():
            found.append((start, i - 1))
            start = i
    return found


def aligned(values: np.ndarray) -> list[tuple[int, int]]:
    """The path through similarities (r, c) from the first pair to the last, one or both layers further at a step, whose
    sum of 1 - similarity is least (dynamic time warping, Sakoe and Chiba 1978); of equal ones the more diagonal."""
    rows, columns = values.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    moves = ((1, 1), (1, 0), (0, 1))
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            total[i, j] = 1 - values[i - 1, j - 1] + min(total[i - a, j - b] for a, b in moves)
    i, j, path = rows, columns, []
    while i and j:
        path.append((i - 1, j - 1))
        a, b = min(moves, key=lambda move: total[i - move[0], j - move[1]])
        i, j = i - a, j - b
    return path[::-1]


@dataclass(frozen=True)
class Found:
    """The sums of one run, read: which layers are whose, and which of them say nothing."""

    state: State
    specs: Sequence[str]
    pixels: str

    @cached_property
    def layers(self) -> list[str]:
        """The names of all, the first model's before the second's."""
        return [str(name) for name in self.state["layers"]]

    @cached_property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of rows and columns: those of one model twice, or those of the first and of the second."""
        models = self.state["models"]
        return np.flatnonzero(models == 0), np.flatnonzero(models == models.max())

    @cached_property
    def broken(self) -> np.ndarray:
        """(L,) bool: layers with values that are no finite numbers."""
        return np.asarray(~np.isfinite(self.state["spread"] + self.state["scale"]))

    @cached_property
    def dead(self) -> np.ndarray:
        """(L,) bool: layers that give the same for every picture, up to rounding."""
        with np.errstate(invalid="ignore"):
            return np.asarray(~self.broken & (self.state["spread"] <= DEAD * self.state["scale"]))

    @property
    def pictures(self) -> int:
        """Those that were compared."""
        return int(self.state["pictures"].sum())

    @property
    def blocks(self) -> int:
        """How many they came in."""
        return int(self.state["blocks"].sum())

    def groups(self, name: str) -> np.ndarray:
        """(groups, L, L): the sums of a measure that are not empty."""
        return np.asarray(self.state[name][self.state["blocks"] > 0])

    def values(self, name: str) -> np.ndarray:
        """(L, L): a measure of all layers against all."""
        sums = self.state[name].sum(0)
        return self.shown(ratio(sums, np.diagonal(sums), np.diagonal(sums)), np.arange(len(sums)), np.arange(len(sums)))

    def shuffled(self, name: str) -> np.ndarray:
        """(draws, r, c): the same of pictures that were paired wrongly."""
        own, (rows, columns) = np.diagonal(self.state[name].sum(0)), self.sides
        return self.shown(ratio(self.state[f"{name} shuffled"], own[rows], own[columns]), rows, columns)

    def bounds(self, name: str) -> Bounds | None:
        """95 % bounds (r, c), or None where there are too few groups."""
        groups = self.groups(name)
        if len(groups) < ENOUGH:
            return None
        rows, columns = self.sides
        low, high = bootstrap(groups, rows, columns, seeds.derive(int(self.state["seed"][0]), "cka bootstrap", name))
        return self.shown(low, rows, columns), self.shown(high, rows, columns)

    def shown(self, values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """NaN where one of the two layers says nothing."""
        mute = self.broken | self.dead
        return np.where(mute[rows][:, None] | mute[columns], np.nan, values)

    def of(self, model: int) -> np.ndarray:
        """Places of a model's layers that say something, without its input."""
        mute = self.broken | self.dead
        return np.array([i for i, m in enumerate(self.state["models"])
                         if m == model and not mute[i] and self.layers[i] != self.pixels], dtype=np.int64)

    def name(self, model: int) -> str:
        """A model's name on the page; two of one name are told apart."""
        return f"{self.specs[model]} ({model + 1})" if len(set(self.specs)) < len(self.specs) else self.specs[model]


def panels(state: State, specs: Sequence[str], known: Mapping[str, Measure], least: float, pixels: str,
           k: int) -> Iterator[AnyPanel | Verdict]:
    """All of a run."""
    found = Found(state, specs, pixels)
    values, bounds = {name: found.values(name) for name in known}, {name: found.bounds(name) for name in known}
    for name, measure in known.items():
        yield from _heat(found, name, measure, values[name], bounds[name])
    first = next(iter(known))
    for name, measure in known.items():
        yield _runs(found, name, measure, values[name], least)
        yield from _path(found, name, measure, values[name], bounds[name])
    yield _chance(found, known, k)
    yield _layers(found, known[first], values[first])
    yield _basis(found)
    yield from _verdicts(found)


def _heat(found: Found, name: str, measure: Measure, values: np.ndarray, bounds: Bounds | None) -> Iterator[Matrix]:
    rows, columns = found.sides
    sizes, chance = found.state["features"], found.shuffled(name)
    line = float(np.nanquantile(chance, 0.95)) if np.isfinite(chance).any() else float("nan")
    note = (f"{measure.says[0].upper()}{measure.says[1:]}. {found.pictures:,} pictures in {found.blocks} blocks of at "
            f"most {int(found.state['size'][0])}; {sizes.min():,} to {sizes.max():,} features a layer. With the "
            f"pictures paired wrongly, 95 % of all values stay under {line:.3f}."
            + ("" if bounds else f" No interval: it takes {ENOUGH} blocks."))
    yield _matrix(found, name, name, f"{measure.title} of every pair of layers (n = {found.pictures:,})", note,
                  values[np.ix_(rows, columns)])
    for word, bound in zip(("lower", "upper"), bounds or (), strict=False):
        yield _matrix(found, name, f"{name} {word}", f"{measure.title}: {word} end of the 95 % interval",
                      "Bootstrap over blocks of pictures, pair by pair.", bound)


def _matrix(found: Found, name: str, key: str, title: str, note: str, values: np.ndarray) -> Matrix:
    rows, columns = found.sides
    return Matrix(key=key, title=title, note=note, values=values.astype(np.float32),
                  view="signed" if name == "rsa" else "relu",  # below 0 a debiased value is noise
                  rows=tuple(found.layers[i] for i in rows), columns=tuple(found.layers[i] for i in columns),
                  axes=(Axis(found.name(0)), Axis(found.name(len(found.specs) - 1))))


def _runs(found: Found, name: str, measure: Measure, values: np.ndarray, least: float) -> Table:
    rows: list[tuple[Cell, ...]] = []
    alone = 0
    for model in range(len(found.specs)):
        places = found.of(model)
        own = values[np.ix_(places, places)]
        for start, end in runs(own, least):
            if start == end:
                alone += 1
                continue
            inside = own[start : end + 1, start : end + 1][np.triu_indices(end - start + 1, 1)]
            rows.append((found.name(model), found.layers[places[start]], found.layers[places[end]], end - start + 1,
                         float(inside.min()), float(inside.mean())))
    return Table(key=f"{name} runs", title=f"Block structure: runs of layers with {measure.title} from {least:g} on",
                 columns=tuple(map(Column, ("model", "from", "to", "layers", "least", "mean"))), rows=tuple(rows),
                 note=f"Every two layers of a run reach {least:g}; the fewest such runs, from the input on. "
                      f"{alone} layers stand alone.")


def _path(found: Found, name: str, measure: Measure, values: np.ndarray, ends: Bounds | None) -> Iterator[AnyPanel]:
    one, two = found.of(0), found.of(len(found.specs) - 1)
    if len(one) < 2 or not len(two):
        return
    alone = len(found.specs) == 1
    steps = ([(i, i + 1) for i in range(len(one) - 1)] if alone else aligned(values[np.ix_(one, two)]))
    pairs = np.array([(one[i], two[j]) for i, j in steps])
    seen = values[pairs[:, 0], pairs[:, 1]]
    rows, columns = found.sides
    bounds = [bound[pairs[:, 0] - rows[0], pairs[:, 1] - columns[0]] for bound in ends or ()]
    title = "each layer and the next" if alone else "the path that aligns the layers"
    note = ("How much a layer changes what it is given." if alone else
            "From the first pair to the last, one or both further at a step, the sum of 1 - similarity the least.")
    yield Curve(key=f"{name} path", title=f"{measure.title}: {title}", x=np.arange(1, len(seen) + 1, dtype=np.float64),
                y=seen[None], names=(measure.title,), axes=(Axis("step"), Axis(measure.title)), note=note,
                low=bounds[0][None] if bounds else None, high=bounds[1][None] if bounds else None)
    low, high = bounds if bounds else (np.full(len(seen), np.nan),) * 2
    named = (found.name(0), "next" if alone else found.name(1))
    yield Table(key=f"{name} path layers", title=f"{measure.title}: {title}, in numbers",
                columns=tuple(map(Column, ("step", *named, "similarity", "95 % from", "to"))),
                rows=tuple((i + 1, found.layers[a], found.layers[b], *map(_plain, (seen[i], low[i], high[i])))
                           for i, (a, b) in enumerate(pairs)))


def _chance(found: Found, known: Mapping[str, Measure], k: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    n = found.pictures / max(1, found.blocks)
    for name, measure in known.items():
        seen = found.shuffled(name)[np.isfinite(found.shuffled(name))]
        mean, line = (float(seen.mean()), float(np.quantile(seen, 0.95))) if len(seen) else (np.nan, np.nan)
        expected = "0" if name in ("linear", "rbf", "rsa") else f"{k / (n - 1):.3f}" if name == "knn" else "not known"
        rows.append((measure.title, expected, _plain(mean), _plain(line)))
    return Table(key="chance", title="What chance gives", rows=tuple(rows),
                 columns=tuple(map(Column, ("measure", "expected", "mean of shuffled", "95 % of shuffled are under"))),
                 note=f"Over all pairs of layers and {len(found.shuffled(next(iter(known))))} shuffles of the first "
                      "one's pictures in each block.")


def _layers(found: Found, measure: Measure, values: np.ndarray) -> Table:
    state, rows = found.state, list[tuple[Cell, ...]]()
    for i, layer in enumerate(found.layers):
        model = int(state["models"][i])
        own = next(j for j, m in enumerate(state["models"]) if m == model)
        others = found.of(1 - model if len(found.specs) > 1 else model)
        others = others[others != i]
        best = others[np.argmax(values[i, others])] if len(others) and np.isfinite(values[i, others]).all() else None
        rows.append((found.name(model), layer, str(state["shapes"][i]), int(state["features"][i]),
                     _plain(values[i, own]), None if best is None else found.layers[best],
                     None if best is None else _plain(values[i, best])))
    whose = "in the other model" if len(found.specs) > 1 else "among the others"
    heads = ("model", "layer", "shape", "features", f"{measure.title} with the pixels", f"most alike {whose}", "with")
    return Table(key="layers", title="Layers", rows=tuple(rows), columns=tuple(map(Column, heads)))


def _basis(found: Found) -> Text:
    skipped = int(found.state["skipped"][0])
    return Text(key="basis", title="What this rests on", text=(
        f"{found.pictures:,} pictures, each prepared as its own model wants it, compared within {found.blocks} blocks. "
        "A layer's features are all values of its output, flattened; pictures are the samples. High similarity does "
        "not mean the same function, it is ruled by the directions of most variance, and few outliers can move it."
        + (f" {skipped} pictures were left over in blocks too small to compare." if skipped else "")))


def _verdicts(found: Found) -> Iterator[Verdict]:
    for name, which, said in (("finite", found.broken, "have values that are no finite numbers"),
                              ("not constant", found.dead, "give the same for every picture")):
        names = [f"{found.layers[i]} of {found.name(int(found.state['models'][i]))}" for i in np.flatnonzero(which)]
        yield Verdict(name=name, value=float(len(names)), threshold=0.0, passed=not names, sentence=(
            f"{len(names)} of {len(found.layers)} layers {said}" + (f": {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}; they have no similarity." if names else ".")),
            advice="Check the weights and the pictures." if names else "")
    groups = int((found.state["blocks"] > 0).sum())
    enough = groups >= ENOUGH
    yield Verdict(name="interval", value=float(found.blocks), threshold=float(ENOUGH), passed=True if enough else None,
                  sentence=f"{found.blocks} blocks: " + ("enough for intervals." if enough else
                  f"no interval is given, it takes {ENOUGH} of them."),
                  advice="" if enough else "Give more pictures, or lower minibatch.")


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
