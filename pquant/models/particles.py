"""Functions of networks on sets of particles: checks of the input shape, and stacks of dense layers."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from pquant.errors import ConfigError

WIDEST = 1 << 16


def particle_shape(model: str, input_shape: Sequence[int]) -> tuple[int, int]:
    """Return (particles, features); ConfigError if the input of ``model`` is not a set of particles."""
    if len(input_shape) != 2:
        raise ConfigError(f"{model} needs particles (particles, features), the data has {tuple(input_shape)}: try data=constituents")
    particles, features = input_shape
    return particles, features


def check_widths(name: str, widths: Sequence[int]) -> None:
    """Raise a ConfigError unless ``widths``, the value of ``name``, is a list of one or more positive integers."""
    if isinstance(widths, str) or not isinstance(widths, Sequence) or not widths or not all(type(width) is int and width > 0 for width in widths):
        raise ConfigError(f"{name} must be a list of one or more positive widths, got {widths!r}")


def check_count(name: str, value: int, most: int) -> None:
    """Raise a ConfigError unless ``value``, that of ``name``, is an integer from 1 to ``most``."""
    if type(value) is not int or not 1 <= value <= most:
        raise ConfigError(f"{name} must be an integer from 1 to {most}, got {value!r}")


def dense_relu(name: str, before: int, widths: Sequence[int]) -> nn.Sequential:
    """Return a dense layer and a ReLU for each of ``widths``, (..., before) -> (..., widths[-1]).

    Raises:
        ConfigError: ``widths``, the value of ``name``, is not a list of positive widths.
    """
    check_widths(name, widths)
    return nn.Sequential(*(layer for pair in pairwise((before, *widths)) for layer in (nn.Linear(*pair), nn.ReLU())))


def classifier(name: str, before: int, widths: Sequence[int], outputs: int) -> nn.Sequential:
    """Return a dense layer and a ReLU for each of ``widths``, and a dense layer to the outputs, (batch, before) -> (batch, outputs).

    Raises:
        ConfigError: ``widths``, the value of ``name``, is not a list of positive widths.
    """
    return dense_relu(name, before, widths).append(nn.Linear(widths[-1], outputs))
