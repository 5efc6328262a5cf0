"""SP-LIME on sonar-like pictures: which few of them show what a small classifier looks for, under two segmentations.

Run from the root of the checkout:

    python examples/sp_lime_sonar.py --out xai-out/sonar
    python examples/sp_lime_sonar.py --architectures vgg16,resnet50,inception_v3,densenet121
    python examples/sp_lime_sonar.py --architectures vgg16 --weights vgg16.safetensors

The pictures are made up: side-scan sonar seen from the left, one channel, seafloor with ripples under multiplicative
speckle (gamma distributed, of a few looks), and on it a cylinder, a sphere, a wreck or nothing, each as a bright echo
with an acoustic shadow behind it. A small network learns the four classes in seconds, and SP-LIME picks from pictures
that it has not seen, with quickshift and SLIC side by side, on one page. A real network trained on such pictures may
look for other things: what is shown here is the method.

`--architectures` runs SP-LIME for the named networks of torchvision too, one page each, with random weights or with
your own (`--weights`, once or once each; "vgg16?classes=4" names the number of its outputs): single-channel pictures
are repeated to three channels. With random weights a page says nothing about sonar; it shows that the network can be
asked. `--smoke` does all of it with few pictures and masks.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import xai
from xai.images import Images
from xai.panels import Curve, Number, Table

CLASSES = ("cylinder", "sphere", "wreck", "seafloor")
SIDE, LOOKS = 128, 3
Array = np.ndarray


# --- pictures ---
def seafloor(rng: np.random.Generator) -> Array:
    """(SIDE, SIDE) mean echo strength: patches of sediment, ripples, less with range (to the right)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    patches = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), rng.uniform(8, 16))
    angle, period = rng.uniform(-0.5, 0.5), rng.uniform(7, 14)
    ripples = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + 2 * patches / patches.std())
    ground = 1 + 0.25 * patches / patches.std() + rng.uniform(0, 0.2) * ripples
    return 0.28 * np.clip(ground, 0.3, None) * (1.15 - 0.3 * x / SIDE)


def rounded(inside: Array) -> Array:
    """A mask with soft edges, 0 to 1."""
    return ndimage.gaussian_filter(inside.astype(float), 0.8)


