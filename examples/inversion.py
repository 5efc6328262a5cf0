"""What each layer of SqueezeNet holds of a photograph: inversion errors over depth, with random weights as control.

Run from the root of the checkout:

    python examples/inversion.py --table examples/tables/inversion.md

Photographs are inverted from layers of squeezenet1_0 (`xai analyze inversion`), once with ImageNet weights
(../shared/models) and once with weights drawn anew, all else the same, at half the usual side of its input, which
takes a quarter of the time (`--size 224` is the whole). The error of a layer's values is
|Phi(x*) - Phi0| / |Phi0|; that of the picture is the distance to it over that of its own mean colour. Means with 95 %
bootstrap intervals over photographs; how many photographs have an error that falls at every step from deep to shallow,
with Wilson's interval. In the table the error of the picture falls with random weights as well, that of the values does
not: only the latter tells a trained network. The photographs are spread over ../shared/images, or those of `--data`.
`--smoke`: the shipped `xai:tinyvgg` on two of scikit-image's pictures, a few steps.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import xai
from analyzers.visualization.inversion import Inversion
from xai.images import Images
from xai.model import Model
from xai.panels import Table
from xai.statistics import interval, wilson
from xai.subject import Subject
from xai.zoo.loading import load

SHARED = Path(__file__).resolve().parents[2] / "shared"
WEIGHTS, NETWORK = SHARED / "models/squeezenet1_0_imagenet.safetensors", "torchvision:squeezenet1_0"
COMMAND = "python examples/inversion.py --table examples/tables/inversion.md"
KINDS = ("error of the layer's values", "error of the picture")


def errors(model: Model, images: Images, how: Inversion) -> tuple[list[str], Tensor]:
    """The layers, shallow to deep, and (2, photographs, layers): errors of the values and of the picture."""
    result = how(Subject((model,), images))
    tables = [p for p in result.panels if isinstance(p, Table) and p.key == "layers"]
    names = [str(row[0]) for row in tables[0].rows]
    found = [[[float(row[k] if row[k] is not None else "nan") for row in table.rows] for table in tables
              if len(table.rows) == len(names)] for k in (1, 3)]
    return names, torch.tensor(found, dtype=torch.float64)


def falls(of_kind: Tensor) -> Tensor:
    """Whether each photograph's error (n, layers) falls at every step from deep to shallow, as 1 and 0."""
    return (of_kind.diff(dim=1) > 0).all(1).double()


def lines(weights: str, names: list[str], found: Tensor) -> list[str]:
    """The rows of one kind of weights."""
    made = []
    for kind, of_kind in zip(KINDS, found, strict=True):
        cells = []
        for of_layer in of_kind.T:
            low, high = interval(of_layer)
            cells.append(f"{float(of_layer.mean()):.3f} ({low:.3f} to {high:.3f})")
        good = falls(of_kind)
        low, high = wilson(float(good.mean()), len(good))
        made.append(f"| {weights} | {kind} | {' | '.join(cells)} | {int(good.sum())} of {len(good)} "
                    f"({100 * low:.0f} to {100 * high:.0f} %) |")
    return made


def page(names: list[str], rows: list[str], what: str) -> str:
    """The page with its table."""
    head = f"| weights | error | {' | '.join(names)} | falls at every step to the left |"
    rule = "| --- | --- | " + "--- | " * (len(names) + 1)
    return "\n".join(["# Network inversion over depth", "", f"{what} Made by `{COMMAND}`.", "", head, rule.strip(),
                      *rows]) + "\n"


def main() -> None:
    """Invert, compare, write."""
    parser = argparse.ArgumentParser(description="Inversion errors over the depth of a network.")
    parser.add_argument("--data", default=str(SHARED / "images"), help="photographs")
    parser.add_argument("--count", type=int, default=12, help="how many photographs")
    parser.add_argument("--steps", type=int, default=60, help="steps for each layer")
    parser.add_argument("--size", type=int, default=112, help="side of the network's input")
    parser.add_argument("--layers", default="auto", help="as --set layers=")
    parser.add_argument("--table", type=Path, help="write the table here")
    parser.add_argument("--smoke", action="store_true", help="a small network, two pictures, a few steps")
    asked = parser.parse_args()
    if asked.smoke:
        spec, chosen, steps = "xai:tinyvgg", [xai.load_images(f"sample:{one}")[0] for one in ("chelsea", "coffee")], 3
        pair = {"as trained": load(spec, device="cpu"), "drawn anew": load(spec, weights="random", device="cpu")}
    else:
        spec, steps, images = f"{NETWORK}?size={asked.size}", asked.steps, xai.load_images(asked.data)
        chosen = [images[i] for i in range(0, len(images), max(1, len(images) // asked.count))][: asked.count]
        pair = {"ImageNet": load(spec, weights=str(WEIGHTS), device="cpu"),
                "drawn anew": load(spec, weights="random", device="cpu")}
    how = Inversion(layers="auto" if asked.smoke else asked.layers, steps=steps, restarts=1)
    found: dict[str, list[Tensor]] = {weights: [] for weights in pair}
    for image in chosen:
        for weights, model in pair.items():
            names, own = errors(model, Images.of([image]), how)
            found[weights].append(own)
            print(image.name, weights, *(f"{v:.4f}" for v in own.flatten().tolist()), file=sys.stderr, flush=True)
    rows = [row for weights, several in found.items() for row in lines(weights, names, torch.cat(several, dim=1))]
    text = page(names, rows, f"`{spec}`, {len(chosen)} photographs, {steps} steps from one start for each layer; means "
                "with 95 % bootstrap intervals over photographs, Wilson's for the share. Layers from shallow to deep.")
    print(text)
    if asked.table is not None:
        asked.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except xai.XaiError as problem:
        sys.exit(str(problem))
