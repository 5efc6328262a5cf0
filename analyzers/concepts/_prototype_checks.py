"""What a prototype network computes, read from its own forward, and whether its prototypes deserve the name."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image as Pil
from torch import Tensor, nn

from xai.batch import Batch
from xai.errors import error
from xai.images import Image
from xai.model import Model
from xai.prototype_head import PrototypeHead, find_head

PATCH = 0.95  # of the nearness over the picture: where the patch begins (Chen et al. 2019)


@dataclass(frozen=True)
class Reading:
    """Of n inputs: what the head gave, `logits` (n, C), and its `distances`, (n, P) or (n, P, h, w)."""

    logits: Tensor
    distances: Tensor


class Reader:
    """Runs the raw network, which must be open, and keeps what its head was given and gave."""

    def __init__(self, model: Model, module: nn.Module) -> None:
        self._model, self._module = model, module
        self.head = need_head(model, module)

    def __call__(self, x: Tensor) -> Reading:
        """One forward of inputs (n, C, H, W)."""
        kept: list[tuple[Tensor, Tensor]] = []

        def keep(_: nn.Module, given: Any, output: Tensor) -> None:
            kept.append((given[0].detach(), output.detach()))

        assert isinstance(self.head, nn.Module)
        handle = self.head.register_forward_hook(keep)
        try:
            with torch.no_grad():
                self._model.told(lambda: self._module(x), x)
                if not kept:
                    raise error("the prototype head", "a part that the network runs", "one that it passes by",
                                "Let the network's forward call it")
                z, logits = kept[-1]
                return Reading(logits, self.head.distances(z))
        finally:
            handle.remove()


def need_head(model: Model, module: nn.Module) -> PrototypeHead:
    """The network's head. Raises XaiError where it has none."""
    head = find_head(module)
    if head is None:
        raise error("the model", "a network whose head compares with prototypes", f"{model.spec}, in which none is "
                    "seen", "Give the head the methods of xai.prototype_head.PrototypeHead, or take "
                    "xai:digits-prototypes")
    return head


def purity(distances: Tensor, classes: Tensor, own: Tensor, neighbours: int) -> Tensor:
    """(P,): of the pictures nearest to each prototype the share of its class.

    distances (n, P); classes (n,) of the pictures, own (P,) of the prototypes.
    """
    near = distances.topk(min(neighbours, len(distances)), dim=0, largest=False).indices
    return (classes[near] == own).double().mean(0)


def duplicates(prototypes: Tensor, share: float) -> list[tuple[int, int]]:
    """Pairs of prototypes (P, ...) whose squared distance is at most `share` of the median one between prototypes."""
    points = prototypes.detach().flatten(1).double()
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    one, two = torch.triu_indices(len(points), len(points), 1)
    between = apart[one, two]
    if not len(between):
        return []
    close = between <= share * between.median()
    return list(zip(one[close].tolist(), two[close].tolist(), strict=True))


def patch(distances: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 (exclusive), in pixels of the input, of where a prototype is found: of distances (h, w), made as
    large as the input (bicubic), the box of the nearest 5 %. The whole picture where there is one cell."""
    if distances.numel() == 1:
        return 0, 0, width, height
    near = nn.functional.interpolate(-distances[None, None].float(), (height, width), mode="bicubic")[0, 0]
    rows, columns = (near >= near.flatten().quantile(PATCH)).nonzero().T
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def without(x: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The input (C, H, W) with the box filled with its mean colour."""
    x0, y0, x1, y1 = box
    hidden = x.clone()
    hidden[:, y0:y1, x0:x1] = x.mean((1, 2), keepdim=True)
    return hidden


def as_jpeg(image: Image, quality: int) -> Image:
    """The picture after JPEG of that quality, in three channels of 8 bits."""
    file = io.BytesIO()
    Pil.fromarray(image.rgb()).save(file, "JPEG", quality=quality)
    with Pil.open(file) as read:
        return replace(image, pixels=np.ascontiguousarray(np.asarray(read).transpose(2, 0, 1)))


def corruptions(batch: Batch, i: int, quality: int, noise: float) -> dict[str, Tensor]:
    """Inputs (C, H, W) of picture i after JPEG (not where it comes normalised) and with Gaussian noise, whose standard
    deviation is a share of the full range from black to white."""
    model, found = batch.model, dict[str, Tensor]()
    own = batch.inputs[i]
    if not batch.images[i].normalised and len(own) in (1, 3):
        found[f"JPEG {quality}"] = model.preprocessing(as_jpeg(batch.images[i], quality)).input.to(own)
    std = torch.tensor(model.preprocessing.std or (1.0,)).view(-1, 1, 1)
    low, high = model.preprocessing.range
    drawn = torch.randn(own.shape, generator=batch.generator(i, "prototypes"))
    found[f"noise {noise:g}"] = own + (noise * (high - low) * drawn / std).to(own)
    return found

