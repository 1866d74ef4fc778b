"""p-norm weight decay: against the formula in float64 and torch's own optimizers. A resumed run: test_resume.py."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

import pquant
from pquant.config import CLEAR_ERRORS, build_experiment, explain
from pquant.errors import ConfigError
from pquant.installation import CONF
from pquant.pruning import NoPruning
from pquant.quantization import Quantization
from pquant.training.optimizer import check_steps, parameter_groups
from pquant.training.p_norm import PSGD, PAdam

CLASSES = {"Adam": (PAdam, torch.optim.Adam), "SGD": (PSGD, torch.optim.SGD)}


def stepped(cls: Any, gradients: torch.Tensor, start: torch.Tensor, **options: Any) -> torch.Tensor:
    weight = nn.Parameter(start.clone())
    optimizer = cls([weight], **options)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("p", [0.5, 1.0, 1.7, 2.0])
def test_each_weight_shrinks_by_the_factor_of_the_paper(p: float) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(50, dtype=torch.float64), torch.randn(4, 50, dtype=torch.float64)
    start[0] = 0.0
    expected = start.numpy().copy()
    for gradient in gradients.numpy():
        before = np.abs(expected)
        expected -= 0.1 * gradient
        with np.errstate(divide="ignore"):
            expected /= 1 + p * 0.1 * 0.05 * before ** (p - 2)
    given = stepped(PSGD, gradients, start, lr=0.1, weight_decay=0.05, p_norm=p)
    np.testing.assert_allclose(given.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
def test_without_decay_it_is_the_optimizer_of_torch(name: str) -> None:
    torch.manual_seed(1)
    start, gradients = torch.randn(20), torch.randn(5, 20)
    own, torchs = CLASSES[name]
    assert torch.equal(stepped(own, gradients, start, lr=0.01, p_norm=0.7), stepped(torchs, gradients, start, lr=0.01))


def test_for_p_2_it_is_decoupled_decay() -> None:
    torch.manual_seed(2)
    start = torch.randn(20, dtype=torch.float64)
    given = stepped(PAdam, torch.zeros(3, 20, dtype=torch.float64), start, lr=0.01, weight_decay=0.3, p_norm=2.0)
    torch.testing.assert_close(given, start / (1 + 2 * 0.01 * 0.3) ** 3, rtol=1e-12, atol=0)


def test_small_weights_go_and_large_ones_stay() -> None:
    left = stepped(PAdam, torch.zeros(200, 2), torch.tensor([0.01, 1.0]), lr=0.01, weight_decay=0.01, p_norm=0.5)
    assert left[0].abs() < 1e-6 and left[1] > 0.95


def test_no_learning_rate_no_decay_and_no_nan() -> None:
    start = torch.tensor([0.0, 1.0])
    assert stepped(PSGD, torch.ones(2, 2), start, lr=0.0, weight_decay=0.5).equal(start)


def test_bit_widths_and_thresholds_do_not_decay() -> None:
    net = pquant.compress(
        nn.Sequential(nn.Linear(3, 2)), NoPruning(), Quantization(use_hgq=True, default_weight_fractional_bits=4), torch.zeros(1, 3)
    )
    optimizer = PAdam(parameter_groups(net), lr=0.1, weight_decay=0.5)
    bits = {name: value.detach().clone() for name, value in net.named_parameters() if "quantizer" in name}
    weight = net[0].weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(dict(net.named_parameters())[name], value) for name, value in bits.items())
    assert (net[0].weight.abs() < weight.abs()).all()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize("p", [0.0, -1.0, 2.5, float("nan")])
def test_a_norm_out_of_range_is_an_error_before_training(p: float) -> None:
    scheduler = partial(torch.optim.lr_scheduler.ConstantLR, total_iters=1)
    with pytest.raises(ConfigError, match=r"optimizer: PAdam\(lr=0.1, p_norm=.*\) fails: ValueError: p_norm must be in \(0, 2\]"):
        check_steps(partial(PAdam, lr=0.1, p_norm=p), scheduler, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.fused=yes", "optimizer.fused must be true or false, got 'yes'"),
        ("+optimizer.p_nrm=1", "unknown argument of PAdam 'p_nrm': did you mean 'p_norm'"),
    ],
)
def test_wrong_settings_of_the_preset(override: str, message: str) -> None:
    with pytest.raises(CLEAR_ERRORS) as caught, initialize_config_dir(config_dir=str(CONF)):
        build_experiment(compose("config", overrides=["tracker=none", "optimizer=padam", override]))
    assert message in explain(caught.value)
