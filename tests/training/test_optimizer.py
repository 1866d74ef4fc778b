from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pquant.training.optimizer import uncompiled

CHOICES = [
    partial(torch.optim.Adam, lr=1e-2, fused=True),
    partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
    partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    torch.optim.RMSprop,
]


class Halving(torch.optim.Optimizer):
    """A user's own optimizer, with a step that something is wrapped around."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.5)


def trained(make: Any, steps: int) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = make([{"params": [model.weight]}, {"params": [model.bias], "lr": 1e-1}])
    for x in torch.randn(steps, 8, 5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return optimizer, list(model.parameters())


@pytest.mark.parametrize("make", CHOICES)
def test_without_the_compiler_an_optimizer_does_the_same(make: Any) -> None:
    (plain, expected), (light, given) = trained(make, 5), trained(uncompiled(make), 5)
    assert all(map(torch.equal, expected, given))
    assert type(light).__name__ == type(plain).__name__ and isinstance(light, type(plain))
    torch.testing.assert_close(light.state_dict(), plain.state_dict(), rtol=0, atol=0)
    fresh, _ = trained(uncompiled(make), 0)
    fresh.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fresh.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_a_step_leaves_the_gradients_mode_as_it_was() -> None:
    optimizer, parameters = trained(uncompiled(torch.optim.SGD), 1)
    assert torch.is_grad_enabled() and all(parameter.is_leaf and parameter.requires_grad for parameter in parameters)
    with torch.no_grad():
        optimizer.step()
        assert not torch.is_grad_enabled()


def test_a_users_own_optimizer_stays_what_it_is() -> None:
    make = partial(Halving)
    assert uncompiled(make) is make
    assert uncompiled(Halving) is Halving
