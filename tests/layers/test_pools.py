"""Adaptive pools: for images of any size, with and without a batch axis."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import PQAvgPool1d, PQAvgPool2d, PQAvgPool3d
from pquant.pruning import Magnitude
from pquant.quantization import Quantization, fixed_point

FIXED = Quantization(
    default_data_keep_negatives=True,
    default_data_integer_bits=2,
    default_data_fractional_bits=5,
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=7,
)
POOLS: list[tuple[nn.Module, type, tuple[int, ...], tuple[int, ...]]] = [
    (nn.AdaptiveAvgPool1d(3), PQAvgPool1d, (9,), (7,)),
    (nn.AdaptiveAvgPool2d(1), PQAvgPool2d, (5, 7), (8, 6)),
    (nn.AdaptiveAvgPool2d((3, None)), PQAvgPool2d, (9, 5), (10, 4)),
    (nn.AdaptiveAvgPool3d((1, 2, 3)), PQAvgPool3d, (4, 4, 3), (3, 5, 6)),
]
each_pool = pytest.mark.parametrize(("pool", "kind", "size", "other"), POOLS)


@each_pool
def test_without_quantization_an_adaptive_pool_is_torchs_for_images_of_any_size(pool: nn.Module, kind: type, size: Any, other: Any) -> None:
    model = pquant.compress(nn.Sequential(pool), Magnitude(sparsity=0.5), None, torch.randn(2, 3, *size))
    assert type(model[0]) is kind
    for one, shape in product((model, pquant.finalize(model)), ((2, 3, *size), (5, 3, *size), (2, 3, *other), (3, *other))):
        x = torch.randn(shape)
        assert torch.equal(one(x), pool(x)), shape


@each_pool
def test_a_quantized_adaptive_pool_takes_images_of_any_size(pool: nn.Module, kind: type, size: Any, other: Any) -> None:
    model = pquant.compress(nn.Sequential(pool), None, FIXED, torch.randn(2, 3, *size))
    for one, shape in product((model, pquant.finalize(model)), ((2, 3, *size), (2, 3, *other), (3, *other))):
        x = torch.randn(shape)
        assert torch.equal(one(x), fixed_point(pool(fixed_point(x, 1, 2, 5)), 1, 2, 5)), shape


@pytest.mark.parametrize("section", [None, FIXED], ids=["off", "fixed"])
def test_an_adaptive_pool_pools_an_example_without_a_batch_axis(section: Quantization | None) -> None:
    x, pool = torch.randn(3, 8, 6), nn.AdaptiveAvgPool2d((2, 1))
    model = pquant.compress(nn.Sequential(pool), None, section, x)
    expected = pool(x) if section is None else fixed_point(pool(fixed_point(x, 1, 2, 5)), 1, 2, 5)
    assert torch.equal(model(x), expected) and model[0].kernel_size == (4, 6)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", [(3, 8, 6), (3, 6, 8)])
def test_an_example_without_a_batch_axis_is_refused_where_a_convolution_takes_it(shape: tuple[int, ...], kernel: int) -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, kernel)), nn.AdaptiveAvgPool2d(1))
    for section in (None, FIXED):
        with pytest.raises(ConfigError, match=rf"'0\.0' got an input of shape \(3, {shape[1]}, {shape[2]}\).*unsqueeze\(0\)"):
            pquant.compress(net, None, section, torch.randn(shape))


class OneByOne(nn.Module):
    """Takes the only image of a batch out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (image,) = x
        return self.conv(image)


def test_ebops_of_a_convolution_that_gets_an_image_without_its_batch_axis() -> None:
    x = torch.randn(1, 3, 8, 6)
    torch.manual_seed(0)
    model = pquant.compress(OneByOne(), None, FIXED, x)
    batched = pquant.compress(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), None, FIXED, x)
    batched[0].weight.data.copy_(model.conv.weight)
    assert pquant.ebops(model) == pquant.ebops(batched) > 0
