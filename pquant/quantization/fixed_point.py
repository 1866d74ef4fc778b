"""Fixed-point values with the semantics of ``ap_fixed``: pure functions on tensors.

A format is ``k`` (keep negatives, 0 or 1), ``i`` integer bits without the sign and ``f`` fractional bits; ``i`` and ``f`` may be negative.
The step is 2^-f, the range [-k 2^i, 2^i - 2^-f], the width k + i + f bits. A format with a width of 0 or less has only the value 0.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pquant.autograd import with_signature
from pquant.errors import unknown

RoundMode = Literal["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"]
OverflowMode = Literal["SAT", "SAT_SYM", "WRAP", "WRAP_SM"]
Bits = int | Tensor
HALF = (torch.bfloat16, torch.float16)
SATURATING = ("SAT", "SAT_SYM")
WRAPPING = ("WRAP", "WRAP_SM")

# Each function rounds v = x * 2^f in place. In DOUBLED modes it gets 2v instead: floor(v + 0.5) would round 0.49999997 to 1 in float32,
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


class Grid(NamedTuple):
    """The values of a format, multiples of ``step`` from ``low`` to ``high``; numbers, or tensors that broadcast with the values.

    ``scale`` is the factor that a value is multiplied by before the function of the rounding mode. A format without bits has ``step`` 0.
    """

    low: Any
    high: Any
    scale: Any
    step: Any
    round_mode: str
    overflow_mode: str


def in_float32(x: Tensor) -> Tensor:
    """Return float16 and bfloat16 values as float32, in which fixed-point values are exact."""
    return x.float() if x.dtype in HALF else x


def pow2(exponent: Any) -> Any:
    """Return 2^exponent, exact for integers and for integer-valued tensors."""
    return torch.exp2(exponent) if isinstance(exponent, Tensor) else 2.0**exponent


def grid(k: Bits, i: Bits, f: Bits, round_mode: str, overflow_mode: str) -> Grid:
    """Return the grid of a format; its tensors have the dtype of the bits.

    Raises:
        ValueError: an unknown ``round_mode`` or ``overflow_mode``.
    """
    if round_mode not in ROUND:
        raise ValueError(unknown("rounding mode", round_mode, tuple(ROUND)))
    if overflow_mode not in SATURATING + WRAPPING:
        raise ValueError(unknown("overflow mode", overflow_mode, SATURATING + WRAPPING))
    top, step, scale = pow2(i), pow2(-f), pow2(f + (round_mode in DOUBLED))
    high = top - step
    low = -k * (high if overflow_mode == "SAT_SYM" else top)
    has_bits = (1 + k) * top > step
    return Grid(low, high, scale, step * has_bits, round_mode, overflow_mode)


def rounded(x: Tensor, f: Bits, round_mode: str) -> Tensor:
    """Return ``x`` rounded to ``f`` fractional bits, without a bound on its range and without a gradient."""
    return snapped(x.detach() * pow2(f + (round_mode in DOUBLED)), pow2(-f), round_mode)


def snapped(scaled: Tensor, step: Any, round_mode: str) -> Tensor:
    """Return ``step`` times the integers that values, multiplied by the ``scale`` of a grid, are rounded to; writes into ``scaled``."""
    return ROUND[round_mode](scaled).mul_(step)


def quantized(x: Tensor, to: Grid) -> Tensor:
    """Return the values of ``x``, which has no gradient here, on a grid; see :func:`fixed_point`."""
    if to.overflow_mode in WRAPPING:
        return _wrapped(x, to)
    return snapped(clamped(x, to.low, to.high).mul_(to.scale), to.step, to.round_mode)


def clamped(x: Tensor, low: Any, high: Any) -> Tensor:
    """Return ``x`` within bounds, numbers or tensors that broadcast with it.

    With tensors the bounds are applied one after the other: PyTorch's CPU kernel for both at once takes up to ten times as long.
    """
    return x.clamp_min(low).clamp_max_(high) if isinstance(low, Tensor) else torch.clamp(x, low, high)


def _wrapped(x: Tensor, to: Grid) -> Tensor:
    low, high, scale, step = (value.double() if isinstance(value, Tensor) else value for value in to[:4])
    n, scale = ROUND[to.round_mode](x.double() * scale), scale / 2 if to.round_mode in DOUBLED else scale
    low, count = low * scale, (high - low) * scale + 1
    period = count if to.overflow_mode == "WRAP" else 2 * count
    n = torch.fmod(n, period)
    n = n + period * (n < low) - period * (n >= low + period)
    if to.overflow_mode == "WRAP_SM":
        top = low + count
        n = torch.where(n >= top, (top - 1) - (n - top), n)
    return n.mul_(step).to(x.dtype)


class _FixedPoint(torch.autograd.Function):
    """q(x) with a straight-through gradient: 1 inside the range, bounds included, and 0 where ``x`` saturates or the format has no bits.

    The mask is saved in bytes, a quarter of the memory of x. Booleans are slow in compiled steps on a CPU.
    """

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(x: Tensor, to: Grid) -> Tensor:
        return quantized(x, to)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Grid], output: Tensor) -> None:
        x, ctx.grid = inputs
        if ctx.grid.overflow_mode in SATURATING and ctx.needs_input_grad[0]:
            ctx.save_for_backward(clamped(x, ctx.grid.low, ctx.grid.high).eq_(x).to(torch.int8))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        for inside in ctx.saved_tensors:
            grad = grad * inside
        has_bits = ctx.grid.step > 0
        return grad if has_bits is True else grad * has_bits, None


def straight_through(x: Tensor, to: Grid) -> Tensor:
    """Return the values of ``x`` on a grid; see :func:`fixed_point`.

    In ``torch.vmap``, ``x.requires_grad`` is false even if there will be a gradient, so that it decides only in ``torch.jit.trace``, which does not
    take an autograd.Function.
    """
    differentiated = torch.is_grad_enabled() and (x.requires_grad or not torch.jit.is_tracing())
    return _FixedPoint.apply(x, to) if differentiated else quantized(x.detach(), to)


def fixed_point(x: Tensor, k: Bits, i: Bits, f: Bits, round_mode: RoundMode = "RND", overflow_mode: OverflowMode = "SAT") -> Tensor:
    """Return ``x`` rounded to the format (k, i, f), as ``ap_fixed<k+i+f, i+k, round_mode, overflow_mode>`` holds it.

    Args:
        x: float tensor of any shape. Float32 is exact up to 24 bits of width; subnormal numbers may count as 0. Float16 and bfloat16 are computed
            in float32, and the result is rounded to them.
        k: 1 keeps negatives, 0 does not; a number, or a tensor that broadcasts with ``x``.
        i: integer bits without the sign, as a number or an integer-valued float tensor.
        f: fractional bits, as a number or an integer-valued float tensor.
        round_mode: TRN (floor), TRN_ZERO, RND (half up), RND_CONV (half to even), RND_ZERO, RND_INF or RND_MIN_INF.
        overflow_mode: SAT clamps, SAT_SYM clamps to +-(2^i - 2^-f), WRAP is two's complement, WRAP_SM reflects.

    Returns:
        A tensor like ``x``. Its gradient is straight-through, and 0 where ``x`` saturates. There is no derivative in forward mode.

    Raises:
        ValueError: an unknown ``round_mode`` or ``overflow_mode``.
        RuntimeError: a derivative in forward mode, such as that of ``torch.func.jvp``.
    """
    values = in_float32(x)
    if any(isinstance(bits, Tensor) for bits in (k, i, f)):
        k, i, f = (torch.as_tensor(bits, dtype=values.dtype, device=x.device) for bits in (k, i, f))
    return straight_through(values, grid(k, i, f, round_mode, overflow_mode)).to(x.dtype)
