"""A state with its tensors end to end: it is copied and written in a fraction of the time that many small tensors take."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

Packed = dict[str, Any]


@torch.no_grad()
def pack(state: Any) -> Packed:
    """Return a copy of a state: tensors, in nested dictionaries, lists and tuples, and plain values, none of them a ``torch.Size``.

    The tensors of a kind lie end to end, ``"flat"`` by the kind's name, with ``"kinds"`` naming that of each in turn; ``"frame"`` is the state with
    their shapes in their places. A tensor whose values are in no row is copied as it is.
    """
    sizes: dict[torch.Size, torch.Size] = {}
    names: dict[tuple[torch.dtype, torch.device], str] = {}
    tensors: dict[str, list[Tensor]] = {}
    kinds: list[str] = []

    def framed(value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.is_contiguous():
                return value.detach().clone()
            kind = value.dtype, value.device
            name = names.get(kind) or names.setdefault(kind, f"{value.dtype} {value.device}")
            tensors.setdefault(name, []).append(value)
            kinds.append(name)
            return sizes.setdefault(value.shape, value.shape)
        return _mapped(framed, value)

    frame = framed(state)
    return {"frame": frame, "kinds": kinds, "flat": {name: _end_to_end(part) for name, part in tensors.items()}}


def unpack(packed: Packed) -> Any:
    """Return the state that was packed; its tensors are copies."""
    kinds, begins = iter(packed["kinds"]), dict.fromkeys(packed["flat"], 0)

    def filled(value: Any) -> Any:
        if isinstance(value, torch.Size):
            kind = next(kinds)
            begin = begins[kind]
            begins[kind] += value.numel()
            return packed["flat"][kind][begin : begins[kind]].view(value).clone()
        return value.clone() if isinstance(value, Tensor) else _mapped(filled, value)

    return filled(packed["frame"])


def _end_to_end(tensors: list[Tensor]) -> Tensor:
    flat = _flatten_dense_tensors(tensors)
    return flat.clone() if len(tensors) == 1 else flat  # of one alone it is a view


def _mapped(change: Any, value: Any) -> Any:
    if isinstance(value, dict):
        new = copy.copy(value)
        for key, item in value.items():
            new[key] = change(item)
        return new
    return type(value)(map(change, value)) if type(value) in (list, tuple) else value
