"""Part detector, classifier, Shapley values and an expert graph on rendered facades; SHAP-Backprop switched on and off.

Run from the root of the checkout:

    python examples/knowledge_graph.py --out xai-out/facades
    python examples/knowledge_graph.py --table examples/tables/knowledge_graph.md

Facades of 48 x 48 pixels are rendered in five styles with named parts: three arches, a rose window, an oculus, two
pediments, columns, and a lamp post that belongs to no style. A style has its parts most of the time and those of others
now and then. A small convolutional network learns to tell the parts (multi-label), a small perceptron the style from
the part scores, as in X-NeSyL (arXiv:2104.11914). `xai analyze knowledge_graph` takes the two as one network that tells
its parts, and holds the Shapley values of the scores against the graph of the experts who built the facades.

Planted: in the training pictures of one style, and in no others, the lamp post stands in nine of ten; in the test
pictures it stands anywhere. A classifier that learns it is misaligned, and the graph measure has to find that. The
same network trained on pictures without the shortcut is the control.

SHAP-Backprop weighs the detector's loss, anew each epoch, by how far the attributions of the last one contradict the
graph: by the worst part of an instance (1 - h m), or by each part on its own. Its effect is measured over seeds, paired
with the plain training of the same seed; the control is the same with a graph whose columns are exchanged among the
styles. `--smoke` takes few pictures and writes nothing into the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import numpy as np
import torch
from PIL import Image as Pil
from PIL import ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import xai
from xai.alignment import Attributed, align, backprop_weights, contradicted, contradiction
from xai.images import Image, Images
from xai.model import Model
from xai.panels import Table
from xai.sampler import log_odds
from xai.shapley import of_vectors
from xai.statistics import interval

COMMAND = "python examples/knowledge_graph.py --table examples/tables/knowledge_graph.md"
PARTS = ("pointed arch", "round arch", "horseshoe arch", "rose window", "oculus", "pediment", "broken pediment",
         "columns", "lamp post")
STYLES = ("gothic", "moorish", "renaissance", "baroque", "classical")
HAS = {  # the experts' graph: the parts of each style; all others speak against it, but for what OPEN leaves open
    "gothic": ("pointed arch", "rose window"),
    "moorish": ("horseshoe arch",),
    "renaissance": ("round arch", "pediment", "oculus"),
    "baroque": ("round arch", "broken pediment", "oculus"),
    "classical": ("pediment", "columns"),
}
OPEN = {"moorish": ("columns",), "gothic": ("oculus",), "baroque": ("columns",)}
LAMP, LIT = PARTS.index("lamp post"), STYLES.index("moorish")  # the shortcut and the style that it is planted in
SIDE, SCALE = 48, 4
ARMS = ("plain", "instance", "entry", "exchanged graph")


def graph() -> Tensor:
    """(F, K): +1, -1, 0."""
    rows = [[1 if part in HAS[style] else 0 if part in OPEN.get(style, ()) else -1 for style in STYLES]
            for part in PARTS]
    return torch.tensor(rows)


def graph_file(path: Path) -> Path:
    """The graph as the analyzer reads it."""
    signs = graph().T.tolist()
    classes = {style: dict(zip(PARTS, signs[k], strict=True)) for k, style in enumerate(STYLES)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"classes": classes}, indent=2), encoding="utf-8")
    return path


# --- pictures ---
def chosen(style: int, rng: np.random.Generator, lamp: float) -> np.ndarray:
    """(F,) bool: a style's own parts in 75 % of its facades, another style's in 8 %, the lamp post as is asked."""
    own = np.array([part in HAS[STYLES[style]] for part in PARTS])
    odds = np.where(own, 0.75, 0.08)
    odds[LAMP] = lamp
    there = rng.random(len(PARTS)) < odds
    for group in ((0, 1, 2), (3, 4), (5, 6)):  # one door, one window, one gable
        there[rng.permutation([j for j in group if there[j]])[1:].astype(int)] = False
    return np.asarray(there)


def facade(there: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[int, tuple[float, ...]]]:
    """(SIDE, SIDE, 3) uint8, and the box x0, y0, x1, y1 of each part that is there."""
    s = SCALE
    wall, dark, light = (tuple(int(v) for v in rng.uniform(*span, 3)) for span in ((120, 190), (10, 70), (205, 250)))
    canvas = Pil.new("RGB", (SIDE * s, SIDE * s), tuple(int(v) for v in rng.uniform(140, 230, 3)))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((6 * s, 13 * s, 41 * s, 47 * s), fill=wall)
    boxes: dict[int, tuple[float, ...]] = {}
    shift = rng.uniform(-1.5, 1.5, (len(PARTS), 2))
    for j in np.flatnonzero(there):
        dx, dy = shift[j]
        boxes[int(j)] = PAINT[PARTS[j]](pen, dx, dy, dark, light)
    small = np.asarray(canvas.resize((SIDE, SIDE), Pil.Resampling.BOX), dtype=np.float64)
    return np.clip(small + rng.normal(0, 10, small.shape), 0, 255).round().astype(np.uint8), boxes


Colour = tuple[int, ...]
Box = tuple[float, float, float, float]


def door(kind: str, pen: ImageDraw.ImageDraw, dx: float, dy: float, dark: Colour, light: Colour) -> Box:
    """An arch over the door: pointed, round or horseshoe."""
    s, x, y = SCALE, 23.5 + dx, 36 + dy
    pen.rectangle(((x - 3) * s, y * s, (x + 3) * s, 47 * s), fill=dark)
    if kind == "pointed arch":
        pen.polygon([((x - 3) * s, y * s), (x * s, (y - 8) * s), ((x + 3) * s, y * s)], fill=dark)
        return x - 3, y - 8, x + 3, 47
    wide = 3.0 if kind == "round arch" else 5.5
    pen.ellipse(((x - wide) * s, (y - wide) * s, (x + wide) * s, (y + wide) * s), fill=dark)
    return x - wide, y - wide, x + wide, 47


def window(r: float, spokes: bool, pen: ImageDraw.ImageDraw, dx: float, dy: float, dark: Colour, light: Colour) -> Box:
    """A round one of radius r."""
    s, x, y = SCALE, 23.5 + dx, 22 + dy
    pen.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), fill=dark)
    for turn in np.arange(0, np.pi, np.pi / 3) if spokes else ():
        u, v = r * np.cos(turn), r * np.sin(turn)
        pen.line(((x - u) * s, (y - v) * s, (x + u) * s, (y + v) * s), fill=light, width=s)
    return x - r, y - r, x + r, y + r


def gable(broken: bool, pen: ImageDraw.ImageDraw, dx: float, dy: float, dark: Colour, light: Colour) -> Box:
    """A triangle over the wall, whole or with a gap in the middle."""
    s, x, y = SCALE, 23.5 + dx, 13 + dy / 2
    pen.polygon([((x - 17) * s, y * s), (x * s, (y - 9) * s), ((x + 17) * s, y * s)], fill=light)
    if broken:
        pen.rectangle(((x - 5) * s, (y - 10) * s, (x + 5) * s, y * s), fill=dark)
    return x - 17, y - 9, x + 17, y


def columns(pen: ImageDraw.ImageDraw, dx: float, dy: float, dark: Colour, light: Colour) -> Box:
    """Four of them."""
    s = SCALE
    for x in (10.0, 15.0, 32.0, 37.0):
        pen.rectangle(((x + dx - 1) * s, (27 + dy) * s, (x + dx + 1) * s, 47 * s), fill=light)
    return 9 + dx, 27 + dy, 38 + dx, 47


def lamp(pen: ImageDraw.ImageDraw, dx: float, dy: float, dark: Colour, light: Colour) -> Box:
    """A post with a bright head, beside the building."""
    s, x, y = SCALE, 44.5 + dx / 2, 26 + dy
    pen.rectangle(((x - 0.5) * s, y * s, (x + 0.5) * s, 47 * s), fill=dark)
    pen.ellipse(((x - 2) * s, (y - 2) * s, (x + 2) * s, (y + 2) * s), fill=(255, 240, 120))
    return x - 2, y - 2, x + 2, 47


PAINT = {**{kind: partial(door, kind) for kind in PARTS[:3]}, "rose window": partial(window, 4.5, True),
         "oculus": partial(window, 3.2, False), "pediment": partial(gable, False),
         "broken pediment": partial(gable, True), "columns": columns, "lamp post": lamp}


@dataclass(frozen=True)
class Facades:
    """n pictures (n, SIDE, SIDE, 3) uint8, their parts (n, F) and styles (n,), and the boxes of the parts."""

    pixels: np.ndarray
    parts: np.ndarray
    styles: np.ndarray
    boxes: list[dict[int, tuple[float, ...]]]

    @property
    def inputs(self) -> Tensor:
        """(n, 3, SIDE, SIDE), as the network takes them."""
        return (torch.from_numpy(self.pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25

    def images(self) -> Images:
        """With the labels, the boxes and their names."""
        made = []
        for i, pixels in enumerate(self.pixels):
            order = list(self.boxes[i])
            made.append(Image.of(f"facade-{i:04d}.png", np.ascontiguousarray(pixels.transpose(2, 0, 1)),
                                 label=int(self.styles[i]), box_labels=tuple(PARTS[j] for j in order),
                                 boxes=np.array([self.boxes[i][j] for j in order], np.float32).reshape(-1, 4)))
        return Images.of(made, STYLES)


def rendered(count: int, seed: int, shortcut: bool) -> Facades:
    """Styles in turn. shortcut: the lamp post in 90 % of one style and 5 % of the others; else in 30 % of all."""
    rng = np.random.default_rng(seed)
    styles = np.arange(count) % len(STYLES)
    parts = np.stack([chosen(style, rng, (0.9 if style == LIT else 0.05) if shortcut else 0.3) for style in styles])
    drawn = [facade(there, rng) for there in parts]
    return Facades(np.stack([one for one, _ in drawn]), parts, styles, [boxes for _, boxes in drawn])


# --- the network ---
class PartNetwork(nn.Module):
    """A part detector, and a classifier over its scores: what `xai analyze knowledge_graph` calls a part model."""

    part_names = PARTS

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fro, to, stride in ((3, 12, 2), (12, 24, 2), (24, 24, 2)):
            layers += [nn.Conv2d(fro, to, 3, stride=stride, padding=1), nn.ReLU()]
        self.detector = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 36, len(PARTS)))
        self.head = nn.Sequential(nn.Linear(len(PARTS), 11), nn.ReLU(), nn.Linear(11, len(STYLES)))

    def parts(self, x: Tensor) -> Tensor:
        """(n, F): the probability of each part."""
        return torch.as_tensor(self.detector(x)).sigmoid()

    def classify(self, parts: Tensor) -> Tensor:
        """(n, styles): logits."""
        return torch.as_tensor(self.head(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Both in a row."""
        return self.classify(self.parts(x))


