"""Handling of values that are not finite: the step is undone, or the run stops and names the first such value."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from pquant.data.batches import Batches

Step = Callable[..., tuple[Tensor, ...]]
"""A function that makes an optimizer step on a batch: inputs, targets and weights, if any.

It returns the losses (task, penalty and, with a teacher, distillation) and whether the inputs were finite.
"""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Return whether all values are finite, a boolean scalar on their device."""
    return torch.isfinite(get_total_norm(tensors, float("inf")))


def trained(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters, and the state tensors of the optimizer on their device."""
    parameters = [parameter.detach() for parameter in model.parameters()]
    return [
        tensor for tensor in chain(parameters, _memory(optimizer).values()) if tensor.is_floating_point() and tensor.device == parameters[0].device
    ]


class SkipStep:
    """Makes steps, and undoes a step in which data, loss, gradients or weights are not finite.

    Undoing restores parameters, buffers and momenta. The decision is made on the device, so that the CPU never waits. A skipped step has losses of 0.
    """

    def __init__(self, step: Step, model: nn.Module, optimizer: Optimizer) -> None:
        self.step, self.model, self.optimizer = step, model, optimizer

    def __call__(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """Make a step and return its losses, which are 0 if the step was undone, and, as a last tensor, whether it was kept."""
        before = {key: tensor.clone() for key, tensor in self._tensors().items()}
        *losses, good = self.step(*batch)
        good = good & torch.isfinite(sum(losses, torch.zeros_like(losses[0]))) & all_finite(trained(self.model, self.optimizer))
        for key, tensor in self._tensors().items():
            tensor.copy_(torch.where(good, tensor, before.get(key, 0)))
        return *(torch.where(good, loss, 0) for loss in losses), good

    def _tensors(self) -> dict[Any, Tensor]:
        tensors = chain(self.model.named_parameters(), self.model.named_buffers(), _memory(self.optimizer).items())
        device = next(self.model.parameters()).device
        return {key: tensor.detach() for key, tensor in tensors if tensor.device == device}


def _memory(optimizer: Optimizer) -> dict[Any, Tensor]:
    return {
        (id(parameter), name): value for parameter, state in optimizer.state.items() for name, value in state.items() if isinstance(value, Tensor)
    }


@dataclass(frozen=True)
class Diagnosis:
    """Repeats the steps of an epoch and checks every value, to find the first that is not finite.

    Args:
        model: the model, in its state at the start of the epoch.
        optimizer: the optimizer, in its state at the start of the epoch.
        losses: computes the losses of a batch: task, penalty and, with a teacher, distillation.
        total: computes the total loss, which a step differentiates, from these losses.
        update: makes the update of the optimizer and of the pruners.
    """

    model: nn.Module
    optimizer: Optimizer
    losses: Callable[..., tuple[Tensor, ...]]
    total: Callable[[tuple[Tensor, ...]], Tensor]
    update: Callable[[], None]

    def locate(self, batches: Batches, device: torch.device) -> str | None:
        """Return the first value that is not finite in an epoch over ``batches``, and its step; None if all values are finite this time."""
        self.model.train()
        with _first_bad_output(self.model) as layers:
            for number, batch in enumerate(batches, 1):
                what = self._step([tensor.to(device) for tensor in batch], layers)
                if what:
                    return f"{what} in step {number} of {len(batches)}"
        return None

    def _step(self, batch: list[Tensor], layers: list[str]) -> str | None:
        """Make a step; return the first value that is not finite in it, or None."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in batch):
            return "the data are not finite"
        losses = self.losses(*batch)
        if layers:
            return f"the output of layer '{layers[0]}' is not finite"
        self.optimizer.zero_grad()
        self.total(losses).backward()
        for name, value in zip(("loss", "penalty", "distillation loss"), losses, strict=False):
            if not bool(torch.isfinite(value)):
                return f"the {name} is not finite"
        parameters = dict(self.model.named_parameters())
        for name, parameter in reversed(parameters.items()):
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"the gradient of '{name}' is not finite"
        self.update()
        for name, parameter in parameters.items():
            if not bool(all_finite([parameter.detach(), *_floats(self.optimizer.state.get(parameter, {}).values())])):
                return f"'{name}' or its momentum is not finite after the update"
        return None


def _floats(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


@contextmanager
def _first_bad_output(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that collects the names of modules whose outputs are not finite, innermost modules first."""
    bad: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if not all(bool(torch.isfinite(tensor).all()) for tensor in _floats(output if isinstance(output, tuple) else (output,))):
                bad.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield bad
    finally:
        for handle in handles:
            handle.remove()
