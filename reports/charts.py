"""Curve, scatter, histogram, matrix and graph as inline SVG, each with its numbers in a table beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from reports.album import data_uri
from reports.axes import RIGHT, WIDTH, Frame, axis_name, chart, path, span
from reports.colours import palette
from reports.pixels import heatmap_png, indices, scale_of
from reports.ruler import ruler
from reports.wording import count, number
from xai.panels import Curve, Graph, Histogram, Matrix, Scatter

_GROUPS = 8
_DRAWN = 3000
_ROWS = 200


def curve(panel: Curve) -> Markup:
    """Lines with their bands, named at their right ends."""
    x, y = np.asarray(panel.x, np.float64), np.atleast_2d(np.asarray(panel.y, np.float64))
    named = len(y) > 1
    all_y = np.concatenate([y, *(np.atleast_2d(b) for b in (panel.low, panel.high) if b is not None)])
    frame = Frame(span(x, margin=0), span(all_y), RIGHT + 130 if named else RIGHT)
    body = [_band(frame, x, panel.low, panel.high, i) for i in range(len(y))]
    for i, line in enumerate(y):
        body.append(
            Markup('<path class="line s{} d{}" d="{}"/>').format(
                i % _GROUPS, i // _GROUPS % 3, path(frame.across(x), frame.down(line))
            )
        )
    if named:
        body.append(_line_names(frame, y, panel.names))
    label = f"{panel.title}: {count(len(y), 'line')} over {panel.axes[0].name}"
    drawing = chart(frame, panel.axes, Markup("").join(body), label)
    columns = [axis_name(panel.axes[0]), *(panel.names if named else [axis_name(panel.axes[1])])]
    return drawing + numbers(columns, [[float(a), *map(float, y[:, i])] for i, a in enumerate(x)])


def _band(frame: Frame, x: np.ndarray, low: np.ndarray | None, high: np.ndarray | None, i: int) -> Markup:
    if low is None or high is None:
        return Markup("")
    under, above = np.atleast_2d(low)[i], np.atleast_2d(high)[i]
    around = path(
        np.concatenate([frame.across(x), frame.across(x)[::-1]]),
        np.concatenate([frame.down(under), frame.down(above)[::-1]]),
    )
    return Markup('<path class="band s{}" d="{}Z"/>').format(i % _GROUPS, around) if around else Markup("")


def _line_names(frame: Frame, y: np.ndarray, names: tuple[str, ...]) -> Markup:
    """Names at the lines' ends, pushed apart where they would overlap."""
    ends = [line[np.isfinite(line)][-1] if np.isfinite(line).any() else frame.y[0] for line in y]
    wanted = frame.down(np.asarray(ends))
    at, last = np.zeros(len(y)), -np.inf
    for i in np.argsort(wanted, kind="stable"):
        last = at[i] = max(wanted[i], last + 14)
    at -= max(0.0, at.max() - 300)
    parts = [
        Markup('<text class="name s{}" x="{}" y="{}">{}</text>').format(
            i % _GROUPS, WIDTH - frame.right + 8, round(float(at[i]) + 4, 1), _short(_nth(names, i), 20)
        )
        for i in range(len(y))
    ]
    return Markup("").join(parts)


