"""Trained fractional bits never end below ``min_frac_bits``; without it, or above it, they train as ever."""

import pytest
import torch
from torch import nn

import pquant
from pquant.pruning import NoPruning
from pquant.quantization import Quantization
from pquant.quantization.hgq import HGQQuantizer

BITS = {
    "use_hgq": True,
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 5,
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 2,
    "default_data_fractional_bits": 4,
    "granularity": "per_weight",
}


def trained(steps: int = 60, **fields: object) -> list[torch.Tensor]:
    """Return the fractional bits of all quantizers after steps of a loss that has nothing but bits."""
    torch.manual_seed(0)
    model = pquant.compress(nn.Linear(3, 2), NoPruning(), Quantization(**{**BITS, "hgq_gamma": 1.0, **fields}), torch.zeros(1, 3))
    pquant.set_stage(model, pquant.Stage.TRAIN)
    optimizer = torch.optim.SGD(pquant.parameter_groups(model), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 3))
        pquant.penalty(model).backward()
        optimizer.step()
        pquant.on_batch_end(model)
    return [module.f.detach() for module in model.modules() if isinstance(module, HGQQuantizer)]


@pytest.mark.parametrize("mode", ["SAT", "WRAP"])
def test_no_fractional_bits_end_below(mode: str) -> None:
    modes = {"overflow_mode_data": mode, "overflow_mode_parameters": mode}
    free, kept = trained(**modes), trained(min_frac_bits=2, **modes)
    assert min(float(f.min()) for f in free) < 2
    for without, with_floor in zip(free, kept, strict=True):
        assert float(with_floor.min()) >= 2
        assert torch.equal(with_floor[without >= 2], without[without >= 2])
    assert any(float(f.min()) == 2 for f in kept)


def test_a_floor_that_is_not_reached_changes_nothing() -> None:
    free, kept = trained(8), trained(8, min_frac_bits=-3)
    assert all(torch.equal(a, b) for a, b in zip(free, kept, strict=True))


def test_integer_bits_have_no_floor_and_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = pquant.compress(nn.Linear(3, 2), NoPruning(), Quantization(**BITS, min_frac_bits=4), torch.zeros(1, 3))
    for module in model.modules():
        if isinstance(module, HGQQuantizer):
            with torch.no_grad():
                module.f.fill_(-7.5)
                module.i.fill_(-7.5)
    pquant.on_batch_end(model)
    pquant.on_epoch_end(model)
    quantizers = [module for module in model.modules() if isinstance(module, HGQQuantizer)]
    assert quantizers and all((one.f == 4).all() and (one.i == -7.5).all() for one in quantizers)
    assert "left [-32, 32]" not in caplog.text


def test_a_rule_gives_one_tensor_its_own_floor() -> None:
    kept = trained(layer_specific={"*": {"weight": {"min_f": 3}}})
    assert sorted({round(float(f.min()), 3) >= 3 for f in kept}) == [False, True]
