"""Where everything of a flow of boxes stands: rows from top to bottom, a column an axis, lanes for what skips boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xai.circuit import Box, Flow, Stage, Wires

WIDTH = 1000
MARGIN = 28
NUMBERS = (848, 976)  # right ends of the columns of parameters and multiply-adds
TEXT_END = 738  # where the words must end
LANES = 150  # room for lanes at most
SMALL, LARGE = 12.0, 13.0
# Widths of letters in their size, those of a wide font; a bold one is wider by a tenth, a typewriter's are all alike.
_NARROW, _NARROWER = frozenset("iIljtfr.,:;'|!()[]/- ·`"), 0.42
_BROAD, _BROADER = frozenset("mMwW@%"), 1.0
_SIGNS, _SIGN, _CAPITAL, _LETTER, _FOREIGN = frozenset("→×+=~<>#^ᵀ"), 0.84, 0.79, 0.65, 1.0


@dataclass(frozen=True)
class Words:
    """One line of text: x, y of the baseline; anchor: start, middle or end; kind: a style of the sheet."""

    x: float
    y: float
    text: str
    kind: str
    anchor: str = "start"
    size: float = SMALL
    font: str = "sans"
    full: str = ""  # what a cut text says in full

    @property
    def box(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom: at most so much room."""
        width = width_of(self.text, self.size, self.font)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return left, self.y - 0.8 * self.size, left + width, self.y + 0.25 * self.size


@dataclass
class Row:
    """kind: "tensor" (wires; source: the box, or -1 - i for the i-th input; again: shown a second time, because what
    follows reads it), "box" (of that index) or "head" (of a stage)."""

    kind: str
    index: int = 0
    wires: Wires = ()
    again: bool = False
    stage: Stage | None = None
    top: float = 0.0
    height: float = 0.0
    lines: list[Words] = field(default_factory=list)

    @property
    def bottom(self) -> float:
        """Its lower end."""
        return self.top + self.height

    @property
    def tap(self) -> float:
        """Where a tensor is led away to the side."""
        return self.bottom - 5


@dataclass(frozen=True)
class Lane:
    """A tensor led past the boxes: from its row at `start` along x to each of the `ends` (y, row)."""

    x: float
    source: Row
    ends: tuple[tuple[float, Row], ...]


@dataclass
class Plan:
    """A flow laid out: rows, lanes, the x of each axis, where the words begin, and the height in all."""

    flow: Flow
    rows: list[Row]
    lanes: list[Lane]
    pitch: float
    text: float
    bottom: float

    def x(self, axis: int) -> float:
        """The middle of the column of an axis."""
        return MARGIN + self.pitch * (axis + 0.5)

    @property
    def right(self) -> float:
        """Where the columns of axes end."""
        return self.x(most_axes(self.flow) - 1) + self.pitch / 2


def width_of(text: str, size: float, font: str = "sans") -> float:
    """At most the width of a text in pixels, for any usual font."""
    if font == "mono":
        return size * sum(0.615 if letter.isascii() else _FOREIGN for letter in text)
    return size * (1.1 if font == "bold" else 1.0) * sum(map(_letter, text))


def _letter(letter: str) -> float:
    if letter in _NARROW or letter == "\u202f":
        return _NARROWER
    if letter in _BROAD or not (letter.isascii() or letter in _SIGNS):
        return _BROADER if letter in _BROAD else _FOREIGN
    return _SIGN if letter in _SIGNS else _CAPITAL if letter.isupper() else _LETTER


def cut(text: str, room: float, size: float, font: str = "sans") -> str:
    """The text, or its beginning and "…" where it is wider than the room."""
    if width_of(text, size, font) <= room:
        return text
    kept, used = 0, width_of("…", size, font)
    while kept < len(text) and used + width_of(text[kept], size, font) <= room:
        used += width_of(text[kept], size, font)
        kept += 1
    return text[:kept] + "…"


def wrapped(text: str, room: float, size: float, most: int) -> list[str]:
    """The text in lines broken at " · " or blanks, the last one cut."""
    lines: list[str] = []
    for part in text.split(" "):
        if lines and width_of(f"{lines[-1]} {part}", size) <= room:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    lines = [line.removeprefix("· ").removesuffix(" ·") for line in lines]
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [cut(line, room, size) for line in lines]


