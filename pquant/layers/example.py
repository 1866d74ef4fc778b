"""Example inputs of a model."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from pquant.errors import ConfigError

Example = Tensor | tuple[Any, ...] | dict[str, Any]
"""A batch as a model takes it: a tensor, a tuple of arguments, or a dictionary of keyword arguments."""


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of an example. Tensors are copied, since a model may write into its input.

    Raises:
        ConfigError: an example of another type.
    """
    if not isinstance(example, (Tensor, tuple, dict)):
        raise ConfigError(
            "example_input, or a batch, must be a tensor, a tuple of the arguments of the model or a dict of its keyword arguments,"
            f" got a {type(example).__name__}"
        )
    example = tree_map_only(Tensor, torch.clone, example)
    return ((), example) if isinstance(example, dict) else (example if isinstance(example, tuple) else (example,), {})


@contextmanager
def same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Restore the random states of torch (on the CPU and the model's GPUs), numpy and Python on exit."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices={parameter.device for parameter in model.parameters() if parameter.is_cuda}):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def materialize(model: nn.Module, example: Example) -> None:
    """Initialize lazy modules in place, with the shapes and parameters that they get in a forward on the example."""
    if not any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        return
    twin, (args, kwargs) = copy.deepcopy(model), arguments(example)
    twin.eval()
    with torch.no_grad(), same_random_numbers(model):
        twin(*args, **kwargs)
    pairs = list(zip(model.modules(), twin.modules(), strict=True))
    for module, made in [pair for pair in pairs if isinstance(pair[0], LazyModuleMixin)]:
        made.training = module.training
        module.__class__, module.__dict__ = type(made), vars(made)


def resized(example: Example, axis: int, count: int) -> Example:
    """Return the example with ``count`` elements along an axis, in all tensors that have the same length there as the first tensor.

    Raises:
        IndexError: the example has no tensor, or ``axis`` is the last axis of the first tensor or beyond it.
    """
    first = tensors_in(example)[0]
    length = first.shape[: first.ndim - 1][axis]
    order = torch.arange(count) % length

    def of_count(x: Tensor) -> Tensor:
        return x.index_select(axis, order.to(x.device)) if x.ndim > axis and x.shape[axis] == length else x

    return tree_map_only(Tensor, of_count, example)


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists, dictionaries and other containers that ``torch.utils._pytree`` knows."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
