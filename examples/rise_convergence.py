"""How many masks does RISE need? The default estimator and the paper's against a reference of 20,000 masks.

Run from the root of the checkout:

    python examples/rise_convergence.py --model xai:photo20
    python examples/rise_convergence.py --model torchvision:squeezenet1_0 --weights squeezenet1_0.safetensors

The first run for a model makes the reference: centred masks, a seed that no other run uses, kept at 56 x 56 in
examples/tables/rise_reference.npz. Then every estimator and number of masks is run with several seeds on five
photographs of scikit-image, and Spearman's rank correlation of its map with the reference is written to
examples/tables/rise.md: the mean over photographs, with a 95 % interval from resampling photographs and seeds. The
control is a smooth map that knows nothing of the network. `--smoke` does all of it with few masks and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import xai
from xai.model import Model
from xai.panels import Heatmap
from xai.statistics import spearman
from xai.zoo.loading import load

TABLES = Path(__file__).resolve().parent / "tables"
PHOTOGRAPHS = ("chelsea", "coffee", "astronaut", "rocket", "camera")
REFERENCE_SEED, SIDE = 1_000_003, 56


@dataclass(frozen=True)
class Arm:
    """An estimator with a number of masks; "random" asks nothing of the network."""

    estimator: str
    masks: int


ARMS = (Arm("centred", 250), Arm("centred", 500), Arm("centred", 1000), Arm("paper", 500), Arm("paper", 1000),
        Arm("paper", 2000), Arm("random", 0))
CLAIM = (Arm("centred", 500), Arm("paper", 2000))


def small(values: Tensor) -> Tensor:
    """(56, 56) from a map (H, W): the mean of each cell."""
    return F.adaptive_avg_pool2d(values[None, None], SIDE)[0, 0]


def rise(model: Model, photograph: str, arm: Arm, seed: int) -> Tensor:
    """The map of one run, every mask asked."""
    if arm.estimator == "random":
        return blind(seed)
    settings = {"samples": str(arm.masks), "estimator": arm.estimator, "agree": "1"}
    result = xai.explain(model, f"sample:{photograph}", "rise", settings=settings, seed=seed,
                         evidence="off").result
    panel = next(p for p in result.panels if isinstance(p, Heatmap))
    return small(torch.as_tensor(panel.values))


def blind(seed: int) -> Tensor:
    """A map as smooth as RISE's that knows nothing of the network."""
    grid = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(grid, (SIDE, SIDE), mode="bilinear")[0, 0]


def references(model: Model, file: Path, masks: int) -> dict[str, Tensor]:
    """The reference of each photograph for this model, made and added to the file where it is not there yet."""
    held = dict(np.load(file)) if file.is_file() else {}
    for photograph in PHOTOGRAPHS:
        key = f"{plain(model)}/{photograph}/{masks}"
        if key not in held:
            print(f"reference for {photograph}", flush=True)
            held[key] = rise(model, photograph, Arm("centred", masks), REFERENCE_SEED).numpy()
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(file, **held)
    return {p: torch.from_numpy(held[f"{plain(model)}/{p}/{masks}"]) for p in PHOTOGRAPHS}


def plain(model: Model) -> str:
    """The model's name as a key."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", model.spec)


def agreement(model: Model, found: dict[str, Tensor], arms: tuple[Arm, ...], seeds: int) -> dict[Arm, np.ndarray]:
    """(photographs, seeds) for each arm: Spearman's correlation with the reference."""
    table = {}
    for arm in arms:
        table[arm] = np.array([[spearman(rise(model, p, arm, seed), found[p]) for seed in range(seeds)]
                               for p in PHOTOGRAPHS])
        print(f"{arm.estimator:8} {arm.masks:5} {table[arm].mean():.3f}", flush=True)
    return table


def interval(values: np.ndarray, draws: int = 4000) -> tuple[float, float, float]:
    """The mean of (photographs, seeds) and its 95 % interval by resampling photographs, and seeds within each."""
    rng, (n, m) = np.random.default_rng(0), values.shape
    rows = rng.integers(n, size=(draws, n))
    columns = rng.integers(m, size=(draws, n, m))
    means = values[rows[:, :, None], columns].mean((1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def report(model: Model, table: dict[Arm, np.ndarray], masks: int, seeds: int) -> str:
    """The section of the page for one model."""
    lines = [f"## {model.spec}", "", "| estimator | masks | Spearman with the reference | 95 % interval |",
             "| --- | --- | --- | --- |"]
    for arm, values in table.items():
        mean, low, high = interval(values)
        lines.append(f"| {arm.estimator} | {arm.masks or '-'} | {mean:.3f} | {low:.3f} to {high:.3f} |")
    if set(CLAIM) <= set(table):
        mean, low, high = interval(table[CLAIM[0]] - table[CLAIM[1]])
        lines += ["", f"Default at {CLAIM[0].masks} less the paper's at {CLAIM[1].masks}: {mean:+.3f} "
                      f"({low:+.3f} to {high:+.3f})."]
    lines += ["", f"{len(PHOTOGRAPHS)} photographs ({', '.join(PHOTOGRAPHS)}), {seeds} seeds each, reference of "
                  f"{masks:,} masks with another seed, 7 x 7 cells, p = 0.5, probability of the first class."]
    return "\n".join(lines)


def main() -> None:
    """Make the reference where it is missing, then the table."""
    parser = argparse.ArgumentParser(description="How many masks RISE needs.")
    parser.add_argument("--model", default="xai:photo20")
    parser.add_argument("--weights", help="weights file of the model")
    parser.add_argument("--masks", type=int, default=20_000, help="masks of the reference")
    parser.add_argument("--seeds", type=int, default=4, help="runs of each arm on each photograph")
    parser.add_argument("--out", type=Path, default=TABLES, help="folder of table and reference")
    parser.add_argument("--smoke", action="store_true", help="few masks; write nothing")
    asked = parser.parse_args()
    model = load(asked.model, weights=asked.weights)
    if asked.smoke:
        arms = (Arm("centred", 64), Arm("paper", 64), Arm("random", 0))
        found = {p: rise(model, p, Arm("centred", 128), REFERENCE_SEED) for p in PHOTOGRAPHS}
        print(report(model, agreement(model, found, arms, 1), 128, 1))
        return
    found = references(model, asked.out / "rise_reference.npz", asked.masks)
    section = report(model, agreement(model, found, ARMS, asked.seeds), asked.masks, asked.seeds)
    page = asked.out / "rise.md"
    old = page.read_text(encoding="utf-8").split("\n\n## ") if page.is_file() else ["# Masks that RISE needs"]
    kept = [old[0], *("## " + part for part in old[1:] if not part.startswith(model.spec + "\n"))]
    page.write_text("\n\n".join([*(part.strip() for part in kept), section]) + "\n", encoding="utf-8")
    print(section)


if __name__ == "__main__":
    try:
        main()
    except (xai.XaiError, zipfile.BadZipFile) as problem:
        sys.exit(str(problem))
