"""Small heads that compare with prototypes: distances weighted as they are, and patches as ProtoPNet finds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Distances(nn.Module):
    """Squared distances to prototypes, weighted: two prototypes a class. No decoder."""

    def __init__(self, width: int, classes: int, each: int = 2) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(each * classes, width))
        self.weight = nn.Parameter(0.1 - torch.eye(classes).repeat(each, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.similarities(self.distances(z)) @ self.weight

    def prototypes(self) -> Tensor:
        return self.points

    def distances(self, z: Tensor) -> Tensor:
        return (z[:, None] - self.points).square().sum(2)

    def similarities(self, distances: Tensor) -> Tensor:
        return distances

    def class_table(self) -> Tensor:
        return self.weight


class Patches(Distances):
    """The head of Chen et al. 2019: distances at every cell, log((d + 1)/(d + 1e-4)), the best cell counts."""

    def __init__(self, width: int, classes: int, each: int = 2) -> None:
        super().__init__(width, classes, each)
        self.weight = nn.Parameter(1.5 * torch.eye(classes).repeat(each, 1) - 0.5)

    def forward(self, z: Tensor) -> Tensor:
        return self.similarities(self.distances(z)).flatten(2).amax(2) @ self.weight

    def distances(self, z: Tensor) -> Tensor:
        return (z[:, None] - self.points[..., None, None]).square().sum(2)

    def similarities(self, distances: Tensor) -> Tensor:
        return ((distances + 1) / (distances + 1e-4)).log()
