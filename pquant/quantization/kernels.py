"""Quantization in one pass over float32 values in CPU memory, where tensor operations take ten.

A tensor is seen as (outer, formats, inner): formats differ along the middle axis alone. Values are those of the tensor operations, bit for bit; sums
over the values of one format may differ in their last bits, as they are added in another order.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Layout = tuple[int, int, int]
LONGEST_SUM = 4096


def take(x: Tensor, *bits: Any) -> bool:
    """Return whether the kernels take values, and bits of one shape for them: plain float32, each in a row in CPU memory, not being compiled."""
    if not all(map(_is_plain, (x, *bits))) or torch.compiler.is_compiling():
        return False
    return not bits or len({one.shape for one in bits}) == 1 and layout(x.shape, bits[0].shape) is not None


def _is_plain(x: Any) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.dtype is torch.float32 and x.device.type == "cpu" and x.is_contiguous()


@cache
def layout(values: torch.Size, bits: torch.Size) -> Layout | None:
    """Return (outer, formats, inner) of values whose bits have a shape that broadcasts with theirs; None where they can't be seen like that."""
    if len(bits) > len(values):
        return None
    bits = torch.Size((1,) * (len(values) - len(bits)) + tuple(bits))
    total, formats = math.prod(values), math.prod(bits)
    axes = [axis for axis, size in enumerate(bits) if size != 1]
    if not axes:
        inner = math.gcd(total, LONGEST_SUM)
        return total // max(inner, 1), 1, inner
    begin, end = axes[0], axes[-1] + 1
    if bits[begin:end] != values[begin:end]:
        return None
    outer = math.prod(values[:begin])
    return outer, formats, total // max(outer * formats, 1)


def snap_(x: Tensor, low: float, high: float, f: int, round_mode: str) -> None:
    """Bring the values of ``x`` into [low, high] and onto the grid of ``f`` fractional bits, in place."""
    from pquant.quantization import loops

    loops.snap(x.detach().numpy().reshape(-1), low, high, 2.0**f, 2.0**-f, loops.MODES[round_mode])


def quantized(x: Tensor, k: Tensor, i: Tensor, f: Tensor, round_mode: str, symmetric: bool) -> Tensor:
    """Return ``x`` in formats (k, i, f) of one shape, which saturate and give 0 where there are no bits; ``symmetric`` ones as SAT_SYM."""
    from pquant.quantization import loops

    out, shape = torch.empty_like(x), layout(x.shape, i.shape)
    loops.quantize(_seen(x, shape), _rows(k, i, f), symmetric, loops.MODES[round_mode], _seen(out, shape))
    return out


def gradients(g: Tensor, x: Tensor, k: Tensor, i: Tensor, f: Tensor, round_mode: str, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x`` and of trained bits ``i`` and ``f`` from that of the quantized values."""
    from pquant.quantization import loops

    dx, di, df, shape = torch.empty_like(x), torch.empty_like(i), torch.empty_like(f), layout(x.shape, i.shape)
    bits, results = _rows(k, i, f), (_seen(dx, shape), *_rows(di, df))
    loops.gradients(_seen(g.contiguous(), shape), _seen(x, shape), bits, symmetric, loops.MODES[round_mode], *results)
    return dx, di, df


def _seen(x: Tensor, shape: Layout | None) -> Any:
    return x.detach().numpy().reshape(shape)


def _rows(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.detach().numpy().reshape(-1) for tensor in tensors)
