"""The command that writes a page about one model: the explorer."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from xai.cli_options import Open, Quiet
from xai.errors import error


def models_explore(spec: Annotated[str, typer.Argument(help="Model spec, such as xai:tinyvgg.")],
                   image: Annotated[str, typer.Argument(help="One picture: a file or sample:NAME.")],
                   out: Annotated[str, typer.Option("--out", help="The page to write (default: "
                                                    "xai-out/explore-MODEL-PICTURE.html).")] = "",
                   target: Annotated[str, typer.Option("--target", help="The class to end at: top1, class:3, a class "
                                                       "name, rank:2.")] = "top1",
                   weights: Annotated[str, typer.Option("--weights", help='Weights file, or "random".')] = "",
                   device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
                   open_: Open = False,
                   quiet: Quiet = False,
                   ) -> None:
    """Write a page in which one walks through a network, from the picture's pixels to probabilities."""
    from reports import explorer
    from xai.explore import describe
    from xai.images import load_images
    from xai.zoo.loading import load

    model = load(spec, weights=weights or None, device=device)
    images = load_images(image)
    if len(images) != 1:
        raise error("the picture to explore", "one picture", f"{len(images)} in {image!r}", "Name one file")
    found = images[0]
    page = Path(out) if out else Path("xai-out") / f"explore-{_plain(model.spec)}-{_plain(Path(found.name).stem)}.html"
    if page.is_dir() or page.suffix.lower() not in (".html", ".htm"):
        raise error("--out", "an HTML file", repr(out), "For example --out walk.html")
    description = describe(model, found, target)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        written = explorer.write(description, page, shlex.join(["xai", *sys.argv[1:]]))
    except OSError as problem:
        raise error("--out", "a file that can be written", f"{page}: {problem.strerror}",
                    "Name one in a folder where you may write") from problem
    if not quiet:
        typer.echo(str(written))
    if open_:
        import webbrowser

        webbrowser.open(written.resolve().as_uri())


def _plain(text: str) -> str:
    """The letters and digits of a name, for a file's."""
    return "".join(c if c.isalnum() else "-" for c in text).strip("-").lower()[:60] or "model"
