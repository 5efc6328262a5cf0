"""What the CAM family shares: the layer's activations and gradients, and how channel weights make a map."""

from __future__ import annotations

from torch import Tensor

from xai.batch import Batch
from xai.targets import Bound


def seen(batch: Batch, layer: str, target: Bound) -> tuple[Tensor, Tensor]:
    """(activations, gradients), each (n, K, h, w), of one shared forward and one backward above the layer."""
    return full(batch.activations(layer)), full(batch.gradients(layer, target))


def full(values: Tensor) -> Tensor:
    """At least float32: sums over a layer's channels and places lose too much in half precision."""
    return values.float() if values.element_size() < 4 else values


def weighted(weights: Tensor, activations: Tensor) -> Tensor:
    """sum_k w_k A_k: weights (n, K), activations (n, K, h, w) -> (n, h, w)."""
    return (weights[:, :, None, None] * activations).sum(1)
