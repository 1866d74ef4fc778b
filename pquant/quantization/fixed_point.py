"""Fixed-point values with the semantics of ``ap_fixed``: pure functions on tensors.

A format is ``k`` (keep negatives, 0 or 1), ``i`` integer bits without the sign and ``f`` fractional bits; ``i`` and ``f`` may be negative.
The step is 2^-f, the range [-k 2^i, 2^i - 2^-f], the width k + i + f bits; a value without bits is 0.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pquant.course import Each, InRows
from pquant.errors import unknown
from pquant.flat import is_plain
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
    """Return 2^exponent exactly, for a number or an integer-valued tensor; float32 ones are made from their bits where that is compiled."""
    if not isinstance(exponent, Tensor):
        return 2.0**exponent
    if torch.compiler.is_compiling() and exponent.dtype is torch.float32:
        return ((exponent.clamp(-126, 127).to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.exp2(exponent)


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


LARGE = 2**16
"""Number of values from which a mask of one byte a value costs no more time than a copy of the values, for all that it needs a call into Python."""

# For v >= 0 up to 2^23, floor(v + this) is half-up exactly, in one pass less than floor(2v) takes; for negative v it is not.
BELOW_HALF = 0.5 - 2.0**-25


@torch.no_grad()
def quantized(x: Tensor, k: Bits, i: Bits, f: Bits, round_mode: str, overflow_mode: str) -> Tensor:
    """Return the values of ``x`` in the format, without a gradient; see :func:`fixed_point`."""
    if overflow_mode not in SATURATING:
        return _wrapped(x, k, i, f, round_mode, overflow_mode)
    if _are_tensors(k, i, f):
        if kernels.take(x, k, i, f):
            return kernels.quantized(x, k, i, f, round_mode, overflow_mode == "SAT_SYM")  # type: ignore[arg-type]
        return rounded(torch.clamp(x, *bounds(k, i, f, overflow_mode)), f, round_mode)
    if torch.compiler.is_compiling():
        return rounded(torch.clamp(x, *bounds(k, i, f, overflow_mode)), f, round_mode)
    return saturating(k, i, f, round_mode, overflow_mode, x.dtype)(x)


def _are_tensors(k: Bits, i: Bits, f: Bits) -> bool:
    return isinstance(k, Tensor) or isinstance(i, Tensor) or isinstance(f, Tensor)


@torch.no_grad()
def rounded(x: Tensor, f: Bits, round_mode: str) -> Tensor:
    """Return ``x`` rounded to ``f`` fractional bits, however large."""
    return ROUND[round_mode](x * pow2(f + (round_mode in DOUBLED))).mul_(pow2(-f))


def in_rows(k: Tensor, i: Tensor, f: Tensor, overflow_mode: str) -> Tensor:
    """Return what :func:`fitted` needs to know of saturating formats of one shape: lowest and highest value, 2^f and 2^-f, (4, *shape)."""
    top, step, some = pow2(i), pow2(-f), (k + i + f > 0).to(i.dtype)
    high = some * (top - step)
    return torch.stack([some * -k * (high if overflow_mode == "SAT_SYM" else top), high, pow2(f), step])


def fitted(x: Tensor, rows: Tensor, round_mode: str) -> Tensor:
    """Return the values of ``x``, without a gradient, in the formats of which :func:`in_rows` has given the rows."""
    low, high, scale, step = rows.unbind()
    return ROUND[round_mode](torch.clamp(x, low, high) * (scale * 2 if round_mode in DOUBLED else scale)) * step


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


def straight_through(grad: Tensor, x: Tensor, k: Bits, i: Bits, f: Bits, overflow_mode: str) -> Tensor:
    """Return ``grad`` where ``x`` passes the format unclipped, and 0 where it saturates or the format has no bits.

    Compiled, it is made without a boolean tensor, which CPU kernels load and store twenty times as slowly as floats.
    """
    if overflow_mode not in SATURATING:
        return grad * (k + i + f > 0)
    if not (_are_tensors(k, i, f) or torch.compiler.is_compiling()):
        return saturating(k, i, f, "RND", overflow_mode, x.dtype).gradient(grad, x)
    outside = torch.sub(x, torch.clamp(x, *bounds(k, i, f, overflow_mode))).sign_().abs_()
    return (grad - grad * outside) * (k + i + f > 0)


class FixedPoint(InRows):
    """q(x; k, i, f, round_mode, overflow_mode), straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Bits, i: Bits, f: Bits, round_mode: str, overflow_mode: str) -> Tensor:
        """Return the values in the format."""
        ctx.save_for_backward(x)
        ctx.format = (k, i, f, overflow_mode)
        return quantized(x, k, i, f, round_mode, overflow_mode)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of what was not clipped."""
        (x,) = ctx.saved_tensors
        return straight_through(grads[0], x, *ctx.format), None, None, None, None, None

    @staticmethod
    def takes_rows(each: Each) -> bool:
        """Return whether there is one saturating format."""
        return not each.beside and each.settings[-1] in SATURATING

    @staticmethod
    def forward_in_rows(ctx: Any, parts: Sequence[Tensor], *given: Any) -> Tensor:
        """Return the values in the format, and keep a byte for each that says whether it passes."""
        one = saturating(*given, torch.float32)
        values, ctx.passes = kernels.snapped_end_to_end(parts, one.format, (one.below, one.above))
        return values

    @staticmethod
    def backward_in_rows(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Return the gradient of what was not clipped."""
        return (kernels.masked_end_to_end(grads, ctx.passes),)


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
        return saturating(k, i, f, round_mode, overflow_mode, x.dtype)(x)
    return FixedPoint.apply(x, k, i, f, round_mode, overflow_mode)


