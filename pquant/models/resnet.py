"""Residual networks for CIFAR: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385."""

from collections.abc import Sequence

from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.models.cnn import image_shape


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them, (batch, before, H, W) -> (batch, after, H / stride, W / stride).

    If the shape changes, the shortcut is a 1x1 convolution with batch norm, the paper's projection (option B), otherwise the identity.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1, self.relu1 = _conv(before, after, 3, stride), nn.BatchNorm2d(after), nn.ReLU()
        self.conv2, self.norm2, self.relu2 = _conv(after, after, 3, 1), nn.BatchNorm2d(after), nn.ReLU()
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else nn.Sequential(_conv(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(F(x) + shortcut(x))."""
        y = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """The network of section 4.2: a 3x3 convolution, three stages of basic blocks with 16, 32 and 64 channels, average pool, dense.

    Args:
        input_shape: shape of one image, (channels, height, width).
        num_outputs: the number of outputs that the data needs.
        blocks: basic blocks per stage, n in the paper; the depth is 6n + 2: 3 for ResNet-20 (0.27 million parameters), 9 for ResNet-56.

    Raises:
        ConfigError: inputs are not images, or no blocks.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, blocks: int = 3) -> None:
        super().__init__()
        if blocks < 1:
            raise ConfigError(f"ResNet20.blocks must be at least 1, got {blocks}")
        channels, _, _ = image_shape("ResNet20", input_shape)
        self.conv, self.norm, self.relu = _conv(channels, 16, 3, 1), nn.BatchNorm2d(16), nn.ReLU()
        self.stages = nn.Sequential(_stage(16, 16, 1, blocks), _stage(16, 32, 2, blocks), _stage(32, 64, 2, blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (batch, num_outputs) for images (batch, channels, height, width)."""
        return self.head(self.pool(self.stages(self.relu(self.norm(self.conv(x))))).flatten(1))


def _stage(before: int, after: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(before, after, stride), *(BasicBlock(after, after, 1) for _ in range(blocks - 1)))


def _conv(before: int, after: int, size: int, stride: int) -> nn.Conv2d:
    """Return a convolution without bias that keeps height and width up to its stride, initialised as in the paper."""
    conv = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