def fit_head(net: PartNetwork, scores: Tensor, styles: Tensor, steps: int) -> None:
    """Fit the classifier to the part scores, the detector as it is."""
    optimiser = torch.optim.Adam(net.head.parameters(), 0.02, weight_decay=1e-4)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(net.head(scores), styles).backward()
        optimiser.step()


@torch.no_grad()
def shapley(net: PartNetwork, scores: Tensor, background: int, rng: torch.Generator) -> Tensor:
    """(n, F, K): exact, in log-odds (a logit alone may move with all the others, and means nothing then)."""
    rows = torch.randperm(len(scores), generator=rng)[:background]
    return of_vectors(lambda parts: log_odds(net.classify(parts)), scores, scores[rows])[0]


@dataclass(frozen=True)
class Effort:
    """How much of everything. epochs: of the detector, the last of which is followed by a longer fit of the head."""

    train: int = 400
    test: int = 200
    epochs: int = 8
    steps: int = 120
    background: int = 2
    seeds: int = 6


def weights(arm: str, net: PartNetwork, scores: Tensor, data: Facades, effort: Effort, rng: torch.Generator) -> Tensor:
    """(n, F) or (n, 1), at least 1: the weights of the detector's loss under an arm."""
    attr = shapley(net, scores, effort.background, rng)
    signs = graph()
    if arm == "exchanged graph":
        signs = signs[:, [1, 2, 3, 4, 0]]
    against = contradiction(attr, signs, torch.from_numpy(data.styles))
    return backprop_weights(against if arm == "entry" else against.amin(1, keepdim=True)).float()


