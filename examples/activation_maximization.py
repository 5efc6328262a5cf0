"""Do pictures that are made for a channel or class of squeezenet1_0 excite it more than photographs do?

Run from the root of the checkout, with photographs and weights (safetensors) beside it:

    python examples/activation_maximization.py --table examples/tables/activation_maximization.md

Channels: the mean activation that a picture reaches, divided by that of the best of 1,000 crops of photographs at the
same size. Classes: the mean probability under random crops that the picture was not optimised under. Controls: the
picture of the start, and for each channel the picture that was made for the next one; for the classes, the same steps
without random transforms. Channels are drawn among those that any crop excites, classes among all. `--smoke` takes
seconds: the shipped photo20, two units, few steps, crops of noise.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xai import catalog, seeds
from xai.layers import Capture
from xai.model import Model
from xai.panels import Picture, Table
from xai.preprocessing import unit
from xai.result import Result
from xai.statistics import wilson
from xai.subject import Subject
from xai.zoo.loading import load

SHARED = Path(__file__).resolve().parents[2] / "shared"
TIMES, SURE = 3.0, 0.9


@dataclass(frozen=True)
class Made:
    """What came of some units: pictures (n, C, H, W) in [0, 1], and the rows of the table by column name."""

    pictures: Tensor
    rows: list[dict[str, Any]]


def crops(photographs: Sequence[Tensor], each: int, size: int, seed: int = 0) -> Tensor:
    """(n, C, size, size): of each photograph (C, h, w) so many square crops, side and place drawn evenly, from `size`
    (or the short side, where that is smaller) up to the short side; resized with antialiasing."""
    generator, found = seeds.generator(seed, "crops"), []
    for photograph in photographs:
        short = min(photograph.shape[-2:])
        for _ in range(each):
            side = int(torch.randint(min(size, short), short + 1, (), generator=generator))
            y, x = (int(torch.randint(0, most - side + 1, (), generator=generator)) for most in photograph.shape[-2:])
            part = photograph[None, :, y : y + side, x : x + side]
            found.append(F.interpolate(part, (size, size), mode="bilinear", antialias=True).clamp(0, 1))
    return torch.cat(found)


def answers(model: Model, layer: str, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(n, channels) mean activations and (n, classes) logits of pictures (n, C, H, W) in [0, 1]."""
    black, white = (model.preprocessing.constant(level) for level in (0.0, 1.0))
    view = model.view(layer, pictures[:1])
    module, channels, logits = model.runner([view.name]), [], []
    with torch.no_grad(), Capture(module, [view], cut=False) as capture:
        for part in torch.split(pictures, 8):
            logits.append(model.run(black + part * (white - black), module))
            channels.append(view.to_map(capture.values[view]).mean((2, 3)))
    return torch.cat(channels), torch.cat(logits)


def optimised(model: Model, units: Sequence[str], **settings: Any) -> Made:
    """Activation maximisation of the units, by its defaults but for the settings."""
    kind: Any = catalog.find("activation_maximization")
    analyzer = kind(units=", ".join(units), **settings)
    result: Result = analyzer(Subject.of(model), lambda done, of: _say(f"\r{done / of:4.0%} of {len(units)} units"))
    _say("\n")
    shown = [p.pixels for p in result.panels if isinstance(p, Picture) and p.key.startswith("picture-")]
    table = next(p for p in result.panels if isinstance(p, Table))
    rows = [dict(zip((c.name for c in table.columns), row, strict=True)) for row in table.rows]
    pixels = [torch.from_numpy(np.array(p)) for p in shown]
    return Made(torch.stack(pixels).permute(0, 3, 1, 2).float() / 255, rows)


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def share(hits: Sequence[bool]) -> str:
    """Hits of n with Wilson's 95 % interval."""
    low, high = wilson(sum(hits) / len(hits), len(hits))
    return f"{sum(hits)} of {len(hits)} ({low:.0%} to {high:.0%})"


def channel_rows(model: Model, layer: str, natural: Tensor, count: int,
                 settings: dict[str, Any]) -> tuple[Made, list[str]]:
    """Channels: how many reach three times the best crop, the picture's and the controls'."""
    held, _ = answers(model, layer, natural)
    live = (held.amax(0) > 0).nonzero().flatten()
    drawn = live[torch.randperm(len(live), generator=seeds.generator(0, "channels"))[:count]].sort().values.tolist()
    made = optimised(model, [f"{layer}:{i}" for i in drawn], **settings)
    best = held.amax(0)[drawn]
    mine, _ = answers(model, layer, made.pictures)
    ratio = mine[range(len(drawn)), drawn] / best
    next_one = mine.roll(1, 0)[range(len(drawn)), drawn] / best
    start = torch.tensor([row["start"] for row in made.rows]) / best
    said = f"{layer}: reaches {TIMES:g} x the best of {len(natural)} crops"
    lines = [_line(said, name, [bool(v >= TIMES) for v in values], values, "times")
             for name, values in (("its picture", ratio), ("control: the start", start),
                                  ("control: another channel's picture", next_one))]
    return made, lines


