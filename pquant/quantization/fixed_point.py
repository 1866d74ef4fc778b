"""Fixed-point values with the semantics of ``ap_fixed``: pure functions on tensors.

A format is ``k`` (keep negatives, 0 or 1), ``i`` integer bits without the sign and ``f`` fractional bits; ``i`` and ``f`` may be negative.
The step is 2^-f, the range [-k 2^i, 2^i - 2^-f], the width k + i + f bits; a value without bits is 0.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pquant.errors import unknown

RoundMode = Literal["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"]
OverflowMode = Literal["SAT", "SAT_SYM", "WRAP", "WRAP_SM"]
Bits = int | Tensor
SATURATING = ("SAT", "SAT_SYM")
WRAPPING = ("WRAP", "WRAP_SM")

# Each rounds v = x * 2^f in place, given as 2v for the modes in DOUBLED: floor(v + 0.5) would round 0.49999997 to 1 in float32,
# while floor(2v) and its half are exact.
ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "TRN": torch.Tensor.floor_,
    "TRN_ZERO": torch.Tensor.trunc_,
    "RND": lambda v: v.floor_().mul_(0.5).ceil_(),
    "RND_CONV": torch.Tensor.round_,
    "RND_ZERO": lambda v: torch.copysign(v.abs().ceil_().mul_(0.5).floor_(), v),
    "RND_INF": lambda v: torch.copysign(v.abs().floor_().mul_(0.5).ceil_(), v),
    "RND_MIN_INF": lambda v: v.ceil_().mul_(0.5).floor_(),
}
DOUBLED = ("RND", "RND_ZERO", "RND_INF", "RND_MIN_INF")


class Format(NamedTuple):
    """The bits and modes of fixed-point values; bits are numbers, or tensors that broadcast with the values."""

    k: Bits
    i: Bits
    f: Bits
    round_mode: str = "RND"
    overflow_mode: str = "SAT"

    def to(self, dtype: torch.dtype) -> "Format":
        """Return the format with bits that are tensors in ``dtype``, in which its bounds are exact."""
        k, i, f = (bits.to(dtype) if isinstance(bits, Tensor) else bits for bits in self[:3])
        return Format(k, i, f, *self[3:])

    @property
    def width(self) -> Any:
        """Total bits; below 1 every value is 0."""
        return self.k + self.i + self.f


def pow2(exponent: Any) -> Any:
    """Return 2^exponent, exact for a whole number and for a tensor of whole numbers."""
    return torch.exp2(exponent) if isinstance(exponent, Tensor) else 2.0**exponent


def bounds(format: Format) -> tuple[Any, Any]:
    """Return the lowest and highest value of a format, numbers or tensors; both are 0 where it has no bits."""
    k, i, f, _, overflow_mode = format
    top, width = pow2(i), format.width
    high = top - pow2(-f)
    low = -k * (high if overflow_mode == "SAT_SYM" else top)
    if isinstance(width, Tensor):
        zero = torch.zeros_like(width)
        return torch.where(width > 0, low, zero), torch.where(width > 0, high, zero)
    return (float(low), float(high)) if width > 0 else (0.0, 0.0)


def rounded(x: Tensor, f: Bits, round_mode: str) -> Tensor:
    """Return ``x`` rounded to ``f`` fractional bits, however large, without a gradient."""
    return ROUND[round_mode](x.detach() * pow2(f + (round_mode in DOUBLED))).mul_(pow2(-f))


def quantized(x: Tensor, format: Format) -> Tensor:
    """Return the values of ``x`` in the format, without a gradient; see :func:`fixed_point`."""
    if format.overflow_mode not in SATURATING:
        return _wrapped(x.detach(), format)
    return rounded(torch.clamp(x.detach(), *bounds(format)), format.f, format.round_mode)


def _wrapped(x: Tensor, format: Format) -> Tensor:
    k, i, f, round_mode, overflow_mode = format
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
    return n.mul_(pow2(-f)).mul_(format.width > 0).to(x.dtype)


class _FixedPoint(torch.autograd.Function):
    """q(x), straight through: the gradient passes inside the range, bounds included, and is 0 where ``x`` saturates or has no bits."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, format: Format) -> Tensor:
        return quantized(x, format)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Format], output: Tensor) -> None:
        x, ctx.format = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if ctx.format.overflow_mode in SATURATING:
            grad = grad * torch.clamp(x, *bounds(ctx.format)).eq_(x)
        has_bits = ctx.format.width > 0
        return grad if has_bits is True else grad * has_bits, None


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
    format = Format(k, i, f, round_mode, overflow_mode).to(x.dtype)
    return _FixedPoint.apply(x, format) if x.requires_grad and torch.is_grad_enabled() else quantized(x, format)
