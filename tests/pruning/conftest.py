"""What the tests of several methods need."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _NoHostSync(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_host_sync() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which reading a tensor's value from Python (``item``, ``if``, ``float``) fails."""

    @contextmanager
    def context() -> Iterator[None]:
        with _NoHostSync():
            yield

    return context
