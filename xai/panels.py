"""The ten kinds of evidence that a result is made of: plain data, numpy only, known to the record and to the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

Cell = str | int | float | bool | None
View = Literal["signed", "relu", "abs"]


@dataclass(frozen=True)
class Axis:
    """A named axis with its unit ("" where it has none)."""

    name: str
    unit: str = ""


@dataclass(frozen=True)
class Mark:
    """Something drawn on a picture or heat map, in its pixel coordinates, x to the right, y down.

    `points` holds (x, y) pairs: a box is two corners, an outline a closed polygon, a point one pair.
    """

    kind: Literal["box", "outline", "point"]
    points: tuple[tuple[float, float], ...]
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What every panel has: a `key` unique among the panels of one picture, a `title`, the content hash of the
    `picture` it speaks of (None: of all), and a plain `note` under it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"arbitrary_types_allowed": True}
    key: str
    title: str
    picture: str | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Number(Panel):
    """One value with its unit and, where known, its interval [low, high]."""

    kind: Literal["number"] = "number"
    value: float | None
    unit: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table; unit "probability" (0 to 1) is drawn as a bar."""

    name: str
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Table(Panel):
    """Rows of cells under named columns."""

    kind: Literal["table"] = "table"
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Heatmap(Panel):
    """A raw, signed map over a picture.

    `values` (h, w) float32 at the method's own resolution, before any ReLU or absolute value: `view` says which of them
    the method states, and page, export and metrics apply it. It covers the whole picture whose key is `over` (bilinear,
    align_corners=False). `error` (h, w) is the standard error where the method has one. `scale`: (low, high) of the
    shown values where several maps must share one colour scale; None: the map's own.
    """

    kind: Literal["heatmap"] = "heatmap"
    values: np.ndarray
    error: np.ndarray | None = None
    view: View = "signed"
    unit: str = ""
    over: str = "seen"
    scale: tuple[float, float] | None = None
    axes: tuple[Axis, Axis] = (Axis("y", "cell"), Axis("x", "cell"))
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Picture(Panel):
    """A picture: `pixels` (h, w, 3) or (h, w) uint8, shown as sRGB."""

    kind: Literal["picture"] = "picture"
    pixels: np.ndarray
    axes: tuple[Axis, Axis] = (Axis("y", "px"), Axis("x", "px"))
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Curve(Panel):
    """Lines over one x axis: `x` (n,), `y` (lines, n), with optional bands `low`, `high` of the shape of `y`."""

    kind: Literal["curve"] = "curve"
    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]
    axes: tuple[Axis, Axis] = (Axis("x"), Axis("y"))
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Scatter(Panel):
    """Points: `xy` (n, 2), each with an optional label and group number."""

    kind: Literal["scatter"] = "scatter"
    xy: np.ndarray
    labels: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    axes: tuple[Axis, Axis] = (Axis("x"), Axis("y"))


@dataclass(frozen=True, kw_only=True)
class Histogram(Panel):
    """Counts (bins,) between `edges` (bins + 1,)."""

    kind: Literal["histogram"] = "histogram"
    edges: np.ndarray
    counts: np.ndarray
    axes: tuple[Axis, Axis] = (Axis("value"), Axis("count"))


@dataclass(frozen=True, kw_only=True)
class Matrix(Panel):
    """A matrix (rows, columns) with named rows and columns, drawn with a colour scale."""

    kind: Literal["matrix"] = "matrix"
    values: np.ndarray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    view: View = "signed"
    unit: str = ""
    axes: tuple[Axis, Axis] = (Axis("row"), Axis("column"))


@dataclass(frozen=True, kw_only=True)
class Graph(Panel):
    """Nodes (names) and weighted directed edges (from, to, weight)."""

    kind: Literal["graph"] = "graph"
    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Text(Panel):
    """A plain paragraph (no markup: it is escaped)."""

    kind: Literal["text"] = "text"
    text: str
    tone: Literal["plain", "good", "warning", "bad"] = "plain"


AnyPanel = Number | Table | Heatmap | Picture | Curve | Scatter | Histogram | Matrix | Graph | Text
KINDS: tuple[type[Panel], ...] = (
    Number, Table, Heatmap, Picture, Curve, Scatter, Histogram, Matrix, Graph, Text,
)


def shown(values: np.ndarray, view: View) -> np.ndarray:
    """What a view shows of raw values of any shape: themselves, their positive part, or their absolute value."""
    if view == "relu":
        positive: np.ndarray = np.maximum(values, 0)
        return positive
    return np.abs(values) if view == "abs" else values


