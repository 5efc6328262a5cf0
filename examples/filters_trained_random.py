"""What training does to convolution filters: each network beside itself with random weights, layer by layer.

Run from the root of the checkout:

    python examples/filters_trained_random.py --table examples/tables/filters.md
    python examples/filters_trained_random.py --pairs xai:resnet-robust=xai:resnet-vanilla

All networks that are shipped and torchvision's squeezenet1_0 (where its weights lie at --squeezenet) are collected into
a filter database, trained and with several random weights. A layer's entropy H, its share of sparse filters, its
orthogonality and whether it is degenerate (see `xai methods info filter_statistics`) are compared with the mean of its
random twins. The interval is over networks, because layers of one network are not independent. Control: the first
random twin in the place of the trained network, against the other random ones.

With --pairs A=B the first of each pair (a robust network, say) takes the place of the trained, the second that of the
random ones: the published finding is that robust networks have fewer degenerate layers and more varied filters. The
control is then B with random weights against A with random weights.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import xai
from filterdb import measures
from filterdb.records import Entry
from filterdb.sums import added
from xai import filterdb
from xai.statistics import interval, wilson

SHIPPED = ("xai:photo20", "xai:planted", "xai:tinyvgg", "xai:denoiser", "xai:espcn-x2", "xai:espcn-x3")
SQUEEZENET = Path(__file__).resolve().parents[2] / "shared/models/squeezenet1_0_imagenet.safetensors"
MEASURES = ("entropy H", "sparse filters", "orthogonality", "degenerate")


@dataclass(frozen=True)
class Twin:
    """One set of weights: its 3 x 3 layers of at least 10 filters, by name."""

    layers: dict[str, Entry]

    def values(self, name: str) -> list[float | None]:
        """The four measures of one layer."""
        e = self.layers[name]
        return [e.entropy, e.sparsity, e.orthogonality, None if e.degenerate is None else float(e.degenerate)]

    def drift(self, other: Twin) -> tuple[float, float]:
        """D between the filters of both, and the 97.5 % quantile that as many independent filters give."""
        one, two = (added((e.counted for e in twin.layers.values()), 3) for twin in (self, other))
        explained = measures.dct_explained(one + two)
        floor = measures.drift_floor(one.histogram + two.histogram, one.n, two.n, explained, 3,
                                     measures.generator(0, "filters_trained_random"))
        return measures.drift(one.histogram, two.histogram, explained, 3), float(floor[97])


@dataclass(frozen=True)
class Case:
    """A network: what is asked about, what it is compared with, and the control for both."""

    name: str
    asked: Twin
    against: list[Twin]
    control: tuple[Twin, list[Twin]]


def twin(database: Path, spec: str, weights: str | None, seed: int = 0) -> Twin:
    """Collect one set of weights and read its layers back."""
    model = xai.load(spec, weights=weights, seed=seed)
    found = filterdb.collect(model, database)
    key = found.folder.name.removeprefix("model=")
    layers = filterdb.open(database).entries(f"model = '{key}' AND k = 3 AND n > 9")
    if not layers:
        raise xai.XaiError(f"the network must have 3 x 3 layers of 10 filters; got {spec}. Leave it out.")
    return Twin({entry.layer.name: entry for entry in layers})


def cases(options: argparse.Namespace) -> list[Case]:
    """Every network with its twins."""
    database, seeds = options.out / "db", range(2 if options.smoke else options.seeds)
    found = []
    for pair in options.pairs:
        one, _, two = pair.partition("=")
        rand = [twin(database, spec, "random", seed) for seed, spec in enumerate((two, one))]
        found.append(Case(pair, twin(database, one, None), [twin(database, two, None)], (rand[0], rand[1:])))
    if options.pairs:
        return found
    nets: list[tuple[str, str | None]] = [(spec, None) for spec in (SHIPPED[2:4] if options.smoke else SHIPPED)]
    if options.squeezenet.is_file() and not options.smoke:
        nets.append(("torchvision:squeezenet1_0", str(options.squeezenet)))
    for spec, weights in nets:
        rand = [twin(database, spec, "random", seed) for seed in seeds]
        found.append(Case(spec, twin(database, spec, weights), rand, (rand[0], rand[1:])))
    return found


def differences(asked: Twin, against: Sequence[Twin]) -> list[list[float]]:
    """For each measure, layer by layer: that of `asked` less the mean of the others."""
    found: list[list[float]] = [[] for _ in MEASURES]
    for name in asked.layers.keys() & against[0].layers.keys():
        others = [other.values(name) for other in against]
        for i, own in enumerate(asked.values(name)):
            theirs = [values[i] for values in others]
            if own is not None and None not in theirs:
                found[i].append(own - sum(v for v in theirs if v is not None) / len(theirs))
    return found


def mean(values: Sequence[float | None]) -> float:
    """Of those that are there."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan


