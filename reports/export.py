"""Write the maps of a result as files for use elsewhere: raw .npy, colour PNG, overlay PNG."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from reports.pixels import OPACITY, heatmap_png, overlay_png
from xai.errors import error
from xai.panels import Heatmap, Panel, Picture
from xai.result import Result

FORMATS = ("npy", "png", "overlay")


def export(
    result: Result, folder: str | Path, formats: Iterable[str] = FORMATS, opacity: float = OPACITY
) -> list[Path]:
    """Write every heat map of `result` into `folder` (made where missing); return the files in the order of the panels.

    `npy`: `<picture hash>-<key>.npy`, the raw values (h, w) float32, before ReLU or absolute value. `png`:
    `<picture hash>-<key>.png`, 8-bit palette, one pixel a cell. `overlay`: `<picture hash>-<key>-overlay.png`, RGB at
    the size of the picture that the map covers. Raises XaiError for an unknown format, OSError where nothing can be
    written.
    """
    wanted = list(dict.fromkeys(formats))
    for form in wanted:
        if form not in FORMATS:
            raise error("each format to save", f"one of {', '.join(FORMATS)}", repr(form), "Use --save npy,png,overlay")
    pictures = {(p.picture, p.key): p for p in result.panels if isinstance(p, Picture)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for panel in result.panels:
        if isinstance(panel, Heatmap):
            written += _files(panel, pictures.get((panel.picture, panel.over)), folder, wanted, opacity)
    return written


def _files(panel: Heatmap, over: Picture | None, folder: Path, formats: list[str], opacity: float) -> list[Path]:
    name = file_name(panel)
    ways: dict[str, tuple[str, Callable[[Path], object]]] = {
        "npy": (f"{name}.npy", lambda path: np.save(path, np.asarray(panel.values, np.float32), allow_pickle=False)),
        "png": (f"{name}.png", lambda path: path.write_bytes(heatmap_png(panel))),
    }
    if over is not None:
        ways["overlay"] = (f"{name}-overlay.png", lambda path: path.write_bytes(overlay_png(panel, over, opacity)))
    written = []
    for form in formats:
        if form in ways:
            file, save = ways[form]
            with whole(folder / file) as part:
                save(part)
            written.append(folder / file)
    return written


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` when the block ends well, and vanishes when it does not."""
    part = path.with_name(f".part-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def file_name(panel: Panel) -> str:
    """`<picture hash>-<key>` (the key alone without a picture), with nothing in it that a file name cannot hold."""
    name = f"{panel.picture}-{panel.key}" if panel.picture else panel.key
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).lstrip(".")[:150] or "map"
