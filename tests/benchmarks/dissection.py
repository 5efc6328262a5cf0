"""Prints how many times faster the overlaps of a network dissection are than two loops; exits 1 below a goal.

    python tests/benchmarks/dissection.py --table examples/tables/dissection_speed.md

All three count, for every unit and concept, the pixels that the unit's upsampled mask and the concept share, bilinear
and exact, from the same activations, thresholds and concept maps in memory, on the same threads. The plain loop takes a
unit and a picture at a time: interpolate, compare, count under each concept. The skipping loop leaves out units whose
map stays below the threshold in a picture, interpolates the others of a picture together, and counts with the indices
of active pixels. Each arm starts from concept maps prepared as it needs them (bool planes for the loops, tiles of bits
here); what that preparation costs is printed apart.

The plain loop takes minutes for 1,000 pictures, so each round gives it another run of --plain pictures and its time is
scaled to all: its work a picture does not depend on the others.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402  # after the path of the checkout
import torch  # noqa: E402
from interleave import Arm, Ratio, ratio, seconds  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from analyzers.concepts import _overlap, _thresholds  # noqa: E402
from xai.concept_scenes import CATEGORIES, CONCEPTS, NUMBER, SIDE, render  # noqa: E402

QUANTILE = 0.005
BLOCK = 32  # pictures that are compared at once, as in the analyzer
GOALS = (("plain loop", 12.0), ("loop over active pixels of active units", 2.0))
GRIDS = (7, 14)


@dataclass
class Data:
    """Activations (n, units, g, g) of a seeded smooth noise behind a ReLU, with their exact thresholds, and the
    concepts of rendered scenes, 50 in all: bool (n, 50, 112, 112) and packed."""

    grid: int
    count: int
    units: int
    maps: Tensor = field(init=False)
    thresholds: Tensor = field(init=False)

    def __post_init__(self) -> None:
        drawn = torch.Generator().manual_seed(self.grid)
        noise = torch.randn(self.count, self.units, self.grid + 2, self.grid + 2, generator=drawn)
        self.maps = F.avg_pool2d(noise, 3, 1).relu_()
        each = self.grid**2
        tops = _thresholds.start(self.units, _thresholds.above(QUANTILE, self.count * each), 1 << 30)
        _thresholds.add(tops, self.maps.transpose(0, 1).reshape(self.units, -1).numpy())
        self.thresholds = torch.from_numpy(_thresholds.found(tops, QUANTILE))

    def planes(self, maps: list[np.ndarray]) -> Tensor:
        """(n, 50, h, w) bool, what the loops start from; a scene's plane is full."""
        planes = torch.zeros(self.count, len(CONCEPTS), SIDE, SIDE, dtype=torch.bool)
        for one, numbers in zip(planes, maps, strict=True):
            for plane in numbers:
                rows, columns = np.nonzero(plane >= 0)
                one[torch.from_numpy(plane[rows, columns]).long(), rows, columns] = True
        return planes

    def packed(self, scenes: list) -> list[_overlap.Packed]:  # type: ignore[type-arg]  # ConceptMaps
        """Tiles of bits, what this project starts from."""
        tiles = _overlap.tiling((self.grid, self.grid), (SIDE, SIDE))
        return [_overlap.pack(one, one.planes, tiles, NUMBER, CATEGORIES) for one in scenes]


def plain(data: Data, planes: Tensor, rows: range) -> Tensor:
    """(units, 50) int64, a unit and picture at a time."""
    shared = torch.zeros(data.units, planes.shape[1], dtype=torch.long)
    for i in rows:
        for k in range(data.units):
            up = F.interpolate(data.maps[i : i + 1, k : k + 1], (SIDE, SIDE), mode="bilinear", align_corners=False)
            mask = up[0, 0] > data.thresholds[k]
            shared[k] += (planes[i] & mask).sum((1, 2))
    return shared