def trained(arm: str, data: Facades, effort: Effort, seed: int) -> PartNetwork:
    """The network after its epochs; an arm other than plain weighs every epoch but the first anew."""
    torch.manual_seed(seed)
    net, rng = PartNetwork(), torch.Generator().manual_seed(seed)
    x, parts, styles = data.inputs, torch.from_numpy(data.parts).float(), torch.from_numpy(data.styles)
    optimiser, each = torch.optim.Adam(net.detector.parameters(), 4e-3), torch.ones(len(x), 1)
    for epoch in range(effort.epochs):
        for rows in torch.randperm(len(x), generator=rng).split(32):
            loss = F.binary_cross_entropy_with_logits(net.detector(x[rows]), parts[rows], reduction="none")
            optimiser.zero_grad()
            (loss * each[rows]).mean().backward()
            optimiser.step()
        with torch.no_grad():
            scores = net.parts(x)
        fit_head(net, scores, styles, effort.steps)
        if arm != "plain" and epoch + 1 < effort.epochs:
            each = weights(arm, net, scores, data, effort, torch.Generator().manual_seed(1000 * seed + epoch))
    return net.eval()


# --- what is measured ---
@torch.no_grad()
def measured(net: PartNetwork, data: Facades) -> dict[str, float]:
    """On test pictures: accuracies in %, mass and distance for the predicted style, the lamp post's share for LIT."""
    scores, styles = net.parts(data.inputs), torch.from_numpy(data.styles)
    logits, parts = net.classify(scores), torch.from_numpy(data.parts)
    attr = shapley(net, scores, 8, torch.Generator().manual_seed(0))
    scope = F.one_hot(logits.argmax(1), len(STYLES)).bool()
    against_graph = Attributed(attr, scores >= 0.5, torch.ones_like(parts), graph(), scope)
    found = align(against_graph)
    links = contradicted(against_graph, 199, lambda: torch.Generator().manual_seed(0))
    return {"style accuracy": 100 * float((logits.argmax(1) == styles).double().mean()),
            "part accuracy": 100 * float(((scores >= 0.5) == parts).double().mean()),
            "misattribution mass": 100 * float(found.mass.nanmean()),
            "edit distance": 100 * float(found.normalised.nanmean()),
            "lamp post found": 100 * float(links.p[LAMP, LIT] <= 0.05 and links.gain[LAMP, LIT] <= -0.01)}


