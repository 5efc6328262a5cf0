"""The layers of one model as tables and curves: entropy beside its random reference, sparsity, spectra."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from filterdb import drawn, measures
from filterdb.banks import Bank
from filterdb.records import Entry
from filterdb.sums import added
from xai.panels import AnyPanel, Axis, Cell, Column, Curve, Matrix, Number, Table, Text
from xai.result import Verdict

BANDS = 4  # square rings of equal width, 0 to half a cycle a sample


@dataclass(frozen=True)
class Seen:
    """A layer, its filters, and the entropies of as many random filters, sorted (empty: of too few)."""

    entry: Entry
    bank: Bank
    null: np.ndarray

    @property
    def relative(self) -> float | None:
        """Its entropy over the mean of random filters'."""
        h = self.entry.entropy
        return None if h is None or not len(self.null) or not self.null.mean() > 0 else h / float(self.null.mean())

    @property
    def rank(self) -> float | None:
        """The share of random layers of its size whose entropy is at most its own."""
        h = self.entry.entropy
        return None if h is None or not len(self.null) else float((self.null <= h).mean())


def panels(seen: Sequence[Seen], left: Sequence[Entry], worst: int, draws: int) -> Iterator[AnyPanel | Verdict]:
    """All panels, the sums first, and what is wrong with the weights."""
    yield from _checks(seen)
    yield from _sums(seen, draws)
    yield _table(seen)
    yield from _by_depth(seen)
    yield _spectra(seen)
    sizes = sorted({one.entry.layer.k for one in seen}, key=lambda k: -_filters(seen, k))
    for k in sizes[:2]:
        yield from _population(seen, k)
    yield from _worst(seen, worst)
    if left:
        yield Table(key="left_out", title="Layers that were left out", columns=(
            Column("layer"), Column("kind"), Column("why")),
            rows=tuple((entry.layer.name, entry.layer.op, entry.layer.left_out) for entry in left))


def _checks(seen: Sequence[Seen]) -> Iterator[Verdict]:
    sound = [one.entry for one in seen if one.entry.finite]
    for name, bad, said in (
            ("finite", [one.entry for one in seen if not one.entry.finite], "hold weights that are no numbers"),
            ("varied", [e for e in sound if e.layer.n > 1 and e.entropy is None], "have filters all the same")):
        names = ", ".join(entry.layer.name for entry in bad[:5]) + (", ..." if len(bad) > 5 else "")
        yield Verdict(name=name, value=len(bad), threshold=0, passed=not bad, advice=(
            "Look whether the weights were loaded." if bad else ""), sentence=(
                f"{len(bad)} of {len(seen)} layers {said}: {names}." if bad else f"No layers {said}."))


def _filters(seen: Sequence[Seen], k: int) -> int:
    return sum(one.entry.layer.n for one in seen if one.entry.layer.k == k)


def _sums(seen: Sequence[Seen], draws: int) -> Iterator[AnyPanel]:
    asked = [one.entry.degenerate for one in seen if one.entry.degenerate is not None]
    yield Number(key="filters", title="Filters", value=sum(one.entry.layer.n for one in seen), unit="filters",
                 note=f"In {len(seen)} layers.")
    yield Number(key="degenerate", title="Degenerate layers", unit=f"of {len(asked)} layers",
                 value=sum(asked) if asked else None,
                 note="By the published rule: entropy near that of random filters (H >= T_H - 0.02), or H < 0.5 with "
                      "14 % of the filters sparse. Asked of 3 x 3 layers of 10 filters or more; the thresholds hold "
                      "for no others.")
    yield Text(key="wording", title="How to read this", text=(
        "H is the variance entropy: the higher, the more different the filters of a layer are; many random ones reach "
        f"nearly log10 of k x k. The random reference is drawn {draws} times for each layer's own number of filters. "
        "These are observations, not verdicts: a convolution whose output a 1 x 1 convolution recombines works with "
        "random filters too, and sparse filters may be what a layer needs."))