def networks(found: Sequence[Case]) -> list[list[str]]:
    """A row a network: means over its layers, and drift beside its floor and beside that of the control."""
    rows = []
    for case in found:
        own = list(zip(*(case.asked.values(name) for name in case.asked.layers), strict=True))
        other = list(zip(*(t.values(name) for t in case.against for name in t.layers), strict=True))
        d, floor = case.asked.drift(case.against[0])
        control, _ = case.control[0].drift(case.control[1][0])
        filters = sum(entry.layer.n for entry in case.asked.layers.values())
        rows.append([case.name, str(len(case.asked.layers)), f"{filters:,}",
                     *(f"{mean(a):.3f} / {mean(b):.3f}" for a, b in zip(own, other, strict=True)),
                     f"{d:.3f}", f"{floor:.3f}", f"{control:.3f}"])
    return rows


def overall(found: Sequence[Case]) -> list[list[str]]:
    """A row a measure: the mean difference over networks with its interval, and that of the control."""
    rows = []
    kinds = [[differences(case.asked, case.against) for case in found],
             [differences(*case.control) for case in found]]
    for i, name in enumerate(MEASURES):
        cells = [name]
        for each in kinds:
            means = torch.tensor([mean(one[i]) for one in each if one[i]], dtype=torch.float64)
            low, high = interval(means)
            cells.append(f"{float(means.mean()):+.3f} ({low:+.3f} to {high:+.3f})")
        rows.append([*cells, str(len(found)), str(sum(len(one[i]) for one in kinds[0]))])
    return rows


def share(twins: Sequence[Twin]) -> str:
    """How many layers are degenerate, with Wilson's interval."""
    asked = [e.degenerate for t in twins for e in t.layers.values() if e.degenerate is not None]
    low, high = wilson(sum(asked) / len(asked), len(asked))
    return f"{sum(asked)} of {len(asked)} (95 %: {100 * low:.1f} to {100 * high:.1f} %)"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def main() -> None:
    """Collect, compare, print."""
    parser = argparse.ArgumentParser(description="Trained against random filters.")
    parser.add_argument("--out", type=Path, default=Path("xai-out/filters-study"), help="folder of the database")
    parser.add_argument("--pairs", nargs="*", default=[], help="pairs A=B of specs to compare instead")
    parser.add_argument("--seeds", type=int, default=5, help="random twins of each network (at least 2)")
    parser.add_argument("--squeezenet", type=Path, default=SQUEEZENET, help="weights of squeezenet1_0")
    parser.add_argument("--table", type=Path, help="also write the tables here, in Markdown")
    parser.add_argument("--smoke", action="store_true", help="two small networks, two seeds")
    options = parser.parse_args()
    options.seeds = max(2, options.seeds)
    found = cases(options)
    against = "the second of each pair" if options.pairs else f"the mean of {len(found[0].against)} random twins"
    text = (f"3 x 3 layers of at least 10 filters; each measure as asked / against: {against}; means over layers. "
            "Degenerate: the share of layers, by the published rule. D: drift in the DCT basis between the filters and "
            "those of the first twin; floor: what as many independent filters of one distribution reach in 97 of 100 "
            "draws; control: D between two random twins.\n\n")
    text += markdown(["network", "layers", "filters", *MEASURES, "D", "floor", "D of the control"], networks(found))
    text += ("\nMean difference, asked less against, first over the layers of a network, then over networks; in "
             "brackets the 95 % bootstrap interval over networks. Control: a random twin in the place of what is asked "
             "about.\n\n")
    text += markdown(["measure", "difference", "control", "networks", "layers"], overall(found))
    counts = [share([case.asked for case in found]), share([twin for case in found for twin in case.against])]
    text += f"\nDegenerate layers: {counts[0]} as asked, {counts[1]} against.\n"
    text += f"\n`python examples/{Path(__file__).name} {' '.join(sys.argv[1:])}`\n"
    print(text, end="")
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except xai.XaiError as problem:
        sys.exit(str(problem))
