"""GradCAM on every kind of network: the smallest variant of each of timm's modules and all torchvision classifiers.

Run from the root of the checkout (some 20 minutes on two cores; a few seconds with --smoke):

    python examples/walk_gradcam.py

Each network is loaded with `--weights random` and no other option and explains one photograph at its native input size.
The verdict is "map" where GradCAM's raw values (before the ReLU) are finite and not constant on a grid of at least 4x4.
It writes `examples/tables/gradcam_walk.csv` and `.md`. `--smallest` finds the smallest variants anew (parameters times
input pixels; two minutes) and writes them to `examples/tables/timm_smallest.csv`; a test checks that list's modules.
"""

from __future__ import annotations

import argparse
import csv
import gc
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import xai

TABLES = Path(__file__).resolve().parent / "tables"
PHOTOGRAPH = "sample:coffee"
SMALLEST_GRID = 4
FLATNESS = 1e-6  # of the largest absolute value
MAP = "map"
SMOKE = (
    ("torchvision", "", "squeezenet1_0"),
    ("timm", "convnext", "test_convnext"),
    ("timm", "vision_transformer", "test_vit"),
)


@dataclass(frozen=True)
class Row:
    """What GradCAM made of one network; `verdict` is "map" or what is wrong with the map."""

    source: str
    module: str
    model: str
    input: str
    layer: str
    grid: str
    verdict: str
    reason: str


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Walk the networks, write the tables and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="three small networks, nothing written unless --out is given"
    )
    parser.add_argument("--smallest", action="store_true", help="find timm's smallest variants anew")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these networks alone, nothing written")
    parser.add_argument("--seconds", type=int, default=600, help="limit for one network")
    parser.add_argument("--out", type=Path, help=f"folder of the tables ({TABLES.name} beside this file)")
    options = parser.parse_args(arguments)
    if options.smallest:
        write_smallest(TABLES / "timm_smallest.csv")
    chosen = SMOKE if options.smoke else networks()
    rows = walk([entry for entry in chosen if not options.only or entry[2] in options.only], options.seconds)
    folder = options.out or (None if options.smoke or options.only else TABLES)
    if folder:
        write(rows, folder)
    print(summary(rows))
    return rows


def networks() -> list[tuple[str, str, str]]:
    """(source, timm module, model) of all networks of the walk."""
    from xai.zoo.names import names

    with (TABLES / "timm_smallest.csv").open(newline="", encoding="utf-8") as file:
        timm = [("timm", row["module"], row["model"]) for row in csv.DictReader(file)]
    return timm + [("torchvision", "", name) for name in sorted(names("torchvision"))]


def walk(chosen: Sequence[tuple[str, str, str]], seconds: int = 600) -> list[Row]:
    """One row a network, in order, each printed as it is done."""
    rows = []
    for index, (source, module, model) in enumerate(chosen):
        started = time.perf_counter()
        row = visit(source, module, model, seconds)
        rows.append(row)
        gc.collect()
        told = f"{row.verdict}, {row.layer} {row.grid}, {time.perf_counter() - started:.1f} s"
        print(f"[{index + 1}/{len(chosen)}] {source}:{model}: {told}", flush=True)
    return rows


def visit(source: str, module: str, model: str, seconds: int = 600) -> Row:
    """GradCAM's raw map of one network with random weights, judged. Whatever goes wrong becomes the verdict."""
    size = layer = grid = reason = ""
    try:
        with limit(seconds):
            loaded = xai.load(f"{source}:{model}", weights="random", device="cpu")
            size = "x".join(map(str, loaded.preprocessing.size))
            result = xai.GradCAM()(xai.Subject.of(loaded, PHOTOGRAPH, evidence="off"))
            record = result.models[0]
            layer, reason = record.layer, record.layer_reason
            grid = "x".join(map(str, record.grid or ()))
            raw = next(panel.values for panel in result.panels if panel.kind == "heatmap")
            verdict = judge(np.asarray(raw))
    except Exception as problem:  # a walk reports what it meets and goes on
        verdict, reason = "error", f"{type(problem).__name__}: {problem}"
    return Row(source, module, model, size, layer, grid, verdict, " ".join(reason.split()))


def judge(raw: np.ndarray) -> str:
    """ "map", or what is wrong with the raw values (h, w)."""
    if not np.isfinite(raw).all():
        return "not finite"
    if np.ptp(raw) <= FLATNESS * np.abs(raw).max():
        return "constant"
    return MAP if min(raw.shape) >= SMALLEST_GRID else "small grid"


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after that many seconds, where the system has an alarm."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def counts(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Source -> (maps, networks)."""
    sources = sorted({row.source for row in rows})
    return {
        source: (
            sum(row.verdict == MAP for row in rows if row.source == source),
            sum(row.source == source for row in rows),
        )
        for source in sources
    }


def summary(rows: Sequence[Row]) -> str:
    """The counts in words."""
    return "; ".join(f"{source}: {good} of {of} give a map" for source, (good, of) in counts(rows).items())


def write(rows: Sequence[Row], folder: Path) -> None:
    """The rows as CSV and Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [column.name for column in fields(Row)]
    with (folder / "gradcam_walk.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in rows)
    lines = [
        "# GradCAM with random weights on every kind of network",
        "",
        "GradCAM with `--weights random` and no further option, at the native input size, on the smallest network of",
        "each of timm's modules and on torchvision's classifiers: are the raw values finite and not constant on a grid",
        f"of at least {SMALLEST_GRID}x{SMALLEST_GRID}? {summary(rows)}.",
        "`examples/walk_gradcam.py` writes the table, with each layer and the reason for it, to",
        "`examples/tables/gradcam_walk.md`.",
        "",
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join("---" for _ in columns) + " |",
    ]
    lines += ["| " + " | ".join(value.replace("|", "/") for value in asdict(row).values()) + " |" for row in rows]
    (folder / "gradcam_walk.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_smallest(path: Path) -> None:
    """timm's modules with the variant of each that has the smallest product of parameters and input pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("module", "model", "parameters", "input"))
        table.writerows(smallest())


def smallest() -> Iterator[tuple[str, str, int, str]]:
    """(module, model, parameters, input size) of each module, built without memory for weights where possible."""
    from xai.torchvision_import import ensure_torchvision

    ensure_torchvision()
    import timm

    for module in timm.list_modules():
        sizes = []
        for model in timm.list_models(module=module):
            parameters, (_, height, width) = weigh(model)
            sizes.append((parameters * height * width, model, parameters, f"{height}x{width}"))
        yield module, *min(sizes)[1:]


def weigh(model: str) -> tuple[int, tuple[int, int, int]]:
    """(parameters, native input size) of a timm model."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            network: Any = timm.create_model(model)
    except (RuntimeError, NotImplementedError):  # some compute with their weights while they are built
        network = timm.create_model(model)
    return sum(weight.numel() for weight in network.parameters()), network.pretrained_cfg["input_size"]


if __name__ == "__main__":
    main()
