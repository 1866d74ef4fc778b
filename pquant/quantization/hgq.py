"""High-granularity quantization: C. Sun et al., "HGQ: High Granularity Quantization for Real-time Neural Networks on FPGAs", arXiv 2405.00645.

Bit widths, one per tensor, channel or value, are trained by gradient descent on the loss of the task plus a regularization of bits (section 3).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pquant.autograd import with_signature
from pquant.quantization.fixed_point import SATURATING, Bits, Grid, clamped, grid, in_float32, quantized, rounded, snapped, straight_through
from pquant.quantization.quantizer import FixedPointQuantizer, Quantizer, TensorFormat, integer_bits, observable, value_range
from pquant.training import distributed

LN2 = math.log(2)


class _TrainedBits(torch.autograd.Function):
    """q(x; i, f) with the bits i and f rounded to integers, under SAT or SAT_SYM, with straight-through gradients.

    Inside the range dq/dx = 1 and dq/df = ln 2 (x - q). At the upper bound dq/di = ln 2 * 2^i and dq/df = ln 2 * 2^-f; at the lower one
    dq/di = -ln 2 * k * 2^i (under SAT_SYM minus the upper bound's derivatives). A format without bits returns 0, with dq/dx = 1 and
    dq/df = ln 2 * x, so that its bits can grow again.
    """

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(x: Tensor, i: Tensor, f: Tensor, to: Grid, k: int) -> Tensor:
        return quantized(x, to)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Grid, int], output: Tensor) -> None:
        x, _, _, to, ctx.k = inputs
        ctx.modes = to.round_mode, to.overflow_mode
        ctx.save_for_backward(x, to.low, to.high, to.scale, to.step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, low, high, scale, step = ctx.saved_tensors
        without_bits = step == 0
        clipped = clamped(x, low.masked_fill(without_bits, -math.inf), high.masked_fill(without_bits, math.inf))
        side = torch.sub(x, clipped).sign_()
        above = side.clamp_min(0)
        bound = side if ctx.k else above
        q = snapped(clipped * scale, step, ctx.modes[0])  # computed again, since a model may overwrite the output of forward
        di = (bound * grad).sum_to_size(step.shape) * (high + step)
        df = (torch.addcmul(clipped - q, bound if ctx.modes[1] == "SAT_SYM" else above, step) * grad).sum_to_size(step.shape)
        return torch.addcmul(grad, grad, side.abs(), value=-1), di * LN2, df * LN2, None, None


def round_straight_through(x: Tensor) -> Tensor:
    """Return ``x`` rounded half to even, exactly, with gradient 1."""
    return x + (torch.round(x) - x).detach()


class HGQQuantizer(Quantizer):
    """A quantizer of one tensor whose bits are trained.

    Under SAT and SAT_SYM ``i`` and ``f`` are parameters. Under WRAP only ``f`` is a parameter: ``i`` follows the range of the values, rises at once
    and falls by at most ``forget`` bits per step. The sign ``k`` becomes 1 at the first negative value. In training, values neither wrap nor
    saturate. ``f`` never falls below ``min_f`` of the settings, see :class:`pquant.training.bit_range.BitRange`.

    Args:
        settings: first bits, and the rounding and overflow modes.
        shape: shape of the bit widths, see :func:`pquant.quantization.quantizer.bits_shape`.
        forget: bits by which ``i`` may fall in one step under WRAP; infinite for weights, since each step quantizes all of them.
        lr: learning rate of the bits; None for the learning rate of the optimizer.
    """

    k: Tensor
    i: Tensor
    f: Tensor

    def __init__(self, settings: TensorFormat, shape: tuple[int, ...], forget: float, lr: float | None = None) -> None:
        super().__init__()
        self.optimizer_options = {"weight_decay": 0.0} if lr is None else {"weight_decay": 0.0, "lr": lr}
        self.round_mode, self.overflow_mode, self.forget = settings.round_mode, settings.overflow_mode, forget
        self.keeps_negatives, self.tracks = settings.k, settings.overflow_mode not in SATURATING
        self.auto, self.min_f = settings.i == "auto", settings.min_f
        self.steps_taken = 0
        start = 0.0 if settings.i == "auto" else float(settings.i)
        self.first_bits = start, float(settings.f)
        self.f = nn.Parameter(torch.full(shape, float(settings.f)))
        if self.tracks:
            self.register_buffer("i", torch.full(shape, start))
            self.register_buffer("k", torch.full(shape, float(settings.k)))
        else:
            self.i = nn.Parameter(torch.full(shape, start))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, quantized to the current format; in calibration unquantized, since the bits are being chosen."""
        x = in_float32(x)
        if self.observing:
            self.observe(x)
            return x if self.tracks or self.keeps_negatives else x.clamp(min=0)
        if self.tracks and (self.training or math.isinf(self.forget)):
            self.track(x)
        if self.tracks and not self.training:
            return straight_through(x, self._grid(x.dtype))
        return _TrainedBits.apply(x, self.i, self.f, self._unbounded(x.dtype) if self.tracks else self._grid(x.dtype), int(self.keeps_negatives))

    @torch.no_grad()
    def _grid(self, dtype: torch.dtype) -> Grid:
        k: Bits = self.k.to(dtype) if self.tracks else int(self.keeps_negatives)
        return grid(k, torch.round(self.i).to(dtype), torch.round(self.f).to(dtype), self.round_mode, self.overflow_mode)

    @torch.no_grad()
    def _unbounded(self, dtype: torch.dtype) -> Grid:
        """Return the grid of training under WRAP, without bounds, since the range follows the values."""
        to = self._grid(dtype)
        infinite = torch.full_like(to.step, math.inf)
        return Grid(-infinite, infinite, to.scale, to.step, to.round_mode, "SAT")

    @torch.no_grad()
    def track(self, x: Tensor) -> None:
        """Update ``i`` and ``k`` for the range and sign of ``x``: of data, over all processes; a weight is the same in each of them."""
        k, i = self._needed(x) if math.isinf(self.forget) else map(distributed.highest, self._needed(x))
        self.i.copy_(torch.maximum(self.i - self.forget, i))
        self.k.copy_(torch.maximum(self.k, k))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Widen ``i``, and under WRAP ``k``, to hold the finite values of ``x``; used in calibration and in the last pass before ``finalize``."""
        k, i = self._needed(observable(x))
        self.i.copy_(torch.maximum(self.i, i))
        if self.tracks:
            self.k.copy_(torch.maximum(self.k, k))

    def _needed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (k, i) that hold ``x`` once rounded."""
        low, high = value_range(x, self.i.shape, self.tracks or self.keeps_negatives)
        f = torch.round(self.f)
        return (rounded(low, f, self.round_mode) < 0).to(f), integer_bits(low, high, f, self.round_mode, self.overflow_mode)

    def is_redundant_after(self, source: Quantizer) -> bool:
        """Return whether ``source`` trains bits of the same shape and modes, and returns no negative values that this quantizer would clip.

        The first bits of this quantizer must hold the values of the first bits of ``source``, and its ``min_f`` must be None or that of ``source``.
        """
        if not isinstance(source, HGQQuantizer) or source.i.shape != self.i.shape:
            return False
        if source.auto != self.auto or self.min_f not in (None, source.min_f):
            return False
        if any(theirs > mine for theirs, mine in zip(source.first_bits, self.first_bits, strict=True)):
            return False
        if source.keeps_negatives > self.keeps_negatives and not self.tracks:
            return False
        return (source.round_mode, source.overflow_mode) == (self.round_mode, self.overflow_mode)

    def bits(self) -> Tensor:
        """Return the bits that count in EBOPs, differentiable: i + f, plus the sign under SAT and SAT_SYM, at least 0."""
        sign = int(self.keeps_negatives and not self.tracks)
        return torch.relu(round_straight_through(self.i) + round_straight_through(self.f) + sign)

    def format(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the current (k, i, f), rounded to integers."""
        i, f = torch.round(self.i.detach()), torch.round(self.f.detach())
        return self.k if self.tracks else torch.full_like(f, self.keeps_negatives), i, f

    def finalized(self) -> Quantizer:
        """Return a quantizer with the current format, fixed."""
        return FixedPointQuantizer.of(self.format(), self.round_mode, self.overflow_mode)


def scheduled(value: float, schedule: Sequence[Sequence[float]], epoch: int) -> float:
    """Return ``value``, or, with a schedule of (epoch, value) pairs, its value at ``epoch``: log-linear between pairs, constant outside them."""
    if not schedule:
        return value
    before = [point for point in schedule if point[0] <= epoch] or [schedule[0]]
    after = [point for point in schedule if point[0] > epoch] or [schedule[-1]]
    (start, low), (end, high) = before[-1], after[0]
    if end <= start or epoch < start:
        return float(low)
    share = (epoch - start) / (end - start)
    return math.exp((1 - share) * math.log(low) + share * math.log(high)) if low > 0 and high > 0 else low + share * (high - low)