def class_rows(model: Model, layer: str, natural: Tensor, count: int,
               settings: dict[str, Any]) -> tuple[Made, list[str]]:
    """Classes: how many are seen with p > 0.9 under other crops, with and without random transforms."""
    drawn = torch.randperm(model.head.size, generator=seeds.generator(0, "classes"))[:count].sort().values.tolist()
    units = [f"class:{i}" for i in drawn]
    made = optimised(model, units, **settings)
    plain = optimised(model, units, **{**settings, "transforms": "none"})
    lines = []
    for name, one in (("its picture", made), ("control: optimised without random transforms", plain)):
        sure = torch.tensor([row["probability under them"] for row in one.rows])
        lines.append(_line(f"class: p > {SURE:g} under fresh crops", name, [bool(p > SURE) for p in sure], sure, "p"))
    _, logits = answers(model, layer, natural)
    best = logits.amax(0)[drawn]
    ratio = torch.tensor([row["reached"] for row in made.rows]) / best
    lines.append(_line(f"class: logit reaches {TIMES:g} x the best of {len(natural)} crops", "its picture",
                       [bool(v >= TIMES) for v in ratio], ratio, "times"))
    return made, lines


def _line(what: str, whose: str, hits: Sequence[bool], values: Tensor, unit_of: str) -> str:
    spread = f"{float(values.quantile(0.5)):.3g} ({float(values.min()):.3g} to {float(values.max()):.3g})"
    return f"| {what} | {whose} | {share(hits)} | {spread} {unit_of} |"


def sheet(made: Made, file: Path, columns: int = 10) -> None:
    """All pictures in one PNG."""
    tiles = [np.pad((p.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), ((1, 1), (1, 1), (0, 0)),
                    constant_values=255) for p in made.pictures]
    blank = np.full_like(tiles[0], 255)
    rows = [tiles[a : a + columns] for a in range(0, len(tiles), columns)]
    full = [np.concatenate([*row, *itertools.repeat(blank, min(columns, len(tiles)) - len(row))], 1) for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(full)).save(file)


def main(arguments: list[str] | None = None) -> None:
    """Optimise, measure, print."""
    parser = argparse.ArgumentParser(description="Activation maximisation against natural crops.")
    parser.add_argument("--channels", type=int, default=50, help="how many; 0: none")
    parser.add_argument("--classes", type=int, default=20, help="how many; 0: none")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--transforms", default="auto")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--layer", default="features.12")
    parser.add_argument("--weights", type=Path, default=SHARED / "models/squeezenet1_0_imagenet.safetensors")
    parser.add_argument("--photographs", type=Path, default=SHARED / "images")
    parser.add_argument("--each", type=int, default=25, help="crops a photograph")
    parser.add_argument("--out", type=Path, help="folder for sheets of all pictures")
    parser.add_argument("--table", type=Path, help="also write the table here, in Markdown")
    parser.add_argument("--smoke", action="store_true", help="the shipped photo20, two units, few steps")
    asked = parser.parse_args(arguments)
    if asked.smoke:
        model, layer = load("xai:photo20"), "auto"
        asked.channels, asked.classes, asked.steps, asked.size, asked.each = 2, 1, 3, 64, 3
        photographs = [torch.rand(3, 80, 90, generator=seeds.generator(0, "photograph"))]
    else:
        model, layer = load("torchvision:squeezenet1_0", weights=str(asked.weights)), asked.layer
        photographs = [unit(np.asarray(Image.open(f).convert("RGB")).transpose(2, 0, 1))
                       for f in sorted(asked.photographs.glob("*.jpg"))]
    settings = {"steps": asked.steps, "size": asked.size, "transforms": asked.transforms}
    started, natural = time.perf_counter(), crops(photographs, asked.each, asked.size)
    lines = ["| what | of | how many (95 % interval) | median (least to most) |", "| --- | --- | --- | --- |"]
    for name, rows, count in (("channels", channel_rows, asked.channels), ("classes", class_rows, asked.classes)):
        if not count:
            continue
        made, more = rows(model, layer, natural, count, settings)
        lines += more
        if asked.out:
            sheet(made, asked.out / f"{name}.png")
    minutes = (time.perf_counter() - started) / 60
    about = (f"{model.spec}, {asked.size} px, {asked.steps} steps, transforms {asked.transforms}, otherwise the "
             f"defaults of `activation_maximization`; {len(natural)} crops of {len(photographs)} photographs; "
             f"{minutes:.0f} minutes with {torch.get_num_threads()} thread(s). Written by "
             "`python examples/activation_maximization.py --table examples/tables/activation_maximization.md`.")
    text = "\n".join(lines) + f"\n\n{about}\n"
    print(text, end="")
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