def _table(seen: Sequence[Seen]) -> Table:
    columns = ("layer", "depth", "k", "in", "out", "groups", "stride", "filters", "sparse", "H", "H clean", "T_H",
               "H over random", "random layers at most H", "orthogonality", "aliasing", "seen")
    rows: list[tuple[Cell, ...]] = []
    for one in seen:
        e, layer = one.entry, one.entry.layer
        marks = ["depthwise"] if layer.depthwise else []
        rows.append((layer.name, layer.depth_norm, layer.k, layer.c_in, layer.c_out, layer.groups,
                     " x ".join(map(str, dict.fromkeys(layer.stride))), layer.n, e.sparsity, e.entropy,
                     e.clean_entropy, measures.threshold(layer.n) if layer.k == 3 else None, one.relative, one.rank,
                     e.orthogonality, e.aliasing, ", ".join([*e.findings, *marks])))
    return Table(key="layers", title="Every layer", columns=tuple(Column(name) for name in columns), rows=tuple(rows),
                 note="sparse: the share of filters all of whose weights are at most 1 % of the layer's largest. H: of "
                      "the weights as they are; H clean: each filter scaled to a largest weight of 1, without sparse "
                      "ones. T_H: the published sigmoid. aliasing: the share of the kernels' energy above what the "
                      "stride can hold, 1 - 1/stride^2 for white filters of a square stride.")


def _by_depth(seen: Sequence[Seen]) -> Iterator[Curve]:
    order = sorted((one for one in seen if one.entry.layer.depth_norm is not None),
                   key=lambda one: (one.entry.layer.depth_norm, one.entry.layer.name))
    if len(order) < 2:
        return
    x = np.array([one.entry.layer.depth_norm for one in order], np.float64)

    def line(values: Sequence[float | None]) -> np.ndarray:
        return np.array([np.nan if v is None else v for v in values], np.float64)

    h, clean = line([one.entry.entropy for one in order]), line([one.entry.clean_entropy for one in order])
    null = np.array([np.quantile(one.null, (0.025, 0.5, 0.975)) if len(one.null) else [np.nan] * 3 for one in order])
    yield Curve(key="entropy", title="Entropy by depth", x=x, y=np.stack([h, clean, null[:, 1]]),
                names=("H", "H clean", "random filters"), low=np.stack([h, clean, null[:, 0]]),
                high=np.stack([h, clean, null[:, 2]]), axes=(Axis("relative depth"), Axis("H", "log 10")),
                note="The band holds 95 % of random layers with as many filters.")
    yield Curve(key="health", title="Sparsity and orthogonality by depth", x=x, names=("sparse", "orthogonality"),
                y=np.stack([line([one.entry.sparsity for one in order]),
                            line([one.entry.orthogonality for one in order])]),
                axes=(Axis("relative depth"), Axis("share")))


def _spectra(seen: Sequence[Seen]) -> Matrix:
    rows = []
    for one in seen:
        found = measures.bands(one.entry.counted.raw_gram, one.entry.layer.k, BANDS)
        rows.append(np.full(BANDS, np.nan) if found is None else found)
    limits = np.linspace(0, 0.5, BANDS + 1)
    return Matrix(key="bands", title="Energy of the kernels by frequency", values=np.stack(rows).astype(np.float32),
                  rows=tuple(one.entry.layer.name for one in seen), view="relu", unit="share",
                  columns=tuple(f"{a:g} to {b:g}" for a, b in itertools.pairwise(limits)),
                  axes=(Axis("layer"), Axis("frequency", "cycles a sample")),
                  note="In square rings: white filters have 1/16, 3/16, 5/16 and 7/16.")


def _population(seen: Sequence[Seen], k: int) -> Iterator[AnyPanel]:
    total, key = added((one.entry.counted for one in seen
                        if one.entry.layer.k == k and one.entry.finite), k), f"k{k}"
    name = f"all {k} x {k} filters"
    yield from drawn.basis_pictures(key, name, total)
    yield drawn.coefficients(f"{key}_coefficients", f"DCT coefficients of {name}", [
        (f"{i // k},{i % k}", row) for i, row in list(enumerate(total.histogram))[:9]], k,
        note="Of the scaled filters; row and column frequency name a coefficient.")
    yield drawn.phase(f"{key}_phase", f"The first two coefficients of {name}", total.phase, k)
    yield drawn.spectrum(f"{key}_spectrum", f"Mean power spectrum of {name}", total)


def _worst(seen: Sequence[Seen], count: int) -> Iterator[AnyPanel]:
    known = [one for one in seen if one.relative is not None]
    order = sorted(known, key=lambda one: (not one.entry.degenerate, one.relative, one.entry.layer.name))
    for i, one in enumerate(order[:count]):
        e, said = one.entry, ", ".join(one.entry.findings) or "nothing stands out"
        yield drawn.filters_picture(f"worst_{i}", f"Filters of {e.layer.name}", one.bank.filters.numpy(), (
            f"{said.capitalize()}: H {e.entropy:.3f}, {one.relative:.2f} of random filters; "
            f"{100 * (e.sparsity or 0):.1f} % of {e.layer.n:,} filters sparse."))
