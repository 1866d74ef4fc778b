import pytest
import torch
from torch import nn

from pquant.errors import ConfigError
from pquant.models import ResNet20
from pquant.models.resnet import BasicBlock


def test_layers_and_parameters_of_resnet20() -> None:
    model = ResNet20(input_shape=(3, 32, 32), num_outputs=10)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len([conv for conv in convolutions if conv.kernel_size == (3, 3)]) + 1 == 20
    assert len([conv for conv in convolutions if conv.kernel_size == (1, 1)]) == 2
    assert sum(parameter.numel() for parameter in model.parameters()) == 272_474
    assert len([module for module in model.modules() if isinstance(module, nn.ReLU)]) == 19


def test_stages_halve_the_image_and_double_the_channels() -> None:
    model = ResNet20(input_shape=(3, 32, 32), num_outputs=10)
    x = torch.zeros(1, 16, 32, 32)
    for stage, shape in zip(model.stages, [(16, 32, 32), (32, 16, 16), (64, 8, 8)], strict=True):
        x = stage(x)
        assert x.shape[1:] == shape


def test_blocks_give_the_depth_and_any_image_fits() -> None:
    model = ResNet20(input_shape=(1, 28, 28), num_outputs=4, blocks=1)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 4)
    assert len([module for module in model.modules() if isinstance(module, BasicBlock)]) == 3


def test_a_block_whose_branch_is_zero_is_its_shortcut() -> None:
    same, other = BasicBlock(4, 4, 1).eval(), BasicBlock(4, 8, 2).eval()
    x = torch.rand(2, 4, 6, 6)
    for block in (same, other):
        nn.init.zeros_(block.norm2.weight)
    assert torch.equal(same(x), x)
    assert torch.equal(other(x), other.shortcut(x).relu())


def test_flat_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match="ResNet20 needs images"):
        ResNet20(input_shape=(64,), num_outputs=10)
