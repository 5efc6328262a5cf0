"""The architecture of `tinyvgg`: two blocks of two convolutions and a pool, small enough to show every number of."""

from torch import Tensor, nn

WIDTH = 10


class TinyVGG(nn.Module):
    """Four 3x3 convolutions without padding, two max-pools, one linear layer (Wang et al. 2020, arXiv:2004.15004).

    Sizes of a 64x64 input: 62, 60, pooled 30, 28, 26, pooled 13. With ten classes it has 19,920 parameters. Each step
    is a module of its own and none works in place, so that each can be looked at.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1_1, self.relu1_1 = nn.Conv2d(3, WIDTH, 3), nn.ReLU()
        self.conv1_2, self.relu1_2 = nn.Conv2d(WIDTH, WIDTH, 3), nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2_1, self.relu2_1 = nn.Conv2d(WIDTH, WIDTH, 3), nn.ReLU()
        self.conv2_2, self.relu2_2 = nn.Conv2d(WIDTH, WIDTH, 3), nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(WIDTH * 13 * 13, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised RGB (n, 3, 64, 64) to logits (n, num_classes); no other size fits the linear layer."""
        x = self.pool1(self.relu1_2(self.conv1_2(self.relu1_1(self.conv1_1(x)))))
        x = self.pool2(self.relu2_2(self.conv2_2(self.relu2_1(self.conv2_1(x)))))
        logits: Tensor = self.fc(self.flatten(x))
        return logits


def tinyvgg(num_classes: int = 10) -> TinyVGG:
    """Build the network with PyTorch's default initial weights; `num_classes` is the length of its output."""
    return TinyVGG(num_classes)
