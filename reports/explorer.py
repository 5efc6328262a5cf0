"""Draw the model explorer: one self-contained page in which a person walks from pixels to probabilities.

It takes the plain description that `xai.explore.describe` makes. Maps and weights go into the page as float32 numbers,
and the page's script draws every picture from them: what is read and what is seen cannot differ. A table of the stages,
with small pictures made here, stands in the page for readers without scripts.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from reports.album import data_uri
from reports.body import environment
from reports.colours import palette, stops
from reports.export import whole
from reports.pixels import Scale, indices, photograph
from reports.wording import number, percent

SMALL, STRIP = 24, 12  # cells of a map's side in the table, maps in a row of it
SCRIPTS = ("explorer.js", "explorer_maps.js", "explorer_cards.js")
_HERE = Path(__file__).parent
_SHARP = 128  # pixels up to which the photograph is a PNG: JPEG would blur what is magnified
WHAT = {
    "input": "The picture as the network takes it, one map a channel",
    "conv": "Convolution: each output cell is the sum of the input cells under the kernels, times the kernels, plus a "
            "bias",
    "maxpool": "Max-pool: each output cell is the largest cell under its window",
    "avgpool": "Average pool: each output cell is the mean of the cells under its window",
    "batchnorm": "Batch normalisation: each channel shifted and scaled by fixed numbers",
    "add": "Sum: cell by cell, the two maps that meet here",
    "linear": "Linear map: each output is the sum of all inputs times its weights, plus a bias",
    "softmax": "Softmax: scores become shares that add up to 1",
    "sigmoid": "Sigmoid: each score becomes a share between 0 and 1 of its own",
    "relu": "ReLU: what is negative becomes 0",
}


def write(description: dict[str, Any], path: str | Path, command: str = "") -> Path:
    """Write the page, and give its path; `command` is what replays it. Raises OSError where it cannot be written."""
    path = Path(path)
    with whole(path) as part:
        part.write_bytes(page(description, command).encode("utf-8", "replace"))
    return path


def page(description: dict[str, Any], command: str = "") -> str:
    """The page as a text."""
    script = "\n".join(["(() => {", '"use strict";', *((_HERE / name).read_text(encoding="utf-8") for name in SCRIPTS),
                        "})();"])  # fmt: skip
    ramps = [f".xai .scale.{kind} .ramp{{background-image:linear-gradient(90deg,{','.join(stops(kind))})}}"
             for kind in ("sequential", "diverging")]  # fmt: skip
    css = "\n".join([*((_HERE / name).read_text(encoding="utf-8").strip() for name in ("style.css", "explorer.css")),
                     *ramps])
    return environment().get_template("explorer.html").render(
        css=Markup(css), style_source=Markup(_source(css)), script=Markup(script),
        script_source=Markup(_source(script)), data=Markup(_embedded(_data(description))), d=description,
        rows=_rows(description), answers=_answers(description), command=command)  # fmt: skip


def _data(description: dict[str, Any]) -> dict[str, Any]:
    """What the script reads: the description with arrays as base64 of little-endian float32."""
    seen = description["seen"]
    ramps = {kind: base64.b64encode(palette(kind)).decode("ascii") for kind in ("sequential", "diverging")}
    stages = [{**stage, "what": what(stage)} for stage in description["stages"]]
    return {**{k: v for k, v in description.items() if k not in ("seen", "stages")}, "stages": stages,
            "photograph": data_uri(_photograph(seen)), "size": list(seen.shape[:2]), "palettes": ramps}


def what(stage: dict[str, Any]) -> str:
    """One line that says what a stage does."""
    if stage["kind"] == "activation":
        return WHAT.get(stage["op"], f"{stage['op']}: one function of each cell")
    return WHAT.get(stage["op"], str(stage["op"]))


def _photograph(seen: np.ndarray) -> bytes:
    if max(seen.shape[:2]) > _SHARP:
        return photograph(seen)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(seen)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _embedded(value: Any) -> str:
    """JSON for a script element: no `<`, `>` or `&` in it, so that nothing can end the element or begin another."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value, dtype="<f4").tobytes()
        return {"shape": list(value.shape), "data": base64.b64encode(data).decode("ascii")}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _rows(description: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages for the table that needs no script."""
    return [{"name": s["name"], "what": what(s), "shape": " × ".join(map(str, s["shape"])),
             "parameters": number(int(s["parameters"])), "low": number(s["low"]), "high": number(s["high"]),
             "strip": data_uri(_strip(s)) if s["values"].shape[-1] * s["values"].shape[-2] > 1 else "",
             "shown": min(len(s["units"]), STRIP)} for s in description["stages"]]


def _strip(stage: dict[str, Any]) -> bytes:
    """The first maps of a stage side by side, as one small palette PNG."""
    values = stage["values"][:STRIP]
    step = max(1, -(-max(values.shape[1:]) // SMALL))
    values = values[:, ::step, ::step]
    low, high = stage["low"], stage["high"]
    top = max(abs(low), abs(high)) or 1.0
    scale = Scale(-top, top, "diverging") if low < 0 else Scale(0.0, top, "sequential")
    gap = np.full((values.shape[1], 1), 255, np.uint8)
    tiles = [tile for one in values for tile in (indices(one, "signed", scale), gap)]
    image = Image.fromarray(np.concatenate(tiles[:-1], axis=1))
    image.putpalette(palette(scale.kind))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _answers(description: dict[str, Any]) -> list[tuple[str, str]]:
    """The five likeliest classes and their shares; none where the output is no list of classes."""
    last = description["stages"][-1]
    if last["kind"] not in ("softmax", "answer"):
        return []
    shares = last["values"].reshape(-1)
    best = sorted(range(len(shares)), key=lambda i: -float(shares[i]))[:5]
    return [(description["labels"].get(str(last["units"][i]), ""), percent(float(shares[i]))) for i in best]


def _source(text: str) -> str:
    """A Content-Security-Policy source for an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
