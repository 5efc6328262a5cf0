"""Train the shipped network `tinyvgg` from scratch on 10 classes of Tiny ImageNet and write its weights and card.

Run from the root of the checkout:

    python examples/train_tinyvgg.py --data ../shared/data --out tinyvgg-out

It reads `tinyimagenet20_train.parquet`, keeps ten of its classes, holds out 50 photographs a class (chosen by the seed)
while the recipe is tuned, trains on the other 4,500 and writes `tinyvgg.safetensors` (float16), `tinyvgg.json` (the
model card) and `history.csv` to `--out`. The validation photographs of those classes are looked at once, at the end.
`--smoke` runs two short epochs on a few pictures, drawn ones where the data is absent. On one kind of machine, with one
thread, a seed gives one network.

Recipe: SGD with Nesterov momentum and a one-cycle rate; crops, flips, small rotations and colour changes, milder than
those of train_photo20.py, since a network of 20,000 parameters has little to memorise. What ships is a running average.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import torch
from torch import Tensor, nn
from torch.nn import functional
from train_photo20 import (
    COMMERCIAL,
    SIZE,
    TERMS,
    Photographs,
    crops,
    drawn,
    load,
    make_optimizer,
    multiply_adds,
    normalise,
    predict,
    rate,
    recolour,
    split,
    update_average,
)

from xai.statistics import wilson
from xai.zoo.nets.tinyvgg import tinyvgg

COMMAND = "python examples/train_tinyvgg.py --data ../shared/data --out tinyvgg-out"
CLASSES = ("tabby", "lesser panda", "goldfish", "monarch", "ladybug", "espresso", "pizza", "school bus", "sports car",
           "projectile")  # told apart by colour and texture, and among them those of the three sample photographs


@dataclass(frozen=True)
class Recipe:
    """Every number the training depends on; the card repeats them."""

    seed: int = 10
    epochs: int = 110
    batch: int = 50
    peak_rate: float = 0.04
    warm_up: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    crop_area: tuple[float, float] = (0.5, 1.0)
    rotation_degrees: float = 5.0
    colour: float = 0.2
    grey: float = 0.0
    average_decay: float = 0.998
    held_out_per_class: int = 50


def chosen(photos: Photographs, classes: tuple[str, ...]) -> Photographs:
    """The pictures of these classes, numbered in this order."""
    old = [photos.names.index(name) for name in classes]
    where = torch.full((len(photos.names),), -1)
    where[old] = torch.arange(len(old))
    keep = (where[photos.labels] >= 0).nonzero().flatten()
    return Photographs(photos.pixels[keep], where[photos.labels[keep]], list(classes), [photos.wnids[i] for i in old])


@dataclass
class Run:
    """A training run: its network, the running average that ships, and what stays fixed."""

    recipe: Recipe
    photos: Photographs
    mean: Tensor
    std: Tensor
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.SGD
    step: int = 0

    def epoch(self, number: int) -> float:
        """Pass once over the pictures; returns the mean loss."""
        self.model.train()
        order, size, total = torch.randperm(len(self.photos.labels)), self.recipe.batch, 0.0
        batches = len(order) // size  # the last, smaller one is left out
        for position in range(batches):
            index = order[position * size : (position + 1) * size]
            for group in self.optimizer.param_groups:
                group["lr"] = rate((number + position / batches) / self.recipe.epochs, self.recipe)  # type: ignore[arg-type]  # reads two fields
            images = recolour(crops(self.photos.pixels[index] / 255, SIZE, self.recipe), self.recipe)  # type: ignore[arg-type]  # as above
            loss = functional.cross_entropy(self.model(normalise(images, self.mean, self.std)),
                                            self.photos.labels[index], label_smoothing=self.recipe.label_smoothing)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
            self.optimizer.step()
            self.step += 1
            update_average(self.average, self.model, self.step, self.recipe.average_decay)
            total += float(loss.detach())
        return total / batches


def start(photos: Photographs, recipe: Recipe) -> Run:
    """Seed everything, measure mean and standard deviation of the training pixels, build network and optimiser.

    Without normalisation layers PyTorch's own initial weights shrink the signal: He et al. 2015, arXiv:1502.01852, do
    not.
    """
    torch.manual_seed(recipe.seed)
    values = photos.pixels.permute(1, 0, 2, 3).flatten(1).double() / 255
    mean, std = (t.float().mul(1000).round().div(1000).view(1, 3, 1, 1) for t in (values.mean(1), values.std(1)))
    model = tinyvgg(len(photos.names)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # each has one
    return Run(recipe, photos, mean, std, model, copy.deepcopy(model), make_optimizer(model, recipe))  # type: ignore[arg-type]  # reads three fields


def measured(run: Run, photos: Photographs) -> dict[str, Any]:
    """Accuracy of the running average with its interval, in all and for each class."""
    right = (predict(run.average, photos, run.mean, run.std).argmax(1) == photos.labels)
    share, count = float(right.double().mean()), len(photos.labels)
    low, high = wilson(share, count)
    per_class = {name: round(float(right[photos.labels == i].double().mean()), 4)
                 for i, name in enumerate(photos.names)}
    return {"accuracy": round(share, 4), "low": round(low, 4), "high": round(high, 4), "interval": "95 % Wilson",
            "n": count, "per_class": per_class}


def train(run: Run, held_out: Photographs, out: Path) -> dict[str, float]:
    """Train all epochs, log each to `history.csv` and the terminal; returns the minutes it took."""
    wall, cpu, row = time.perf_counter(), time.process_time(), [0.0, 0.0]
    with (out / "history.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["epoch", "loss", "held_out_accuracy", "wall_seconds", "cpu_seconds"])
        for number in range(run.recipe.epochs):
            loss, score = run.epoch(number), measured(run, held_out)["accuracy"]
            row = [round(time.perf_counter() - wall, 1), round(time.process_time() - cpu, 1)]
            table.writerow([number + 1, round(loss, 4), score, *row])
            file.flush()
            print(f"epoch {number + 1}/{run.recipe.epochs} loss {loss:.3f} held-out {score:.3f} {row[0]} s", flush=True)
    return {"wall_minutes": round(row[0] / 60, 1), "cpu_minutes": round(row[1] / 60, 1)}


def describe(run: Run) -> dict[str, Any]:
    """The part of the card that says what the network is and how a picture becomes its input."""
    return {
        "name": "tinyvgg",
        "summary": "Tiny VGG for photographs of 10 classes, 64x64 pixels; small enough to see every number of it.",
        "architecture": "xai.zoo.nets.tinyvgg:tinyvgg",
        "structure": "two blocks of two 3x3 convolutions of 10 channels and a 2x2 max-pool, then one linear layer; "
                     "after CNN Explainer, Wang et al. 2020, arXiv:2004.15004",
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "multiply_adds": multiply_adds(run.average),
        "input_size": [SIZE, SIZE],
        "colour": "RGB, 0 to 1, then (value - mean) / std",
        "mean": [round(value, 3) for value in run.mean.flatten().tolist()],
        "std": [round(value, 3) for value in run.std.flatten().tolist()],
        "resize": {"short_side": SIZE, "centre_crop": [SIZE, SIZE], "interpolation": "bilinear, antialiased"},
        "labels": run.photos.names,
        "wnids": run.photos.wnids,
    }


def write(run: Run, held_out: Photographs, validation: Photographs, minutes: dict[str, float], out: Path) -> None:
    """Write the running average as float16 safetensors and the card; the accuracies are those of the file."""
    from safetensors.torch import save_file

    target = out / "tinyvgg.safetensors"
    state = {k: v.half().contiguous() for k, v in run.average.state_dict().items()}
    save_file(state, target)
    run.average.load_state_dict(state)
    tuned, final = measured(run, held_out), measured(run, validation)
    data = target.read_bytes()
    card = {
        **describe(run),
        "weights": {"file": target.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
                    "dtype": "float16"},
        "data": {
            "name": "Tiny ImageNet (Stanford CS231N course challenge): 10 of its 200 classes, 500 + 50 a class",
            "origin": "ImageNet (ILSVRC), Russakovsky et al. 2015, arXiv:1409.0575",
            "terms": TERMS,
            "commercial_use": COMMERCIAL.replace("train_photo20", "train_tinyvgg"),
        },
        "recipe": asdict(run.recipe),
        "seed": run.recipe.seed,
        "seeds_trained": 1,
        "command": COMMAND,
        "trained_on": len(run.photos.labels),
        "held_out": {**tuned, "photographs": "50 a class, drawn by the seed; the recipe was chosen on them"},
        "training": {**minutes, "machine": "1 of 2 CPU cores, others at work on them", "precision": "float32",
                     "torch": torch.__version__.split("+")[0]},
        "validation": {**final, "command": COMMAND},
    }
    (out / "tinyvgg.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"{target}: held-out {tuned['accuracy']:.4f}, validation {final['accuracy']:.4f}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train tinyvgg from scratch and write its weights and card.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the Parquet files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; nothing else is written")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--smoke", action="store_true", help="a run of seconds on a few pictures, to see that it works")
    return parser.parse_args()


def main() -> None:
    """Load, split, train, write."""
    args = arguments()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    recipe = Recipe(epochs=args.epochs)
    paths = [args.data / f"tinyimagenet20_{part}.parquet" for part in ("train", "val")]
    there = all(path.is_file() for path in paths)
    if not there and not args.smoke:
        raise SystemExit(f"--data must be a folder that holds {paths[0].name} and {paths[1].name}; got {args.data}. "
                         "Name that folder.")
    if there:
        photos, validation = (chosen(load(path), CLASSES) for path in paths)
    else:
        photos = validation = drawn(len(CLASSES))
    if args.smoke:
        recipe = replace(recipe, epochs=2, batch=20, held_out_per_class=2)
        photos = photos.part(split(photos.labels, 8, recipe.seed)[1])
    own, held = split(photos.labels, recipe.held_out_per_class, recipe.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    run = start(photos.part(own), recipe)
    minutes = train(run, photos.part(held), args.out)
    write(run, photos.part(held), validation, minutes, args.out)


if __name__ == "__main__":
    main()
