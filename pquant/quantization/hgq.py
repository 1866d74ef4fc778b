"""High-granularity quantization: C. Sun et al., "HGQ: High Granularity Quantization for Real-time Neural Networks on FPGAs", arXiv 2405.00645.

Bit widths are trained by gradient, one for a tensor, a channel or a value, against the task's loss and a price on bits (section 3 of the paper).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pquant.quantization.fixed_point import SATURATING, bounds, pow2, quantized, rounded
from pquant.quantization.quantizer import FixedPointQuantizer, Quantizer, TensorFormat, integer_bits, value_range

LN2 = math.log(2)


class _Trained(torch.autograd.Function):
    """q(x; k, i, f) with f and i rounded, straight through, and with these gradients.

    Inside the range dq/dx = 1 and dq/df = ln 2 (x - q). At the upper bound dq/di = ln 2 * 2^i and dq/df = ln 2 * 2^-f; at the lower one
    dq/di = -ln 2 * k * 2^i (under SAT_SYM minus the upper bound's derivatives). A format without bits gives 0, with dq/dx = 1 and
    dq/df = ln 2 * x, so that it may come back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Tensor, i: Tensor, f: Tensor, round_mode: str, overflow_mode: str) -> Tensor:
        i, f = torch.round(i), torch.round(f)
        live = k + i + f > 0
        low, high = bounds(k, i, f, overflow_mode)
        clipped = torch.clamp(x, torch.where(live, low, -torch.inf), torch.where(live, high, torch.inf))
        q = rounded(clipped, f, round_mode).mul_(live)
        ctx.save_for_backward(x, clipped, q, k, i, f)
        ctx.symmetric = overflow_mode == "SAT_SYM"
        return q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g = grads[0]
        x, clipped, q, k, i, f = ctx.saved_tensors
        dx = g * (x == clipped)
        above = (g * (x > clipped)).sum_to_size(f.shape)
        below = k * (g - dx).sum_to_size(f.shape).sub_(above)
        edge = above - below if ctx.symmetric else above
        df = LN2 * ((clipped - q).mul_(g).sum_to_size(f.shape) + edge * pow2(-f))
        return dx, None, LN2 * pow2(i) * (above - below), df, None, None


class HGQQuantizer(Quantizer):
    """Trained bits for one tensor.

    Under SAT and SAT_SYM ``i`` and ``f`` are parameters. Under WRAP only ``f`` is: ``i`` follows the values, at once upwards and by
    ``forget`` bits a step downwards, and training does not wrap.

    Args:
        settings: bits to start from, and modes.
        shape: shape of the bit widths, see :func:`pquant.quantization.quantizer.bits_shape`.
        forget: bits by which a tracked ``i`` may fall in one step; infinite for weights, which are all seen each time.
    """

    k: Tensor
    i: Tensor
    f: Tensor

    def __init__(self, settings: TensorFormat, shape: tuple[int, ...], forget: float) -> None:
        super().__init__()
        self.round_mode, self.overflow_mode, self.forget = settings.round_mode, settings.overflow_mode, forget
        self.auto = settings.i == "auto"
        self.observing = False
        start = 0.0 if settings.i == "auto" else float(settings.i)
        self.register_buffer("k", torch.full(shape, float(settings.k)))
        self.f = nn.Parameter(torch.full(shape, float(settings.f)))
        if settings.overflow_mode in SATURATING:
            self.i = nn.Parameter(torch.full(shape, start))
        else:
            self.register_buffer("i", torch.full(shape, start))

    @property
    def tracks(self) -> bool:
        """Whether the integer bits follow the values."""
        return self.overflow_mode not in SATURATING

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` in the format in force."""
        if self.observing:
            self.observe(x)
            return x
        if not self.tracks:
            return _Trained.apply(x, self.k, self.i, self.f, self.round_mode, self.overflow_mode)
        if self.training or math.isinf(self.forget):
            self.track(x)
        if not self.training:
            return quantized(x, *self.format(), self.round_mode, self.overflow_mode)
        return _Trained.apply(x, self.k, self.i, self.f, self.round_mode, "SAT")

    @torch.no_grad()
    def track(self, x: Tensor) -> None:
        """Let ``i`` follow the range of ``x``."""
        needed = integer_bits(*value_range(x, self.i.shape, self.k), torch.round(self.f))
        self.i.copy_(torch.maximum(self.i - self.forget, needed))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Widen ``i`` to hold ``x``; for calibration, and for the last pass before deployment."""
        needed = integer_bits(*value_range(x, self.i.shape, self.k), torch.round(self.f))
        self.i.copy_(torch.maximum(self.i, needed))

    def twin_of(self, source: Quantizer) -> bool:
        """Return whether ``source`` is trained too, with bits for the same values in the same modes."""
        if not isinstance(source, HGQQuantizer) or source.i.shape != self.i.shape:
            return False
        return (source.round_mode, source.overflow_mode) == (self.round_mode, self.overflow_mode)

    def bits(self) -> Tensor:
        """Return the bits that an operation pays for, differentiable: i + f, plus the sign under SAT and SAT_SYM, at least 0."""
        i, f = (bits + (torch.round(bits) - bits).detach() for bits in (self.i, self.f))
        return torch.relu(i + f + (self.k if self.overflow_mode in SATURATING else 0))

    def format(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rounded bits in force."""
        return self.k, torch.round(self.i.detach()).ceil(), torch.round(self.f.detach())

    def deployed(self) -> Quantizer:
        """Return the fixed format that training has ended at."""
        return FixedPointQuantizer.of(self.format(), self.round_mode, self.overflow_mode)


def scheduled(value: float, schedule: Sequence[Sequence[float]], epoch: int) -> float:
    """Return ``value``, or what a schedule of (epoch, value) pairs says at ``epoch``: log-linear between pairs, constant outside them."""
    if not schedule:
        return value
    before = [point for point in schedule if point[0] <= epoch] or [schedule[0]]
    after = [point for point in schedule if point[0] > epoch] or [schedule[-1]]
    (start, low), (end, high) = before[-1], after[0]
    if end <= start or epoch < start:
        return float(low)
    share = (epoch - start) / (end - start)
    return math.exp((1 - share) * math.log(low) + share * math.log(high)) if low > 0 and high > 0 else low + share * (high - low)
