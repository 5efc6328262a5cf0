"""The architecture of `denoiser`: a small residual convolutional network that takes Gaussian noise off a picture."""

from torch import Tensor, nn

WIDTH, DEPTH = 32, 7


class Denoiser(nn.Module):
    """Convolutions of 3x3 that say what the noise is; the picture less that is the answer.

    Seven of them, so each pixel of the answer sees 15x15 of the picture. After DnCNN (Zhang, Zuo, Chen, Meng, Zhang
    2017, arXiv:1608.03981), smaller and without batch normalisation.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, WIDTH, 3, padding=1), nn.ReLU()]
        for _ in range(DEPTH - 2):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
        self.noise = nn.Sequential(*layers, nn.Conv2d(WIDTH, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map noisy RGB (n, 3, h, w) in [0, 1] to the same size, about in [0, 1]: it is not clipped."""
        noise: Tensor = self.noise(x)
        return x - noise


def denoiser(channels: int = 3) -> Denoiser:
    """Build the network with PyTorch's default initial weights."""
    return Denoiser(channels)
