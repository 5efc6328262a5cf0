"""Train the shipped network `photo20` from scratch on 20 classes of Tiny ImageNet and write its weights and card.

Run from the root of the checkout:

    python examples/train_photo20.py --data ../shared/data --out photo20-out

It reads `tinyimagenet20_train.parquet`, holds out 50 photographs a class (chosen by the seed) for tuning, trains on the
other 9,000 and writes `photo20.safetensors` (float16), `photo20.json` (the model card) and `history.csv` to `--out`.
The validation photographs are not read here: `evaluate_photo20.py` does that, once. `--smoke` runs two short epochs on
a few pictures, drawn ones where the data is absent. On one kind of machine, with two threads, a seed gives one network.

Recipe: SGD with Nesterov momentum and a one-cycle rate; crops, flips, small rotations, colour changes; CutMix (Yun et
al. 2019, arXiv:1905.04899) on half the batches except in the last epochs; small pictures first, full size last. What
ships is a running average of the weights, its last layer divided by one temperature fitted on the held-out pictures.
"""

import argparse
import copy
import csv
import hashlib
import io
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import torch
from torch import Tensor, nn
from torch.nn import functional

from xai.zoo.nets.photo20 import Photo20, photo20

SIZE = 64
COMMAND = "python examples/train_photo20.py --data ../shared/data --out photo20-out"
TERMS = (
    "Tiny ImageNet is a downsized subset of ImageNet, whose terms allow non-commercial research and education only;"
    " the photographs belong to their owners."
)
COMMERCIAL = (
    "Take these weights as meant for non-commercial research and education too. Whether the terms of training data bind"
    " the weights is not settled in law. For commercial use train the same architecture, whose code is under the"
    " project's licence, on photographs licensed for it: examples/train_photo20.py needs only a Parquet file of them."
)


@dataclass(frozen=True)
class Recipe:
    """Every number the training depends on; the card repeats them."""

    seed: int = 20
    epochs: int = 120
    batch: int = 128
    sizes: tuple[tuple[float, int], ...] = ((0.4, 48), (0.7, 56), (1.0, 64))  # (until this part of the run, pixels)
    peak_rate: float = 0.1
    warm_up: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05
    crop_area: tuple[float, float] = (0.35, 1.0)
    rotation_degrees: float = 10.0
    colour: float = 0.4
    grey: float = 0.1
    cutmix: float = 0.5
    cutmix_until: float = 0.88
    average_decay: float = 0.998
    held_out_per_class: int = 50


@dataclass(frozen=True)
class Photographs:
    """Decoded pictures (n, 3, 64, 64) uint8, labels (n,) int64, and the name and WordNet id of each class."""

    pixels: Tensor
    labels: Tensor
    names: list[str]
    wnids: list[str]

    def part(self, index: Tensor) -> "Photographs":
        """The pictures at these positions."""
        return Photographs(self.pixels[index], self.labels[index], self.names, self.wnids)


