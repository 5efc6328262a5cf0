"""The command `xai models diagram`: a network's architecture as one SVG file."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from xai.errors import error

DRAWN_AT_RANDOM = ("torchvision", "timm")  # sources whose weights are no part of the drawing and need no download
Out = Annotated[str, typer.Option("--out", help="SVG file to write (default: xai-out/diagram-NAME.svg).")]
Size = Annotated[str, typer.Option("--size", help="Picture size, N or HEIGHTxWIDTH (default: the model's own).")]
Weights = Annotated[str, typer.Option("--weights", help="Weights file; only where the code cannot be built without.")]
Json = Annotated[bool, typer.Option("--json", help="Print the diagram's numbers as JSON; write no file.")]


def models_diagram(spec: str, out: Out = "", size: Size = "", weights: Weights = "", json_: Json = False) -> None:
    """Draw a network: its blocks, every axis between them, parameters and multiply-adds."""
    from reports.diagram import write
    from xai.diagram import diagram
    from xai.result import dump_json
    from xai.zoo.loading import load, resolve

    wanted = parse_size(size)
    path = Path(out) if out else Path("xai-out") / f"diagram-{re.sub(r'[^A-Za-z0-9._-]+', '-', spec)[:100]}.svg"
    if path.is_dir() or (out and not path.parent.is_dir()):
        raise error("--out", "an SVG file in a folder that is there", path, "Name another place")
    random = resolve(spec).source in DRAWN_AT_RANDOM
    drawn = diagram(load(spec, weights=weights or ("random" if random else None)), wanted)
    if json_:
        typer.echo(dump_json(asdict(drawn)), nl=False)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(drawn, path)
    except OSError as problem:
        raise error("--out", "writable", f"{path}: {problem.strerror}", "Name another place") from problem
    typer.echo(str(path))


def parse_size(text: str) -> tuple[int, int] | None:
    """224 or 224x320 as (height, width); "" is None."""
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text.strip().lower())
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if height < 1 or width < 1:
        raise error("--size", "a number of pixels or HEIGHTxWIDTH", repr(text), "For example --size 256 or 224x320")
    return height, width
