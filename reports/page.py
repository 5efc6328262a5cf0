"""Write the page of a folder, and the same content as a fragment for notebooks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import wording
from reports.album import Album
from reports.colours import stops
from reports.draw import draw, heatmap, picture, table
from reports.layout import Cell, Row, Specimen, method_name, models_of, over, specimens, top1, whole
from reports.pixels import OPACITY, heatmap_png
from xai.errors import error
from xai.panels import Heatmap, Panel
from xai.result import Cost, Failure, Result, Run, Verdict

PER_PAGE = 100
"""Pictures on one page, as in index.html, index-2.html, ..."""
_HERE = Path(__file__).parent
_NAMED = 8


def write(folder: str | Path) -> Path:
    """Draw the record in `folder`: index.html (index-2.html, ... beyond 100 pictures) and each result's pictures/*.png.

    `folder` holds run.json with the results in sub-folders, or one result.json. Returns the path of index.html. Raises
    XaiError where the record is missing or damaged, OSError where the folder cannot be written.
    """
    folder = Path(folder)
    run = Run.load(folder)
    results = []
    for name in run.results:
        place = _inside(folder, name)
        results.append(Result.load(place))
        export_maps(results[-1], place / "pictures")
    found = specimens(results)
    chunks = [found[i: i + PER_PAGE] for i in range(0, len(found), PER_PAGE)] or [[]]
    for number, chunk in enumerate(chunks, start=1):
        page = _page(run, results, chunk, number, len(chunks))
        name = "index.html" if number == 1 else f"index-{number}.html"
        (folder / name).write_bytes(page.encode("utf-8", "replace"))
    return folder / "index.html"


def export_maps(result: Result, folder: Path) -> None:
    """Each heat map that speaks of a picture as a palette PNG of its own size, `<picture hash>-<key>.png`."""
    for panel in result.panels:
        if isinstance(panel, Heatmap) and panel.picture is not None:
            folder.mkdir(exist_ok=True)
            (folder / f"{file_name(panel)}.png").write_bytes(heatmap_png(panel))


def file_name(panel: Panel) -> str:
    """`<picture hash>-<key>` with nothing in it that a file name cannot hold."""
    return re.sub(r"[^\w.-]+", "_", f"{panel.picture}-{panel.key}", flags=re.ASCII).lstrip(".")


def fragment(result: Result) -> str:
    """One result as HTML for a notebook: its own scoped style, every picture inside, no script."""
    album = Album()
    found = specimens([result])
    body = _body(result.provenance.command, [result], found, album, open_cards=False)
    return _environment().get_template("fragment.html").render(
        css=Markup(_css()), photographs=Markup(album.css()), title=result.title, lede=lede([result], found), body=body)


def lede(results: Sequence[Result], found: Sequence[Specimen]) -> str:
    """One line that says what the page holds."""
    methods = list(dict.fromkeys(method_name(r) for r in results))
    models = [m.spec for m in models_of(results)]
    parts = [", ".join(methods) if len(methods) <= 4 else wording.count(len(methods), "method")]
    if models:
        parts.append("on " + (", ".join(models) if len(models) <= 2 else wording.count(len(models), "model")))
    if len(found) > 1:
        parts.append("over " + wording.count(len(found), "picture"))
    return " ".join(parts)


def _page(run: Run, results: list[Result], chunk: list[Specimen], number: int, pages: int) -> str:
    album = Album()
    first = number == 1
    body = _body(run.command, results, chunk, album, failures=run.failures if first else (), cards=first,
                 interrupted=run.interrupted, mixer=any(c.maps for s in chunk for row in s.rows for c in row.cells),
                 open_cards=len(results) == 1)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    photographs = album.css()
    return _environment().get_template("page.html").render(
        css=Markup(_css()), photographs=Markup(photographs), script=Markup(script), title=run.title,
        style_hashes=Markup(f"{_digest(_css())} {_digest(photographs)}"), script_hash=Markup(_digest(script)),
        lede=lede(results, specimens(results)), body=body, page=number, pages=pages, cards=first)


def _body(command: str, results: list[Result], found: list[Specimen], album: Album, *, failures: Sequence[Failure] = (),
          cards: bool = True, interrupted: bool = False, mixer: bool = False, open_cards: bool) -> Markup:
    models = models_of(results)
    return Markup(_environment().get_template("body.html").render(
        draw=_Drawings(album), results=results, models=models, specimens=found, command=command, failures=failures,
        random_models=[m for m in models if m.random_weights], code_models=[m for m in models if m.runs_code],
        interrupted=interrupted, health=_health(results, found), sheet=found if len(found) > 3 else [], mixer=mixer,
        opacity=round(100 * OPACITY), findings=[(r, whole(r)) for r in results if cards and whole(r)], cards=cards,
        open_cards=open_cards, several_models=len(models) > 1))


class _Drawings:
    """The drawing functions bound to one page's album, for the templates."""

    def __init__(self, album: Album) -> None:
        self._album = album

    def original(self, specimen: Specimen) -> Markup:
        assert specimen.original is not None
        return picture(specimen.original, self._album, "Original", f"The original {specimen.image.name}", spot=True)

    def seen(self, row: Row, specimen: Specimen) -> Markup:
        return picture(row.pictures["seen"], self._album, "What the network saw",
                       f"{specimen.image.name} as the network saw it")

    def thumbnail(self, specimen: Specimen) -> Markup:
        seen = next((row.pictures["seen"] for row in specimen.rows if "seen" in row.pictures), specimen.original)
        return Markup('<span class="photo {}"></span>').format(self._album.add(seen.pixels)) if seen else Markup("")

    def predictions(self, row: Row, specimen: Specimen) -> Markup:
        assert row.predictions is not None
        return Markup('<div class="predictions"><h4>Predictions</h4>{}</div>').format(table(row.predictions))

    def map(self, cell: Cell, row: Row, specimen: Specimen, panel: Heatmap) -> Markup:
        title = cell.method if panel.key == "map" else f"{cell.method}: {panel.title}"
        head = Markup('{}{}').format(title, Markup(' <span class="target">for {}</span>').format(cell.target)
                                     if cell.target else "")
        return heatmap(panel, self._album, over(cell, row, specimen, panel), head, specimen.image.name)

    def other(self, panel: Panel) -> Markup:
        return draw(panel, self._album)


