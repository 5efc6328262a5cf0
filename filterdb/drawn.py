"""Filters, bases, coefficients and spectra as panels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from filterdb import measures
from filterdb.sums import Sums, dct, edges
from xai.panels import Axis, Column, Curve, Heatmap, Picture, Table

TAP, GAP = 14, 4  # pixels of a weight and between filters
FRAME = 110  # grey of the line around a filter
SHOWN = 64  # filters of a layer that are drawn
COMPONENTS = 20  # that the table names
LEAST = 1e-5  # of the fullest cell: what a phase-space plot shows


def filters_picture(key: str, title: str, filters: np.ndarray, note: str = "", across: int = 16) -> Picture:
    """Filters (n, k^2), each on its own scale, grey is 0; of more than 64 every so many-th."""
    filters = np.asarray(filters, np.float64)
    some = filters[:: max(1, -(-len(filters) // SHOWN))]
    k = round(filters.shape[1] ** 0.5)
    top = np.abs(some).max(1, keepdims=True)
    grey = (127.5 + 127.5 * some / np.where(top > 0, top, 1)).round().astype(np.uint8).reshape(-1, k, k)
    tap = max(2, TAP * 3 // k)
    side, columns = k * tap + GAP, min(across, len(some))
    rows = -(-len(some) // columns)
    pixels = np.full((rows * side + GAP, columns * side + GAP), 255, np.uint8)
    for i, one in enumerate(grey):
        y, x = GAP + i // columns * side, GAP + i % columns * side
        pixels[y - 1 : y + k * tap + 1, x - 1 : x + k * tap + 1] = FRAME
        pixels[y : y + k * tap, x : x + k * tap] = np.kron(one, np.ones((tap, tap), np.uint8))
    more = f" {len(some)} of {len(filters)} filters, evenly taken." if len(some) < len(filters) else ""
    return Picture(key=key, title=title, pixels=pixels, note=f"{note} Each on its own scale; grey is 0.{more}".strip())


def basis_pictures(key: str, name: str, sums: Sums) -> list[Picture | Table]:
    """The principal components of a group, and what each of them and of the DCT basis explains."""
    found, k = measures.pca(sums), sums.k
    one, two = found.explained, measures.dct_explained(sums)
    overlap = np.abs(found.vectors @ dct(k).T)
    best = overlap.argmax(1)
    rows = tuple((i + 1, float(one[i]), f"{best[i] // k},{best[i] % k}", float(overlap[i, best[i]]),
                  float(two[best[i]])) for i in range(min(k * k, COMPONENTS)))
    h = measures.entropy(sums.n, sums.scaled_sum, sums.scaled_gram)
    return [filters_picture(f"{key}_pca", f"Principal components of {name}", found.vectors,
                            f"Of the scaled {k} x {k} filters, by falling variance; the sign is fixed by the largest "
                            "entry."),
            Table(key=f"{key}_explained", title=f"What the components of {name} explain", rows=rows, columns=(
                Column("component"), Column("share of the variance"), Column("nearest DCT filter", "row, column"),
                Column("|cosine|"), Column("share of that DCT filter")), note=(
                    f"{sums.n:,} filters. Entropy of the shares: {'none' if h is None else f'{h:.3f}'} of at most "
                    f"{np.log10(k * k):.3f} (log 10). A DCT filter is named by its row and column frequency."))]


def coefficients(key: str, title: str, histograms: Sequence[tuple[str, np.ndarray]], k: int, note: str = "") -> Curve:
    """A ridge plot: the density of each named histogram (BINS,), each raised by its place so that all can be seen."""
    middle = (edges(k)[:-1] + edges(k)[1:]) / 2
    lines = np.stack([np.asarray(h, np.float64) / max(1, h.sum()) for _, h in histograms])
    top = lines.max() or 1.0
    raised = lines / top + 0.6 * np.arange(len(lines))[::-1, None]
    return Curve(key=key, title=title, x=middle, y=raised, names=tuple(name for name, _ in histograms),
                 axes=(Axis("coefficient"), Axis("density")),
                 note=f"{note} Densities over the largest, each line 0.6 above the next.".strip())


def phase(key: str, title: str, counts: np.ndarray, k: int) -> Heatmap:
    """A phase-space plot: how often the first two DCT coefficients come together, on a logarithmic scale."""
    top = max(1, int(counts.max()))
    values = np.log10(np.maximum(counts / top, LEAST)).T[::-1] - np.log10(LEAST)
    return Heatmap(key=key, title=title, values=np.ascontiguousarray(values, dtype=np.float32), view="relu",
                   unit="powers of 10 above 1/100,000 of the fullest cell", scale=(0, 5),
                   axes=(Axis("coefficient 0,1", f"{1.1 * k:g} to {-1.1 * k:g}"),
                         Axis("coefficient 0,0", f"{-1.1 * k:g} to {1.1 * k:g}")))


def spectrum(key: str, title: str, sums: Sums) -> Heatmap:
    """The mean power spectrum of the scaled filters; white filters are 1 everywhere."""
    trace = float(np.trace(sums.scaled_gram))
    values = measures.power(sums.scaled_gram, sums.k) / (trace if trace > 0 else 1)
    return Heatmap(key=key, title=title, values=values.astype(np.float32), view="relu", unit="of white filters",
                   axes=(Axis("vertical frequency", "-1/2 to 1/2 cycles a sample"),
                         Axis("horizontal frequency", "-1/2 to 1/2")))
