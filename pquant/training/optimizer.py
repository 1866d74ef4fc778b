"""Parameter groups of the optimizer, and checks of optimizer and scheduler."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pquant.errors import ConfigError
from pquant.layers.activation import PQActivation
from pquant.pruning.method import Pruner
from pquant.quantization.quantizer import Quantizer

Groups = list[dict[str, Any]]
DRY_STEPS, MOST_DRY_STEPS = 2, 10_000


def check_steps(optimizer: Callable[[Groups], Optimizer], scheduler: Callable[[Optimizer], LRScheduler], epochs: int) -> None:
    """Check the settings of an optimizer and a scheduler: build both for a small parameter, and run two steps and all ``epochs`` (up to 10,000).

    Libraries check some arguments only in a step, and some schedules have a fixed length.

    Raises:
        ConfigError: optimizer or scheduler cannot be built or fails in a step; the message has its arguments.
    """
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.zeros(2, 2)
    with _blaming("optimizer", optimizer):
        steps = optimizer([{"params": [parameter]}])
    with _blaming("scheduler", scheduler):
        schedule = scheduler(steps)
    for epoch in range(max(DRY_STEPS, min(epochs, MOST_DRY_STEPS))):
        with _blaming("optimizer", optimizer):
            if epoch < DRY_STEPS:
                steps.step()
        with _blaming("scheduler", scheduler):
            follow_schedule(schedule, 1.0)
            if not all(math.isfinite(group["lr"]) for group in steps.param_groups):
                raise ValueError("the learning rate is not finite")


def follow_schedule(scheduler: LRScheduler, loss: float | None) -> None:
    """Make the scheduler's step after one epoch. ``ReduceLROnPlateau`` uses the validation ``loss``, and makes no step without one (None)."""
    if isinstance(scheduler, ReduceLROnPlateau):
        if loss is not None:
            scheduler.step(loss)
    else:
        scheduler.step()


@contextmanager
def _blaming(section: str, made: Callable[..., Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        name = getattr(getattr(made, "func", made), "__name__", "it")
        given = ", ".join(f"{key}={value!r}" for key, value in getattr(made, "keywords", {}).items())
        raise ConfigError(f"{section}: {name}({given}) fails: {type(error).__name__}: {' '.join(str(error).split())}") from error


def parameter_groups(model: nn.Module) -> Groups:
    """Return the optimizer groups: the model's parameters with the options of the optimizer; thresholds, scores and bit widths with their own.

    Parameters of pruning and quantization have no weight decay unless the method sets one (``threshold_decay``).
    """
    groups: Groups = []
    taken: set[int] = set()
    for module in model.modules():
        if isinstance(module, (Pruner, Quantizer)):
            options: dict[str, Any] = dict(module.optimizer_options)
            own = [parameter for parameter in module.parameters() if id(parameter) not in taken]
        elif isinstance(module, PQActivation) and module.multiplier is not None:
            options, own = {"weight_decay": 0.0}, [module.multiplier]
        else:
            continue
        taken.update(map(id, own))
        _group(groups, options)["params"].extend(own)
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken and parameter.requires_grad]
    return [{"params": rest}] + [group for group in groups if group["params"]]


def _group(groups: Groups, options: dict[str, Any]) -> dict[str, Any]:
    for group in groups:
        if {key: value for key, value in group.items() if key != "params"} == options:
            return group
    groups.append({"params": [], **options})
    return groups[-1]
