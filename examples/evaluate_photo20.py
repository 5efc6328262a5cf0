"""Measure the shipped network `photo20` on the validation photographs, which its training and tuning never read.

Run from the root of the checkout:

    python examples/evaluate_photo20.py --data ../shared/data

It prints the top-1 accuracy on the 1,000 photographs of `tinyimagenet20_val.parquet` with its 95 % Wilson interval, the
accuracy of each class, and what the network says of three public photographs that come with scikit-image. `--write`
puts both into the card; after that a run compares its figure with the card's and fails where they differ. `--smoke`
runs on drawn pictures where the data is absent.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import torch
from PIL import Image
from torch import Tensor, nn
from train_photo20 import Photographs, drawn, load, normalise

from xai.zoo.nets.photo20 import photo20

SHIPPED = Path(__file__).resolve().parents[1] / "xai" / "zoo" / "weights"
PICTURES = ("coffee", "rocket", "chelsea")  # in scikit-image's own package, so no download


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22, p. 209)."""
    share, shrink = hits / n, 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / shrink
    return centre - half, centre + half


def read(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, in float32, and its card."""
    from safetensors.torch import load_file

    card: dict[str, Any] = json.loads((folder / "photo20.json").read_text(encoding="utf-8"))
    model = photo20(len(card["labels"]))
    model.load_state_dict(load_file(folder / card["weights"]["file"]))
    return model.eval(), card


@torch.no_grad()
def probabilities(model: nn.Module, pixels: Tensor, card: dict[str, Any]) -> Tensor:
    """Class probabilities (n, classes) of (n, 3, 64, 64) uint8 pictures."""
    mean, std = (torch.tensor(card[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    parts = [model(normalise(pixels[i : i + 250] / 255, mean, std)).softmax(1) for i in range(0, len(pixels), 250)]
    return torch.cat(parts)


def measure(model: nn.Module, photos: Photographs, card: dict[str, Any]) -> dict[str, Any]:
    """Accuracy with its interval, the mean probability of the named class, and the accuracy of each class."""
    scores = probabilities(model, photos.pixels, card)
    confidence, named = scores.max(1)
    right = named == photos.labels
    low, high = wilson(int(right.sum()), len(right))
    per_class = {n: round(float(right[photos.labels == i].float().mean()), 3) for i, n in enumerate(photos.names)}
    return {
        "accuracy": round(int(right.sum()) / len(right), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "interval": "95 % Wilson",
        "n": len(right),
        "mean_confidence": round(float(confidence.mean()), 4),
        "per_class": per_class,
        "command": "python examples/evaluate_photo20.py --data ../shared/data",
    }


def prepare(picture: Image.Image, card: dict[str, Any]) -> Tensor:
    """The card's rule: shorter side to 64 pixels with an antialiased filter, then the central square, as uint8."""
    import numpy

    side, (height, width) = card["resize"]["short_side"], card["resize"]["centre_crop"]
    scale = side / min(picture.size)
    picture = picture.convert("RGB").resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR
    )
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    square = picture.crop((left, top, left + width, top + height))
    return torch.from_numpy(numpy.asarray(square).copy()).permute(2, 0, 1)


def name_pictures(model: nn.Module, card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The likeliest class of each of scikit-image's pictures, with and without the temperature, and the next one."""
    import skimage.data

    pixels = torch.stack([prepare(Image.fromarray(getattr(skimage.data, name)()), card) for name in PICTURES])
    scores = probabilities(model, pixels, card)
    uncalibrated = scores.log().mul(card["held_out"]["temperature"]).softmax(1)
    named = {}
    for name, now, before in zip(PICTURES, scores, uncalibrated, strict=True):
        first, second = now.topk(2).indices.tolist()
        named[name] = {
            "class": card["labels"][first],
            "probability": round(float(now[first]), 3),
            "before_temperature": round(float(before[first]), 3),
            "next": [card["labels"][second], round(float(now[second]), 3)],
        }
    return named


def show(validation: dict[str, Any], pictures: dict[str, dict[str, Any]]) -> None:
    """Print both."""
    low, high = 100 * validation["low"], 100 * validation["high"]
    print(f"top-1 {100 * validation['accuracy']:.1f} %, 95 % interval {low:.1f} to {high:.1f}, n = {validation['n']}")
    for name, share in sorted(validation["per_class"].items(), key=lambda item: -item[1]):
        print(f"  {share:6.3f}  {name}")
    for name, named in pictures.items():
        print(f"{name}: {named['class']} {named['probability']:.3f} ({named['before_temperature']:.3f} uncalibrated)")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Evaluate the shipped network photo20.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the Parquet files")
    parser.add_argument("--weights", type=Path, default=SHIPPED, help="folder of photo20.safetensors and photo20.json")
    parser.add_argument("--write", action="store_true", help="put the figures into the card")
    parser.add_argument("--smoke", action="store_true", help="use drawn pictures where the data is absent")
    return parser.parse_args()


def main() -> None:
    """Load, measure, print; write or compare."""
    args = arguments()
    torch.set_num_threads(2)
    path = args.data / "tinyimagenet20_val.parquet"
    if not path.is_file() and not args.smoke:
        raise SystemExit(f"--data must be a folder that holds {path.name}; got {args.data}. Name that folder.")
    model, card = read(args.weights)
    photos = load(path) if path.is_file() else drawn(len(card["labels"]))
    validation, pictures = measure(model, photos, card), name_pictures(model, card)
    show(validation, pictures)
    if not path.is_file():
        return
    if args.write:
        text = json.dumps({**card, "validation": validation, "pictures": pictures}, indent=2)
        (args.weights / "photo20.json").write_text(text + "\n", encoding="utf-8")
    elif card["validation"] and abs(card["validation"]["accuracy"] - validation["accuracy"]) > 0.002:
        stated, measured = card["validation"]["accuracy"], validation["accuracy"]
        raise SystemExit(f"the accuracy must be the card's {stated}; got {measured}. Train or evaluate anew.")


if __name__ == "__main__":
    main()
