"""How often TCAV's tests call random pictures a concept, and whether they find one that is there.

Run from the root of the checkout:

    python examples/tcav.py --table examples/tables/tcav.md

The network is `xai:planted`: what decides its class is a glyph in a rendered scene, so it is known which concept
matters. For one class, sets of 20 fresh scenes are tested as concepts against random scenes, each time with another
pool: scenes at random (the null hypothesis), scenes with the class's own glyph, with another class's glyph, and with a
patch that catches the eye and decides nothing. Each is judged by the test of `xai analyze tcav` (the set is the unit)
and by the t-test over runs of Kim et al. 2018, both at 0.05. `--smoke` repeats a few times only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from analyzers.concepts import _cav
from analyzers.concepts._activations import flat, gram
from xai import seeds
from xai.images import Images, load_images
from xai.model import Model
from xai.statistics import wilson
from xai.targets import Target
from xai.zoo.loading import load

LEVEL, SIZE, POOL, RUNS, NULLS = 0.05, 20, 200, 10, 39
CLASSES = ("cross", "ring")  # that is explained, and another


@dataclass(frozen=True)
class Kind:
    """Scenes by what they show: `start` to `stop` are their rows among all activations."""

    name: str
    start: int
    stop: int


def of_class(images: Images, name: str, count: int) -> Images:
    """The first so many scenes of a class: scenes deal each class once in ten."""
    assert images.label_names is not None
    wanted = images.label_names.index(name)
    found = []
    for image in images:
        found += [image] if image.label == wanted else []
        if len(found) == count:
            break
    return Images.of(found, images.label_names)


def activations(model: Model, images: Images, layer: str) -> Tensor:
    """(n, D)."""
    return torch.cat([flat(batch.activations(layer), "flat") for batch in model.prepare(images)])


def gradients(model: Model, images: Images, layer: str, name: str) -> Tensor:
    """(n, D) of the class's logit."""
    found = []
    for batch in model.prepare(images):
        batch.want(layer)
        found.append(flat(batch.gradients(layer, batch.bind(Target(name))), "flat", gradient=True))
    return torch.cat(found)


def repeated(values: tuple[Tensor, Tensor], kind: Kind, random: Kind, times: int, layer: str
             ) -> Iterator[_cav.Tested]:
    """Each time another set of the kind and another pool of random scenes, which share none."""
    inner, products = values
    for number in range(times):
        generator = seeds.generator(number, "tcav example", layer, kind.name)
        random_rows = random.start + torch.randperm(random.stop - random.start, generator=generator)
        own, pool = random_rows[:SIZE], random_rows[SIZE : SIZE + POOL]
        if kind is not random:
            own = kind.start + torch.randperm(kind.stop - kind.start, generator=generator)[:SIZE]
        counter, sets, against = _cav.pairs(len(pool), RUNS, SIZE, NULLS, generator)
        mine = _cav.fit(inner, products, own.expand(RUNS, -1), pool[counter])
        null = _cav.fit(inner, products, pool[sets].repeat_interleave(RUNS, 0), pool[against])
        yield _cav.tested(mine, null, NULLS)


def told(share: float, n: int) -> str:
    """A share with its interval, in percent."""
    low, high = wilson(share, n)
    return f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def rows(model: Model, layer: str, times: int, counts: tuple[int, int]) -> Iterator[str]:
    """A row of the table for each kind of concept, at one layer."""
    many, few = counts
    sets = {"scenes at random": load_images(f"planted:{many}@101"),
            "own glyph": of_class(load_images(f"planted:{few * 10}@102"), CLASSES[0], few),
            "another glyph": of_class(load_images(f"planted:{few * 10}@103"), CLASSES[1], few),
            "patch that decides nothing": load_images(f"planted:null:{few}@104")}
    explained = of_class(load_images(f"planted:{few * 10}@105"), CLASSES[0], few)
    found, kinds, place = [], [], 0
    for name, images in sets.items():
        found.append(activations(model, images, layer))
        kinds.append(Kind(name, place, place + len(found[-1])))
        place += len(found[-1])
    every = torch.cat(found)
    every -= every[: len(found[0])].mean(0)
    values = gram(every, every), gram(every, gradients(model, explained, layer, CLASSES[0]))
    for kind in kinds:
        tests = list(repeated(values, kind, kinds[0], times, layer))
        mean, accuracy = sum(one.tcav for one in tests) / times, sum(one.accuracy for one in tests) / times
        ours, theirs = (sum(p <= LEVEL for p in ps) / times
                        for ps in zip(*((one.p, one.published) for one in tests), strict=True))
        yield (f"| {layer} | {kind.name} | {times} | {accuracy:.2f} | {mean:.2f} | {told(ours, times)} | "
               f"{told(theirs, times)} |")


def main() -> None:
    """Every layer and kind of concept, one table."""
    parser = argparse.ArgumentParser(description="False and true positives of TCAV's tests on planted evidence.")
    parser.add_argument("--table", type=Path, help="file for the table; without it nothing is written")
    parser.add_argument("--times", type=int, default=200, help="repetitions of each test")
    parser.add_argument("--layers", default="", help="comma-separated; the last two blocks by default")
    parser.add_argument("--smoke", action="store_true", help="few repetitions at one layer, to see that it works")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load("xai:planted", device="cpu")
    layers = [one for one in args.layers.split(",") if one] or ["blocks.1", model.view("auto").name]
    times, counts = (2, (300, 25)) if args.smoke else (args.times, (2000, 60))
    lines = [
        "| layer | pictures shown as the concept | repetitions | accuracy | TCAV, mean | called a concept, % (95 %): "
        "set as unit | t-test over runs |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for layer in layers[-1:] if args.smoke else layers:
        for row in rows(model, layer, times, counts):
            lines.append(row)
            print(row, flush=True)
    text = (f"Tests of TCAV at level {LEVEL:g}, on `xai:planted` for the class {CLASSES[0]}: sets of {SIZE} scenes, "
            f"{RUNS} runs, {NULLS} random sets from a pool of {POOL}, which is another one in each repetition. The "
            "first row of a layer is the null hypothesis: a test that holds its level calls at most "
            f"{100 * LEVEL:g} % of those a concept. Written by `python examples/tcav.py --table "
            "examples/tables/tcav.md`.\n\n")
    if args.table:
        args.table.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