def echo(kind: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """(highlight, shadow) of an object, each (SIDE, SIDE), 0 to 1. The shadow lies behind it, seen from the left."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    cy, cx = rng.uniform(38, SIDE - 38), rng.uniform(30, 58)
    reach = rng.uniform(22, 38)
    if kind == "cylinder":
        tilt, half = rng.uniform(-0.45, 0.45), rng.uniform(13, 20)
        along, across = (y - cy) * np.cos(tilt) + (x - cx) * np.sin(tilt), (x - cx) - (y - cy) * np.tan(tilt)
        light = (abs(along) < half) & (abs(across) < 3.2)
        dark = (abs(along) < half) & (across > 3.2) & (across < 3.2 + reach)
    elif kind == "sphere":
        radius = rng.uniform(4.5, 6.5)
        light = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        behind = (x - cx) / (1.3 * reach)
        dark = (behind > 0) & (abs(y - cy) < radius * np.sqrt(np.clip(1 - behind**2, 0, 1)))
    else:
        light, dark = np.zeros((2, SIDE, SIDE), dtype=bool)
        for _ in range(7):  # hull, masts and debris: blocks along a line
            by, bx = cy + rng.uniform(-26, 26), cx + rng.uniform(-9, 12)
            h, w, r = rng.uniform(4, 10), rng.uniform(3, 7), rng.uniform(0.4, 1) * reach
            light |= (abs(y - by) < h) & (abs(x - bx) < w)
            dark |= (abs(y - by) < h) & (x > bx + w) & (x < bx + w + r)
        dark &= ~light
    return rounded(light), rounded(dark)


def picture(kind: str, rng: np.random.Generator) -> Array:
    """(SIDE, SIDE) uint8: echo strength times speckle."""
    strength = seafloor(rng)
    if kind != "seafloor":
        light, dark = echo(kind, rng)
        strength = strength * (1 - 0.92 * dark) * (1 - light) + light * rng.uniform(0.75, 1.05)
    speckle = rng.gamma(LOOKS, 1 / LOOKS, strength.shape)
    return np.asarray((255 * np.clip(strength * speckle, 0, 1)).round(), dtype=np.uint8)


def pictures(count: int, seed: int) -> tuple[Array, Array]:
    """(n, SIDE, SIDE) uint8 and their class numbers (n,), `count` of each class in turn."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(len(CLASSES)), count)
    return np.stack([picture(CLASSES[c], rng) for c in labels]), labels


# --- the classifier ---
def network() -> nn.Module:
    """Three strided convolutions, one more, and the mean over places: its last grid has a cell for 8 x 8 pixels."""
    widths = (1, 12, 24, 48)
    layers: list[nn.Module] = []
    for fro, to in itertools.pairwise(widths):
        layers += [nn.Conv2d(fro, to, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(to), nn.ReLU()]
    layers += [nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48, len(CLASSES)))


def scaled(values: Array) -> Tensor:
    """(n, 1, SIDE, SIDE), as the network takes pictures."""
    return (torch.from_numpy(values)[:, None] / 255 - 0.5) / 0.25


def trained(values: Array, labels: Array, epochs: int, seed: int) -> nn.Module:
    """The network after so many epochs of Adam, pictures flipped along the track at random."""
    torch.manual_seed(seed)
    net, x, y = network(), scaled(values), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            batch = x[rows].flip(2) if torch.rand(()) < 0.5 else x[rows]
            loss = F.cross_entropy(net(batch), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def right(net: nn.Module, values: Array, labels: Array) -> int:
    """How many pictures are named rightly."""
    return sum(int((net(scaled(part)).argmax(1).numpy() == own).sum())
               for part, own in zip(np.array_split(values, 10), np.array_split(labels, 10), strict=True))


# --- the pick ---
def told(result: xai.Result) -> None:
    """Print the side by side, the picks and how far they agree."""
    curve = next(p for p in result.panels if isinstance(p, Curve))
    for name, line in zip(curve.names, curve.y, strict=True):
        print(f"  {name:20} covers {'  '.join(f'{share:.2f}' for share in line[1:])}")
    for panel in result.panels:
        if isinstance(panel, Table) and panel.key.startswith("picks_"):
            print(f"  {panel.title}: {', '.join(f'{row[1]} ({row[2]})' for row in panel.rows)}")
        elif isinstance(panel, Number):
            print(f"  {panel.title}: {panel.value:.2f} {panel.unit}. {panel.note}")


def asked(options: argparse.Namespace, level: float) -> dict[str, str]:
    """The settings of SP-LIME. What is hidden is shown at the level of the pictures' mean: in its own mean colour, the
    usual choice, a shadow would stay a shadow."""
    few = {"samples": "160", "segments": "24", "words": "6", "picks": "4", "restarts": "2"}
    own = {"samples": "400", "segments": "64", "words": "20", "picks": "8"}
    return {"segmentation": "quickshift,slic", "smooth": "1.5", "baseline": f"{level:.3f}",
            "by_class": options.by_class, **(few if options.smoke else own)}


def architectures(options: argparse.Namespace, images: Images, settings: dict[str, str]) -> None:
    """SP-LIME for each named network, a page each."""
    names = [name.strip() for name in options.architectures.split(",")]
    if len(options.weights) not in (1, len(names)):
        raise xai.XaiError(f"--weights must be given once or once for each of the {len(names)} architectures; got "
                           f"{len(options.weights)}. Give them in the order of the names.")
    for i, name in enumerate(names):
        started, size = time.perf_counter(), "" if not options.smoke else "&size=96" if "?" in name else "?size=96"
        done = xai.analyze("sp_lime", f"torchvision:{name}{size}", images, settings=settings, seed=options.seed,
                           weights=(options.weights[i % len(options.weights)],),
                           out=options.out / name.partition("?")[0])
        print(f"{name}: {done.result.cost.forwards} forwards, {time.perf_counter() - started:.0f} s, "
              f"{done.folder}/index.html")
        told(done.result)


def main() -> None:
    """Make the pictures, train, pick, write the page."""
    parser = argparse.ArgumentParser(description="SP-LIME on sonar-like pictures.")
    parser.add_argument("--out", type=Path, default=Path("xai-out/sonar"), help="folder of the page")
    parser.add_argument("--pictures", type=int, default=12, help="pictures of each class to pick from")
    parser.add_argument("--by-class", default="sqrt", help="no, sqrt or each: see `xai methods info sp_lime`")
    parser.add_argument("--architectures", default="", help="networks of torchvision to run too, separated by commas")
    parser.add_argument("--weights", action="append", help='file for the architectures, or "random"')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="few pictures, few masks")
    options = parser.parse_args()
    options.weights = options.weights or ["random"]
    started = time.perf_counter()
    values, labels = pictures(12 if options.smoke else 80, options.seed)
    net = trained(values, labels, 6 if options.smoke else 14, options.seed)
    count = 3 if options.smoke else max(options.pictures, 50)
    unseen, truth = pictures(count, options.seed + 1)
    hits = right(net, unseen, truth)
    print(f"accuracy {hits / len(truth):.3f}, {hits} of {len(truth)} unseen pictures; "
          f"{time.perf_counter() - started:.0f} s for pictures and training")
    n = len(CLASSES) * (2 if options.smoke else options.pictures)
    names = [f"{CLASSES[c]} {i // len(CLASSES) + 1}" for i, c in enumerate(truth[:n])]
    images = xai.load_images(unseen[:n, None], names=names, labels=[CLASSES[c] for c in truth[:n]])
    model = xai.Model(net, mean=[0.5], std=[0.25], size=SIDE, channels=1, labels=CLASSES, spec="sonar:small-cnn")
    settings = asked(options, float(values.mean()) / 255)
    started = time.perf_counter()
    done = xai.analyze("sp_lime", model, images, settings=settings, seed=options.seed,
                       out=options.out / "small-cnn" if options.architectures else options.out)
    print(f"{len(images)} pictures, {done.result.cost.forwards} forwards, {time.perf_counter() - started:.0f} s, "
          f"{done.folder}/index.html")
    told(done.result)
    if options.architectures:
        architectures(options, images[:2] if options.smoke else images, settings)


if __name__ == "__main__":
    try:
        main()
    except xai.XaiError as problem:
        sys.exit(str(problem))
