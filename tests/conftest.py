"""One thread for torch: the tensors of tests are small, and threads that wait for each other are most of the time otherwise.

Hypothesis sets no deadline: the first call of an operation pays for loading it. It draws the same inputs in every run, and new ones with NIGHTLY=1.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch.utils._python_dispatch import TorchDispatchMode

from .command_server import Commands

torch.set_num_threads(1)
settings.register_profile("pquant", deadline=None, derandomize=os.environ.get("NIGHTLY") != "1")
settings.load_profile("pquant")


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    """Yield what runs commands as a user gives them, without the seconds that imports take."""
    with Commands() as server:
        yield server


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
