"""What others' models show of batch norms, precision and modes: values near a power of two, half precision, bits that are no number."""

import logging

import pytest
import torch
from torch import nn

import pquant
from pquant.errors import ConfigError
from pquant.quantization import Quantization

from .test_trace import FIXED


def test_a_scale_that_rounds_up_to_a_power_of_two_is_that_power() -> None:
    torch.manual_seed(0)
    model = pquant.compress(nn.Sequential(nn.BatchNorm1d(4)), None, FIXED, torch.randn(8, 4)).train()
    assert torch.equal(model[0].scale_and_shift()[0], torch.ones(4))
    model(torch.randn(32, 4)).pow(3).sum().backward()
    assert bool((model[0].weight.grad != 0).all())


def test_an_input_of_another_number_of_axes_is_refused_as_by_torch() -> None:
    model = pquant.compress(nn.Sequential(nn.BatchNorm2d(4)), None, FIXED, torch.randn(2, 4, 3, 3))
    for mode in (True, False):
        with pytest.raises(ValueError, match="expected 4D input"):
            model.train(mode)(torch.randn(4, 4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_compressed_model_is_not_brought_into_half_precision(dtype: torch.dtype) -> None:
    model = pquant.compress(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)), None, FIXED, torch.randn(4, 8))
    with pytest.raises(ConfigError, match="parameter '0.weight' is .*float16, in which fixed-point values are not exact"):
        model.to(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    pquant.compress(nn.Linear(8, 8), None, FIXED, torch.randn(4, 8)).double()


def test_bits_that_are_no_number_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = pquant.compress(nn.Sequential(nn.Linear(8, 4)), None, Quantization(**(vars(FIXED) | {"use_hgq": True})), torch.randn(4, 8))
    with torch.no_grad():
        model[0].weight_quantizer.f.fill_(torch.nan)
    pquant.on_batch_end(model)
    with caplog.at_level(logging.WARNING):
        pquant.on_epoch_end(model)
    assert "layer '0', weight quantizer: trained bits left [-32, 32] in step 1" in caplog.text


def test_events_under_inference_mode_leave_training_possible() -> None:
    x = torch.randn(4, 8)
    model = pquant.compress(nn.Linear(8, 4), None, Quantization(**(vars(FIXED) | {"use_hgq": True})), x)
    with torch.inference_mode():
        pquant.on_epoch_end(model)
    model(x).sum().backward()
    pquant.on_batch_end(model)
