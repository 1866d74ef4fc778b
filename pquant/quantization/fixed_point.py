"""Fixed-point values with the semantics of ``ap_fixed``: pure functions on tensors.

A format is ``k`` (keep negatives, 0 or 1), ``i`` integer bits without the sign and ``f`` fractional bits; ``i`` and ``f`` may be negative.
The step is 2^-f, the range [-k 2^i, 2^i - 2^-f], the width k + i + f bits; a value without bits is 0.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pquant.errors import unknown
from pquant.quantization import kernels

RoundMode = Literal["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"]
OverflowMode = Literal["SAT", "SAT_SYM", "WRAP", "WRAP_SM"]
Bits = int | Tensor


# Each rounds v = x * 2^f in place, given as 2v for the modes in DOUBLED: floor(v + 0.5) would round 0.49999997 to 1 in float32,
# while floor(2v) and its half are exact.
ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "TRN": torch.Tensor.floor_,
    "TRN_ZERO": torch.Tensor.trunc_,
    "RND": lambda v: v.floor_().mul_(0.5).ceil_(),
    "RND_CONV": torch.Tensor.round_,
    "RND_ZERO": lambda v: torch.copysign(v.abs().ceil_().mul_(0.5).floor_(), v, out=v),
    "RND_INF": lambda v: torch.copysign(v.abs().floor_().mul_(0.5).ceil_(), v, out=v),
    "RND_MIN_INF": lambda v: v.ceil_().mul_(0.5).floor_(),
}
DOUBLED = ("RND", "RND_ZERO", "RND_INF", "RND_MIN_INF")
SATURATING = ("SAT", "SAT_SYM")
WRAPPING = ("WRAP", "WRAP_SM")


def pow2(exponent: Any) -> Any:
    """Return 2^exponent exactly, for a number or an integer-valued tensor."""
    return torch.exp2(exponent) if isinstance(exponent, Tensor) else 2.0**exponent


def bounds(k: Bits, i: Bits, f: Bits, overflow_mode: str) -> tuple[Any, Any]:
    """Return the lowest and highest value of a format, numbers or tensors; both are 0 where it has no bits."""
    top = pow2(i)
    high = top - pow2(-f)
    low = -k * (high if overflow_mode == "SAT_SYM" else top)
    width = k + i + f
    if isinstance(width, Tensor):
        zero = torch.zeros_like(width)
        return torch.where(width > 0, low, zero), torch.where(width > 0, high, zero)
    return (float(low), float(high)) if width > 0 else (0.0, 0.0)


# For v >= 0 up to 2^23, floor(v + this) is half-up exactly, in one pass less than floor(2v) takes; for negative v it is not.
BELOW_HALF = 0.5 - 2.0**-25


@torch.no_grad()
def quantized(x: Tensor, k: Bits, i: Bits, f: Bits, round_mode: str, overflow_mode: str) -> Tensor:
    """Return the values of ``x`` in the format, without a gradient; see :func:`fixed_point`."""
    if overflow_mode not in SATURATING:
        return _wrapped(x, k, i, f, round_mode, overflow_mode)
    if kernels.take(x, k, i, f):
        return kernels.quantized(x, k, i, f, round_mode, overflow_mode == "SAT_SYM")  # type: ignore[arg-type]
    clipped = torch.clamp(x, *bounds(k, i, f, overflow_mode))
    if _are_tensors(k, i, f) or torch.compiler.is_compiling():
        return rounded(clipped, f, round_mode)
    return _round_(clipped, k, i, f, round_mode, overflow_mode)  # type: ignore[arg-type]


def _are_tensors(*bits: Bits) -> bool:
    return any(isinstance(one, Tensor) for one in bits)


def _round_(clipped: Tensor, k: int, i: int, f: int, round_mode: str, overflow_mode: str) -> Tensor:
    """Round values inside the range of a format in place."""
    scale, step, half = _factors(k, i, f, round_mode, overflow_mode)
    if half is not None and clipped.dtype == torch.float32:
        return torch.add(half, clipped, alpha=2.0**f, out=clipped).floor_().mul_(step)
    return ROUND[round_mode](clipped.mul_(scale)).mul_(step)


@cache
def _factors(k: int, i: int, f: int, round_mode: str, overflow_mode: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (scale, step, half) as 0-dim tensors, which multiply faster than Python numbers do.

    ``half`` is there where one addition rounds half up: float32 values without negatives.
    """
    unsigned = bounds(k, i, f, overflow_mode)[0] == 0.0
    half = torch.tensor(BELOW_HALF) if round_mode == "RND" and unsigned and k + i + f <= 23 else None
    return torch.tensor(2.0 ** (f + (round_mode in DOUBLED))), torch.tensor(2.0**-f), half


@torch.no_grad()
def rounded(x: Tensor, f: Bits, round_mode: str) -> Tensor:
    """Return ``x`` rounded to ``f`` fractional bits, however large."""
    return ROUND[round_mode](x * pow2(f + (round_mode in DOUBLED))).mul_(pow2(-f))


