"""A small convolutional network."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from pquant.errors import ConfigError


class CNN(nn.Module):
    """Blocks of 3x3 convolution, batch norm, ReLU and 2x2 average pool, then a dense layer.

    Args:
        input_shape: shape of one image, (channels, height, width).
        num_outputs: the number of outputs that the data needs.
        channels: output channels of each block; a block halves height and width.

    Raises:
        ConfigError: inputs are not images, or the images are too small for the number of blocks.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, channels: Sequence[int] = (16, 32)) -> None:
        super().__init__()
        before, height, width = image_shape("CNN", input_shape)
        most = min(height, width).bit_length() - 1
        if not 1 <= len(channels) <= most or min(channels) < 1:
            raise ConfigError(f"CNN.channels must be 1 to {most} positive widths for images of {tuple(input_shape)}, got {list(channels)}")
        self.blocks = nn.Sequential(*(_block(*pair) for pair in zip((before, *channels), channels, strict=False)))
        pixels = (height >> len(channels)) * (width >> len(channels))
        self.head = nn.Linear(channels[-1] * pixels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (batch, num_outputs) for images (batch, channels, height, width)."""
        return self.head(self.blocks(x).flatten(1))


def image_shape(model: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (channels, height, width); ConfigError if the input of ``model`` is not an image."""
    if len(input_shape) != 3:
        found = f"the data has {tuple(input_shape)}: data=images, or data.flatten=false where there are images"
        raise ConfigError(f"{model} needs images (channels, height, width), {found}")
    channels, height, width = input_shape
    return channels, height, width


def _block(before: int, after: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(after), relu=nn.ReLU(), pool=nn.AvgPool2d(2)))