def _health(results: Sequence[Result], found: Sequence[Specimen]) -> dict[str, Any] | None:
    every = [v for r in results for v in r.verdicts]
    if not every:
        return None
    bad = [s for s in found if s.failed]
    return {"total": len(every), "failed": sum(not v.passed for v in every), "where": bad[:_NAMED],
            "more": max(0, len(bad) - _NAMED)}


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
        return ", ".join(setting(v) for v in value)
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cost(cost: Cost) -> str:
    parts = [wording.count(cost.forwards, "forward pass", "forward passes")] if cost.forwards else []
    if cost.backwards:
        parts.append(f"{wording.number(cost.backwards)} backward")
    return " · ".join([*parts, wording.duration(cost.seconds)])


def _top(specimen: Specimen) -> str:
    name, share = next((top1(row.predictions) for row in specimen.rows if row.predictions), ("", None))
    return f"{name} {wording.percent(share)}" if share is not None else name


def _plates(row: Row) -> int:
    return min(9, len(row.pictures) + sum(max(1, len(cell.maps)) for cell in row.cells))


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False)
    environment.filters.update(
        number=wording.number, count=wording.count, duration=wording.duration, memory=wording.memory, setting=setting,
        method=method_name, cost=_cost, overall=overall, top=_top, plates=_plates,
        words=lambda name: name.replace("_", " "))
    return environment


@cache
def _css() -> str:
    """The style sheet with the two colour ramps filled in."""
    sheet = (_HERE / "style.css").read_text(encoding="utf-8")
    ramps = [f".xai .scale.{kind} .ramp{{background-image:linear-gradient(90deg,{','.join(stops(kind))})}}"
             for kind in ("sequential", "diverging")]
    return "\n".join([sheet.strip(), *ramps])


def _digest(text: str) -> str:
    """A Content-Security-Policy source for the inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _inside(folder: Path, name: str) -> Path:
    """The sub-folder of a result; a record may not point outside its own folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise error(f"the results named in {folder / 'run.json'}", "sub-folders of it", repr(name),
                    "Make the folder again with the command in its run.json")
    return folder / name
