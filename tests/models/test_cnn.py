import pytest
import torch
from torch import nn

from pquant.errors import ConfigError
from pquant.models import CNN


@pytest.mark.parametrize(("shape", "features"), [((1, 8, 8), 128), ((1, 28, 28), 1568), ((3, 32, 32), 2048), ((2, 9, 5), 64)])
def test_fits_the_images(shape: tuple[int, ...], features: int) -> None:
    model = CNN(input_shape=shape, num_outputs=10)
    assert model.head.in_features == features
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_blocks_by_name() -> None:
    model = CNN(input_shape=(1, 8, 8), num_outputs=10, channels=[4, 8, 16])
    names = {name: type(module) for name, module in model.blocks.named_modules() if not list(module.children())}
    layers = {"conv": nn.Conv2d, "norm": nn.BatchNorm2d, "relu": nn.ReLU, "pool": nn.AvgPool2d}
    assert names == {f"{index}.{name}": kind for index in range(3) for name, kind in layers.items()}


@pytest.mark.parametrize("channels", [[], [4, 0], [4, 4, 4, 4]])
def test_channels_that_do_not_fit_are_refused(channels: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"CNN.channels must be 1 to 3 positive widths for images of \(1, 8, 8\), got \["):
        CNN(input_shape=(1, 8, 8), num_outputs=10, channels=channels)


def test_flat_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"CNN needs images \(channels, height, width\), the data has \(64,\): data=images, or data.flatten=false"):
        CNN(input_shape=(64,), num_outputs=10)
