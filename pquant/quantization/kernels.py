"""Quantization in one pass over float32 values in CPU memory, where tensor operations take ten.

A tensor is seen as (outer, formats, inner): formats differ along the middle axis alone. Values are those of the tensor operations, bit for bit; sums
over the values of one format may differ in their last bits, as they are added in another order.
"""

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pquant.course import Rows
from pquant.flat import Layout, addresses, is_plain
from pquant.flat import layout as flat_layout

MODES = {"RND": 0, "RND_CONV": 1, "TRN": 2, "TRN_ZERO": 3, "RND_ZERO": 4, "RND_INF": 5, "RND_MIN_INF": 6}
Format = tuple[float, float, float, float, int]
"""Lowest and highest value, 2^f, 2^-f and the place of the round mode in ``MODES``."""


@cache
def loops() -> ModuleType:
    """Return :mod:`pquant.quantization.loops`, which takes half a second to load."""
    from pquant.quantization import loops

    return loops


def take(x: Tensor, *bits: Any) -> bool:
    """Return whether the kernels take values, and bits of one shape for them: plain float32 in a row in CPU memory, neither compiled nor traced."""
    if not is_plain(x) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not bits or all(map(is_plain, bits)) and len({one.shape for one in bits}) == 1 and layout(x.shape, bits[0].shape) is not None


@cache
def layout(values: torch.Size, bits: torch.Size) -> Layout | None:
    """Return :func:`pquant.flat.layout` of values and their bits; with one format for all, in rows that are not too long to be summed in float32."""
    found = flat_layout(values, bits)
    if found is None or found[:2] != (1, 1):
        return found
    inner = math.gcd(found[2], loops().LONGEST_SUM)
    return found[2] // max(inner, 1), 1, inner


def snapped(x: Tensor, format: Format, out: Tensor | None = None) -> Tensor:
    """Return the values of ``x`` brought into a format; in ``out``, which is not ``x``, if given."""
    out = torch.empty_like(x) if out is None else out
    loops().snapped(x.numel(), *format, x.data_ptr(), out.data_ptr())
    return out


def snapped_and_passing(x: Tensor, format: Format, passing: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return what :func:`snapped` gives, and which values of ``x`` lie between the two of ``passing``."""
    out, passes = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
    loops().snapped_and_passing(x.numel(), *format, x.data_ptr(), out.data_ptr(), *passing, passes.data_ptr())
    return out, passes


def masked(grad: Tensor, passes: Tensor) -> Tensor:
    """Return ``grad`` where it passes, else 0."""
    if not take(grad) or grad.requires_grad:
        return torch.where(passes, grad, 0)
    out = torch.empty_like(grad)
    loops().masked(grad.numel(), *addresses(grad, passes, out))
    return out


def snapped_end_to_end(parts: Sequence[Tensor], format: Format, passing: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return what :func:`snapped_and_passing` gives, for several tensors end to end."""
    total = sum(part.numel() for part in parts)
    out, passes = torch.empty(total), torch.empty(total, dtype=torch.bool)
    loops().snapped_end_to_end(*_held(parts), format, passing, addresses(out, passes))
    return out, passes


def masked_end_to_end(grads: Sequence[Tensor], passes: Tensor) -> Tensor:
    """Return what :func:`masked` gives, for several tensors end to end."""
    out = torch.empty(len(passes))
    loops().masked_end_to_end(*_held(grads), *addresses(passes, out))
    return out


def snapped_each(x: Tensor, rows: Tensor, shape: Layout, round_mode: str) -> Tensor:
    """Return what :func:`pquant.quantization.fixed_point.fitted` does, for values seen in a ``shape``."""
    out = torch.empty_like(x)
    loops().snapped_each(x.numel(), *shape, x.data_ptr(), rows.data_ptr(), MODES[round_mode], out.data_ptr())
    return out


def quantized(x: Tensor, k: Tensor | bool, i: Tensor, f: Tensor, round_mode: str, symmetric: bool) -> Tensor:
    """Return ``x`` in formats (k, i, f) of one shape, bits rounded, which saturate and give 0 where there are no bits; ``symmetric`` as SAT_SYM."""
    out = torch.empty_like(x)
    given, modes = addresses(x, _signs(k, i.numel()), i, f), (symmetric, MODES[round_mode])
    loops().quantize(x.numel(), *_seen(x, i), *given, *modes, out.data_ptr())
    return out


def gradients(g: Tensor, x: Tensor, i: Tensor, f: Tensor, k: bool, round_mode: str, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x`` and of trained bits ``i`` and ``f`` from that of the quantized values."""
    g, dx, di, df = g.contiguous(), torch.empty_like(x), torch.empty_like(i), torch.empty_like(f)
    outer, formats, inner = _seen(x, i)
    sums = torch.empty(-(-outer // loops().ROWS) if inner == 1 else outer, 3, formats)
    bits = addresses(_signs(k, formats), i, f)
    loops().slopes(x.numel(), outer, formats, inner, *addresses(g, x), *bits, symmetric, MODES[round_mode], *addresses(dx, sums))
    loops().settled(len(sums), formats, (*bits, sums.data_ptr()), symmetric, addresses(di, df))
    return dx, di, df


def quantized_in_rows(parts: Sequence[Tensor], i: Rows, f: Rows, k: bool, round_mode: str, symmetric: bool) -> Tensor:
    """Return what :func:`quantized` gives, for several tensors end to end."""
    held, out = _held(parts), torch.empty(sum(part.numel() for part in parts))
    where, modes = (i.addresses, f.addresses), (k, symmetric, MODES[round_mode])
    loops().quantize_in_rows(held, where, i.counts, i.repeats, modes, out.data_ptr())
    return out


def gradients_in_rows(
    grads: Sequence[Tensor], parts: Sequence[Tensor], i: Rows, f: Rows, k: bool, round_mode: str, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`gradients` gives, each end to end."""
    dx, di, df = torch.empty(sum(part.numel() for part in parts)), torch.empty(i.total), torch.empty(f.total)
    where, modes = (i.addresses, f.addresses), (k, symmetric, MODES[round_mode])
    loops().gradients_in_rows(_held(grads), _held(parts), where, i.counts, i.repeats, modes, addresses(dx, di, df))
    return dx, di, df


Array = np.ndarray[Any, Any]


def _held(parts: Sequence[Tensor]) -> tuple[Array, Array]:
    """Return addresses and lengths."""
    return np.array(addresses(*parts)), np.array([part.numel() for part in parts])


def _seen(x: Tensor, bits: Tensor) -> Layout:
    """Return the layout of values and bits that :func:`take` takes."""
    found = layout(x.shape, bits.shape)
    assert found
    return found


def _signs(k: Tensor | bool, count: int) -> Tensor:
    return _all(float(k), count) if isinstance(k, bool) else k


@cache
def _all(value: float, count: int) -> Tensor:
    return torch.full((count,), value)
