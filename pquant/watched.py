"""Modules that count their changes, so that what is derived from them may be kept until the next one."""

from collections.abc import Callable, Iterable
from operator import attrgetter, is_
from typing import Any, Self

import torch
from torch import Tensor, nn

_changes = [0]
DTYPE, IS_CPU = attrgetter("dtype"), attrgetter("is_cpu")


class Watched(nn.Module):
    """A module that counts each attribute set, and move to another device or dtype.

    Values written into its tensors do not count, nor does its mode, as every epoch goes from training to evaluation and back.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and count it unless it is the mode."""
        if name == "training":
            self.__dict__[name] = value
            return
        super().__setattr__(name, value)
        if not torch.compiler.is_compiling():
            _changes[0] += 1

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        _changes[0] += 1
        return super()._apply(fn, recurse)


def changes() -> int:
    """Return how many changes there were to all watched modules of the process."""
    return _changes[0]


class Unchanged:
    """Notes modules as they are now, so that :meth:`still` can say whether what was derived from them holds.

    It does until any watched module changes, or one of their tensors is exchanged, moved or cast behind its back; with ``used``, one of these.
    """

    def __init__(self, modules: Iterable[nn.Module], used: Iterable[Tensor] | None = None) -> None:
        holders: list[dict[str, Any]] = [holder for module in modules for holder in (module._parameters, module._buffers)]
        held = [(holder, name, tensor) for holder in holders for name, tensor in holder.items() if tensor is not None]
        if used is not None:
            places = set(map(id, used))
            held = [one for one in held if id(one[2]) in places]
        self.holders, self.names = [holder for holder, _, _ in held], [name for _, name, _ in held]
        self.tensors = [tensor for _, _, tensor in held]
        self.kinds, self.at = self._kinds(), changes()

    def _kinds(self) -> list[Any]:
        return [*map(DTYPE, self.tensors), *map(IS_CPU, self.tensors)]

    def still(self) -> bool:
        """Return whether nothing has changed."""
        if self.at != _changes[0]:
            return False
        return all(map(is_, map(dict.get, self.holders, self.names), self.tensors)) and self._kinds() == self.kinds