class _Masked(torch.autograd.Function):
    """A saturating format for large tensors of which loops over memory take the values: all that it keeps is what passes, one byte a value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, one: "Saturating") -> Tensor:
        values, passes = kernels.snapped_and_passing(x, one.format, (one.below, one.above))
        ctx.save_for_backward(passes)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return kernels.masked(grads[0], *ctx.saved_tensors), None


class Saturating:
    """One saturating format of whole numbers for values of one dtype, with all that its operations need at hand.

    Small tensors are clipped with a gradient, then overwritten behind autograd's back, so that backward takes no call into Python.
    """

    def __init__(self, k: int, i: int, f: int, round_mode: str, overflow_mode: str, dtype: torch.dtype) -> None:
        self.arguments = k, i, f, round_mode, overflow_mode, dtype
        self.low, self.high = bounds(k, i, f, overflow_mode)
        self.f, self.format = f, (self.low, self.high, 2.0**f, 2.0**-f, kernels.MODES[round_mode])
        limits = torch.finfo(dtype)
        self.below, self.above = 0.0, 0.0
        if k + i + f > 0:
            step_low, step_high = (limits.eps * 2.0 ** (math.frexp(size)[1] - 1) if size else limits.tiny for size in (self.low, self.high))
            self.below, self.above = self.low - step_low, self.high + step_high
        self.clips = round_mode == "TRN" or 2.0 ** -(k + i + f) <= 2 * limits.eps
        self.factor = 2.0 ** (f + (round_mode in DOUBLED))
        self.scale, self.step = torch.tensor(self.factor), torch.tensor(2.0**-f)
        self.round_ = ROUND[round_mode]
        self.half = None
        if round_mode == "RND" and self.low == 0.0 and k + i + f <= 23 and dtype is torch.float32:
            self.half, self.scale = torch.tensor(BELOW_HALF), torch.tensor(2.0**f)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy, or what was pickled, is made: from the format."""
        return saturating, self.arguments

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values of ``x``, differentiable; the clip is at the next values outside, as its comparison excludes its ends."""
        in_a_loop, differentiable = is_plain(x) and not torch.jit.is_tracing(), x.requires_grad and torch.is_grad_enabled()
        if not differentiable:
            return kernels.snapped(x, self.format) if in_a_loop else self.round_in_place(torch.clamp(x, self.low, self.high))
        if not in_a_loop:
            y = F.hardtanh(x, self.below, self.above)
            values = y.detach()
            self.round_in_place(values.clamp_(self.low, self.high) if self.clips else values)
            return y
        if x.numel() >= LARGE:
            return _Masked.apply(x, self)
        return kernels.snapped(x, self.format, out=F.hardtanh(x, self.below, self.above))

    def round_in_place(self, clipped: Tensor) -> Tensor:
        """Round values inside the range."""
        if self.half is not None:
            return torch.add(self.half, clipped, alpha=2.0**self.f, out=clipped).floor_().mul_(self.step)
        return self.round_(clipped.mul_(self.scale)).mul_(self.step)

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return ``grad`` where ``x`` is inside the range, else 0."""
        return torch.ops.aten.hardtanh_backward(grad, x, self.below, self.above)


@cache
def saturating(*arguments: Any) -> Saturating:
    """Return the one :class:`Saturating` of these arguments."""
    return Saturating(*arguments)
