"""Train the shipped network `digits-prototypes` on scikit-learn's digits and write its weights and card.

Run from the root of the checkout:

    python examples/train_digits_prototypes.py --out digits-out

The 1,797 pictures of 8x8 pixels come with scikit-learn. A seed splits them: 1,197 to train, 240 that are
held out while a recipe is chosen, 360 that are looked at once, at the end. `digits-prototypes.safetensors` (float32)
and `digits-prototypes.json` (the model card) are written to `--out`. `--smoke` trains for two epochs. On one kind of
machine, with one thread, a seed gives one network.

The loss is that of Li et al. 2018 (arXiv:1710.04806): 20 cross-entropy + squared error of the decoded picture, summed
over its pixels + each prototype's distance to the nearest code of the batch + each code's to the nearest prototype,
with Adam at 0.002. Digits are moved by up to a pixel in place of the paper's elastic deformation, which 8x8 pixels do
not bear, and the rate falls to nothing over the last half.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai.statistics import wilson
from xai.zoo.nets.digits_prototypes import DigitsPrototypes, digits_prototypes

COMMAND = "python examples/train_digits_prototypes.py --out digits-out"
LABELS = tuple("0123456789")
NAME = "digits-prototypes"


@dataclass(frozen=True)
class Recipe:
    """Every number the training depends on; the card repeats them."""

    seed: int = 12
    epochs: int = 400
    batch: int = 100
    rate: float = 0.002
    class_weight: float = 20.0
    decoding_weight: float = 1.0
    prototype_weight: float = 1.0
    code_weight: float = 1.0
    shift: int = 1
    held_out: int = 240
    validation: int = 360


def pictures() -> tuple[Tensor, Tensor]:
    """All digits as they are after a round trip through 8 bits, (n, 1, 8, 8) in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    values, classes = load_digits(return_X_y=True)
    pixels = np.rint(values / 16 * 255).astype(np.float32) / 255
    return torch.from_numpy(pixels).view(-1, 1, 8, 8), torch.from_numpy(classes)


