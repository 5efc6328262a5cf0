"""One drawing function for each of the ten panel kinds: a panel in, escaped HTML out. No analyzer is known here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from markupsafe import Markup

from reports import charts
from reports.album import Album, data_uri
from reports.axes import axis_name
from reports.pixels import Scale, heatmap_png, scale_of
from reports.ruler import ruler
from reports.wording import count, number, percent
from xai.panels import Axis, Cell, Column, Heatmap, Mark, Number, Panel, Picture, Table, Text, shown

_LEAST = 112
_ROWS = 200


def draw(panel: Panel, album: Album, over: Picture | None = None) -> Markup:
    """Any panel as an HTML figure; `over` is the picture under a heat map, `album` takes up photographs."""
    if isinstance(panel, Heatmap):
        return heatmap(panel, album, over)
    if isinstance(panel, Picture):
        return picture(panel, album)
    plain: dict[str, Callable[[Any], Markup]] = {
        "number": value,
        "table": table,
        "text": text,
        "curve": charts.curve,
        "scatter": charts.scatter,
        "histogram": charts.histogram,
        "matrix": charts.matrix,
        "graph": charts.graph,
    }
    body = plain[panel.kind](panel)  # type: ignore[attr-defined]  # every panel kind has one; their common base has none
    return framed(panel, body, "panel")


def framed(panel: Panel, body: Markup, kind: str, title: str = "", sub: str = "") -> Markup:
    """A figure with the panel's title (or another) and a second line above, and its note below."""
    second = Markup('<span class="sub">{}</span>').format(sub) if sub else ""
    note = Markup('<p class="note">{}</p>').format(panel.note) if panel.note else ""
    return Markup('<figure class="{}"><figcaption>{}{}</figcaption>{}{}</figure>\n').format(
        kind, title or panel.title, second, body, note
    )


def value(panel: Number) -> Markup:
    """A number with its unit and interval."""
    unit = Markup(' <span class="unit">{}</span>').format(panel.unit) if panel.unit else ""
    between = ""
    if panel.low is not None and panel.high is not None:
        between = Markup(' <span class="interval">{} to {}</span>').format(number(panel.low), number(panel.high))
    shown = panel.value
    if shown is not None and 1e3 <= abs(shown) < 1e6 and float(shown).is_integer():
        shown = int(shown)  # a count is never rounded
    return Markup('<p class="value">{}{}{}</p>').format(number(shown), unit, between)


def table(panel: Table) -> Markup:
    """Rows under named columns; probabilities as bars; long tables end after 200 rows and say so."""
    numeric = [_numeric(panel, i) for i in range(len(panel.columns))]
    head = Markup("").join(_head(column, right) for column, right in zip(panel.columns, numeric, strict=True))
    rows = Markup("").join(_row(panel.columns, row) for row in panel.rows[:_ROWS])
    left = len(panel.rows) - _ROWS
    rest = Markup('<p class="note">{} more in the record.</p>').format(count(left, "row")) if left > 0 else ""
    return Markup('<div class="wide"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>{}').format(
        head, rows, rest
    )


def _numeric(panel: Table, column: int) -> bool:
    """Whether a column holds numbers, which stand to the right."""
    cells = [row[column] for row in panel.rows if column < len(row) and row[column] is not None]
    return bool(cells) and all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in cells)


def _head(column: Column, right: bool) -> Markup:
    unit = Markup(' <span class="unit">{}</span>').format(column.unit) if column.unit not in ("", "probability") else ""
    return Markup('<th scope="col"{}>{}{}</th>').format(Markup(' class="number"') if right else "", column.name, unit)


def _row(columns: tuple[Column, ...], row: tuple[Cell, ...]) -> Markup:
    cells = [cell(v, columns[i].unit if i < len(columns) else "") for i, v in enumerate(row)]
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))


def cell(content: Cell, unit: str = "") -> Markup:
    """One table cell: a probability with its bar, a number aligned right, or a text."""
    if isinstance(content, bool):
        return Markup("<td>{}</td>").format("yes" if content else "no")
    if isinstance(content, (int, float)):
        if unit == "probability":
            return Markup('<td class="probability">{}<span>{}</span></td>').format(bar(content), percent(content))
        return Markup('<td class="number">{}</td>').format(number(content))
    return Markup("<td>{}</td>").format("" if content is None else content)


def bar(share: float) -> Markup:
    """A horizontal bar for a share of 1."""
    width = round(100 * min(max(float(np.nan_to_num(share)), 0.0), 1.0), 2)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="rail" width="100" height="4"/><rect class="fill" width="{}" height="4"/></svg>'
    ).format(width)


def text(panel: Text) -> Markup:
    """A paragraph in its tone."""
    return Markup('<p class="tone {}">{}</p>').format(panel.tone, panel.text)


def picture(
    panel: Picture, album: Album, title: str = "", label: str = "", sub: str | None = None, spot: bool = False
) -> Markup:
    """A photograph with its marks, its size or `sub` below the title; `spot` dims what lies outside the first mark."""
    height, width = panel.pixels.shape[:2]
    body = Markup('<div class="stage"><div class="photo {}" role="img" aria-label="{}"></div>{}</div>').format(
        album.add(panel.pixels), label or panel.title, marks(panel.marks, height, width, spot)
    )
    more = [f"{width} × {height} px", *_axes(panel.axes, "px"), *marked(panel.marks)]
    return framed(panel, body, "plate", title, sub if sub is not None else " · ".join(more))


