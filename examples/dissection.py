"""Which concepts the units of two shipped networks detect, layer by layer, beside the same networks without training.

Run from the root of the checkout:

    python examples/dissection.py
    python examples/dissection.py --out xai-out/dissection

Network dissection of `xai:photo20` and, where its weights lie in ../shared, of squeezenet1_0, on rendered scenes of
which every colour, texture, shape, object, part and scene is known to the pixel. Controls: the same architectures with
random weights on the same scenes, and for each the masks against the concepts of other scenes (20 permutations). The
share of units that are detectors has Wilson's 95 % interval over units. `--out` also writes a page for each network.
`--smoke` takes few scenes and writes no table; otherwise it goes to examples/tables/dissection.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import xai
from xai.panels import Number, Table
from xai.result import Result
from xai.run import Explanation
from xai.statistics import wilson

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "examples" / "tables" / "dissection.md"
SQUEEZENET = ROOT.parent / "shared" / "models" / "squeezenet1_0_imagenet.safetensors"
KINDS = ("color", "texture", "shape", "part", "object", "scene")


@dataclass(frozen=True)
class Net:
    """A network, its weights and the layers that are looked at, the deepest first."""

    name: str
    weights: str | None
    layers: tuple[str, ...]


def nets(file: Path, smoke: bool) -> list[Net]:
    """Those that are there."""
    found = [Net("xai:photo20", None, ("stages.2.1", "stages.1", "stages.0"))]
    if file.is_file() and not smoke:
        found.append(Net("squeezenet1_0", str(file), ("features.12", "features.8", "features.5")))
    return found


def dissected(net: Net, weights: str | None, scenes: int, seed: int, out: str | None) -> Explanation:
    """All layers in the same passes."""
    settings = {"layer": net.layers[0], "also": ",".join(net.layers[1:])}
    return xai.analyze("network_dissection", net.name, f"concepts:{scenes}@{seed}", settings=settings, out=out,
                       weights=() if weights is None else (weights,), seed=seed)


def lines(net: Net, trained: Result, random: Result) -> list[tuple[str, ...]]:
    """A line a layer: units, detectors with training, by kind, by chance, and without training."""
    found = []
    for layer in net.layers:
        mine, untrained = by_kind(trained, layer), by_kind(random, layer)
        units = len(units_of(trained, layer).rows)
        low, high = wilson(int(mine["all"][3]) / units, units)
        low_, high_ = wilson(int(untrained["all"][3]) / units, units)
        found.append((net.name, layer, str(units),
                      f"{mine['all'][3]} ({low:.0%} to {high:.0%})", str(mine["all"][4]),
                      *(str(mine[kind][3]) if kind in mine else "-" for kind in KINDS), f"{mine['all'][7]}",
                      f"{untrained['all'][3]} ({low_:.0%} to {high_:.0%})", str(untrained["all"][4]),
                      f"{untrained['all'][7]}"))
    return found


def by_kind(result: Result, layer: str) -> dict[str, tuple]:  # type: ignore[type-arg]  # cells of any kind
    """The rows of the table of counts, by category."""
    table = next(p for p in result.panels if isinstance(p, Table) and p.key == "categories")
    return {str(row[1]): row for row in table.rows if row[0] == layer}


def units_of(result: Result, layer: str) -> Table:
    """The table of a layer's units."""
    return next(p for p in result.panels if isinstance(p, Table) and p.key == f"units {layer}")


def best(net: Net, result: Result, count: int = 6) -> list[tuple[str, ...]]:
    """The units of the deepest layer with the highest IoU, each concept once."""
    table, found, met = units_of(result, net.layers[0]), list[tuple[str, ...]](), set()
    names = [column.name for column in table.columns]
    for cells in table.rows:
        row = dict(zip(names, cells, strict=True))
        if row["concept"] in met or len(found) == count or not row["concept"]:
            continue
        met.add(row["concept"])
        found.append((net.name, str(row["unit"]), str(row["concept"]), f"{row['IoU']:.3f}",
                      f"{row['label of one half']}, {row['its IoU on the other']:.3f}", str(row["next concepts"]),
                      f"{row['best AUC']}, {row['AUC']}"))
    return found


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ("---",) * len(head), *rows])


HEAD = ("network", "layer", "units", "detectors (95 % of units)", "unique", *KINDS, "by chance",
        "random weights: detectors", "unique", "by chance")
BEST = ("network", "unit", "concept", "IoU", "label of one half, its IoU on the other", "next", "best AUC")


def main() -> None:
    """Dissect, print, and write the table."""
    parser = argparse.ArgumentParser(description="Which concepts units detect, with and without training.")
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of scenes, random weights and permutations")
    parser.add_argument("--squeezenet", type=Path, default=SQUEEZENET, help="weights of squeezenet1_0, if there")
    parser.add_argument("--out", help="folder for the pages")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--smoke", action="store_true", help="few scenes; write no table")
    asked = parser.parse_args()
    scenes = 12 if asked.smoke else asked.scenes
    rows, units, notes = list[tuple[str, ...]](), list[tuple[str, ...]](), []
    for net in nets(asked.squeezenet, asked.smoke):
        out = f"{asked.out}/{net.name.removeprefix('xai:')}" if asked.out else None
        trained = dissected(net, net.weights, scenes, asked.seed, out).result
        random = dissected(net, "random", scenes, asked.seed, f"{out}-random" if out else None).result
        rows += lines(net, trained, random)
        units += best(net, trained)
        stable = [next(p.value for p in one.panels if isinstance(p, Number) and p.key == "stable")
                  for one in (trained, random)]
        notes.append(f"{net.name}, {net.layers[0]}: both halves of the scenes give "
                     + " and ".join("no detector" if s is None else f"{s:.0%}" for s in stable)
                     + " of the detectors the same label, with training and without.")
    text = (f"# Concepts of units\n\n`python examples/dissection.py --scenes {scenes} --seed {asked.seed}`: {scenes} "
            "rendered scenes, 50 concepts, thresholds at 0.5 % of the activations, detectors above IoU 0.04. By "
            "chance: the mean of 20 permutations of the scenes' concepts.\n\n"
            + markdown(HEAD, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes)
            + "\n\nThe best units of the deepest layer, each concept once:\n\n" + markdown(BEST, units) + "\n")
    print(text, end="")
    if not asked.smoke:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