def parts(recipe: Recipe, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the pictures to train on, to choose on, and to look at once."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.seed))
    return order[recipe.held_out + recipe.validation :], order[: recipe.held_out], order[
        recipe.held_out : recipe.held_out + recipe.validation]


def moved(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to so many pixels; black comes in."""
    size, wide = x.shape[-1], F.pad(x, (most,) * 4)
    places = torch.randint(2 * most + 1, (len(x), 2), generator=generator).tolist()
    return torch.stack([one[:, r : r + size, c : c + size] for one, (r, c) in zip(wide, places, strict=True)])


def losses(network: DigitsPrototypes, x: Tensor, classes: Tensor, recipe: Recipe) -> Tensor:
    """The four terms, summed."""
    codes = network.encoder(x)
    distances = network.head.distances(codes)
    decoding = (network.head.decode(codes) - x).square().flatten(1).sum(1).mean()
    return (recipe.class_weight * F.cross_entropy(distances @ network.head.weight, classes)
            + recipe.decoding_weight * decoding + recipe.prototype_weight * distances.amin(0).mean()
            + recipe.code_weight * distances.amin(1).mean())


def train(x: Tensor, classes: Tensor, recipe: Recipe) -> tuple[DigitsPrototypes, dict[str, float]]:
    """The network after all epochs, and how long that took."""
    torch.manual_seed(recipe.seed)
    network, generator = digits_prototypes(len(LABELS)), torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.Adam(network.parameters(), recipe.rate)
    wall, cpu, batches = time.perf_counter(), time.process_time(), len(x) // recipe.batch
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * min(1.0, 2 * (1 - epoch / recipe.epochs))
        for rows in order[: batches * recipe.batch].view(batches, -1):
            loss = losses(network, moved(x[rows], recipe.shift, generator), classes[rows], recipe)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        if epoch % 20 == 0:
            print(f"epoch {epoch}: loss of the last batch {float(loss.detach()):.3f}", flush=True)
    return network.eval(), {"wall_minutes": round((time.perf_counter() - wall) / 60, 1),
                            "cpu_minutes": round((time.process_time() - cpu) / 60, 1)}


@torch.no_grad()
def measured(network: DigitsPrototypes, x: Tensor, classes: Tensor) -> dict[str, Any]:
    """Accuracy with its interval, and the root mean squared error of the decoded pictures."""
    codes = network.encoder(x)
    share = float((network.head(codes).argmax(1) == classes).double().mean())
    low, high = wilson(share, len(x))
    return {"accuracy": round(share, 4), "low": round(low, 4), "high": round(high, 4), "interval": "95 % Wilson",
            "n": len(x), "decoding_rmse": round(float((network.head.decode(codes) - x).square().mean().sqrt()), 4)}


def multiply_adds(network: DigitsPrototypes) -> int:
    """Of one picture's logits: the convolutions', the squares of the distances and the class table's."""
    places = (64, 16, 16, 4)  # of each convolution's output
    layers = [part for part in network.encoder if isinstance(part, nn.Conv2d)]
    return (sum(n * layer.weight.numel() for n, layer in zip(places, layers, strict=True))
            + network.head.points.numel() + network.head.weight.numel())


def card(network: DigitsPrototypes, recipe: Recipe, trained_on: int, minutes: dict[str, float],
         held_out: dict[str, Any], validation: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Everything that is known of the network, as plain data."""
    return {
        "name": NAME,
        "summary": "Prototype autoencoder for handwritten digits, 8x8 grey pixels; what it decides by can be decoded.",
        "architecture": "xai.zoo.nets.digits_prototypes:digits_prototypes",
        "structure": "four 3x3 convolutions to a code of 40 numbers, its squared distances to 15 prototypes, a linear "
                     "layer without bias; a decoder mirrors the convolutions. After Li et al. 2018, arXiv:1710.04806",
        "parameters": sum(p.numel() for p in network.parameters()),
        "multiply_adds": multiply_adds(network),
        "input_size": [8, 8],
        "channels": 1,
        "colour": "grey, 0 (ground) to 1 (ink), neither shifted nor scaled",
        "mean": [0.0],
        "std": [1.0],
        "resize": {"short_side": 8, "centre_crop": [8, 8], "interpolation": "bilinear, antialiased"},
        "labels": list(LABELS),
        "weights": {"file": f"{NAME}.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
                    "dtype": "float32"},
        "data": {
            "name": "scikit-learn's digits: 1,797 handwritten digits of 8x8 pixels",
            "origin": "test set of Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine "
                      "Learning Repository, 1998, doi:10.24432/C50P49",
            "terms": "The digits are distributed by the UCI repository under CC BY 4.0; they come with scikit-learn.",
            "commercial_use": "As the project's licence says; CC BY 4.0 asks for the name of the data's authors.",
        },
        "recipe": asdict(recipe),
        "seed": recipe.seed,
        "seeds_trained": 1,
        "command": COMMAND,
        "trained_on": trained_on,
        "held_out": {**held_out, "pictures": "drawn by the seed; the first recipe tried is the one that ships"},
        "training": {**minutes, "machine": "1 of 2 CPU cores, others at work on them", "precision": "float32",
                     "torch": torch.__version__.split("+")[0]},
        "validation": {**validation, "pictures": "drawn by the seed; looked at once", "command": COMMAND},
    }


def main() -> None:
    """Split, train, measure, write."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description="Train digits-prototypes and write its weights and card.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; nothing else is written")
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that it works")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recipe = replace(Recipe(), epochs=2) if args.smoke else Recipe()
    x, classes = pictures()
    own, held, last = parts(recipe, len(x))
    network, minutes = train(x[own], classes[own], recipe)
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"{NAME}.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, target)
    tuned, final = measured(network, x[held], classes[held]), measured(network, x[last], classes[last])
    made = card(network, recipe, len(own), minutes, tuned, final, target.read_bytes())
    (args.out / f"{NAME}.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    print(f"{target}: held-out {tuned['accuracy']:.4f}, validation {final['accuracy']:.4f}, "
          f"{minutes['wall_minutes']} minutes")


if __name__ == "__main__":
    main()