def load(path: Path) -> Photographs:
    """Decode a Parquet file with columns `image` (JPEG), `label`, `wnid`, `name`."""
    import numpy
    import pyarrow.parquet
    from PIL import Image

    rows = pyarrow.parquet.read_table(path, columns=["image", "label", "wnid", "name"]).to_pydict()
    pictures = [numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in rows["image"]]
    pixels = torch.from_numpy(numpy.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    classes = {label: (name, wnid) for label, name, wnid in zip(rows["label"], rows["name"], rows["wnid"], strict=True)}
    names, wnids = zip(*(classes[label] for label in range(len(classes))), strict=True)
    return Photographs(pixels, torch.tensor(rows["label"]), list(names), list(wnids))


def drawn(classes: int = 20, per_class: int = 12) -> Photographs:
    """Pictures of plain colours with noise, so that `--smoke` runs where the data is absent."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)
    colours = torch.randint(0, 256, (classes, 3, 1, 1), generator=generator)
    noise = torch.randint(-20, 21, (len(labels), 3, SIZE, SIZE), generator=generator)
    pixels = (colours[labels] + noise).clamp(0, 255).to(torch.uint8)
    names, wnids = ([f"{kind}{index}" for index in range(classes)] for kind in ("colour ", "drawn"))
    return Photographs(pixels, labels, names, wnids)


def split(labels: Tensor, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions for training and positions held out: `per_class` of each class, drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        held_out[members[torch.randperm(len(members), generator=generator)[:per_class]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def uniform(low: float, high: float, n: int) -> Tensor:
    """`n` numbers between low and high."""
    return torch.empty(n).uniform_(low, high)


def crops(images: Tensor, size: int, recipe: Recipe) -> Tensor:
    """Random crop, stretch, rotation and mirror image of each (n, 3, h, w) picture, sampled at size x size."""
    n = len(images)
    area, stretch = uniform(*recipe.crop_area, n), uniform(-math.log(4 / 3), math.log(4 / 3), n).exp()
    width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    shift_x, shift_y = (1 - width) * uniform(-1, 1, n), (1 - height) * uniform(-1, 1, n)
    angle = uniform(-1, 1, n) * math.radians(recipe.rotation_degrees)
    mirror = torch.randint(0, 2, (n,)) * 2 - 1
    row_x = torch.stack([width * angle.cos() * mirror, -height * angle.sin(), shift_x], dim=1)
    row_y = torch.stack([width * angle.sin() * mirror, height * angle.cos(), shift_y], dim=1)
    grid = functional.affine_grid(torch.stack([row_x, row_y], dim=1), [n, 3, size, size], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def recolour(images: Tensor, recipe: Recipe) -> Tensor:
    """Random brightness, contrast and saturation of each picture in [0, 1]; a few become grey."""
    n, low, high = len(images), 1 - recipe.colour, 1 + recipe.colour
    saturation = uniform(low, high, n) * (torch.rand(n) >= recipe.grey)
    images = images * uniform(low, high, n).view(n, 1, 1, 1)
    centre = images.mean(dim=(1, 2, 3), keepdim=True)
    images = centre + (images - centre) * uniform(low, high, n).view(n, 1, 1, 1)
    grey = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    return (grey + (images - grey) * saturation.view(n, 1, 1, 1)).clamp(0, 1)


def cutmix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Paste one random box of the next pictures into each picture and mix the targets by the box's area."""
    size = images.shape[-1]
    side = math.sqrt(float(torch.rand(()))) * size
    centre_x, centre_y = (float(torch.rand(())) * size for _ in range(2))
    left, right = max(0, round(centre_x - side / 2)), min(size, round(centre_x + side / 2))
    top, bottom = max(0, round(centre_y - side / 2)), min(size, round(centre_y + side / 2))
    images = images.clone()
    images[:, :, top:bottom, left:right] = images.roll(1, dims=0)[:, :, top:bottom, left:right]
    kept = 1 - (right - left) * (bottom - top) / size**2
    return images, kept * targets + (1 - kept) * targets.roll(1, dims=0)


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """From [0, 1] to the network's input, in channels-last memory, which is faster on a CPU."""
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def rate(progress: float, recipe: Recipe) -> float:
    """One cycle: a linear rise to the peak, then half a cosine down to zero."""
    if progress < recipe.warm_up:
        return recipe.peak_rate * (0.05 + 0.95 * progress / recipe.warm_up)
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * (progress - recipe.warm_up) / (1 - recipe.warm_up)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Nesterov SGD; weights decay, biases and batch normalisation do not."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=recipe.peak_rate, momentum=recipe.momentum, nesterov=True)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the running average of weights and batch-normalisation statistics; short memory in the first steps."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        mine.copy_(mine.lerp(theirs, weight) if mine.is_floating_point() else theirs)


@torch.no_grad()
def predict(model: nn.Module, photos: Photographs, mean: Tensor, std: Tensor) -> Tensor:
    """Logits (n, classes), in float32."""
    chunks = (photos.pixels[first : first + 250] / 255 for first in range(0, len(photos.labels), 250))
    return torch.cat([model.eval()(normalise(chunk, mean, std)) for chunk in chunks])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of pictures whose largest logit is their label."""
    return int((logits.argmax(1) == labels).sum()) / len(labels)


@torch.no_grad()
def calibrate(model: Photo20, logits: Tensor, labels: Tensor) -> float:
    """Divide the last layer by the temperature (in hundredths) that makes these logits likeliest; returns it.

    CutMix and label smoothing leave a network less sure than it is right (Guo et al. 2017, arXiv:1706.04599).
    """
    best = min((n / 100 for n in range(30, 301)), key=lambda t: float(functional.cross_entropy(logits / t, labels)))
    for parameter in model.fc.parameters():
        parameter.div_(best)
    return best


@dataclass
class Run:
    """A training run: its network, the running average that ships, and what stays fixed."""

    recipe: Recipe
    photos: Photographs
    mean: Tensor
    std: Tensor
    model: nn.Module
    average: Photo20
    optimizer: torch.optim.SGD
    bfloat16: bool
    step: int = 0

    def batch(self, index: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """One augmented, normalised batch and its soft targets."""
        size = next(pixels for until, pixels in self.recipe.sizes if progress < until)
        images = recolour(crops(self.photos.pixels[index] / 255, size, self.recipe), self.recipe)
        targets = functional.one_hot(self.photos.labels[index], len(self.photos.names)).float()
        if progress < self.recipe.cutmix_until and float(torch.rand(())) < self.recipe.cutmix:
            images, targets = cutmix(images, targets)
        return normalise(images, self.mean, self.std), targets

    def epoch(self, number: int) -> float:
        """Pass once over the pictures; returns the mean loss."""
        self.model.train()
        order, size, total = torch.randperm(len(self.photos.labels)), self.recipe.batch, 0.0
        batches = len(order) // size  # the last, smaller one is left out
        for position in range(batches):
            index = order[position * size : (position + 1) * size]
            progress = (number + position / batches) / self.recipe.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = rate(progress, self.recipe)
            images, targets = self.batch(index, progress)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                logits = self.model(images)
            loss = functional.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.step += 1
            update_average(self.average, self.model, self.step, self.recipe.average_decay)
            total += float(loss.detach())
        return total / batches


def start(photos: Photographs, recipe: Recipe, bfloat16: bool) -> Run:
    """Seed everything, measure mean and standard deviation of the training pixels, build network and optimiser."""
    torch.manual_seed(recipe.seed)
    values = photos.pixels.permute(1, 0, 2, 3).flatten(1).double() / 255
    mean, std = (t.float().mul(1000).round().div(1000).view(1, 3, 1, 1) for t in (values.mean(1), values.std(1)))
    model = photo20(len(photos.names)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
    return Run(recipe, photos, mean, std, model, copy.deepcopy(model), make_optimizer(model, recipe), bfloat16)


def train(run: Run, held_out: Photographs, out: Path) -> dict[str, float]:
    """Train all epochs, log each to `history.csv` and the terminal; returns the minutes it took."""
    wall, cpu, row = time.perf_counter(), time.process_time(), [0.0, 0.0]
    with (out / "history.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["epoch", "loss", "held_out_accuracy", "wall_seconds", "cpu_seconds"])
        for number in range(run.recipe.epochs):
            loss = run.epoch(number)
            score = accuracy(predict(run.average, held_out, run.mean, run.std), held_out.labels)
            row = [round(time.perf_counter() - wall, 1), round(time.process_time() - cpu, 1)]
            table.writerow([number + 1, round(loss, 4), score, *row])
            file.flush()
            print(f"epoch {number + 1}/{run.recipe.epochs} loss {loss:.3f} held-out {score:.3f} {row[0]} s", flush=True)
    return {"wall_minutes": round(row[0] / 60, 1), "cpu_minutes": round(row[1] / 60, 1)}


def multiply_adds(model: nn.Module) -> int:
    """Multiplications of one 64x64 picture in convolutions and linear layers."""
    counts = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        counts.append(module.get_parameter("weight").numel() * math.prod(output.shape[2:]))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    model.eval()(torch.zeros(1, 3, SIZE, SIZE))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def describe(run: Run) -> dict[str, Any]:
    """The part of the card that says what the network is and how a picture becomes its input."""
    return {
        "name": "photo20",
        "summary": "Small residual network for photographs of 20 classes, 64x64 pixels; the default model.",
        "architecture": "xai.zoo.nets.photo20:photo20",
        "structure": "3x3 stem, three residual stages (32x32, 16x16, 8x8 positions), global average pool, linear layer",
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


def account(run: Run, minutes: dict[str, float], held_out: dict[str, float]) -> dict[str, Any]:
    """The part of the card that says where the weights come from."""
    return {
        "data": {
            "name": "Tiny ImageNet (Stanford CS231N course challenge): 20 of its 200 classes, 500 + 50 a class",
            "origin": "ImageNet (ILSVRC), Russakovsky et al. 2015, arXiv:1409.0575",
            "terms": TERMS,
            "commercial_use": COMMERCIAL,
        },
        "recipe": asdict(run.recipe),
        "seed": run.recipe.seed,
        "seeds_trained": 1,
        "command": COMMAND,
        "trained_on": len(run.photos.labels),
        "held_out": {**held_out, "photographs": "50 a class, drawn by the seed; recipe and temperature tuned on them"},
        "training": {
            **minutes,
            "machine": "2 CPU cores",
            "precision": "bfloat16 autocast, float32 weights" if run.bfloat16 else "float32",
            "torch": torch.__version__.split("+")[0],
        },
        "validation": None,
    }


def write(run: Run, held_out: Photographs, minutes: dict[str, float], out: Path) -> None:
    """Calibrate, write the running average as float16 safetensors and the card; the accuracy is that of the file."""
    from safetensors.torch import save_file

    logits = predict(run.average, held_out, run.mean, run.std)
    figures = {"temperature": calibrate(run.average, logits, held_out.labels), "n": len(held_out.labels)}
    target = out / "photo20.safetensors"
    state = {k: v.half() if v.is_floating_point() else v for k, v in run.average.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, target)
    run.average.load_state_dict(state)
    figures["accuracy"] = accuracy(predict(run.average, held_out, run.mean, run.std), held_out.labels)
    data = target.read_bytes()
    file = {"file": target.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "dtype": "float16"}
    card = {**describe(run), "weights": file, **account(run, minutes, figures)}
    (out / "photo20.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"held-out accuracy of {target}: {figures['accuracy']:.3f}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train photo20 from scratch and write its weights and card.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the Parquet files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; nothing else is written")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    precision = "of forward and backward; auto = bfloat16 where the CPU computes in it, else float32, half as fast"
    parser.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto", help=precision)
    parser.add_argument("--smoke", action="store_true", help="a run of seconds on a few pictures, to see that it works")
    return parser.parse_args()


def main() -> None:
    """Load, split, train, write."""
    args = arguments()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    recipe = Recipe(epochs=args.epochs)
    path = args.data / "tinyimagenet20_train.parquet"
    if not path.is_file() and not args.smoke:
        raise SystemExit(f"--data must be a folder that holds {path.name}; got {args.data}. Name that folder.")
    photos = load(path) if path.is_file() else drawn()
    if args.smoke:
        recipe = replace(recipe, epochs=2, batch=40, held_out_per_class=2)
        photos = photos.part(split(photos.labels, 8, recipe.seed)[1])
    chosen, held_out = split(photos.labels, recipe.held_out_per_class, recipe.seed)
    bfloat16 = args.precision == "bfloat16" or (args.precision == "auto" and torch.cpu._is_avx512_bf16_supported())
    args.out.mkdir(parents=True, exist_ok=True)
    run = start(photos.part(chosen), recipe, bfloat16)
    minutes = train(run, photos.part(held_out), args.out)
    write(run, photos.part(held_out), minutes, args.out)


if __name__ == "__main__":
    main()
