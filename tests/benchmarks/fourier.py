"""What the Fourier heat map costs beside its pure forwards, and the gradient's beside both; exits 1 beyond a goal.

    python tests/benchmarks/fourier.py --table examples/tables/fourier.md

The heat map's waves are asked by the analyzer's own loop (making waves, adding, clipping, reading the answers); the
pure arm runs as many forwards of the same sizes on inputs that lie ready. Both take turns in one process on one thread,
as does the gradient's loop (one forward and one backward a picture). Beside the times: how alike the two order the
waves (Spearman, with the labels' errors and with the mean loss).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from interleave import Arm, Ratio, ratio, seconds

from analyzers.spectrum import _probes
from analyzers.spectrum._model_panels import Asked
from xai.batch import Batch
from xai.images import load_images
from xai.model import Model
from xai.zoo.loading import load

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyimagenet20_val.parquet"
MOST, LEAST = 1.10, 50.0  # heat map over pure forwards at most; heat map over gradient at least


class Case:
    """A model and a batch of pictures whose common forward has run."""

    def __init__(self, spec: str, data: str, count: int, side: int) -> None:
        self.model: Model = load(spec)
        images = load_images(data)
        self.images = images.take(i * len(images) // count for i in range(count))
        self.batches: list[Batch] = list(self.model.prepare(self.images))
        height, width = self.model.preprocessing.size
        self.grid = _probes.grid(height, width, side, "whole")
        self.norm = _probes.norm_for(height, width)
        self.chunk = max(1, self.batches[0].pacing.batch)
        self.known = [_probes.classes_of(batch) for batch in self.batches]
        self.ready = torch.cat([batch.inputs for batch in self.batches])[: self.chunk]
        self.ready = self.ready.repeat(-(-self.chunk // len(self.ready)), 1, 1, 1)[: self.chunk].contiguous()

    def none(self) -> Asked:
        """Empty sums."""
        return Asked.none(self.model, self.grid, self.model.preprocessing.size, self.norm)

    def heat(self, _: object = None) -> Asked:
        """The heat map of all pictures, as the analyzer makes it."""
        sums = self.none()
        for batch, (predicted, labels) in zip(self.batches, self.known, strict=True):
            truth = torch.where(labels >= 0, labels, predicted)
            sums.clean(predicted, labels, _probes.losses(batch.output(), truth))
            sign = _probes.signs(batch, "fourier_model")
            for first, i, outputs in _probes.perturbed(batch, self.grid.cells, self.norm, sign, self.chunk):
                sums.waves(first, outputs, predicted[i], labels[i], truth[i])
        return sums

    def pure(self, _: object = None) -> None:
        """As many forwards, of the same sizes."""
        for _picture in range(len(self.images)):
            for first in range(0, len(self.grid.cells), self.chunk):
                self.model.infer(self.ready[: len(self.grid.cells) - first], self.chunk)

    def gradient(self, _: object = None) -> Asked:
        """The gradient's spectrum of all pictures."""
        sums = self.none()
        for batch, (predicted, labels) in zip(self.batches, self.known, strict=True):
            sums.gradient(_probes.gradient_power(batch, torch.where(labels >= 0, labels, predicted)))
        return sums


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="xai:photo20")
    parser.add_argument("--data", default=str(SHARED) if SHARED.is_file() else "sample:coffee")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--side", type=int, default=31)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--table", type=Path, help="also write the table here, in Markdown")
    parser.add_argument("--smoke", action="store_true", help="two pictures, few waves, one round")
    asked = parser.parse_args(arguments)
    if asked.smoke:
        asked.pictures, asked.side, asked.rounds = 2, 5, 1
    torch.set_num_threads(1)
    case = Case(asked.model, asked.data, min(asked.pictures, len(load_images(asked.data))), asked.side)
    took = seconds([Arm("heat", case.heat), Arm("pure", case.pure), Arm("gradient", case.gradient)], asked.rounds,
                   asked.clock, lambda said: print(said, file=sys.stderr, flush=True))
    overhead, cheaper = ratio(took["heat"], took["pure"]), ratio(took["heat"], took["gradient"])
    met = overhead.median <= MOST + 0.005, cheaper.median >= LEAST - 0.5 or asked.smoke
    said = text(case, overhead, cheaper, met, asked)
    print(said, end="")
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(said, encoding="utf-8")
    return 0 if all(met) else 1


def text(case: Case, overhead: Ratio, cheaper: Ratio, met: tuple[bool, bool], asked: argparse.Namespace) -> str:
    """The table in Markdown."""
    heat, gradient = case.heat(), case.gradient()
    heat.power, heat.sloped = gradient.power, gradient.sloped
    labelled = heat.known == heat.n
    rows = [("heat map over its pure forwards", f"{overhead.median:.2f} ({overhead.low:.2f} to {overhead.high:.2f})",
             f"<= {MOST:g}", "yes" if met[0] else "NO"),
            ("heat map over the gradient's spectrum", f"{cheaper.median:.0f} ({cheaper.low:.0f} to {cheaper.high:.0f})",
             f">= {LEAST:g}", "yes" if met[1] else "NO"),
            ("Spearman of gradient and rate", f"{heat.agreement(heat.rate(labelled)):.2f}", "stated", "-"),
            ("Spearman of gradient and mean loss", f"{heat.agreement(heat.loss):.2f}", "stated", "-")]
    lines = [("what", "found", "goal", "met"), ("---",) * 4, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + (
        f"\n\n{case.model.spec}, {heat.n} pictures of {Path(asked.data).name}, {len(case.grid.cells)} waves, "
        f"{case.chunk} inputs a forward, one thread, {asked.rounds} rounds, {asked.clock} time: median of the rounds' "
        f"ratios (least to largest). Rate: {'errors' if labelled else 'changed predictions'}.\n")


if __name__ == "__main__":
    sys.exit(main())
