"""From results to the order of a page: by picture, then by model (rows), then by method (columns)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from xai.panels import Heatmap, Number, Panel, Picture, Table, Text
from xai.result import ImageRecord, ModelRecord, Result, Verdict

FEW_NUMBERS = 2  # that a column holds without growing long


@dataclass
class Cell:
    """One method on one model for one picture: its maps, what else it found, and its health."""

    result: Result
    method: str
    target: str
    maps: list[Heatmap] = field(default_factory=list)
    others: list[Panel] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def beside(self) -> list[Panel]:
        """What stands under the map, in its column: sentences, and numbers where they are few."""
        few = sum(isinstance(panel, Number) for panel in self.others) <= FEW_NUMBERS
        return [p for p in self.others if isinstance(p, Text) or (few and isinstance(p, Number))]

    @property
    def below(self) -> list[Panel]:
        """What needs more width than a column has."""
        near = self.beside
        return [p for p in self.others if not any(p is other for other in near)]

    @property
    def failed(self) -> list[Verdict]:
        """The checks that this map did not pass."""
        return [v for v in self.verdicts if v.passed is False]


@dataclass
class Row:
    """One model for one picture: what it saw, what it predicted, and one cell a method."""

    model: ModelRecord | None
    pictures: dict[str, Picture] = field(default_factory=dict)
    predictions: Table | None = None
    cells: list[Cell] = field(default_factory=list)


@dataclass
class Specimen:
    """One picture with everything that was found on it."""

    number: int
    image: ImageRecord
    original: Picture | None = None
    rows: list[Row] = field(default_factory=list)

    def slots(self, row: Row) -> list[Cell | None]:
        """The cells of a row, None where another model has a map of that method and target and this one has none: so
        the same method stands in the same column for every model."""
        columns = dict.fromkeys(_column(cell) for row in self.rows for cell in row.cells)
        found: list[Cell | None] = []
        for column in columns:
            own = [cell for cell in row.cells if _column(cell) == column]
            found += own or [None]
        return found

    @property
    def anchor(self) -> str:
        """The id of its place on the page."""
        return f"picture-{self.number}"

    @property
    def failed(self) -> int:
        """How many checks failed on it."""
        return sum(len(cell.failed) for row in self.rows for cell in row.cells)


def specimens(results: Iterable[Result]) -> list[Specimen]:
    """The pictures of all results in the order in which they first appear, each with its rows and cells filled."""
    found: dict[str, Specimen] = {}
    rows: dict[tuple[str, tuple[str, str]], Row] = {}
    for result in results:
        own = _by_picture(result)
        for image in result.images:
            panels = own.get(image.hash, [])
            if not panels:
                continue
            specimen = found.setdefault(image.hash, Specimen(len(found) + 1, image))
            model = result.models[0] if result.models else None
            key = (image.hash, (model.spec, model.weights_hash) if model else ("", ""))
            if key not in rows:
                rows[key] = Row(model)
                specimen.rows.append(rows[key])
            _fill(specimen, rows[key], result, image, panels)
    return list(found.values())


def whole(result: Result) -> list[Panel]:
    """The panels of a result that speak of no single picture, and those of pictures that it does not list."""
    listed = {image.hash for image in result.images}
    return [panel for panel in result.panels if panel.picture not in listed]


def models_of(results: Iterable[Result]) -> list[ModelRecord]:
    """Each distinct model once, in the order of the results; with the layer of the first method that looked at one."""
    found: dict[tuple[str, str], ModelRecord] = {}
    for result in results:
        for model in result.models:
            key = (model.spec, model.weights_hash)
            if key not in found or (model.layer and not found[key].layer):
                found[key] = model
    return list(found.values())


def _column(cell: Cell) -> tuple[str, str]:
    return cell.result.analyzer, cell.result.target


def method_name(result: Result) -> str:
    """The short name of a method: its title up to the colon."""
    return result.title.partition(":")[0].strip() or result.analyzer


def _by_picture(result: Result) -> dict[str, list[Panel]]:
    own: dict[str, list[Panel]] = {}
    for panel in result.panels:
        if panel.picture is not None:
            own.setdefault(panel.picture, []).append(panel)
    return own


def _fill(specimen: Specimen, row: Row, result: Result, image: ImageRecord, panels: list[Panel]) -> None:
    cell = Cell(
        result,
        method_name(result),
        image.target or result.target,
        verdicts=[v for v in result.verdicts if v.picture == image.hash],
    )
    for panel in panels:
        if isinstance(panel, Heatmap):
            cell.maps.append(panel)
        elif isinstance(panel, Picture) and panel.key == "original":
            specimen.original = specimen.original or panel
        elif isinstance(panel, Picture) and panel.key == "seen":
            row.pictures.setdefault("seen", panel)
        elif isinstance(panel, Table) and panel.key == "predictions":
            row.predictions = row.predictions or panel
        else:
            cell.others.append(panel)
    row.cells.append(cell)


def over(cell: Cell, row: Row, specimen: Specimen, panel: Heatmap) -> Picture | None:
    """The picture that a map of this cell covers."""
    if panel.over == "original":
        return specimen.original
    for own in cell.others:
        if isinstance(own, Picture) and own.key == panel.over:
            return own
    mine = [
        p for p in cell.result.panels if isinstance(p, Picture) and p.key == panel.over and p.picture == panel.picture
    ]
    return mine[0] if mine else row.pictures.get(panel.over)


def top1(table: Table | None) -> tuple[str, float | None]:
    """The name and the probability in the first row of a table of predictions; ("", None) where there is none."""
    if table is None or not table.rows:
        return "", None
    units = [column.unit for column in table.columns]
    first = table.rows[0]
    name = next((str(v) for v in first if isinstance(v, str)), "")
    share = next(
        (
            v
            for v, unit in zip(first, units, strict=False)
            if unit == "probability" and isinstance(v, (int, float)) and np.isfinite(v)
        ),
        None,
    )
    return name, share
