"""What a network that compares with prototypes has to say of itself, so that it can be explained as it is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class PrototypeHead(Protocol):
    """A module z -> logits (n, C), logits = similarities(d) @ class_table(), d the distances of z to P prototypes.

    It may be the whole network or its last part; z is whatever its forward takes. Where distances are taken at every
    cell of a map, (n, P, h, w), the least of each prototype counts. A head may have one more method,
    `decode(prototypes)`, which gives their pictures (P, C, H, W) in the network's input space.
    """

    def prototypes(self) -> Tensor:
        """(P, D) or (P, D, 1, 1)."""

    def distances(self, z: Tensor) -> Tensor:
        """(n, P), or (n, P, h, w), never negative."""

    def similarities(self, distances: Tensor) -> Tensor:
        """What is weighted, element by element and monotone: the distances themselves (Li et al. 2018), or something
        that falls with them (Chen et al. 2019)."""

    def class_table(self) -> Tensor:
        """The weights (P, C)."""


def find_head(module: nn.Module) -> PrototypeHead | None:
    """The first part of a network, from the outside in, that is such a head."""
    return next((part for part in module.modules() if isinstance(part, PrototypeHead)), None)


def falling(head: PrototypeHead, like: Tensor) -> bool:
    """Whether what is weighted falls with the distance. Where it grows, the most negative weight marks the class."""
    near, far = head.similarities(torch.tensor([0.0, 1.0], dtype=like.dtype, device=like.device)).tolist()
    return bool(far < near)


def nearest(distances: Tensor) -> Tensor:
    """(n, P): over the cells the least."""
    return distances.flatten(2).amin(2) if distances.ndim > 2 else distances


def evidence(head: PrototypeHead, least: Tensor) -> Tensor:
    """(n, P, C): what each prototype, at its least distance (n, P), adds to each logit; over P they sum to the logits.
    """
    return head.similarities(least)[..., None] * head.class_table()


def own_classes(head: PrototypeHead) -> Tensor:
    """(P,): the class that a prototype speaks for most where the input is near it."""
    table = head.class_table()
    return (table if falling(head, table) else -table).argmax(1)
