"""What the package's autograd functions share."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Forward = TypeVar("Forward", bound=Callable[..., Any])


def with_signature(forward: Forward) -> Forward:
    """Store the signature of the ``forward`` of a ``torch.autograd.Function``.

    PyTorch asks for it in every call of a function that has a ``setup_context``, and deriving it takes longer than an operation on a small tensor.
    """
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward
