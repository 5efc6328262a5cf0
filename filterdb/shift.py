"""How far the filters of one group of layers lie from those of another: drift with its floors, as a record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from filterdb import drawn, measures
from filterdb.database import Database
from filterdb.records import Entry
from filterdb.sums import BINS, Sums, added, basis_histogram, dct
from xai.errors import did_you_mean, error
from xai.panels import AnyPanel, Axis, Cell, Column, Curve, Matrix, Number, Table, Text
from xai.provenance import peak_memory, provenance
from xai.result import Cost, ModelRecord, Result

COLUMNS = ("task", "training", "architecture", "dataset", "decile", "spec", "model", "precision", "depthwise")
NAMED, DRAWN = 20, 6  # models that the record names; groups that have pictures of their own


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that are compared as one. `histogram` (k^2, BINS): of the coefficients in the common basis."""

    name: str
    entries: tuple[Entry, ...]
    k: int
    refit: np.ndarray | None = None

    @cached_property
    def sums(self) -> Sums:
        """Of all filters."""
        return added((entry.counted for entry in self.entries), self.k)

    @property
    def histogram(self) -> np.ndarray:
        """(k^2, BINS) counts."""
        return self.sums.histogram if self.refit is None else self.refit

    @property
    def models(self) -> int:
        """How many models the layers are of."""
        return len({entry.key[0] for entry in self.entries})

    @cached_property
    def balanced(self) -> np.ndarray:
        """(k^2, BINS): each layer has the same weight, so that wide ones do not outvote the others."""
        found: np.ndarray = np.mean([e.counted.histogram / max(1, e.layer.n) for e in self.entries], 0)
        return found

    def weighted(self, values: Sequence[float | None], weights: Sequence[int]) -> float | None:
        """The mean over the layers that have a value."""
        known = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None]
        total = sum(w for _, w in known)
        return sum(v * w for v, w in known) / total if total else None


def named_groups(database: Database, names: Sequence[str], k: int) -> list[Group]:
    """A group for each name: the spec or key of a model, or else a condition of SQL over `layers` (anything with a
    blank or a sign of comparison). Raises XaiError for one that names no layer of that size."""
    found, known = [], [str(cell) for row in database.sql("SELECT DISTINCT spec, model FROM layers")[1] for cell in row]
    for name in names:
        quoted = "'" + name.replace("'", "''") + "'"
        condition = name not in known and any(sign in name for sign in " =<>")
        where = f"({name})" if condition else f"(spec = {quoted} OR spec = 'xai:' || {quoted} OR model = {quoted})"
        layers = [entry for entry in database.entries(f"{where} AND k = {k}") if entry.finite]
        if not layers:
            raise error("a group", f"a spec in the database or a condition that holds for a layer of {k} x {k}",
                        repr(name), did_you_mean(name, known) or "For example \"training = 'random'\"")
        found.append(Group(name, tuple(layers), k))
    return found


def groups_by(database: Database, column: str, k: int, where: str = "") -> list[Group]:
    """A group for each value of a column. Raises XaiError for an unknown column, or fewer than two values."""
    if column not in COLUMNS:
        raise error("--by", f"one of {', '.join(COLUMNS)}", repr(column), did_you_mean(column, COLUMNS) or
                    "Or name groups by conditions")
    condition = f"k = {k} AND {column} IS NOT NULL {f'AND ({where})' if where else ''}"
    values = [row[0] for row in database.sql(f"SELECT DISTINCT {column} FROM layers WHERE {condition} ORDER BY 1")[1]]
    if len(values) < 2:
        raise error("the groups", "two or more to be compared", f"{len(values)} of {column}", "Name another column")
    quoted = ["'" + str(value).replace("'", "''") + "'" for value in values]
    return [Group(f"{column} {value}" if column in ("decile", "depthwise") else str(value),
                  tuple(e for e in database.entries(f"{condition} AND {column} = {text}") if e.finite), k)
            for value, text in zip(values, quoted, strict=True)]


def refitted(database: Database, groups: Sequence[Group]) -> tuple[list[Group], measures.Basis]:
    """The groups with their histograms in the principal components of all their filters, which are read once more."""
    k = groups[0].k
    basis = measures.pca(added((group.sums for group in groups), k))
    place: dict[tuple[str, int], list[int]] = {}
    for i, group in enumerate(groups):
        for entry in group.entries:
            place.setdefault(entry.key, []).append(i)
    found = np.zeros((len(groups), k * k, BINS), np.int64)
    for model, layer_id, filters in database.filters(k, [model for model, _ in place]):
        for one in np.unique(layer_id):
            held = place.get((model, int(one)), [])
            if held:
                found[held] += basis_histogram(filters[layer_id == one], basis.vectors, basis.mean)
    return [replace(group, refit=counts) for group, counts in zip(groups, found, strict=True)], basis


def shift(database: Database, groups: Sequence[Group], *, basis: str = "dct", seed: int = 0, draws: int = 100,
          command: str = "") -> Result:
    """The record of a comparison of groups. basis: dct, which needs no data, or fit, the principal components of all
    filters of the groups. draws: of each floor. The weights of the coefficients are their shares of the pooled
    variance, and stand in the record."""
    if len(groups) < 2:
        raise error("the groups", "two or more", len(groups), "Name them, or a column with --by")
    started = time.perf_counter()
    k = groups[0].k
    total = added((group.sums for group in groups), k)
    vectors, explained = dct(k), measures.dct_explained(total)
    if basis == "fit":
        groups, fitted = refitted(database, groups)
        vectors, explained = fitted.vectors, fitted.explained
    panels = tuple(_panels(groups, vectors, explained, basis, seed, draws))
    facts = list(dict.fromkeys(entry.facts for group in groups for entry in group.entries))
    models = tuple(ModelRecord(spec=f.spec, weights_hash=f.weights_hash, weights=f.training,
                               random_weights=f.training == "random") for f in facts) if len(facts) <= NAMED else ()
    return Result(
        analyzer="filters_shift", version=1, title="Filter shift", models=models, panels=panels,
        summary="drift between groups of filters beside its floors, their coefficients, phase space and components",
        reference='Gavrikov and Keuper 2022, "CNN Filter DB", arXiv:2203.15331',
        parameters={"groups": [group.name for group in groups], "k": k, "basis": basis, "draws": draws},
        cost=Cost(seconds=time.perf_counter() - started, peak_memory=peak_memory()),
        provenance=provenance(command, seed))


def _panels(groups: Sequence[Group], vectors: np.ndarray, explained: np.ndarray, basis: str, seed: int,
            draws: int) -> Iterator[AnyPanel]:
    k, count = groups[0].k, len(groups)
    d, floor, balanced = np.zeros((3, count, count))
    for i in range(count):
        for j in range(i):
            one, two = groups[i], groups[j]
            rng = measures.generator(seed, "filters_shift", one.name, two.name)
            d[i, j] = d[j, i] = measures.drift(one.histogram, two.histogram, explained, k)
            drawn_floor = measures.drift_floor(one.histogram + two.histogram, one.sums.n, two.sums.n, explained, k, rng,
                                               draws)
            floor[i, j] = floor[j, i] = np.quantile(drawn_floor, 0.975)
            balanced[i, j] = balanced[j, i] = measures.drift(one.balanced, two.balanced, explained, k)
    order = np.argsort(-d.sum(1), kind="stable")
    groups = [groups[i] for i in order]
    if count == 2:
        yield from _pair(groups[0], groups[1], float(d[0, 1]), float(floor[0, 1]), float(balanced[0, 1]), explained,
                         seed, draws, basis)
    yield _table(groups)
    names = tuple(group.name for group in groups)
    for key, title, values, note in (
            ("drift", "Drift D", d, "Sorted by mean drift. Symmetric Kullback-Leibler divergence of each coefficient's "
             "histogram, weighted by its share of the pooled variance."),
            ("floor", "What the number of filters alone gives", floor, "The 97.5 % quantile of D between two samples "
             "of one distribution with as many independent filters; filters of one layer are not independent."),
            ("balanced", "Drift D, each layer with the same weight", balanced, "In the DCT basis. Wide, late layers do "
             "not outvote the others. It has no floor of its own.")):
        if count > 2:
            yield Matrix(key=key, title=title, values=values[np.ix_(order, order)].astype(np.float32), rows=names,
                         columns=names, view="relu", axes=(Axis("group"), Axis("group")), note=note)
    yield drawn.filters_picture("basis", "The common basis", vectors, "The DCT, which needs no data." if basis == "dct"
                                else "The principal components of all filters.")
    for i in np.argsort(-explained, kind="stable")[:9]:
        name = f"{i // k},{i % k}" if basis == "dct" else str(i + 1)
        yield drawn.coefficients(f"ridge_{i}", f"Coefficient {name}", [(g.name, g.histogram[i]) for g in groups[:12]],
                                 k, note=f"{100 * explained[i]:.1f} % of the pooled variance.")
    yield from _depths(groups)
    for n, group in enumerate(groups[:DRAWN]):
        yield drawn.phase(f"phase_{n}", f"Phase space of {group.name}", group.sums.phase, k)
        yield from drawn.basis_pictures(f"group_{n}", group.name, group.sums)


def _pair(one: Group, two: Group, d: float, floor: float, balanced: float, explained: np.ndarray, seed: int,
          draws: int, basis: str) -> Iterator[AnyPanel]:
    parts = measures.divergences(one.histogram, two.histogram, one.k)
    yield Number(key="drift", title="Drift D", value=d, note=(
        f"{one.sums.n:,} filters against {two.sums.n:,}. As many independent filters of one distribution give at most "
        f"{floor:.4g} in 97.5 % of {draws} draws."))
    yield Number(key="balanced", title="Drift D, each layer with the same weight", value=balanced,
                 note="In the DCT basis; wide, late layers do not outvote the others.")
    if basis == "dct":
        null = _permuted(one, two, explained, seed, draws)
        if len(null):
            share = (1 + int((null >= d).sum())) / (1 + len(null))
            yield Number(key="permuted", title="Drift D with layers dealt out at random", value=float(np.median(null)),
                         low=float(np.quantile(null, 0.025)), high=float(np.quantile(null, 0.975)), note=(
                             f"{len(one.entries)} and {len(two.entries)} layers, {len(null)} draws; the median and the "
                             f"middle 95 %. p = {share:.3g} that layers of one kind drift as far."))
    if d <= floor:
        yield Text(key="noise", title="Within noise", tone="warning",
                   text="The drift is no more than the number of filters alone gives.")
    yield Table(key="parts", title="What makes up the drift", columns=(
        Column("coefficient"), Column("share of the variance"), Column("divergence"), Column("product")),
        rows=tuple((f"{i // one.k},{i % one.k}" if basis == "dct" else i + 1, float(explained[i]), float(parts[i]),
                    float(explained[i] * parts[i])) for i in np.argsort(-explained * parts, kind="stable")))


def _permuted(one: Group, two: Group, explained: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """(draws,) drifts after the layers of both are dealt out anew, as many to each; empty where there are two."""
    layers = [*one.entries, *two.entries]
    if len(layers) < 4:
        return np.empty(0)
    k = one.k
    counts = np.stack([entry.counted.histogram.ravel() for entry in layers]).astype(np.float64)
    rng = measures.generator(seed, "filters_shift", "permuted", one.name, two.name)
    dealt = np.stack([rng.permutation(len(layers)) < len(one.entries) for _ in range(draws)]).astype(np.float64)
    a, b = ((part @ counts).reshape(draws, k * k, BINS) for part in (dealt, 1 - dealt))
    found: np.ndarray = measures.divergences(a, b, k) @ explained
    return found


def _table(groups: Sequence[Group]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        layers = group.entries
        h = group.weighted([e.entropy for e in layers], [e.layer.n for e in layers])
        o = group.weighted([e.orthogonality for e in layers], [e.layer.c_out for e in layers])
        asked = [e.degenerate for e in layers if e.degenerate is not None]
        rows.append((group.name, group.models, len(layers), group.sums.n, measures.sparsity(group.sums), h, o,
                     sum(asked) / len(asked) if asked else None))
    return Table(key="groups", title="The groups", rows=tuple(rows), columns=tuple(map(Column, (
        "group", "models", "layers", "filters", "sparse", "entropy", "orthogonality", "degenerate layers"))),
        note="Sparse filters are pooled; entropy is the mean over layers weighted by filters, orthogonality by output "
             "channels; degenerate layers by the published rule.")


def _depths(groups: Sequence[Group]) -> Iterator[Curve]:
    deciles = np.arange(1, 11)
    lines: dict[str, list[list[float]]] = {"entropy": [], "sparse": []}
    for group in groups[:12]:
        at = [[e for e in group.entries if e.decile == decile] for decile in deciles]
        means = [group.weighted([e.entropy for e in some], [e.layer.n for e in some]) for some in at]
        lines["entropy"].append([np.nan if v is None else v for v in means])
        lines["sparse"].append([sum(e.counted.n_sparse for e in some) / n if (n := sum(e.layer.n for e in some)) else
                                np.nan for some in at])
    for name, values in lines.items():
        yield Curve(key=f"depth_{name}", title=f"{name.capitalize()} by depth", x=deciles.astype(np.float64),
                    y=np.array(values, np.float64), names=tuple(group.name for group in groups[:12]),
                    axes=(Axis("depth", "decile"), Axis(name, "log 10" if name == "entropy" else "share of filters")))
