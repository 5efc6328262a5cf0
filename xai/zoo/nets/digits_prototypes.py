"""The architecture of `digits-prototypes`: an autoencoder whose code is compared with prototypes."""

import torch
from torch import Tensor, nn

WIDTH, MAPS, PROTOTYPES = 32, 10, 15


class PrototypeLayer(nn.Module):
    """Squared distances of codes (n, 40) to the prototypes, weighted into logits: no bias, no other step.

    The most negative weight of a prototype marks its class: near it the distance, and so what it takes off that logit
    the least, is small.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.rand(PROTOTYPES, 4 * MAPS))
        self.weight = nn.Parameter(torch.rand(PROTOTYPES, num_classes))
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (MAPS, 2, 2)),
            nn.ConvTranspose2d(MAPS, WIDTH, 3, 2, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, 3, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, 3, 2, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, 1, 3, 1, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """Logits (n, num_classes)."""
        return self.distances(z) @ self.weight

    def prototypes(self) -> Tensor:
        """(15, 40)."""
        return self.points

    def distances(self, z: Tensor) -> Tensor:
        """(n, 15), squared."""
        return (z[:, None] - self.points).square().sum(2)

    def similarities(self, distances: Tensor) -> Tensor:
        """The distances themselves are weighted."""
        return distances

    def class_table(self) -> Tensor:
        """(15, num_classes)."""
        return self.weight

    def decode(self, codes: Tensor) -> Tensor:
        """Pictures (n, 1, 8, 8) in [0, 1] of codes (n, 40)."""
        pictures: Tensor = self.decoder(codes)
        return pictures


class DigitsPrototypes(nn.Module):
    """The prototype network of Li et al. 2018 (arXiv:1710.04806) for 8x8 digits: four 3x3 convolutions with ReLU, 32,
    32, 32 and 10 maps, to a code of 10x2x2 numbers, which is decoded by their mirror image and compared with 15
    prototypes. The paper's 28x28 pixels are halved four times; here only the second and fourth convolution halve."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, WIDTH, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(WIDTH, MAPS, 3, 2, 1), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.head = PrototypeLayer(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map grey pictures (n, 1, 8, 8) in [0, 1] to logits (n, num_classes)."""
        logits: Tensor = self.head(self.encoder(x))
        return logits


def digits_prototypes(num_classes: int = 10) -> DigitsPrototypes:
    """Build the network with PyTorch's default initial weights; `num_classes` is the length of its output."""
    return DigitsPrototypes(num_classes)
