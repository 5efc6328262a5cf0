"""Train the shipped network `planted` from scratch on rendered scenes and write its weights and card.

Run from the root of the checkout:

    python examples/train_planted.py --out planted-out

It renders what it needs (`xai/scenes.py`), so a clone is enough. Every training picture is a new scene, shown once;
half carry a null patch, and one in ten has its glyph taken out and asks for the same probability of every class, so
that a scene without evidence is nothing new to the network. It writes `planted.safetensors` (float16), `planted.json`
(the model card) and `history.csv` to `--out`. Held-out scenes (a seed of their own) are looked at while the recipe is
chosen; the validation scenes (another) once, at the end. `--smoke` runs a few short steps. On one kind of machine, with
one thread, a seed gives one network.

Recipe: SGD with Nesterov momentum and a one-cycle rate. The run begins with windows of the scenes as large as the
glyph's cell and ends with whole scenes: a glyph is 2 % of a scene, and shown whole scenes only, the network learns
nothing in 24,000 of them. What ships is a running average of the weights.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from train_photo20 import make_optimizer, multiply_adds, normalise, rate, update_average

from xai.glyphs import CELL, CLASSES, SIDE
from xai.scenes import VARIANTS, scene
from xai.statistics import wilson
from xai.zoo.nets.planted import Planted, planted

COMMAND = "python examples/train_planted.py --out planted-out"
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # the colours are drawn evenly about the middle
TERMS = "Trained on rendered pictures alone: no photograph, so no terms of anybody bind the weights."


@dataclass(frozen=True)
class Recipe:
    """Every number the training depends on; the card repeats them."""

    seed: int = 4_000_001  # of the scenes too; far from the small seeds that people ask for
    held_out_seed: int = 4_000_002
    validation_seed: int = 4_000_003
    scenes: int = 96_000
    batch: int = 64
    without_glyph: float = 0.1
    null_patch: float = 0.5
    windows: tuple[tuple[float, int], ...] = ((0.15, 16), (0.25, 24), (0.4, 32), (0.55, 48), (1.0, 64))  # (until, side)
    peak_rate: float = 0.03
    warm_up: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    average_decay: float = 0.995
    held_out: int = 2_000
    validation: int = 5_000


def rendered(
    index: int, seed: int, variant: str, evidence: bool = True, window: int = SIDE, at: tuple[float, float] = (0, 0)
) -> tuple[Tensor, Tensor]:
    """A window of a scene (3, window, window) uint8 and its target (10,): its class, or all alike without its glyph.

    at: where the glyph's cell lies in the window, down and across, from 0 (at its start) to 1 (at its end).
    """
    made = scene(index, seed, variant)
    target = functional.one_hot(torch.tensor(made.label), len(CLASSES)).float() if evidence else torch.full((10,), 0.1)
    pixels = (made if evidence else made.without_evidence()).render()
    top, left = (min(max(first - round((window - CELL) * share), 0), SIDE - window)
                 for first, share in zip(made.glyph.corner, at, strict=True))
    part = pixels[top : top + window, left : left + window]
    return torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))), target


def batches(recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures (batch, 3, side, side), normalised, and targets (batch, 10), each scene once in its order."""
    generator = torch.Generator().manual_seed(recipe.seed)
    for first in range(0, recipe.scenes - recipe.batch + 1, recipe.batch):
        window = next(side for until, side in recipe.windows if first < until * recipe.scenes)
        chances = torch.rand(recipe.batch, 4, generator=generator).tolist()
        drawn = [rendered(first + k, recipe.seed, VARIANTS[null < recipe.null_patch], shown >= recipe.without_glyph,
                          window, (down, across)) for k, (null, shown, down, across) in enumerate(chances)]
        pixels, targets = (torch.stack(part) for part in zip(*drawn, strict=True))
        yield prepared(pixels), targets


def prepared(pixels: Tensor) -> Tensor:
    """From uint8 to the network's input."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return normalise(pixels / 255, mean, std)


@torch.no_grad()
def hits(model: nn.Module, numbers: range, seed: int, variant: str) -> int:
    """How many of the scenes of these numbers the network names rightly."""
    model.eval()
    right = 0
    for first in range(0, len(numbers), 250):
        drawn = [rendered(index, seed, variant) for index in numbers[first : first + 250]]
        pixels, targets = (torch.stack(part) for part in zip(*drawn, strict=True))
        right += int((model(prepared(pixels)).argmax(1) == targets.argmax(1)).sum())
    return right


def measured(model: nn.Module, count: int, seed: int) -> dict[str, Any]:
    """Accuracy on `count` scenes, the first half plain, the other with null patches, with its interval."""
    each = {"plain": range(count // 2), "null": range(count // 2, count)}
    right = {variant: hits(model, numbers, seed, variant) for variant, numbers in each.items()}
    share = sum(right.values()) / count
    low, high = wilson(share, count)
    per_variant = {variant: round(right[variant] / len(numbers), 4) for variant, numbers in each.items()}
    return {"accuracy": round(share, 4), "low": round(low, 4), "high": round(high, 4), "interval": "95 % Wilson",
            "n": count, "scenes_seed": seed, "per_variant": per_variant}


@dataclass
class Run:
    """A training run: its network and the running average that ships."""

    recipe: Recipe
    model: nn.Module
    average: Planted
    optimizer: torch.optim.SGD
    bfloat16: bool

    def step(self, number: int, total: int, images: Tensor, targets: Tensor) -> float:
        """One step; returns the loss."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate(number / total, self.recipe)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(images)
        loss = functional.cross_entropy(logits.float(), targets)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        update_average(self.average, self.model, number + 1, self.recipe.average_decay)
        return float(loss.detach())