def marked(all_marks: tuple[Mark, ...]) -> list[str]:
    """What the marks are, in words."""
    labels = [mark.label for mark in all_marks if mark.label]
    return [f"marked: {', '.join(dict.fromkeys(labels))}"] if labels else []


def _axes(axes: tuple[Axis, Axis], usual: str) -> list[str]:
    """The names of the axes where they are not just pixels or cells."""
    down, across = axes
    if down.unit == across.unit == usual:
        return []
    return [f"{axis_name(across)} to the right, {axis_name(down)} down"]


def marks(all_marks: tuple[Mark, ...], height: int, width: int, spot: bool = False) -> Markup:
    """Boxes, outlines and points over a picture of that size, with their labels."""
    if not all_marks:
        return Markup("")
    parts = []
    if spot and all_marks[0].kind != "point":
        around = f"M0 0H{width}V{height}H0Z M{_path(_outline(all_marks[0]))}Z"
        parts.append(Markup('<path class="dim" fill-rule="evenodd" d="{}"/>').format(around))
    parts += [_mark(mark) for mark in all_marks]
    return Markup(
        '<svg class="marks" viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(width, height, Markup("").join(parts))


def _outline(mark: Mark) -> tuple[tuple[float, float], ...]:
    if mark.kind == "box" and len(mark.points) == 2:
        (x0, y0), (x1, y1) = mark.points
        return (x0, y0), (x1, y0), (x1, y1), (x0, y1)
    return mark.points


def _path(points: tuple[tuple[float, float], ...]) -> str:
    return " L".join(f"{round(x, 2):g} {round(y, 2):g}" for x, y in points)


def _mark(mark: Mark) -> Markup:
    title = Markup("<title>{}</title>").format(mark.label) if mark.label else ""
    closed = "" if mark.kind == "point" else "Z"
    path = _path(_outline(mark)) + (" l0 0" if mark.kind == "point" else "")
    line = Markup('<path class="{}" vector-effect="non-scaling-stroke" d="M{}{}">{}</path>')
    return line.format(f"halo {mark.kind}", path, closed, "") + line.format(f"line {mark.kind}", path, closed, title)


def heatmap(
    panel: Heatmap, album: Album, over: Picture | None = None, title: str = "", name: str = "", sub: str = ""
) -> Markup:
    """A map over its picture (of that name), its scale in numbers and, for screen readers, where it is highest."""
    scale = scale_of(panel.values, panel.view, panel.scale)
    rows, columns = panel.values.shape
    photo = Markup('<div class="photo {}"></div>').format(album.add(over.pixels)) if over is not None else ""
    height, width = over.pixels.shape[:2] if over is not None else (rows, columns)
    image = Markup('<img class="map{}" width="{}" height="{}" alt="{}" src="{}">').format(
        "" if over is not None else " alone", width, height, describe(panel, name), data_uri(heatmap_png(panel, _LEAST))
    )
    body = Markup('<div class="stage">{}{}{}</div>{}<p class="grid">{}</p>').format(
        photo, image, marks(panel.marks, height, width), ruler(scale, panel.unit), facts(panel, scale)
    )
    return framed(panel, body, "plate", title, sub)


def facts(panel: Heatmap, scale: Scale) -> str:
    """What a reader must know of a map: its grid, its view, what is cut off, missing or constant."""
    rows, columns = panel.values.shape
    view = {"relu": "positive part", "abs": "absolute value", "signed": "signed"}[panel.view]
    said = [f"{rows} × {columns} cells", view]
    finite = panel.values[np.isfinite(panel.values)]
    if scale.constant and finite.size:
        said.append(f"constant map: every cell is {number(float(shown(finite, panel.view).flat[0]))}")
    if panel.error is not None and np.isfinite(panel.error).any():
        said.append(f"standard error up to {number(float(np.nanmax(panel.error)))}")
    said += _axes(panel.axes, "cell") + marked(panel.marks)
    if scale.missing:
        said.append(f"{count(scale.missing, 'cell')} not finite, drawn grey")
    if scale.beyond:
        said.append(
            f"{percent(scale.beyond / panel.values.size)} beyond the scale, up to {number(float(np.abs(finite).max()))}"
        )
    return " · ".join(said)


def describe(panel: Heatmap, name: str = "") -> str:
    """The map in words, for those who do not see it."""
    seen = shown(np.asarray(panel.values, np.float64), panel.view)
    what = f"{panel.title}{' for ' + name if name else ''}"
    known = np.isfinite(seen)
    if not known.any() or seen[known].min() == seen[known].max():
        return f"{what}: a constant map."
    row, column = np.unravel_index(int(np.argmax(np.where(known, seen, -np.inf))), seen.shape)
    across, down = (column + 0.5) / seen.shape[1], (row + 0.5) / seen.shape[0]
    return (
        f"{what}: highest value {number(float(seen[row, column]))}, "
        f"{100 * across:.0f} % from the left and {100 * down:.0f} % from the top."
    )