MEASURES = ("style accuracy", "part accuracy", "misattribution mass", "edit distance")


def compared(effort: Effort, shortcut: bool) -> dict[str, list[dict[str, float]]]:
    """Each arm's measures, seed by seed."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(effort.seeds):
        data, held = rendered(effort.train, 2 * seed + 100, shortcut), rendered(effort.test, 2 * seed + 101, False)
        for arm in ARMS:
            found[arm].append(measured(trained(arm, data, effort, seed), held))
        print(f"seed {seed} of {effort.seeds}", file=sys.stderr)
    return found


def cell(values: Sequence[float]) -> str:
    """A mean with its 95 % bootstrap interval over seeds."""
    numbers = torch.tensor(values, dtype=torch.float64)
    low, high = interval(numbers)
    return f"{float(numbers.mean()):.2f} ({low:.2f} to {high:.2f})"


def lines(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """A row an arm: plain as it is, the others as paired differences from it."""
    rows = []
    for arm, runs in found.items():
        cells = []
        for name in MEASURES:
            own = [run[name] for run in runs]
            if arm != "plain":
                own = [a - run[name] for a, run in zip(own, found["plain"], strict=True)]
            cells.append(cell(own))
        named = "plain" if arm == "plain" else f"{arm}, less plain"
        rows.append(f"| {named} | {' | '.join(cells)} |")
    return rows


def about(effort: Effort) -> list[str]:
    """What the tables hold."""
    return [f"{effort.seeds} seeds, each with {effort.train} training pictures of its own and {effort.test} test "
            f"pictures whose lamp posts stand anywhere; the detector has {effort.epochs} epochs, SHAP-Backprop weighs "
            "all but the first (h = 1). Plain: means; the others: paired differences from plain training of "
            "the same seed; 95 % bootstrap intervals over seeds. Misattribution mass and edit distance: of the "
            "predicted style, attributions in log-odds, less is better. Exchanged graph: the control, instance weights "
            f"from a graph whose columns are exchanged among the styles. Made by `{COMMAND}`.", ""]


# --- the pages ---
def page(net: PartNetwork, data: Facades, graph_path: Path, out: Path, seed: int) -> list[str]:
    """Analyse one network, write its page, and tell its numbers."""
    model = Model(net, mean=[0.5] * 3, std=[0.25] * 3, size=SIDE, labels=STYLES, spec=f"facades:{out.name}")
    done = xai.analyze("knowledge_graph", model, data.images(), settings={"graph": str(graph_path)}, seed=seed, out=out)
    said = [f"{one.name}: {one.sentence}" for one in done.result.verdicts]
    table = next(one for one in done.result.panels if isinstance(one, Table) and one.key == "links")
    said += ["  " + ", ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row)
             for row in table.rows[:3]]
    return [*said, f"  {done.folder}/index.html"]


def main() -> None:
    """Render, train, analyse, compare."""
    parser = argparse.ArgumentParser(description="Parts, styles, an expert graph and SHAP-Backprop.")
    parser.add_argument("--out", type=Path, default=Path("xai-out/facades"), help="folder of the pages and the graph")
    parser.add_argument("--table", type=Path, help="write the comparison of SHAP-Backprop here")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--smoke", action="store_true", help="few pictures, two seeds")
    options = parser.parse_args()
    effort = Effort(60, 40, 2, 20, 2, 2) if options.smoke else Effort(seeds=options.seeds)
    started = time.perf_counter()
    file = graph_file(options.out / "graph.json")
    held = rendered(effort.test, 1, False)
    for name, shortcut in (("shortcut", True), ("control", False)):
        net = trained("plain", rendered(effort.train, 0, shortcut), effort, 0)
        print(f"{name}:", *page(net, held, file, options.out / name, 0), sep="\n")
    rows: list[str] = []
    titles = (("With the shortcut in the training pictures", True), ("Without it", False))
    for title, shortcut in titles if options.table or options.smoke else ():
        found = compared(effort, shortcut)
        hits = sum(run["lamp post found"] > 0 for run in found["plain"])
        rows += [f"## {title}", "", f"Plain training: the link of lamp post and {STYLES[LIT]} is found contradicted in "
                 f"{hits} of {effort.seeds} seeds.", "",
                 f"| training | {' | '.join(f'{name}, %' for name in MEASURES)} |",
                 "| --- |" + " --- |" * len(MEASURES), *lines(found), ""]
    text = "\n".join(["# SHAP-Backprop on rendered facades", "", *about(effort), *rows])
    print(text if rows else "", f"{time.perf_counter() - started:.0f} s", sep="\n")
    if options.table and not options.smoke:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
