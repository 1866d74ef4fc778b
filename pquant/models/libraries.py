"""Models of torchvision and timm by name."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

from pquant.errors import ConfigError, did_you_mean

IMAGE_AXES = 3


def torchvision_model(name: str, input_shape: Sequence[int], num_outputs: int, **settings: Any) -> nn.Module:
    """Return a model of torchvision with random weights and an output for each class.

    Args:
        name: as in ``torchvision.models.list_models()``.
        input_shape: (channels, height, width); torchvision's models take 3 channels.
        num_outputs: classes.
        settings: further arguments of the model.

    Raises:
        ConfigError: torchvision is not installed, an unknown name, or inputs that are no images.
    """
    models = _library("torchvision.models")
    _check(name, models.list_models(), "torchvision", input_shape)
    return models.get_model(name, weights=None, num_classes=num_outputs, **settings)


def timm_model(name: str, input_shape: Sequence[int], num_outputs: int, **settings: Any) -> nn.Module:
    """Return a model of timm with random weights, for the channels of the data and an output for each class.

    Args:
        name: as in ``timm.list_models()``.
        input_shape: (channels, height, width).
        num_outputs: classes.
        settings: further arguments of ``timm.create_model``, such as ``img_size``.

    Raises:
        ConfigError: timm is not installed, an unknown name, or inputs that are no images.
    """
    timm = _library("timm")
    _check(name, timm.list_models(), "timm", input_shape)
    return timm.create_model(name, pretrained=False, in_chans=input_shape[0], num_classes=num_outputs, **settings)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(f"model={package} needs the package {package}: pip install {package}") from error


def _check(name: str, names: Sequence[str], library: str, input_shape: Sequence[int]) -> None:
    if name not in names:
        raise ConfigError(f"model.name: {library} has no model '{name}'{did_you_mean(name, names)}")
    if len(input_shape) != IMAGE_AXES:
        shape = tuple(input_shape)
        message = f"model.name={name} takes images (channels, height, width), got inputs of shape {shape}"
        raise ConfigError(f"{message}: data=cifar10, or data.flatten=false")
