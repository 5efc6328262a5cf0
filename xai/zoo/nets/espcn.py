"""The architectures of `espcn-x2` and `espcn-x3`: efficient sub-pixel convolution for pictures of any size."""

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (64, 32)


class ESPCN(nn.Module):
    """Three convolutions at the small picture's size, then the sub-pixel shuffle that makes the large one.

    A position of the last convolution holds the `scale` x `scale` pixels that stand there in the large picture, so
    each of those sees 9x9 pixels of the small one. No skip round the network and no fixed interpolation: the filters
    do it all. Shi et al. 2016, arXiv:1609.05158, section 3, with RGB in place of luminance and ReLU in place of tanh.
    """

    def __init__(self, scale: int, channels: int = 3) -> None:
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 5, padding=2)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(WIDTHS[0], WIDTHS[1], 3, padding=1)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(WIDTHS[1], channels * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map RGB (n, 3, h, w) in [0, 1] to (n, 3, scale h, scale w), about in [0, 1]: it is not clipped."""
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return functional.pixel_shuffle(self.conv3(x), self.scale)


def espcn_x2(channels: int = 3) -> ESPCN:
    """Build the network for twice the size, with PyTorch's default initial weights."""
    return ESPCN(2, channels)


def espcn_x3(channels: int = 3) -> ESPCN:
    """Build the network for three times the size, with PyTorch's default initial weights."""
    return ESPCN(3, channels)