def skipping(data: Data, planes: Tensor) -> Tensor:
    """(units, 50) int64, only active units and active pixels of a picture."""
    shared = torch.zeros(data.units, planes.shape[1], dtype=torch.long)
    for maps, concepts in zip(data.maps, planes.flatten(2), strict=True):
        active = (maps.amax((1, 2)) > data.thresholds).nonzero()[:, 0]
        if not len(active):
            continue
        up = F.interpolate(maps[active][None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0].flatten(1)
        masks = up > data.thresholds[active][:, None]
        for k, mask in zip(active.tolist(), masks, strict=True):
            shared[k] += concepts[:, mask.nonzero()[:, 0]].sum(1)
    return shared


def ours(data: Data, packed: list[_overlap.Packed]) -> Tensor:
    """(units, 50) int64, as the analyzer counts; concepts of the whole picture are a product with the areas."""
    tiles = _overlap.tiling((data.grid, data.grid), (SIDE, SIDE))
    maps, thresholds = data.maps.numpy(), data.thresholds.numpy()
    shared = np.zeros((data.units, len(CONCEPTS)), np.int64)
    for first in range(0, data.count, BLOCK):
        some = packed[first : first + BLOCK]
        found = _overlap.active(maps[first : first + BLOCK], thresholds, tiles)
        shared += _overlap.overlaps(found, _overlap.Shelf.of(some), data.units, len(CONCEPTS))[0]
        areas = found.areas(len(some), data.units)
        for area, one in zip(areas, some, strict=True):
            shared[:, one.whole] += area[:, None]
    return torch.from_numpy(shared)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    grid: int
    against: str
    found: Ratio
    goal: float

    @property
    def met(self) -> bool:
        """Whether the median, as printed, reaches the goal."""
        return round(self.found.median, 1) >= self.goal

    @property
    def cells(self) -> tuple[str, ...]:
        """As they are printed."""
        return (f"{self.grid} x {self.grid}", f"{self.against}, in ours", f"{self.found.median:.1f}",
                f"{self.found.low:.1f} to {self.found.high:.1f}", f"at least {self.goal:g}",
                "yes" if self.met else "NO")


HEAD = ("activations", "ratio", "median", "rounds", "goal", "met")


def measured(grid: int, asked: argparse.Namespace, say: Callable[[str], None]) -> tuple[list[Row], str]:
    """The ratios at one grid, and a line on what they rest on."""
    data = Data(grid, asked.pictures, asked.units)
    scenes = [render(i)[1] for i in range(asked.pictures)]
    whole = [np.concatenate([one.planes, np.full_like(one.planes[:1], one.whole[0])]) for one in scenes]
    started = time.process_time()
    planes = data.planes(whole)
    middle = time.process_time()
    packed = data.packed(scenes)
    prepared = middle - started, time.process_time() - middle
    turn = iter(range(10**9))
    some = min(asked.plain, asked.pictures)

    def run_plain(_: object) -> Tensor:
        first = next(turn) * some % (asked.pictures - some + 1)
        return plain(data, planes, range(first, first + some))

    arms = [Arm("plain", run_plain), Arm("skipping", lambda _: skipping(data, planes)),
            Arm("ours", lambda _: ours(data, packed))]
    spent = seconds(arms, asked.rounds, "cpu" if asked.threads == 1 else "wall", say)
    scaled = [one * asked.pictures / some for one in spent["plain"]]
    off = check(data, planes, packed, some)
    rows = [Row(grid, GOALS[0][0], ratio(scaled, spent["ours"]), GOALS[0][1]),
            Row(grid, GOALS[1][0], ratio(spent["skipping"], spent["ours"]), GOALS[1][1])]
    named = {"plain loop (scaled)": scaled, "skipping loop": spent["skipping"], "ours": spent["ours"]}
    medians = ", ".join(f"{name} {np.median(took):.2f} s" for name, took in named.items())
    return rows, (f"{grid} x {grid}: {medians}; concept maps prepared in {prepared[0]:.2f} s for the loops and "
                  f"{prepared[1]:.2f} s for ours; the counts of {some} "
                  f"pictures differ by {off} pixels in all, by rounding.")


def check(data: Data, planes: Tensor, packed: list[_overlap.Packed], some: int) -> int:
    """By how many pixels the sums of the first pictures differ between the plain loop and ours; exits where that is
    more than rounding can explain."""
    few = Data.__new__(Data)
    few.grid, few.count, few.units = data.grid, some, data.units
    few.maps, few.thresholds = data.maps[:some], data.thresholds
    one, two = plain(few, planes, range(some)), ours(few, packed[:some])
    three = skipping(few, planes[:some])
    if not torch.equal(one, three) or int((one - two).abs().sum()) > 1e-4 * max(1, int(one.sum())):
        raise SystemExit("the three must count alike; got different sums. Look for the mistake.")
    return int((one - two).abs().sum())


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and give the exit code."""
    asked = _parser().parse_args(arguments)
    if asked.quick:
        asked.pictures, asked.units, asked.rounds, asked.plain, asked.grids = 24, 48, 1, 2, [7]
    torch.set_num_threads(asked.threads)
    rows, notes = [], []
    for grid in asked.grids:
        found, note = measured(grid, asked, lambda text: print(text, file=sys.stderr, flush=True))
        rows += found
        notes.append(note)
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text += f"\n\n{_about(asked)}\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    print(text, end="")
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(text, encoding="utf-8")
    return 0 if all(row.met for row in rows) else 1


def _about(asked: argparse.Namespace) -> str:
    timed = "process CPU time" if asked.threads == 1 else "wall time"
    return (f"{asked.pictures} pictures, {asked.units} units, {len(CONCEPTS)} concepts, masks of {SIDE} x {SIDE}, "
            f"bilinear, {QUANTILE:.1%} of the activations above the threshold; {asked.threads} thread(s), {timed}, "
            f"median of {asked.rounds} rounds in turns after a warm-up; the plain loop runs "
            f"{min(asked.plain, asked.pictures)} pictures a round, scaled; torch {version('torch')}, numpy "
            f"{version('numpy')}; {platform.machine()}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Overlaps of a dissection beside two loops; exits 1 below a goal.")
    parser.add_argument("--pictures", type=int, default=1000, help="rendered scenes (default 1000)")
    parser.add_argument("--units", type=int, default=768, help="units (default 768)")
    parser.add_argument("--grids", type=int, nargs="+", default=list(GRIDS), help="sides of the activations")
    parser.add_argument("--plain", type=int, default=20, help="pictures a round of the plain loop (default 20)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads, for all arms (default 1)")
    parser.add_argument("--table", type=Path, help="also write the table here, in Markdown")
    parser.add_argument("--quick", action="store_true", help="24 pictures, 48 units, one round")
    return parser


if __name__ == "__main__":
    sys.exit(main())
