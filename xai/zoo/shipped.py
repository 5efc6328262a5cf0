"""The models that ship with the package: name, architecture, weights, and the card that describes them."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xai.errors import error

if TYPE_CHECKING:
    from torch import nn

DEFAULT = "xai:photo20"
FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Shipped:
    """An entry of the register. factory: `module:function` of `num_classes`; size, classes: of the architecture; of a
    network whose output is a picture `classes` counts its channels, and its card names none (`labels` is empty)."""

    factory: str
    summary: str
    size: tuple[int, int]
    classes: int


SHIPPED: dict[str, Shipped] = {
    "photo20": Shipped(
        "xai.zoo.nets.photo20:photo20",
        "small residual network for photographs of 20 classes, 64x64 pixels",
        (64, 64),
        20,
    ),
    "planted": Shipped(
        "xai.zoo.nets.planted:planted",
        "small residual network for rendered scenes whose evidence is known, 64x64 pixels, 10 glyphs",
        (64, 64),
        10,
    ),
    "tinyvgg": Shipped(
        "xai.zoo.nets.tinyvgg:tinyvgg",
        "Tiny VGG for photographs of 10 classes, 64x64 pixels, for `xai models explore`",
        (64, 64),
        10,
    ),
    "digits-prototypes": Shipped(
        "xai.zoo.nets.digits_prototypes:digits_prototypes",
        "prototype autoencoder for handwritten digits, 8x8 grey pixels, whose prototypes can be decoded",
        (8, 8),
        10,
    ),
    "espcn-x2": Shipped(
        "xai.zoo.nets.espcn:espcn_x2",
        "sub-pixel convolutional network that makes a picture twice as large",
        (64, 64),
        3,
    ),
    "espcn-x3": Shipped(
        "xai.zoo.nets.espcn:espcn_x3",
        "sub-pixel convolutional network that makes a picture three times as large",
        (64, 64),
        3,
    ),
    "denoiser": Shipped(
        "xai.zoo.nets.denoiser:denoiser",
        "small residual network that takes Gaussian noise of standard deviation 25/255 off a picture",
        (64, 64),
        3,
    ),
}


def weights_file(name: str) -> Path:
    """The weights of a shipped model; raises XaiError where they do not lie in the package."""
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise error(
            f"the weights of xai:{name}",
            "in the package",
            f"no file {path.name}",
            "Reinstall the package, or give --weights FILE or --weights random",
        )
    return path


def card(name: str) -> dict[str, Any] | None:
    """The model card, or None where the package does not hold it."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def build(name: str, classes: int) -> nn.Module:
    """The network with its initial weights."""
    module, function = SHIPPED[name].factory.split(":")
    network: nn.Module = getattr(importlib.import_module(module), function)(classes)
    return network
