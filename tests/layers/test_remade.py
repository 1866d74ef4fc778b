"""What layers keep of activations that are quantized to trained bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import pquant
from pquant.layers import remade
from pquant.quantization import Quantization
from pquant.quantization.hgq import HGQQuantizer

BITS = {"use_hgq": True, "hgq_beta": 1e-6, "default_data_keep_negatives": True, "default_data_integer_bits": 2, "default_data_fractional_bits": 4}
SECTIONS = {
    "per tensor": Quantization(**BITS),
    "per channel": Quantization(**BITS, data_granularity="per_channel", granularity="per_channel"),
    "wrapping": Quantization(**BITS, overflow_mode_data="WRAP"),
    "outputs too": Quantization(**BITS, quantize_output=True),
}


class Residual(nn.Module):
    """Convolutions of which two see the same quantized values, and dense layers over (batch, time, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.one, self.other, self.dense = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        return self.dense(self.relu(self.one(x) + self.other(x)).flatten(1, 2))


def model(section: str = "per tensor") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(6, 2, 8, 8)
    made = pquant.compress(Residual(), None, SECTIONS[section], x).train()
    pquant.set_stage(made, pquant.Stage.TRAIN, pquant.Horizon(2, 2))
    return made, x


def stepped(made: nn.Module, x: Tensor, times: int = 1) -> list[Tensor]:
    """Return the output, and all gradients of ``times`` times backward."""
    y = made(x)
    for turn in range(times):
        y.float().square().sum().backward(retain_graph=turn + 1 < times)
    return [y, *(parameter.grad for parameter in made.parameters() if parameter.grad is not None)]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    return lambda yes: monkeypatch.setattr(remade, "WORTH_IT", 1 if yes else torch.inf)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("section", SECTIONS)
def test_outputs_and_gradients_are_bit_for_bit_those_of_values_that_are_kept(always: Any, section: str, bf16: bool, times: int) -> None:
    results = []
    for yes in (True, False):
        always(yes)
        made, x = model(section)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            results.append(stepped(made, x, times))
    assert len(results[0]) == len(results[1]) > 10
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("yes", [True, False])
def test_quantized_values_are_let_go_after_the_layer(always: Any, yes: bool) -> None:
    always(yes)
    made, x = model()
    seen: list[StorageWeakRef] = []
    for name, module in made.named_modules():
        if isinstance(module, HGQQuantizer) and name.endswith("input_quantizer"):
            module.register_forward_hook(lambda module, given, q: seen.append(StorageWeakRef(q.untyped_storage())))
    y = made(x)
    assert len(seen) == 4 and y.requires_grad
    assert all(storage.expired() for storage in seen) is yes


def test_small_values_are_kept() -> None:
    made, x = model()
    assert x.numel() < remade.WORTH_IT
    q = made.first.input_quantizer(x)
    assert remade.remade(q) is remade.NOTHING and remade.remade(x) is remade.NOTHING
    large = made.first.input_quantizer(torch.randn(64, 2, 12, 12))
    assert remade.remade(large) is not remade.NOTHING and remade.remade(large.detach()) is remade.NOTHING


@pytest.mark.parametrize("which", ["bits", "weight"])
def test_what_has_changed_since_forward_is_refused(always: Any, which: str) -> None:
    always(True)
    quantizer, kept = model()[0].first.input_quantizer, torch.ones(2, 1, 1, requires_grad=True)
    q = quantizer(torch.randn(2, 2, 8, 8, requires_grad=True))
    with remade.remade(q):
        total = (q * kept).sum()
    with torch.no_grad():
        (kept if which == "weight" else quantizer.f).add_(1)
    with pytest.raises(RuntimeError, match="changed in place|modified by an inplace"):
        total.backward()


def test_a_second_backward_needs_the_graph() -> None:
    made, x = model()
    y = made(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
