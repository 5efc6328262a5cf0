"""Prototypes as panels: their pictures, the class table, what each adds to a picture's logits, what the checks say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai.panels import AnyPanel, Axis, Cell, Column, Heatmap, Mark, Matrix, Number, Picture, Table

TILE, GAP, ACROSS = 72, 8, 8  # of the sheet of prototypes: pixels of a tile, between two, tiles in a row
ROWS = 20  # prototypes in a picture's table; of more, the others are one row
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Found:
    """What all pictures told of P prototypes: their classes `own`, the class table (P, C), for each the `nearest` of
    the pictures that were read and the `least` distance, its purity, and the pairs that are the same."""

    own: list[int]
    table: Tensor
    falls: bool
    nearest: list[int]
    least: list[float]
    purity: list[float]
    pairs: list[tuple[int, int]]
    names: list[str]
    labelled: bool
    class_name: Callable[[int], str]

    def name(self, j: int) -> str:
        """Prototype j with its class."""
        return f"{j + 1} ({self.class_name(self.own[j])})"


def sheet(tiles: Sequence[Array], found: Found, title: str, note: str) -> Picture:
    """The prototypes' pictures (h, w, 3) uint8, or (h, w), each as large as a tile, pixel by pixel."""
    rows = -(-len(tiles) // ACROSS)
    across = min(ACROSS, len(tiles))
    pixels = np.full((rows * (TILE + GAP) - GAP, across * (TILE + GAP) - GAP, 3), 255, dtype=np.uint8)
    marks = []
    for j, tile in enumerate(tiles):
        y, x = (part * (TILE + GAP) for part in divmod(j, ACROSS))
        small = tile if tile.ndim == 3 else np.repeat(tile[..., None], 3, 2)
        down, over = (np.arange(TILE) * side // TILE for side in small.shape[:2])
        pixels[y : y + TILE, x : x + TILE] = small[down][:, over]
        marks.append(Mark("box", ((x, y), (x + TILE, y + TILE)), found.name(j)))
    return Picture(key="prototypes", title=title, pixels=pixels, marks=tuple(marks), note=note)


def class_table(found: Found) -> Matrix:
    """The weights, a row a prototype."""
    what = ("A similarity is weighted: a positive weight speaks for the class." if found.falls else
            "A distance is weighted: the most negative weight of a row marks the prototype's class, and only the "
            "differences within a row count.")
    return Matrix(key="class_table", title="The class table", values=found.table.float().cpu().numpy(),
                  rows=tuple(found.name(j) for j in range(len(found.own))),
                  columns=tuple(found.class_name(c) for c in range(found.table.shape[1])), note=what,
                  axes=(Axis("prototype"), Axis("class")))


def told(found: Found, neighbours: int) -> Iterator[AnyPanel]:
    """A row a prototype: its nearest picture, and how pure it is; the counts."""
    alike = [", ".join(str(b + 1 if a == j else a + 1) for a, b in found.pairs if j in (a, b)) for j in
             range(len(found.own))]
    rows: list[tuple[Cell, ...]] = [
        (j + 1, found.class_name(found.own[j]), found.purity[j], found.least[j], found.names[found.nearest[j]],
         alike[j] or "none") for j in range(len(found.own))]
    by = "class" if found.labelled else "class that the network says, as the pictures bear no labels"
    yield Table(key="prototype_table", title="What stands behind each prototype", rows=tuple(rows),
                columns=(Column("prototype"), Column("class"), Column("purity", "probability"),
                         Column("distance to the nearest picture", "squared"), Column("nearest picture"),
                         Column("the same as")),
                note=f"Purity: the share of the {neighbours} nearest pictures that are of the prototype's {by}. A "
                     "prototype far from every picture is an invention of the network, not an example.")
    yield Number(key="purity", title="Purity of the prototypes, in the mean", value=float(np.mean(found.purity)),
                 unit="share of the nearest pictures")
    yield Number(key="duplicates", title="Pairs of prototypes that are the same", value=len(found.pairs))


def evidence_table(parts: Tensor, least: Tensor, weighed: Tensor, logits: Tensor, found: Found, picture: str) -> Table:
    """What each prototype adds, (P, C), to the two highest of logits (C,) and to their difference."""
    order = logits.topk(min(2, len(logits))).indices.tolist()
    one, two = order[0], order[-1]
    first = parts[:, one] - parts[:, two] if one != two else parts[:, one]
    ranked = first.abs().sort(descending=True, stable=True).indices.tolist()

    def row(name: str, chosen: Sequence[int], distance: float | None, weight: float | None) -> tuple[Cell, ...]:
        a, b = (float(parts[list(chosen), c].sum()) for c in (one, two))
        return name, distance, weight, a, b, a - b

    rows = [row(found.name(j), [j], float(least[j]), float(weighed[j])) for j in ranked[:ROWS]]
    if ranked[ROWS:]:
        rows.append(row(f"the other {len(ranked) - ROWS}", ranked[ROWS:], None, None))
    rows.append(row("sum", range(len(parts)), None, None))
    rows.append(("the network's logit", None, None, float(logits[one]), float(logits[two]),
                 float(logits[one] - logits[two])))
    a, b = found.class_name(one), found.class_name(two)
    keep = [True, True, found.falls, True, one != two, one != two]
    columns = (Column("prototype"), Column("distance", "squared"), Column("similarity"), Column(f"adds to {a}"),
               Column(f"adds to {b}"), Column("difference"))
    said = "" if found.falls else (" What is added grows with the distance, so a large number means far from the "
                                   "prototype; an input on it gets nothing. Only the difference speaks.")
    return Table(key="evidence", title=f"Why {a} and not {b}", picture=picture,
                 columns=tuple(c for c, k in zip(columns, keep, strict=True) if k),
                 rows=tuple(tuple(cell for cell, k in zip(r, keep, strict=True) if k) for r in rows),
                 note=f"Similarity times weight, or distance times weight, prototype by prototype; they sum to the "
                      f"logit, as there is no bias.{said}")


def heat_map(distances: Tensor, weighed: Tensor, box: tuple[int, int, int, int], ratio: tuple[float, float],
             number: int, name: str, picture: str) -> Heatmap:
    """Where a prototype is found: similarities (h, w), or the distances negated; the patch in the map's own cells."""
    values = weighed if weighed is not distances else -distances
    (x0, y0, x1, y1), (sx, sy) = box, ratio
    mark = Mark("box", ((x0 * sx, y0 * sy), (x1 * sx, y1 * sy)), "the nearest 5 %")
    return Heatmap(key=f"near_{number}", title=f"Where prototype {name} is found", picture=picture,
                   values=values.float().cpu().numpy(), unit="similarity" if weighed is not distances else "-distance",
                   marks=(mark,))


def picture_of(values: Tensor) -> Array:
    """(h, w, 3) or (h, w) uint8 of values (C, h, w) in [0, 1]."""
    seen = (values.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(seen[:3].transpose(1, 2, 0)) if len(seen) >= 3 else np.ascontiguousarray(seen[0])