def most_axes(flow: Flow) -> int:
    """The most axes that a tensor of the flow has."""
    shown = [*flow.inputs, *(w for box in flow.boxes for w in (box.output, *box.inputs))]
    return max((len(wires) for wires in shown), default=1) or 1


def main_read(flow: Flow, i: int) -> int | None:
    """Which of what a box reads comes from straight above; None for a box that reads nothing."""
    reads = flow.boxes[i].reads
    return None if not reads else i - 1 if i and i - 1 in reads else reads[0]


def rows_of(flow: Flow) -> list[Row]:
    """The rows in order: inputs, then each box with its tensor, stage headings and tensors that are read again."""
    first = main_read(flow, 0) if flow.boxes else None
    inputs = [-1 - k for k in range(len(flow.inputs))]
    rows = [Row("tensor", s, flow.inputs[-1 - s]) for s in sorted(inputs, key=lambda s: (s == first, -s))]
    starts = {stage.first: stage for stage in flow.stages}
    for i, box in enumerate(flow.boxes):
        if i in starts:
            rows.append(Row("head", i, stage=starts[i]))
        read = main_read(flow, i)
        straight = read is None or (read == first if i == 0 else read == i - 1)
        if not straight and read is not None:
            rows.append(Row("tensor", read, box.inputs[box.reads.index(read)], again=True))
        rows.append(Row("box", i))
        rows.append(Row("tensor", i, box.output))
    return rows


def plan(flow: Flow, top: float) -> Plan:
    """The flow laid out below `top`."""
    axes = most_axes(flow)
    made = Plan(flow, rows_of(flow), [], min(102.0, 480.0 / axes), 0.0, top)
    spans = _spans(made)
    lane = _assigned(spans)
    count = max(lane, default=-1) + 1
    gap = min(13.0, LANES / max(count, 1))
    made.text = made.right + 10 + gap * count + (10 if count else 6)
    y, ends = top, {stage.last for stage in flow.stages}
    for row in made.rows:
        row.top = y
        _fill(made, row)
        y = row.bottom + (8 if row.kind == "box" and row.index in ends else 0)
    made.bottom = y
    made.lanes = [Lane(made.right + 10 + gap * place, made.rows[start],
                       tuple((_end(made, made.rows[end], made.rows[start].index), made.rows[end]) for end in ends_))
                  for (start, ends_), place in zip(spans, lane, strict=True)]
    return made


def _spans(made: Plan) -> list[tuple[int, list[int]]]:
    """For each tensor that is led aside: its row and the rows that it reaches."""
    flow, rows = made.flow, made.rows
    own = {row.index: i for i, row in enumerate(rows) if row.kind == "tensor" and not row.again}
    reach: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if row.kind == "tensor" and row.again:
            reach.setdefault(row.index, []).append(i)
        elif row.kind == "box":
            for read in dict.fromkeys(flow.boxes[row.index].reads):
                if read != main_read(flow, row.index):
                    reach.setdefault(read, []).append(i)
    return [(own[source], ends) for source, ends in sorted(reach.items(), key=lambda item: own.get(item[0], 0))
            if source in own]


def _assigned(spans: Sequence[tuple[int, list[int]]]) -> list[int]:
    """A lane for each, the shortest nearest to the boxes, none on top of another."""
    lanes: list[list[tuple[int, int]]] = []
    found = [0] * len(spans)
    for i in sorted(range(len(spans)), key=lambda i: (spans[i][1][-1] - spans[i][0], i)):
        start, end = spans[i][0], spans[i][1][-1]
        # A lane that lies inside another one's span stays on the boxes' side of it.
        place = next((k for k, lane in enumerate(lanes) if all(e < start or s > end for s, e in lane)), len(lanes))
        if place == len(lanes):
            lanes.append([])
        lanes[place].append((start, end))
        found[i] = place
    return found


def _end(made: Plan, row: Row, source: int) -> float:
    """At which height a lane arrives."""
    if row.kind == "tensor":
        return row.top + 8
    box = made.flow.boxes[row.index]
    others = [r for r in dict.fromkeys(box.reads) if r != main_read(made.flow, row.index)]
    return row.top + row.height * (others.index(source) + 1) / (len(others) + 1)


def _fill(made: Plan, row: Row) -> None:
    """Height and words of a row."""
    if row.kind == "head":
        _head(made, row)
    elif row.kind == "box":
        _box(made, row, made.flow.boxes[row.index])
    else:
        _tensor(made, row)


