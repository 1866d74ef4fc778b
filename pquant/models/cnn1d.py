"""A small convolutional network for sequences."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from pquant.errors import ConfigError, unknown
from pquant.models.particles import check_widths, classifier

POOLS = {"max": nn.MaxPool1d, "average": nn.AvgPool1d}


class CNN1d(nn.Module):
    """Blocks of a convolution of kernel size 3 along a sequence, batch norm, ReLU and a pool of size 2, then dense layers.

    For jets the sequence is that of their particles, hardest first, and the channels are the features. The output depends on the order.

    Args:
        input_shape: shape of one input, (length, channels), such as (particles, features); (channels, length) without ``channels_last``.
        num_outputs: the number of outputs that the data needs.
        channels: output channels of each block; a block halves the length.
        head: widths of the dense layers after the blocks, each followed by a ReLU; one more dense layer computes the outputs.
        pool: "max" or "average".
        channels_last: whether the last axis of the input holds the channels; else the first axis of each input does.

    Raises:
        ConfigError: inputs are not sequences, or are too short for the number of blocks; widths that are not positive, or an unknown pool.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        channels: Sequence[int] = (16, 32),
        head: Sequence[int] = (32,),
        pool: Literal["max", "average"] = "max",
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        length, before = _sequence_shape(input_shape, channels_last)
        check_widths("CNN1d.channels", channels)
        if length >> len(channels) < 1:
            raise ConfigError(f"CNN1d.channels must have at most {length.bit_length() - 1} widths for a length of {length}, got {list(channels)}")
        if pool not in POOLS:
            raise ConfigError(f"CNN1d.pool: {unknown('pool', pool, POOLS)}")
        self.channels_last = channels_last
        self.blocks = nn.Sequential(*(_block(*pair, POOLS[pool](2)) for pair in pairwise((before, *channels))))
        self.head = classifier("CNN1d.head", channels[-1] * (length >> len(channels)), head, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (batch, num_outputs) for sequences (batch, length, channels)."""
        return self.head(self.blocks(x.transpose(1, 2) if self.channels_last else x).flatten(1))


def _sequence_shape(input_shape: Sequence[int], channels_last: bool) -> tuple[int, int]:
    """Return (length, channels); ConfigError if the input is not a sequence."""
    if len(input_shape) != 2:
        raise ConfigError(f"CNN1d needs sequences (length, channels), the data has {tuple(input_shape)}: try data=constituents")
    length, channels = input_shape if channels_last else reversed(input_shape)
    return length, channels


def _block(before: int, after: int, pool: nn.Module) -> nn.Sequential:
    conv = nn.Conv1d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm1d(after), relu=nn.ReLU(), pool=pool))
