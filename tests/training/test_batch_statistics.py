"""Batch norms over processes, in a group of one, where they must be what torch computes."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import pquant
from pquant.layers.norm import synchronize
from pquant.pruning import NoPruning
from pquant.quantization import Quantization
from pquant.training import distributed
from pquant.training.compile import COMPUTED_ONCE

from ..formats import EIGHT_BITS


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step(norm: nn.Module, x: Tensor, followed: bool) -> list[Tensor]:
    """Return the output of a training step, the gradients of input and parameters, and the running statistics."""
    model = pquant.compress(nn.Sequential(norm), NoPruning(), EIGHT_BITS if followed else Quantization(enable_quantization=False), x)
    model.train()
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    layer = next(module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    grads = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
    return [y.detach(), x.grad, *grads, layer.running_mean, layer.running_var]  # type: ignore[list-item]


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d, (16, 3)), (nn.BatchNorm1d, (8, 3, 5)), (nn.BatchNorm2d, (4, 3, 5, 2))])
def test_statistics_over_processes_are_torchs(
    norm: type[nn.Module], shape: tuple[int, ...], quantized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 1
    expected = step(norm(3), x, quantized)
    compress = pquant.compress

    def synchronized(*arguments: object) -> nn.Module:
        model = compress(*arguments)  # type: ignore[arg-type]
        with monkeypatch.context() as two:
            two.setattr(distributed, "count", lambda: 2)
            synchronize(model)
        return model

    monkeypatch.setattr(pquant, "compress", synchronized)
    found = step(norm(3), x, quantized)
    assert len(found) == len(expected) >= 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_single_process_is_not_synchronized() -> None:
    model = pquant.compress(nn.Sequential(nn.BatchNorm1d(3)), NoPruning(), EIGHT_BITS, torch.randn(4, 3))
    synchronize(model)
    assert not any(getattr(module, "synchronized", False) for module in model.modules())


@pytest.mark.slow
def test_compiled_steps_give_the_gradients_of_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    eager = pquant.compress(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)), NoPruning(), EIGHT_BITS, x).train()
    monkeypatch.setattr(distributed, "count", lambda: 2)
    synchronize(eager)
    other = copy.deepcopy(eager)
    compiled = torch.compile(lambda x, y: nn.functional.cross_entropy(other(x), y), dynamic=False, options=COMPUTED_ONCE)
    for _ in range(3):
        nn.functional.cross_entropy(eager(x), y).backward()
        compiled(x, y).backward()
    for (name, one), two in zip(eager.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]
    for (name, one), two in zip(eager.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]
