"""Write the page of a folder, and the same content as a fragment for notebooks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from markupsafe import Markup

from reports.album import Album
from reports.body import Content, body, environment
from reports.colours import stops
from reports.export import export, whole
from reports.layout import Specimen, method_name, models_of, specimens
from reports.wording import count
from xai.errors import error
from xai.panels import Heatmap
from xai.result import Result, Run

PER_PAGE = 100
"""Pictures on one page; more go to index-2.html, index-3.html, ..."""
_HERE = Path(__file__).parent


def write(folder: str | Path) -> Path:
    """Draw the record in `folder`: index.html (index-2.html, ... beyond 100 pictures) and each result's pictures/*.png.

    `folder` holds run.json with the results in sub-folders, or one result.json. Returns the path of index.html. Raises
    XaiError where the record is missing or damaged, OSError where the folder cannot be written.
    """
    folder = Path(folder)
    run = Run.load(folder)
    results = []
    for name in run.results:
        results.append(Result.load(inside(folder, name)))
        if any(isinstance(panel, Heatmap) for panel in results[-1].panels):
            export(results[-1], folder / name / "pictures", ["png"])
    found = specimens(results)
    pages = max(1, -(-len(found) // PER_PAGE))
    for number in range(1, pages + 1):
        page = _page(run, results, found, number, pages)
        with whole(folder / page_name(number)) as part:
            part.write_bytes(page.encode("utf-8", "replace"))
    return folder / page_name(1)


def fragment(result: Result) -> str:
    """One result as HTML for a notebook: its own scoped style, every picture inside, no script."""
    album, found = Album(), specimens([result])
    content = Content(results=[result], specimens=found, command=result.provenance.command, slider=False)
    inner = body(content, album)
    html: str = environment().get_template("fragment.html").render(
        css=Markup(_css()), photographs=Markup(album.css()), headline=headline(result.title, found),
        lede=lede([result], found), body=inner)  # fmt: skip
    return html.encode("utf-8", "replace").decode("utf-8")


def page_name(number: int) -> str:
    """index.html, index-2.html, ..."""
    return "index.html" if number == 1 else f"index-{number}.html"


def headline(title: str, found: Sequence[Specimen]) -> str:
    """The picture's name, the number of pictures, or the title of what looks at none."""
    return found[0].image.name if len(found) == 1 else count(len(found), "picture") if found else title


def lede(results: Sequence[Result], found: Sequence[Specimen]) -> str:
    """One line that says which methods looked at which models."""
    methods = list(dict.fromkeys(method_name(r) for r in results)) if found or len(results) > 1 else []
    models = [m.spec for m in models_of(results)]
    parts = [", ".join(methods) if len(methods) <= 4 else count(len(methods), "method")] if methods else []
    if models:
        parts.append("on " + (", ".join(models) if len(models) <= 2 else count(len(models), "model")))
    return " ".join(parts)


def inside(folder: Path, name: str) -> Path:
    """The sub-folder of a result; raises XaiError where a record points outside its own folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise error(f"the results named in {folder / 'run.json'}", "sub-folders of it", repr(name),
                    "Make the folder again with the command in its run.json")  # fmt: skip
    return folder / name


def _page(run: Run, results: list[Result], found: list[Specimen], number: int, pages: int) -> str:
    album, first = Album(), number == 1
    content = Content(results=results, specimens=found[(number - 1) * PER_PAGE : number * PER_PAGE], first=first,
                      command=run.command, failures=run.failures if first else (), interrupted=run.interrupted,
                      unfolded=len(results) == 1)  # fmt: skip
    inner, css, script = body(content, album), _css(), (_HERE / "page.js").read_text(encoding="utf-8")
    photographs = album.css()
    return environment().get_template("page.html").render(
        css=Markup(css), photographs=Markup(photographs), script=Markup(script), body=inner, first=first,
        style_sources=Markup(f"{_source(css)} {_source(photographs)}"), script_source=Markup(_source(script)),
        title=run.title, headline=headline(run.title, found), lede=lede(results, found),
        page=number, names=[page_name(n) for n in range(1, pages + 1)])  # fmt: skip


@cache
def _css() -> str:
    """The style sheet with the two colour ramps filled in."""
    sheet = (_HERE / "style.css").read_text(encoding="utf-8").strip()
    ramps = [f".xai .scale.{kind} .ramp{{background-image:linear-gradient(90deg,{','.join(stops(kind))})}}"
             for kind in ("sequential", "diverging")]  # fmt: skip
    return "\n".join([sheet, *ramps])


def _source(text: str) -> str:
    """A Content-Security-Policy source for an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
