"""Where the thresholds of the evidence card come from: what maps score that are known to be no evidence.

    python examples/calibrate_evidence.py [--photos ../shared/data/tinyimagenet20_val.parquet]
        [--squeezenet ../shared/models/squeezenet1_0_imagenet.safetensors --images ../shared/images] [--write]

Without files it asks `xai:planted` about rendered pictures alone. Thresholds: of class-sensitive and weight-dependent
the 10 % quantile of guided backpropagation, which is known to ignore both (a tenth of its maps slips through: one
draw of a last layer is a noisy test, and a stricter threshold fails half of the plain gradients); of faithful the 95 %
quantile of random maps, fine and coarse; of stable the 95 % quantile of the correlation between maps of different
pictures. `--write` puts the table into examples/tables/evidence.md; the numbers stand in xai/health.py.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from xai import health
from xai.analyzer import Maps
from xai.attribution import Attribution
from xai.batch import Batch
from xai.controls import CONTROLS, Control, methods_of, named
from xai.evidence import NAMES
from xai.images import Images, load_images
from xai.model import Model
from xai.panels import Heatmap
from xai.subject import Subject
from xai.targets import Bound
from xai.zoo.loading import load

TABLE = Path(__file__).parent / "tables" / "evidence.md"
METHODS = ("guided_backprop,saliency,input_x_gradient,smoothgrad(samples=20),integrated_gradients,gradcam,layercam,"
           "eigencam")
SLIPS = 0.1  # share of guided backpropagation's maps that may pass
BLIND = ("random", "coarse", "centre", "sobel")
Scores = dict[str, dict[str, list[float]]]  # method -> verdict -> values


@dataclass(frozen=True)
class Coarse(Control):
    """Random blobs: 7 x 7 uniform numbers, which a map at a layer's size looks like."""

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, 7, 7)."""
        return Maps(torch.stack([torch.rand(7, 7, generator=batch.generator(i, self.name()))
                                 for i in range(len(batch))]))


def scores(model: Model, images: Images, methods: tuple[Attribution, ...]) -> Scores:
    """What every method scores in the card's checks, sixteen pictures at a time so that all are checked."""
    found: Scores = defaultdict(lambda: defaultdict(list))
    for first in range(0, len(images), 16):
        part = images[first : first + 16]
        for method in methods:
            result = method(Subject((model,), part))
            for verdict in result.verdicts:
                if verdict.name in NAMES and verdict.value is not None:
                    found[named(method)][verdict.name].append(verdict.value)
            maps = [torch.from_numpy(p.values) for p in result.panels if isinstance(p, Heatmap) and p.key == "map"]
            found[named(method)]["another picture"] += [
                health.alike(one, _fit(two, one), method.view) for one, two in itertools.pairwise(maps)]
    return found


def _fit(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return one if one.shape == other.shape else F.interpolate(one[None, None], other.shape)[0, 0]


def thresholds(all_: dict[str, Scores]) -> dict[str, float]:
    """The four, from the scores on every network."""
    def pooled(methods: tuple[str, ...], verdict: str) -> np.ndarray:
        values = [v for found in all_.values() for m in methods for v in found[m][verdict]]
        return np.asarray(values)[np.isfinite(values)]

    honest = tuple(m for m in next(iter(all_.values())) if m not in BLIND)
    return {
        "class-sensitive": float(np.quantile(pooled(("guided_backprop",), "class-sensitive"), SLIPS)),
        "weight-dependent": float(np.quantile(pooled(("guided_backprop",), "weight-dependent"), SLIPS)),
        "faithful beyond random": float(np.quantile(pooled(("random", "coarse"), "faithful beyond random"), 0.95)),
        "stable": float(np.quantile(pooled(honest, "another picture"), 0.95)),
    }


def table(all_: dict[str, Scores], bars: dict[str, float]) -> str:
    """Means, 5 % and 95 % quantiles, and the share that passes, of each network and method."""
    lines = ["| network | pictures | method | " + " | ".join(NAMES) + " |", "| --- " * (3 + len(NAMES)) + "|"]
    for network, found in all_.items():
        for method, checks in found.items():
            cells = []
            for name in NAMES:
                values = np.asarray(checks[name])
                if not len(values):
                    cells.append("-")
                    continue
                passed = values > bars[name] if name in NAMES[2:] else values <= bars[name]
                low, high = np.quantile(values, (0.05, 0.95))
                cells.append(f"{values.mean():.2f} ({low:.2f} to {high:.2f}), {passed.mean():.0%} pass")
            lines.append(f"| {network} | {len(checks[NAMES[2]])} | {method} | " + " | ".join(cells) + " |")
    told = ", ".join(f"{name} {bar:.2f}" for name, bar in bars.items())
    return "\n".join(lines) + f"\n\nThresholds: {told}. Each cell: mean (5 % to 95 % quantile), share that passes.\n"


def main() -> None:
    """Ask, print, and perhaps write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", help="Parquet file of photographs for xai:photo20")
    parser.add_argument("--squeezenet", help="weights of squeezenet1_0")
    parser.add_argument("--images", help="photographs for squeezenet1_0")
    parser.add_argument("--count", type=int, default=48, help="pictures a network (default 48)")
    parser.add_argument("--methods", default=METHODS, help="methods that are asked beside the blind ones")
    parser.add_argument("--smoke", action="store_true", help="two methods on eight rendered pictures, to try it out")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    asked = parser.parse_args()
    if asked.smoke:
        asked.count, asked.methods, asked.write = 8, "guided_backprop,gradcam", False
    methods = (*methods_of(asked.methods), *CONTROLS, Coarse())
    cases = [("xai:planted", None, f"planted:{asked.count}")]
    cases += [("xai:photo20", None, asked.photos)] if asked.photos else []
    if asked.squeezenet and asked.images:
        cases.append(("torchvision:squeezenet1_0", asked.squeezenet, asked.images))
    all_: dict[str, Scores] = {}
    for spec, weights, source in cases:
        images = load_images(source)
        step = max(1, len(images) // asked.count)
        model = load(spec, weights=weights)
        all_[spec] = scores(model, images[: step * asked.count : step], methods)
        print(f"{spec}: done", flush=True)
    bars = thresholds(all_)
    text = table(all_, bars)
    print(text)
    if asked.write:
        TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
