"""What taking the evidence out truly does to `xai:planted`, and what grey and blurred patches say that it does.

Run from the root of the checkout:

    python examples/planted_removal.py

A rendered scene can be drawn again without its glyph, so the true effect of the evidence is known and no picture leaves
the distribution that the network learned. Against it stand the fills that deletion metrics use: grey (the middle of the
range) and blur (Gaussian, standard deviation 5 pixels), over the glyph's own pixels or over its box. The effect is the
fall of the class's log-odds; each has its mean with a 95 % bootstrap interval over scenes, its rank correlation with
the true effect over scenes (interval from resampling scenes), and the share of scenes still named rightly. Controls:
the scene drawn without one distractor, and the box's grey and blur moved to a bare cell. `--smoke` takes few scenes
and writes nothing; otherwise the table goes to examples/tables/planted_removal.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import xai
from xai.glyphs import CELL, SIDE
from xai.model import Model
from xai.sampler import log_odds
from xai.scenes import CELLS, Scene, scenes
from xai.statistics import interval, spearman
from xai.zoo.loading import load

TABLE = Path(__file__).resolve().parent / "tables" / "planted_removal.md"
COMMAND = "python examples/planted_removal.py"
SIGMA, REACH = 5.0, 15  # of the blur, pixels
Picture = np.ndarray  # (64, 64, 3) uint8


def grey(picture: Picture, where: np.ndarray) -> Picture:
    """The middle of the range where `where` (64, 64) is true."""
    return np.where(where[:, :, None], np.uint8(128), picture)


def blurred(picture: Picture, where: np.ndarray) -> Picture:
    """The blurred picture where `where` (64, 64) is true; its border is mirrored."""
    bell = (-((torch.arange(-REACH, REACH + 1) / SIGMA).square()) / 2).exp()
    bell = bell / bell.sum()
    planes = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))[:, None]
    planes = F.conv2d(F.pad(planes, (REACH, REACH, 0, 0), mode="reflect"), bell[None, None, None, :])
    planes = F.conv2d(F.pad(planes, (0, 0, REACH, REACH), mode="reflect"), bell[None, None, :, None])
    soft = planes[:, 0].round().clamp(0, 255).to(torch.uint8).numpy().transpose(1, 2, 0)
    return np.where(where[:, :, None], soft, picture)


def inside_box(scene: Scene) -> np.ndarray:
    """(64, 64): the glyph's box."""
    where = np.zeros((SIDE, SIDE), dtype=bool)
    x0, y0, x1, y1 = scene.box or (0, 0, 0, 0)
    where[y0:y1, x0:x1] = True
    return where


def elsewhere(scene: Scene) -> np.ndarray:
    """(64, 64): the glyph's box moved to the first bare cell."""
    held = {thing.cell for thing in scene.objects}
    bare = next(cell for cell in range(CELLS) if cell not in held)
    (to_row, to_column), (row, column) = divmod(bare, SIDE // CELL), divmod(scene.cell, SIDE // CELL)
    return np.roll(inside_box(scene), ((to_row - row) * CELL, (to_column - column) * CELL), (0, 1))


@dataclass(frozen=True)
class Way:
    """A way to take something out of a scene. aim: what it takes out; make: the picture without it."""

    name: str
    aim: str
    make: Callable[[Scene], Picture]


WAYS = (
    Way("drawn again without the glyph (the true effect)", "evidence", lambda s: s.without_evidence().render()),
    Way("grey over the glyph's pixels", "evidence", lambda s: grey(s.render(), s.mask)),
    Way("grey over the glyph's box", "evidence", lambda s: grey(s.render(), inside_box(s))),
    Way("blur over the glyph's pixels", "evidence", lambda s: blurred(s.render(), s.mask)),
    Way("blur over the glyph's box", "evidence", lambda s: blurred(s.render(), inside_box(s))),
    Way("drawn again without one distractor", "control", lambda s: s.without(1).render()),
    Way("grey over the box moved to a bare cell", "control", lambda s: grey(s.render(), elsewhere(s))),
    Way("blur over the box moved to a bare cell", "control", lambda s: blurred(s.render(), elsewhere(s))),
)


def told(model: Model, pictures: list[Picture], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels' log-odds (n,), and whether the class named is the label (n,)."""
    images = xai.load_images(np.stack(pictures))
    with torch.inference_mode():
        logits = torch.cat([batch.output() for batch in model.prepare(images, chunk=100)]).double().cpu()
    return log_odds(logits)[torch.arange(len(labels)), labels], logits.argmax(1) == labels


def correlation(one: Tensor, two: Tensor, draws: int = 2000) -> tuple[float, float, float]:
    """Spearman's correlation over scenes, with its 95 % interval by resampling scenes."""
    rng, n = np.random.default_rng(0), len(one)
    rows = torch.from_numpy(rng.integers(n, size=(draws, n)))
    low, high = np.nanquantile([spearman(one[row], two[row]) for row in rows], [0.025, 0.975])
    return spearman(one, two), float(low), float(high)


def rows(model: Model, chosen: list[Scene], draws: int = 2000) -> list[str]:
    """A line of the table for each way."""
    labels = torch.tensor([scene.label for scene in chosen])
    before, _ = told(model, [scene.render() for scene in chosen], labels)
    lines, truth = [], torch.empty(0)
    for way in WAYS:
        after, right = told(model, [way.make(scene) for scene in chosen], labels)
        fall = before - after
        truth = fall if way is WAYS[0] else truth
        low, high = interval(fall)
        alike = "-"
        if way is not WAYS[0] and way.aim == "evidence":
            rank, least, most = correlation(fall, truth, draws)
            alike = f"{rank:.2f} ({least:.2f} to {most:.2f})"
        share, less, more = float(right.double().mean()), *interval(right.double())
        lines.append(f"| {way.name} | {way.aim} | {float(fall.mean()):.2f} ({low:.2f} to {high:.2f}) | {alike} |"
                     f" {100 * share:.1f} % ({100 * less:.1f} to {100 * more:.1f}) |")
    return lines


def page(lines: list[str], count: int, seed: int, kept: int) -> str:
    """The page with its table."""
    return "\n".join([
        "# Removal of planted evidence", "",
        f"`xai:planted`, the {kept} of {count} scenes (`planted:{count}@{seed}`) that it names rightly; 95 % bootstrap"
        " intervals over scenes (Wilson's for shares), rank correlation: Spearman over scenes. Grey: 128 of 255. Blur:"
        f" Gaussian, standard deviation {SIGMA:g} pixels. Made by `{COMMAND}`.", "",
        "| what is done | to | fall of the class's log-odds | rank correlation with the true effect | still named |",
        "| --- | --- | --- | --- | --- |", *lines]) + "\n"  # fmt: skip


def main() -> None:
    """Render, ask, write."""
    parser = argparse.ArgumentParser(description="The true effect of planted evidence against grey and blur.")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--smoke", action="store_true", help="few scenes; write nothing")
    asked = parser.parse_args()
    model = load("xai:planted", device="cpu")
    count = 12 if asked.smoke else asked.scenes
    chosen = list(scenes(count, asked.seed))
    _, right = told(model, [s.render() for s in chosen], torch.tensor([s.label for s in chosen]))
    chosen = [scene for scene, named in zip(chosen, right.tolist(), strict=True) if named]
    text = page(rows(model, chosen, 50 if asked.smoke else 2000), count, asked.seed, len(chosen))
    print(text)
    if not asked.smoke:
        TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except xai.XaiError as problem:
        sys.exit(str(problem))
