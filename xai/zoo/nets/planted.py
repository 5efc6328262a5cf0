"""The architecture of `planted`: a small residual network for rendered scenes of 64x64 pixels and ten classes."""

from torch import Tensor, nn

from xai.zoo.nets.photo20 import ResidualBlock, conv_bn

WIDTHS = (32, 64, 96)
STRIDES = (1, 2, 1)


class Planted(nn.Module):
    """Stem and three residual blocks of total stride 4, global average pool, one linear layer.

    The last block keeps 16x16 positions of a 64x64 input, sixteen to a scene's cell, and each position sees 39x39
    pixels: enough for any glyph of one cell (16x16). Pool and linear layer alone follow it, so CAM and Grad-CAM agree
    there.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, WIDTHS[0], stride=2), nn.ReLU())
        blocks, channels = [], WIDTHS[0]
        for width, stride in zip(WIDTHS, STRIDES, strict=True):
            blocks.append(ResidualBlock(channels, width, stride))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised RGB (n, 3, 64, 64) to logits (n, num_classes); other sizes from 16 up work too."""
        logits: Tensor = self.fc(self.flatten(self.pool(self.blocks(self.stem(x)))))
        return logits


def planted(num_classes: int = 10) -> Planted:
    """Build the network with PyTorch's default initial weights; `num_classes` is the length of its output."""
    return Planted(num_classes)
