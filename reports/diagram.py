"""A network drawn as SVG: one line an axis, a box over the axes that it mixes, lanes for what skips boxes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup

from reports.diagram_rows import (
    MARGIN,
    NUMBERS,
    SMALL,
    TEXT_END,
    WIDTH,
    Plan,
    Row,
    Words,
    axis_class,
    cut,
    grouped,
    main_read,
    plan,
    wrapped,
)
from reports.export import whole
from xai.circuit import Box, Diagram, Flow, Wires

STYLE = """
svg{--paper:#fcfbf8;--ink:#1d1b18;--soft:#655f56;--rule:#d5cec0;--fill:#efe9dc;--block:#e2d8c4;--accent:#a8400f;
--batch:#77716a;--channel:#b3470c;--height:#1d63a8;--width:#147f8f;--token:#2c7a2c;--head:#97309a;--window:#7a5a10;
--other:#5c5c5c}
@media(prefers-color-scheme:dark){svg{--paper:#131211;--ink:#ebe6dd;--soft:#a59d91;--rule:#423d36;--fill:#2a2723;
--block:#3a342b;--accent:#f3995c;--batch:#a8a199;--channel:#f0935a;--height:#74b1ef;--width:#55c3d2;--token:#7fcb7f;
--head:#dd8be0;--window:#d3ad58;--other:#aaa}}
.paper{fill:var(--paper)}
text{font-family:sans-serif;fill:var(--ink);font-variant-numeric:tabular-nums;white-space:pre}
.mono{font-family:monospace}.bold{font-weight:700}
.soft,.told,.note,.head-of{fill:var(--soft)}.told{font-style:italic}.stage{font-weight:700;fill:var(--accent)}
.axis{paint-order:stroke;stroke:var(--paper);stroke-width:6px;stroke-linejoin:round}
.wire{fill:none;stroke-width:2}
.box{fill:var(--fill);stroke:var(--ink);stroke-width:1.2}.box.block{fill:var(--block)}
.box.attention{stroke:var(--head);stroke-width:2}.box.opaque{stroke-dasharray:4 3}
.box.behind{fill:var(--paper)}
.frame{fill:none;stroke:var(--rule);stroke-width:1.5}.line{stroke:var(--rule);stroke-width:1}
.lane{fill:none;stroke:var(--accent);stroke-width:1.8}.dot{fill:var(--accent)}.arrow{fill:var(--accent)}
.sign{fill:var(--paper);stroke:var(--ink);stroke-width:1.4}.pen{stroke:var(--ink);stroke-width:1.6;fill:none}
.share{fill:var(--accent);opacity:.55}
"""
_AXES = ("batch", "channel", "height", "width", "token", "head", "window", "other")
_EXPLAINED = (
    "A line is an axis of a tensor. A box covers the axes along which it mixes numbers; lines beside it are axes "
    "that it repeats itself over. Lines that cross, join or part: the same numbers under other axes. Orange paths "
    "lead a tensor past boxes. Parameters and multiply-adds (products that are summed, for one picture) are those of "
    "all repeats together."
)
_MADE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # what XML cannot hold


def svg(drawn: Diagram) -> str:
    """The diagram as one stand-alone SVG file, 1000 units wide: no script, no reference, generic fonts, light and dark.

    The same diagram gives the same bytes. Every text stands in `words` as well, with the room that it takes.
    """
    parts, height, _ = _composed(drawn)
    said = f"{drawn.kind}: {grouped(drawn.parameters)} parameters, {grouped(drawn.multiply_adds)} multiply-adds"
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" height="{}" role="img" '
        'aria-labelledby="diagram-title diagram-desc"><title id="diagram-title">{}</title>'
        '<desc id="diagram-desc">{}</desc><style>{}</style><rect class="paper" width="100%" height="100%"/>'
    ).format(WIDTH, height, WIDTH, height, _clean(f"Diagram of {drawn.name}"), _clean(f"{said}. {_spoken(drawn)}"),
             Markup(STYLE))  # fmt: skip
    return str(head + Markup("\n").join(parts) + Markup("</svg>\n"))


def write(drawn: Diagram, path: str | Path) -> Path:
    """Write the SVG whole or not at all, and give its path. Raises OSError where it cannot be written."""
    path = Path(path)
    with whole(path) as part:
        part.write_bytes(svg(drawn).encode("utf-8"))
    return path


def words(drawn: Diagram) -> list[Words]:
    """Every line of text with its place, for tests of what overlaps."""
    return _composed(drawn)[2]


def _spoken(drawn: Diagram) -> str:
    """The flow in words, for those who do not see it."""
    steps = [f"{box.kind}{f' times {box.count}' if box.count > 1 else ''}" for box in drawn.flow.boxes]
    return f"From the picture: {', then '.join(steps[:40])}{', and more' if len(steps) > 40 else ''}."


def _composed(drawn: Diagram) -> tuple[list[Markup], int, list[Words]]:
    lines = _masthead(drawn)
    parts: list[Markup] = []
    y = max(line.box[3] for line in lines) + 14
    top = drawn.flow
    for i, flow in enumerate((top, *drawn.blocks)):
        y, more = _heading(flow, y, bool(i))
        lines += more
        made = plan(flow, y)
        whole = (drawn.parameters, drawn.multiply_adds) if not i else _sums(flow.boxes)
        parts += _drawing(made, whole)
        lines += [line for row in made.rows for line in row.lines]
        y = made.bottom + 18
        if not i and drawn.unread:
            text = "parameters that no step of this forward reads"
            lines += [Words(made.text, y, cut(text, TEXT_END - made.text, SMALL), "told", full=text),
                      Words(NUMBERS[0], y, grouped(drawn.unread), "number", "end")]  # fmt: skip
            y += 18
        y += 14
    return [*parts, *map(_text, lines)], round(y), lines


def _sums(boxes: Iterable[Box]) -> tuple[int, int]:
    held = list(boxes)
    return sum(b.parameters for b in held), sum(b.multiply_adds for b in held)


def _masthead(drawn: Diagram) -> list[Words]:
    room = WIDTH - 2 * MARGIN
    lines = [Words(MARGIN, 40, cut(drawn.name, room, 22, "bold"), "title", size=22, font="bold", full=drawn.name)]
    shape = " × ".join(f"{axis.name} {axis.size}" for axis in (drawn.flow.inputs[0] if drawn.flow.inputs else ()))
    said = (f"{drawn.kind} · {grouped(drawn.parameters)} parameters · {grouped(drawn.multiply_adds)} multiply-adds · "
            f"a picture of {shape}")  # fmt: skip
    y = 62.0
    told = [(text, SMALL + 1, "") for text in wrapped(said, room, SMALL + 1, 3)]
    told += [(text, SMALL, "soft") for text in wrapped(_EXPLAINED, room, SMALL, 6)]
    for note in drawn.notes:
        told += [(text, SMALL, "told") for text in wrapped(note, room, SMALL, 2)]
    for text, size, kind in told:
        lines.append(Words(MARGIN, y, text, kind, size=size))
        y += 17
    return lines


def _heading(flow: Flow, y: float, block: bool) -> tuple[float, list[Words]]:
    """The line above a flow, with the names of the columns of numbers."""
    lines = [Words(x, y + 16, name, "head-of", "end", SMALL - 1)
             for x, name in zip(NUMBERS, ("parameters", "multiply-adds"), strict=True)]  # fmt: skip
    if block:
        title = cut(f"Inside {flow.kind}", 420, 16, "bold")
        lines.append(Words(MARGIN, y + 16, title, "title", size=16, font="bold", full=flow.kind))
        where = flow.name + (f" and {len(flow.same)} more like it" if flow.same else "")
        full = ", ".join((flow.name, *flow.same))
        lines.append(Words(MARGIN, y + 34, cut(where, 700, SMALL, "mono"), "soft", font="mono", full=full))
        y += 22
    return y + 26, lines


# --- shapes ---
def _drawing(made: Plan, whole: tuple[int, int]) -> list[Markup]:
    flow = made.flow
    parts = [Markup('<path class="line" d="M{} {}H{}"/>').format(MARGIN, _n(made.rows[0].top - 4), WIDTH - MARGIN)] \
        if made.rows else []
    parts += _frames(made)
    for i, row in enumerate(made.rows):
        if row.kind == "tensor":
            parts += _wires(made, row, i)
        elif row.kind == "head":
            before = _above(made, i)
            if before is not None:
                parts += [_line(made.x(k), row.top, made.x(k), row.bottom, a.name) for k, a in enumerate(before.wires)]
        else:
            parts += _box(made, row, flow.boxes[row.index], _above(made, i))
            parts += _shares(row, flow.boxes[row.index], whole)
    return parts + _lanes(made)


def _above(made: Plan, i: int) -> Row | None:
    """The tensor row straight above, if it is what the next box reads."""
    row = made.rows[i - 1] if i else None
    if row is not None and row.kind == "head":
        row = made.rows[i - 2] if i > 1 else None
    if row is None or row.kind != "tensor":
        return None
    following = next((r for r in made.rows[i:] if r.kind != "head"), None)
    if following is None or following.kind != "box":
        return None
    return row if main_read(made.flow, following.index) == row.index else None


def _frames(made: Plan) -> list[Markup]:
    parts = []
    for stage in made.flow.stages:
        top = next(r.top for r in made.rows if r.kind == "head" and r.index == stage.first) + 5
        bottom = next(r.bottom for r in made.rows if r.kind == "box" and r.index == stage.last) + 6
        parts.append(Markup('<rect class="frame" x="{}" y="{}" width="{}" height="{}" rx="7"/>').format(
            MARGIN - 14, _n(top), WIDTH - 2 * MARGIN + 28, _n(bottom - top)))  # fmt: skip
    return parts


def _line(x0: float, y0: float, x1: float, y1: float, name: str) -> Markup:
    return Markup('<path class="wire" stroke="var(--{})" d="M{} {}L{} {}"/>').format(
        axis_class(name), _n(x0), _n(y0), _n(x1), _n(y1))  # fmt: skip


def _wires(made: Plan, row: Row, i: int) -> list[Markup]:
    """A tensor: its lines, to the end of the row, or to where it is led aside if nothing below reads it."""
    goes_on = _above(made, i + 1) is row if i + 1 < len(made.rows) else False
    last = i + 1 == len(made.rows)
    bottom = row.bottom + (8 if row.kind == "box" else 0) if goes_on else row.bottom - 1 if last else row.tap
    top = row.top + (8 if row.again else 0)
    previous = made.rows[i - 1] if i else None
    if previous is not None and not row.again:
        top = previous.bottom
    return [_line(made.x(k), top, made.x(k), bottom, axis.name) for k, axis in enumerate(row.wires)]


def _passing(box: Box, before: Wires) -> set[int]:
    """The axes that pass beside a box: the same in front and behind, and not mixed."""
    if box.role in ("opaque",):
        return {0} if before[:1] == box.output[:1] else set()
    return {k for k in range(min(len(before), len(box.output))) if k not in box.acts and before[k] == box.output[k]}


def _box(made: Plan, row: Row, box: Box, above: Row | None) -> list[Markup]:
    before = above.wires if above is not None else ()
    top, bottom = row.top, row.bottom
    if box.role == "rearrange":
        return _rearranged(made, row, box, before)
    passing = _passing(box, before)
    parts = [_line(made.x(k), top, made.x(k), bottom, box.output[k].name) for k in passing]
    taken = [k for k in range(max(len(before), len(box.output))) if k not in passing]
    if box.role == "join" and not taken:
        return [*parts, *_join(made, row, box)]
    if not taken:  # number by number
        left, right = made.x(0) - 12, made.x(len(box.output) - 1) + 12
        return [*parts, Markup('<rect class="box" x="{}" y="{}" width="{}" height="8" rx="4"/>').format(
            _n(left), _n((top + bottom) / 2 - 4), _n(right - left))]  # fmt: skip
    inner = (top + 4, bottom - 4)
    parts += [_line(made.x(k), top, made.x(k), inner[0], before[k].name) for k in taken if k < len(before)]
    parts += [_line(made.x(k), inner[1], made.x(k), bottom, box.output[k].name) for k in taken if k < len(box.output)]
    half = made.pitch * 0.34
    runs = _runs(taken)
    for one, two in pairwise(runs):
        parts.append(Markup('<path class="pen" d="M{} {}H{}"/>').format(
            _n(made.x(one[-1]) + half), _n((top + bottom) / 2), _n(made.x(two[0]) - half)))  # fmt: skip
    for run in runs:
        left, right = made.x(run[0]) - half, made.x(run[-1]) + half
        for shift in ((5, 2.5, 0) if box.count > 1 else (0,)):
            parts.append(Markup('<rect class="box {}{}" x="{}" y="{}" width="{}" height="{}" rx="5"/>').format(
                box.role, " behind" if shift else "", _n(left + shift), _n(inner[0] - shift / 2), _n(right - left),
                _n(inner[1] - inner[0])))  # fmt: skip
    if box.role == "join":
        parts += _sign(made.x(taken[-1]), (top + bottom) / 2, box.kind)
    return parts


def _runs(places: Sequence[int]) -> list[list[int]]:
    """Neighbouring places together."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _rearranged(made: Plan, row: Row, box: Box, before: Wires) -> list[Markup]:
    """Lines from each axis to what became of it; an axis that came about or went has an end."""
    parts = []
    links = [(i, j) for i, j in box.wiring if i < len(before)]
    for i, j in links:
        parts.append(Markup('<path class="wire" stroke="var(--{})" d="M{} {}C{} {} {} {} {} {}"/>').format(
            axis_class(box.output[j].name), _n(made.x(i)), _n(row.top), _n(made.x(i)), _n(row.top + row.height * 0.6),
            _n(made.x(j)), _n(row.bottom - row.height * 0.6), _n(made.x(j)), _n(row.bottom)))  # fmt: skip
    for k, axis in enumerate(before):
        if all(i != k for i, _ in links):
            parts.append(_ended(made.x(k), row.top, row.top + 8, axis.name))
    for k, axis in enumerate(box.output):
        if all(j != k for _, j in links):
            parts.append(_ended(made.x(k), row.bottom, row.bottom - 8, axis.name))
    return parts


def _ended(x: float, y: float, end: float, name: str) -> Markup:
    return Markup('<path class="wire" stroke="var(--{})" d="M{} {}V{}M{} {}H{}"/>').format(
        axis_class(name), _n(x), _n(y), _n(end), _n(x - 5), _n(end), _n(x + 5))  # fmt: skip


def _join(made: Plan, row: Row, box: Box) -> list[Markup]:
    """Tensors met number by number: a line across all axes with the sign at its end."""
    y, right = (row.top + row.bottom) / 2, made.x(len(box.output) - 1)
    line = Markup('<path class="pen" d="M{} {}H{}"/>').format(_n(made.x(0) - 8), _n(y), _n(right))
    return [line, *_sign(right, y, box.kind)]


def _sign(x: float, y: float, kind: str) -> list[Markup]:
    """A circle with a plus, a cross, or a bar for what is laid side by side."""
    strokes = {"add": f"M{_n(x - 5)} {_n(y)}h10m-5 -5v10", "multiply": f"M{_n(x - 4)} {_n(y - 4)}l8 8m0 -8l-8 8"}
    stroke = strokes.get(kind, f"M{_n(x - 3)} {_n(y - 5)}v10m6 -10v10")
    return [Markup('<circle class="sign" cx="{}" cy="{}" r="9"/><path class="pen" d="{}"/>').format(
        _n(x), _n(y), stroke)]  # fmt: skip


def _shares(row: Row, box: Box, whole: tuple[int, int]) -> list[Markup]:
    """Under each number, how much of the whole it is."""
    parts = []
    at = next((line.y for line in row.lines if line.kind == "number"), row.top)
    for x, value, total in zip(NUMBERS, (box.parameters, box.multiply_adds), whole, strict=True):
        if value and total:
            wide = max(1.0, 84 * value / total)
            parts.append(Markup('<rect class="share" x="{}" y="{}" width="{}" height="4"/>').format(
                _n(x - wide), _n(at + 6), _n(wide)))  # fmt: skip
    return parts


def _lanes(made: Plan) -> list[Markup]:
    parts = []
    for lane in made.lanes:
        y, count = lane.source.tap, len(lane.source.wires)
        parts += [Markup('<circle class="dot" cx="{}" cy="{}" r="3"/>').format(_n(made.x(k)), _n(y))
                  for k in range(count)]  # fmt: skip
        end = max(at for at, _ in lane.ends)
        parts.append(Markup('<path class="lane" d="M{} {}H{}V{}"/>').format(
            _n(made.x(0)), _n(y), _n(lane.x), _n(end)))  # fmt: skip
        for at, row in lane.ends:
            x = _arrival(made, row)
            if row.kind == "tensor":
                start = made.x(0)
                parts.append(Markup('<path class="lane" d="M{} {}H{}"/>').format(_n(lane.x), _n(at), _n(start)))
                parts += [Markup('<circle class="dot" cx="{}" cy="{}" r="3"/>').format(_n(made.x(k)), _n(at))
                          for k in range(len(row.wires))]  # fmt: skip
                continue
            parts.append(Markup('<path class="lane" d="M{} {}H{}"/>').format(_n(lane.x), _n(at), _n(x + 6)))
            parts.append(Markup('<path class="arrow" d="M{} {}l9 -5v10z"/>').format(_n(x), _n(at)))
    return parts


def _arrival(made: Plan, row: Row) -> float:
    """The right edge of what a lane reaches."""
    if row.kind == "tensor":
        return made.x(len(row.wires) - 1)
    box = made.flow.boxes[row.index]
    above = next((r for r in reversed(made.rows[: made.rows.index(row)]) if r.kind == "tensor"), None)
    passing = _passing(box, above.wires if above is not None else ())
    width = max(len(box.output), *(len(w) for w in box.inputs), 1)
    taken = [k for k in range(width) if k not in passing]
    if box.role == "join":
        return made.x(taken[-1] if taken else len(box.output) - 1) + 10
    return made.x(taken[-1]) + made.pitch * 0.34 + (5 if box.count > 1 else 1) if taken else made.x(width - 1) + 14


# --- text ---
def _text(line: Words) -> Markup:
    anchor = "" if line.anchor == "start" else Markup(' text-anchor="{}"').format(line.anchor)
    full = Markup("<title>{}</title>").format(_clean(line.full)) if line.full and line.full != line.text else ""
    kind = " ".join(k for k in (line.kind, line.font if line.font != "sans" else "") if k)
    axis = line.kind.split()[-1] if line.kind.startswith("axis ") else ""
    fill = Markup(' style="fill:var(--{})"').format(axis) if axis in _AXES else ""
    return Markup('<text x="{}" y="{}" font-size="{}" class="{}"{}{}>{}{}</text>').format(
        _n(line.x), _n(line.y), _n(line.size), kind, anchor, fill, _clean(line.text), full)  # fmt: skip


def _clean(text: str) -> str:
    """Without what XML cannot hold; line breaks become blanks."""
    return _MADE.sub("\ufffd", re.sub(r"\s+", lambda m: " " if "\n" in m[0] or "\t" in m[0] else m[0], text))


def _n(value: float) -> str:
    return f"{round(value, 1):g}"