def _wrapped(x: Tensor, k: Bits, i: Bits, f: Bits, round_mode: str, overflow_mode: str) -> Tensor:
    if overflow_mode not in WRAPPING:
        raise ValueError(unknown("overflow mode", overflow_mode, SATURATING + WRAPPING))
    n = ROUND[round_mode](x.double() * pow2(f + (round_mode in DOUBLED)))
    count = pow2(k + i + f)
    low = -k * pow2(i + f)
    period = count if overflow_mode == "WRAP" else 2 * count
    n = torch.fmod(n, period)
    n = n + period * (n < low) - period * (n >= low + period)
    if overflow_mode == "WRAP_SM":
        top = low + count
        n = torch.where(n >= top, (top - 1) - (n - top), n)
    return n.mul_(pow2(-f)).mul_(k + i + f > 0).to(x.dtype)


@cache
def _open_bounds(k: int, i: int, f: int, overflow_mode: str, dtype: torch.dtype) -> tuple[float, float]:
    """Return the nearest values outside the range of a format, so that a strict comparison includes both its ends; without bits, nothing."""
    if k + i + f <= 0:
        return 0.0, 0.0
    low, high = (abs(bound) for bound in bounds(k, i, f, overflow_mode))
    limits = torch.finfo(dtype)
    step_low, step_high = (limits.eps * 2.0 ** (math.frexp(size)[1] - 1) if size else limits.tiny for size in (low, high))
    return -low - step_low, high + step_high


def straight_through(grad: Tensor, x: Tensor, k: Bits, i: Bits, f: Bits, overflow_mode: str) -> Tensor:
    """Return ``grad`` where ``x`` passes the format unclipped, and 0 where it saturates or the format has no bits.

    Compiled, it is made without a boolean tensor, which CPU kernels load and store twenty times as slowly as floats.
    """
    if overflow_mode not in SATURATING:
        return grad * (k + i + f > 0)
    if not (_are_tensors(k, i, f) or torch.compiler.is_compiling()):
        return torch.ops.aten.hardtanh_backward(grad, x, *_open_bounds(k, i, f, overflow_mode, x.dtype))  # type: ignore[arg-type]
    outside = torch.sub(x, torch.clamp(x, *bounds(k, i, f, overflow_mode))).sign_().abs_()
    return (grad - grad * outside) * (k + i + f > 0)


class FixedPoint(torch.autograd.Function):
    """q(x; k, i, f, round_mode, overflow_mode), straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Bits, i: Bits, f: Bits, round_mode: str, overflow_mode: str) -> Tensor:
        """Return the values."""
        ctx.save_for_backward(x)
        ctx.format = (k, i, f, overflow_mode)
        return quantized(x, k, i, f, round_mode, overflow_mode)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``x``, and nothing for the rest."""
        (x,) = ctx.saved_tensors
        return straight_through(grads[0], x, *ctx.format), None, None, None, None, None


def fixed_point(x: Tensor, k: Bits, i: Bits, f: Bits, round_mode: RoundMode = "RND", overflow_mode: OverflowMode = "SAT") -> Tensor:
    """Return ``x`` rounded to the format (k, i, f), as ``ap_fixed<k+i+f, i+k, round_mode, overflow_mode>`` holds it.

    Args:
        x: float tensor of any shape. Float32 is exact up to 24 bits of width; subnormal numbers may count as 0.
        k: 1 keeps negatives, 0 does not; a number, or a tensor that broadcasts with ``x``.
        i: integer bits without the sign, as a number or an integer-valued float tensor.
        f: fractional bits, likewise.
        round_mode: TRN (floor), TRN_ZERO, RND (half up), RND_CONV (half to even), RND_ZERO, RND_INF or RND_MIN_INF.
        overflow_mode: SAT clamps, SAT_SYM clamps to +-(2^i - 2^-f), WRAP is two's complement, WRAP_SM reflects.

    Returns:
        A tensor like ``x``. The gradient passes straight through, and is 0 where ``x`` saturates.

    Raises:
        KeyError: an unknown ``round_mode``.
        ValueError: an unknown ``overflow_mode``.
    """
    if overflow_mode in SATURATING and not (_are_tensors(k, i, f) or torch.compiler.is_compiling()):
        return _clipped_and_rounded(x, k, i, f, round_mode, overflow_mode)  # type: ignore[arg-type]
    return FixedPoint.apply(x, k, i, f, round_mode, overflow_mode)


def _clipped_and_rounded(x: Tensor, k: int, i: int, f: int, round_mode: str, overflow_mode: str) -> Tensor:
    """Clip with a gradient, then round in place behind autograd's back: what :class:`FixedPoint` does, without a Python call in backward."""
    y = F.hardtanh(x, *_open_bounds(k, i, f, overflow_mode, x.dtype))
    values = y.detach()
    if y.numel() >= LARGE and kernels.take(values):
        kernels.snap_(values, *bounds(k, i, f, overflow_mode), f, round_mode)
        return y
    if not _nearest_is_inside(k, i, f, round_mode, x.dtype):
        values.clamp_(*bounds(k, i, f, overflow_mode))
    _round_(values, k, i, f, round_mode, overflow_mode)
    return y


LARGE = 2**17
"""Number of values from which memory, and not the number of operations, is what time goes into."""


@cache
def _nearest_is_inside(k: int, i: int, f: int, round_mode: str, dtype: torch.dtype) -> bool:
    """Return whether the nearest values outside a format round to its ends."""
    return round_mode != "TRN" and 2.0 ** -(k + i + f) > 2 * torch.finfo(dtype).eps
