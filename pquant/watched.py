"""Modules that count their changes, so that what is derived from them may be kept until the next one."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn

_changes = [0]


class Watched(nn.Module):
    """A module that counts each attribute set, mode changed, and move to another device or dtype; values written into its tensors do not count."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and count it."""
        super().__setattr__(name, value)
        if not torch.compiler.is_compiling():
            _changes[0] += 1

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        _changes[0] += 1
        return super()._apply(fn, recurse)


def changes() -> int:
    """Return how many changes there were to all watched modules of the process."""
    return _changes[0]
