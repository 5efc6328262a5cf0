"""What a page and a notebook cell share: notices, health, pictures with maps, findings, methods, models, replay."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import wording
from reports.album import Album
from reports.draw import draw, heatmap, picture, table
from reports.layout import Cell, Row, Specimen, method_name, models_of, over, top1, whole
from reports.pixels import OPACITY
from xai.panels import Heatmap, Panel
from xai.result import Cost, Failure, Result, Verdict

_NAMED = 8
_SHEET_FROM = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What goes into one body: all results, the pictures of this page, and what the run said."""

    results: Sequence[Result]
    specimens: Sequence[Specimen]
    command: str
    failures: Sequence[Failure] = ()
    interrupted: bool = False
    first: bool = True
    slider: bool = True
    unfolded: bool = False


def body(content: Content, album: Album) -> Markup:
    """The HTML of a body; its photographs go into `album`, whose style rules the caller adds.

    Later pages (`first` False) leave out what speaks of the whole run.
    """
    models = models_of(content.results)
    maps = [m for s in content.specimens for row in s.rows for cell in row.cells for m in cell.maps]
    template = environment().get_template("body.html")
    return Markup(
        template.render(
            content=content,
            draw=Drawings(album),
            models=models,
            mixer=bool(maps) and content.slider,
            signed=any(m.view == "signed" for m in maps),
            health=_health(content),
            sheet=content.specimens if len(content.specimens) >= _SHEET_FROM else [],
            findings=[(r, whole(r)) for r in content.results if content.first and whole(r)],
            several_models=len(models) > 1,
            opacity=round(100 * OPACITY),
        )
    )


class Drawings:
    """The drawing functions bound to one page's album, for the templates."""

    def __init__(self, album: Album) -> None:
        self._album = album

    def original(self, specimen: Specimen) -> Markup:
        """The original with what the network saw framed; its size stands in the header already."""
        panel = specimen.original
        if panel is None:
            return Markup("")
        frame = panel.marks[0].label if panel.marks else ""
        label, below = f"The original {specimen.image.name}", f"framed: {frame}" if frame else None
        return picture(dataclasses.replace(panel, note=""), self._album, "Original", label, below, spot=True)

    def seen(self, row: Row, specimen: Specimen) -> Markup:
        """The picture that went into the network."""
        label = f"{specimen.image.name} as the network saw it"
        return picture(row.pictures["seen"], self._album, "What the network saw", label)

    def thumbnail(self, specimen: Specimen) -> Markup:
        """The picture as the contact sheet shows it."""
        seen = next((row.pictures["seen"] for row in specimen.rows if "seen" in row.pictures), specimen.original)
        return Markup('<span class="photo {}"></span>').format(self._album.add(seen.pixels)) if seen else Markup("")

    def predictions(self, row: Row) -> Markup:
        """The table of predictions, with bars."""
        if row.predictions is None:
            return Markup("")
        return Markup('<div class="predictions"><h3>Predictions</h3>{}</div>').format(table(row.predictions))

    def map(self, cell: Cell, row: Row, specimen: Specimen, panel: Heatmap) -> Markup:
        """One map of a method over its picture."""
        title = cell.method if panel.key == "map" else f"{cell.method}: {panel.title}"
        target = f"for {cell.target}" if cell.target else ""
        photo = over(cell, row, specimen, panel)
        return heatmap(panel, self._album, photo, title, specimen.image.name, target)

    def other(self, panel: Panel) -> Markup:
        """Any other panel."""
        return draw(panel, self._album)


def _health(content: Content) -> dict[str, Any] | None:
    """How many checks failed among those that this page shows, and on which pictures."""
    shown = [v for s in content.specimens for row in s.rows for cell in row.cells for v in cell.verdicts]
    if content.first:
        shown += [v for r in content.results for v in overall(r)]
    undone = sum(v.passed is None for v in shown)
    shown = [v for v in shown if v.passed is not None]
    if not shown:
        return None
    bad = [s for s in content.specimens if s.failed]
    failed = sum(v.passed is False for v in shown)
    return {"total": len(shown), "failed": failed, "where": bad[:_NAMED], "more": max(0, len(bad) - _NAMED),
            "undone": undone}


def overall(result: Result) -> list[Verdict]:
    """The verdicts that speak of no single picture."""
    return [v for v in result.verdicts if v.picture is None]


def setting(value: Any) -> str:
    """A parameter's value as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return wording.number(value, 6)
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(v) for v in value) or "none"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cost(cost: Cost) -> str:
    parts = [wording.count(cost.forwards, "forward pass", "forward passes")] if cost.forwards else []
    if cost.backwards:
        parts.append(f"{wording.number(cost.backwards)} backward")
    return " · ".join([*parts, wording.duration(cost.seconds)])


def _top(specimen: Specimen) -> str:
    name, share = next((top1(row.predictions) for row in specimen.rows if row.predictions), ("", None))
    return f"{name} {wording.percent(share)}" if share is not None else name


@cache
def environment() -> Environment:
    """The templates, with everything escaped that is not marked as HTML."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        number=wording.number, count=wording.count, duration=wording.duration, memory=wording.memory,
        moment=wording.moment, setting=setting,
        method=method_name, cost=_cost, overall=overall, top=_top,
        words=lambda name: name.replace("_", " "),
    )  # fmt: skip
    return found