def _head(made: Plan, row: Row) -> None:
    row.height = 34
    stage = row.stage
    assert stage is not None
    y = row.top + 23
    said = f"{stage.blocks} blocks" if stage.blocks > 1 else "1 block" if stage.blocks else ""
    kind = " · ".join(part for part in (stage.kind, said) if part)
    room = TEXT_END - made.text
    name = cut(_short(made.flow, stage.name) or stage.kind, room * 0.55, LARGE, "mono")
    row.lines.append(Words(made.text, y, name, "stage", size=LARGE, font="mono", full=stage.name))
    start = made.text + width_of(name, LARGE, "mono") + 8
    row.lines.append(Words(start, y, cut(kind, TEXT_END - start, SMALL), "soft", full=kind))
    _numbers(row, y, stage.parameters, stage.multiply_adds, "total")


def _box(made: Plan, row: Row, box: Box) -> None:
    room = TEXT_END - made.text
    title = box.kind + (f"  × {box.count}" if box.count > 1 else "")
    lines = [Words(made.text, 0, cut(title, room, LARGE, "bold"), f"kind {box.role}", size=LARGE, font="bold",
                   full=title)]
    if box.name:
        name = cut(_short(made.flow, box.name), room, SMALL - 1, "mono")
        lines.append(Words(made.text, 0, name, "soft", size=SMALL - 1, font="mono", full=box.name))
    lines += [Words(made.text, 0, text, "note", full=box.note) for text in wrapped(box.note, room, SMALL, 3) if text]
    row.height = max(32.0, 15.0 * len(lines) + 10)
    first = row.top + (row.height - 15.0 * len(lines)) / 2 + 12
    row.lines = [Words(w.x, first + 15.0 * k, w.text, w.kind, w.anchor, w.size, w.font, w.full)
                 for k, w in enumerate(lines)]
    _numbers(row, first, box.parameters, box.multiply_adds, "number")


def _short(flow: Flow, name: str) -> str:
    """A module's name inside the module of the flow."""
    return name.removeprefix(f"{flow.name}.") if flow.name else name


def _numbers(row: Row, y: float, parameters: int, products: int, kind: str) -> None:
    for x, value in zip(NUMBERS, (parameters, products), strict=True):
        if value:
            said = grouped(value) if value < 10**11 else f"{grouped(round(value / 10**9))} × 10⁹"
            font = "bold" if kind == "total" else "sans"
            row.lines.append(Words(x, y, said, kind, "end", SMALL, font, full=grouped(value)))


def _tensor(made: Plan, row: Row) -> None:
    room = made.pitch - 6
    said = [(axis.name, grouped(axis.size)) for axis in row.wires]
    single = all(width_of(f"{name} {size}", SMALL) <= room for name, size in said)
    lead = 14.0 if row.again else 0.0  # where the lane arrives
    row.height = (30.0 if single else 43.0) + lead
    y = row.top + lead + 16
    for i, (name, size) in enumerate(said):
        x = made.x(i)
        if single:
            row.lines.append(Words(x, y + 2, f"{name} {size}", f"axis {axis_class(name)}", "middle"))
        else:
            row.lines.append(Words(x, y, cut(name, room, SMALL), f"axis {axis_class(name)}", "middle", full=name))
            row.lines.append(Words(x, y + 14, size, f"axis {axis_class(name)}", "middle"))
    words = _told(made.flow, row)
    if words:
        row.lines.append(Words(made.text, y + 2, cut(words, TEXT_END - made.text, SMALL), "told", full=words))


def _told(flow: Flow, row: Row) -> str:
    """What a tensor is, where that does not go without saying."""
    if row.index < 0:
        many = len(flow.inputs) > 1
        what = "the picture" if not flow.name else f"input {-row.index}" if many else "input"
        return f"again: {what}" if row.again else what
    box = flow.boxes[row.index]
    if row.again:
        return f"again: from {_short(flow, box.name) or box.kind}"
    return "output" if row.index == flow.output else ""


def axis_class(name: str) -> str:
    """The style of an axis: its last part decides."""
    last = name.split("·")[-1]
    return last if last in ("batch", "channel", "height", "width", "token", "head", "window") else "other"


def grouped(value: int) -> str:
    """A whole number in groups of three."""
    return f"{value:,}".replace(",", "\u202f")
