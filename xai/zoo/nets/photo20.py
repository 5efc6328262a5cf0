"""The architecture of `photo20`: a small residual network for 64x64 photographs of 20 classes."""

from torch import Tensor, nn

WIDTHS = (48, 96, 208)
DEPTHS = (1, 2, 2)


def conv_bn(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, padded to keep the size at stride 1, and its batch normalisation."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, arXiv:1512.03385, fig. 2).

    Where the block halves the size, the shortcut averages 2x2 pixels before its 1x1 convolution, so that no pixel is
    skipped (He et al. 2019, arXiv:1812.01187, ResNet-D). Each ReLU is a module of its own: methods that hook
    activations (DeepLIFT, LRP, guided backpropagation) need that.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv_bn(channels_in, channels_out, stride=stride)
        self.relu1 = nn.ReLU()
        self.conv2 = conv_bn(channels_out, channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            pool = nn.AvgPool2d(stride) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, *conv_bn(channels_in, channels_out, kernel=1))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels_in, h, w) to (n, channels_out, h / stride, w / stride)."""
        residual: Tensor = self.conv2(self.relu1(self.conv1(x)))
        out: Tensor = self.relu2(residual + self.shortcut(x))
        return out


class Photo20(nn.Module):
    """Convolutional trunk of total stride 8, global average pool, one linear layer.

    The last stage keeps 8x8 positions of a 64x64 input, so class activation maps have 64 cells; pool and linear layer
    alone follow it, so CAM and Grad-CAM agree there (Zhou et al. 2016, arXiv:1512.04150).
    """

    def __init__(self, num_classes: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, WIDTHS[0], stride=2), nn.ReLU())
        channels = WIDTHS[0]
        stages = []
        for index, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            first = ResidualBlock(channels, width, stride=1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *(ResidualBlock(width, width) for _ in range(depth - 1))))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised RGB (n, 3, 64, 64) to logits (n, num_classes); other sizes from 16 up work too."""
        logits: Tensor = self.fc(self.flatten(self.pool(self.stages(self.stem(x)))))
        return logits


def photo20(num_classes: int = 20) -> Photo20:
    """Build the network with PyTorch's default initial weights; `num_classes` is the length of its output."""
    return Photo20(num_classes)