def start(recipe: Recipe, bfloat16: bool) -> Run:
    """Seed everything, build network and optimiser."""
    torch.manual_seed(recipe.seed)
    model = planted(len(CLASSES)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
    return Run(recipe, model, copy.deepcopy(model), make_optimizer(model, recipe), bfloat16)


def train(run: Run, out: Path, rows: int = 12) -> dict[str, float]:
    """Train on every scene once, log `rows` rows to `history.csv` and the terminal; returns the minutes it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    total, losses = run.recipe.scenes // run.recipe.batch, []
    with (out / "history.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["scenes", "loss", "held_out_accuracy", "wall_seconds", "cpu_seconds"])
        for number, (images, targets) in enumerate(batches(run.recipe)):
            losses.append(run.step(number, total, images, targets))
            if (number + 1) * rows // total > number * rows // total:
                score = hits(run.average, range(250), run.recipe.held_out_seed, "plain") / 250
                row = [(number + 1) * run.recipe.batch, round(sum(losses) / len(losses), 4), score,
                       round(time.perf_counter() - wall, 1), round(time.process_time() - cpu, 1)]
                table.writerow(row)
                file.flush()
                print(f"{row[0]} scenes, loss {row[1]:.3f}, held-out {score:.3f}, {row[3]} s", flush=True)
                losses = []
    return {"wall_minutes": round((time.perf_counter() - wall) / 60, 1),
            "cpu_minutes": round((time.process_time() - cpu) / 60, 1)}


def describe(run: Run) -> dict[str, Any]:
    """The part of the card that says what the network is and how a picture becomes its input."""
    return {
        "name": "planted",
        "summary": "Small residual network for rendered scenes whose evidence is known, 64x64 pixels, 10 glyphs.",
        "architecture": "xai.zoo.nets.planted:planted",
        "structure": "3x3 stem, residual blocks of 32x32, 16x16 and 16x16 positions, global average pool, linear layer",
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "multiply_adds": multiply_adds(run.average),
        "input_size": [SIDE, SIDE],
        "colour": "RGB, 0 to 1, then (value - mean) / std",
        "mean": list(MEAN),
        "std": list(STD),
        "resize": {"short_side": SIDE, "centre_crop": [SIDE, SIDE], "interpolation": "bilinear, antialiased"},
        "labels": list(CLASSES),
    }


def account(
    run: Run, minutes: dict[str, float], held_out: dict[str, Any], validation: dict[str, Any]
) -> dict[str, Any]:
    """The part of the card that says where the weights come from."""
    recipe = run.recipe
    return {
        "data": {
            "name": "rendered scenes (xai/scenes.py): one of ten glyphs in one of 16 cells, other shapes beside it",
            "origin": "rendered by numpy from (seed, number); any number of them by `planted:COUNT@SEED`",
            "terms": TERMS,
            "commercial_use": "As the project's licence says; nothing else stands behind these weights.",
        },
        "recipe": asdict(recipe),
        "seed": recipe.seed,
        "seeds_trained": 1,
        "command": COMMAND,
        "trained_on": recipe.scenes // recipe.batch * recipe.batch,
        "held_out": {**held_out, "pictures": "scenes of a seed of their own; the recipe was chosen on them"},
        "training": {
            **minutes,
            "machine": "1 of 2 CPU cores, others at work on them",
            "precision": "bfloat16 autocast, float32 weights" if run.bfloat16 else "float32",
            "torch": torch.__version__.split("+")[0],
        },
        "validation": {**validation, "command": COMMAND},
    }


def write(run: Run, minutes: dict[str, float], out: Path) -> None:
    """Write the running average as float16 safetensors and the card; the accuracies are those of the file."""
    from safetensors.torch import save_file

    target, recipe = out / "planted.safetensors", run.recipe
    state = {k: v.half() if v.is_floating_point() else v for k, v in run.average.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, target)
    run.average.load_state_dict(state)
    held_out = measured(run.average, recipe.held_out, recipe.held_out_seed)
    validation = measured(run.average, recipe.validation, recipe.validation_seed)
    data = target.read_bytes()
    file = {"file": target.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "dtype": "float16"}
    card = {**describe(run), "weights": file, **account(run, minutes, held_out, validation)}
    (out / "planted.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"{target}: held-out {held_out['accuracy']:.4f}, validation {validation['accuracy']:.4f}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train planted from scratch and write its weights and card.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; nothing else is written")
    parser.add_argument("--scenes", type=int, default=Recipe.scenes, help="how many to train on")
    precision = "of forward and backward; auto = bfloat16 where the CPU computes in it, else float32, slower"
    parser.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto", help=precision)
    parser.add_argument("--smoke", action="store_true", help="a run of seconds on a few scenes, to see that it works")
    return parser.parse_args()


def main() -> None:
    """Train, measure, write."""
    args = arguments()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    recipe = Recipe(scenes=args.scenes)
    if args.smoke:
        recipe = replace(recipe, scenes=256, batch=32, held_out=60, validation=60)
    bfloat16 = args.precision == "bfloat16" or (args.precision == "auto" and torch.cpu._is_avx512_bf16_supported())
    args.out.mkdir(parents=True, exist_ok=True)
    run = start(recipe, bfloat16)
    minutes = train(run, args.out, rows=2 if args.smoke else 12)
    write(run, minutes, args.out)


if __name__ == "__main__":
    main()