def scatter(panel: Scatter) -> Markup:
    """Points, coloured by group, labels as tool tips; beyond 3000 points every k-th is drawn, and it says so."""
    xy = np.asarray(panel.xy, np.float64).reshape(-1, 2)
    frame = Frame(span(xy[:, 0]), span(xy[:, 1]))
    step = max(1, -(-len(xy) // _DRAWN))
    across, down = frame.across(xy[:, 0]), frame.down(xy[:, 1])
    dots = []
    for i in range(0, len(xy), step):
        if not np.isfinite(xy[i]).all():
            continue
        group = 0 if panel.groups is None else int(panel.groups[i]) % _GROUPS
        title = Markup("<title>{}</title>").format(panel.labels[i]) if i < len(panel.labels) else ""
        dots.append(
            Markup('<circle class="dot s{}" cx="{}" cy="{}" r="3.5">{}</circle>').format(
                group, round(float(across[i]), 1), round(float(down[i]), 1), title
            )
        )
    drawing = chart(frame, panel.axes, Markup("").join(dots), f"{panel.title}: {count(len(xy), 'point')}")
    said = Markup('<p class="note">One point in {} is drawn.</p>').format(step) if step > 1 else Markup("")
    rows: list[list[str | float]] = [[_nth(panel.labels, i), float(a), float(b)] for i, (a, b) in enumerate(xy)]
    return drawing + said + numbers(["point", axis_name(panel.axes[0]), axis_name(panel.axes[1])], rows)


def histogram(panel: Histogram) -> Markup:
    """Bars between their edges."""
    edges, counts = np.asarray(panel.edges, np.float64), np.asarray(panel.counts, np.float64)
    frame = Frame(span(edges, margin=0), span(counts, zero=True))
    across, top, floor = frame.across(edges), frame.down(counts), float(frame.down(np.asarray(0.0)))
    bars = []
    for i in range(len(counts)):
        if np.isfinite([counts[i], edges[i], edges[i + 1]]).all():
            said = f"{number(float(edges[i]))} to {number(float(edges[i + 1]))}: {number(float(counts[i]))}"
            wide = max(float(across[i + 1] - across[i]) - 0.6, 0.4)
            bars.append(
                Markup(
                    '<rect class="bin" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
                ).format(across[i], min(top[i], floor), wide, abs(floor - top[i]), said)
            )
    drawing = chart(frame, panel.axes, Markup("").join(bars), f"{panel.title}: {count(len(counts), 'bin')}")
    rows = [[float(edges[i]), float(edges[i + 1]), float(c)] for i, c in enumerate(counts)]
    return drawing + numbers([f"{panel.axes[0].name} from", "to", axis_name(panel.axes[1])], rows)


def matrix(panel: Matrix) -> Markup:
    """A coloured grid with the names of rows and columns, and the numbers in the cells of a small one."""
    values = np.asarray(panel.values, np.float64)
    rows, columns = values.shape
    many = max(rows, columns, 1)
    side = min(40.0, max(3.0, 560 / many, min(14.0, 1000 / many)))  # from 14 on every row and column bears its name
    left, top = _margin(panel.rows), _margin(panel.columns)
    parts = [
        Markup(
            '<image class="cells" x="{}" y="{}" width="{:.1f}" height="{:.1f}" preserveAspectRatio="none" href="{}"/>'
        ).format(left, top, columns * side, rows * side, data_uri(heatmap_png(panel)))
    ]
    every = -(-14 // side)
    turn = -45 if every * side >= 17 else -90  # slanted names lie closer than their columns
    parts += [
        Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(
            left - 6, round(top + (i + 0.5) * side + 4, 1), _short(name)
        )
        for i, name in enumerate(panel.rows[:rows])
        if i % every == 0
    ]
    parts += [
        Markup('<text class="tick" transform="translate({} {}) rotate({})">{}</text>').format(
            round(left + (j + 0.5) * side + 4, 1), top - 6, turn, _short(name)
        )
        for j, name in enumerate(panel.columns[:columns])
        if j % every == 0
    ]
    if side >= 32:
        parts.append(_cell_numbers(panel, values, left, top, side))
    size = (round(left + columns * side + max(40.0, 0.72 * top if turn == -45 else 0)), round(top + rows * side + 4))
    label = f"{panel.title}: {rows} rows ({panel.axes[0].name}), {columns} columns ({panel.axes[1].name})"
    drawing = Markup('<svg class="matrix" viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}">{}</svg>').format(
        *size, size[0], label, Markup("").join(parts)
    )
    head = [axis_name(panel.axes[0]), *panel.columns]
    return (
        drawing
        + ruler(scale_of(values, panel.view), panel.unit)
        + numbers(head, [[_nth(panel.rows, i), *map(float, row)] for i, row in enumerate(values)])
    )


def _cell_numbers(panel: Matrix, values: np.ndarray, left: float, top: float, side: float) -> Markup:
    scale = scale_of(values, panel.view)
    table = np.frombuffer(palette(scale.kind), np.uint8).reshape(-1, 3)
    bright = table[indices(values, panel.view, scale)] @ np.array([0.2126, 0.7152, 0.0722]) > 128
    return Markup("").join(
        Markup('<text class="cell {}" x="{}" y="{}">{}</text>').format(
            "dark" if bright[i, j] else "light",
            round(left + (j + 0.5) * side, 1),
            round(top + (i + 0.5) * side + 4, 1),
            number(float(values[i, j]), 2),
        )
        for i in range(values.shape[0])
        for j in range(values.shape[1])
    )


def graph(panel: Graph) -> Markup:
    """Nodes in layers from sources to sinks (on a circle where the graph has a loop); edges as wide as their weight."""
    at = _places(panel)
    top = max((abs(w) for _, _, w in panel.edges if np.isfinite(w)), default=0.0) or 1.0
    parts = []
    for start, end, weight in panel.edges:
        wide = round(0.8 + 4 * min(abs(float(np.nan_to_num(weight))) / top, 1.0), 2)
        said = f"{panel.nodes[start]} → {panel.nodes[end]}: {number(float(weight))}"
        parts.append(
            Markup('<path class="edge {}" stroke-width="{}" d="{}"><title>{}</title></path>').format(
                "against" if weight < 0 else "favour", wide, _arrow(at[start], at[end]), said
            )
        )
    for name, (x, y) in zip(panel.nodes, at, strict=True):
        parts.append(Markup('<circle class="node" cx="{}" cy="{}" r="5"/>').format(x, y))
        parts.append(Markup('<text class="name middle" x="{}" y="{}">{}</text>').format(x, y - 9, _short(name, 22)))
    height = max((y for _, y in at), default=0) + 30
    label = f"{panel.title}: {count(len(panel.nodes), 'node')}, {count(len(panel.edges), 'edge')}"
    drawing = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, round(height), label, Markup("").join(parts)
    )
    return drawing + numbers(["from", "to", "weight"], [[panel.nodes[a], panel.nodes[b], w] for a, b, w in panel.edges])


def _places(panel: Graph) -> list[tuple[float, float]]:
    """A drawing position for each node: its longest path from a source gives the layer."""
    n = len(panel.nodes)
    layer = [0] * n
    for _ in range(n):
        moved = False
        for start, end, _weight in panel.edges:
            if layer[end] < layer[start] + 1:
                layer[end], moved = layer[start] + 1, True
        if not moved:
            break
    else:
        if n:
            angles = (2 * np.pi * np.arange(n) / n).tolist()
            return [(round(WIDTH / 2 + 240 * math.sin(a), 1), round(260 - 230 * math.cos(a), 1)) for a in angles]
    levels = [[i for i in range(n) if layer[i] == k] for k in range(max(layer, default=-1) + 1)]
    crowded = any(len(own) * (12 + 7 * len(_short(panel.nodes[i], 22))) > WIDTH for own in levels for i in own)
    most = max(map(len, levels), default=1)
    at = {}
    for k, own in enumerate(levels):
        for j, i in enumerate(own):
            along = (j + 0.5) / len(own)
            # where names would cover each other the layers stand side by side, their nodes one under the other
            at[i] = ((round(90 + (WIDTH - 180) * (k / max(len(levels) - 1, 1)), 1), round(20 + 34.0 * most * along, 1))
                     if crowded else (round(WIDTH * along, 1), 30.0 + 96.0 * k))
    return [at[i] for i in range(n)]


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """A line with an arrow head at its middle."""
    (x0, y0), (x1, y1) = start, end
    length = float(np.hypot(x1 - x0, y1 - y0)) or 1.0
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    mx, my = (x0 + x1) / 2 + 3 * ux, (y0 + y1) / 2 + 3 * uy
    left, right = (mx - 7 * ux - 4 * uy, my - 7 * uy + 4 * ux), (mx - 7 * ux + 4 * uy, my - 7 * uy - 4 * ux)
    return f"M{x0:g} {y0:g}L{x1:g} {y1:g}M{left[0]:.1f} {left[1]:.1f}L{mx:.1f} {my:.1f}L{right[0]:.1f} {right[1]:.1f}"


def numbers(columns: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> Markup:
    """The numbers behind a drawing as a folded table of at most 200 rows."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in columns)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup("<td>{}</td>").format(v)
                if isinstance(v, str)
                else Markup('<td class="number">{}</td>').format(number(v, 4))
                for v in row
            )
        )
        for row in rows[:_ROWS]
    )
    rest = Markup('<p class="note">The first {} of {} rows.</p>').format(_ROWS, len(rows)) if len(rows) > _ROWS else ""
    return Markup(
        '<details class="numbers"><summary>Numbers</summary><div class="wide"><table>'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>{}</details>"
    ).format(head, body, rest)


def _nth(names: Sequence[str], i: int) -> str:
    return names[i] if i < len(names) else str(i)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _margin(names: tuple[str, ...]) -> float:
    return 16 + 7 * min(18, max((len(n) for n in names), default=1))
