"""High-granularity quantization: C. Sun et al., "HGQ: High Granularity Quantization for Real-time Neural Networks on FPGAs", arXiv 2405.00645.

Bit widths are trained by gradient, one for a tensor, a channel or a value, against the task's loss and a price on bits (section 3 of the paper).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pquant.course import Each, InRows
from pquant.flat import apart, end_to_end
from pquant.quantization import kernels
from pquant.quantization.fixed_point import SATURATING, pow2, quantized, rounded
from pquant.quantization.quantizer import FixedPointQuantizer, Quantizer, TensorFormat, integer_bits, value_range
from pquant.training import distributed

LN2 = torch.tensor(math.log(2))
VIEWS = ("ViewBackward0", "UnsafeViewBackward0")


class _Trained(InRows):
    """q(x; k, i, f) with f and i rounded, straight through, and with these gradients.

    Inside the range dq/dx = 1 and dq/df = ln 2 (x - q). At the upper bound dq/di = ln 2 * 2^i and dq/df = ln 2 * 2^-f; at the lower one
    dq/di = -ln 2 * k * 2^i (under SAT_SYM minus the upper bound's derivatives). A format without bits gives 0, with dq/dx = 1 and
    dq/df = ln 2 * x, so that it may come back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, i: Tensor, f: Tensor, k: bool, round_mode: str, overflow_mode: str) -> Tensor:
        ctx.modes = k, round_mode, overflow_mode == "SAT_SYM"
        ctx.in_a_kernel = kernels.take(x, i, f)
        if ctx.in_a_kernel:
            ctx.save_for_backward(x, i, f)
            return kernels.quantized(x, k, i, f, *ctx.modes[1:])
        i, f = torch.round(i), torch.round(f)
        top, step = pow2(i), pow2(-f)
        high = top - step
        none = high < 0 if k else high <= 0
        low = (-high if overflow_mode == "SAT_SYM" else -top) if k else torch.zeros_like(high)
        clipped = torch.clamp(x, low.masked_fill_(none, -torch.inf), high.masked_fill_(none, torch.inf))
        q = rounded(clipped, f, round_mode)
        q = q.masked_fill_(none, 0) if none.ndim else q.mul_(~none)
        side = torch.sub(x, clipped).sign_()
        ctx.save_for_backward(side, clipped.sub_(q), top, step)
        return q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g = grads[0]
        keeps_negatives, round_mode, symmetric = ctx.modes
        if ctx.in_a_kernel:
            x, i, f = ctx.saved_tensors
            return *kernels.gradients(g, x, i, f, keeps_negatives, round_mode, symmetric), None, None, None
        side, error, top, step = ctx.saved_tensors
        outside = side.abs().mul_(g)
        df = (error * g).sum_to_size(step.shape)
        di = (side * g).sum_to_size(top.shape)
        above = di if keeps_negatives and symmetric else (di + outside.sum_to_size(top.shape)).mul_(0.5)
        if not keeps_negatives:
            di = above
        return g - outside, (di * top).mul_(LN2), torch.addcmul(df, above, step).mul_(LN2), None, None, None

    @staticmethod
    def forward_in_rows(ctx: Any, parts: Sequence[Tensor], *given: Any) -> Tensor:
        i, f, k, round_mode, overflow_mode = given
        ctx.parts, ctx.formats = parts, (i, f, k, round_mode, overflow_mode == "SAT_SYM")
        return kernels.quantized_in_rows(parts, *ctx.formats)

    @staticmethod
    def backward_in_rows(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        return kernels.gradients_in_rows(grads, ctx.parts, *ctx.formats)


def source_of(q: Tensor) -> Any:
    """Return the node in autograd's graph of the trained bits that ``q``, or what it is a view of, comes straight from; None where there is none."""
    node = q.grad_fn
    while node is not None and node.name() in VIEWS:
        node = node.next_functions[0][0]
    return node if getattr(node, "in_a_kernel", False) else None


def again(node: Any) -> Tensor:
    """Return the values that trained bits gave, from their node: for their gradient it keeps the values before them."""
    (x, i, f), (k, *modes) = node.saved_tensors, node.modes
    return kernels.quantized(x, k, i, f, *modes)


def _width(i: Tensor, f: Tensor, sign: int | Tensor) -> Tensor:
    return torch.round(i).add_(torch.round(f)).add_(sign).relu_()


Sloped = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Priced(torch.autograd.Function):
    """A price on the bits of several pairs, straight through their rounding; ``price`` gives its value and its slope by bit."""

    @staticmethod
    def forward(ctx: Any, price: Sloped, sign: int | Tensor, *pairs: Tensor) -> Tensor:
        ctx.shapes = tuple(pair.shape for pair in pairs[: len(pairs) // 2])
        i, f = (end_to_end(half, ctx.shapes) for half in (pairs[: len(ctx.shapes)], pairs[len(ctx.shapes) :]))
        bits = _width(i, f, sign)
        value, slope = price(bits)
        ctx.save_for_backward(torch.ops.aten.threshold_backward(slope, bits, 0))
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts = apart(ctx.saved_tensors[0] * grads[0], ctx.shapes)
        return None, None, *parts, *parts


class _Bits(torch.autograd.Function):
    """relu(round(i) + round(f) + sign), straight through the rounding."""

    @staticmethod
    def forward(ctx: Any, sign: int, i: Tensor, f: Tensor) -> Tensor:
        bits = _width(i, f, sign)
        ctx.save_for_backward(bits)
        return bits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope = torch.ops.aten.threshold_backward(grads[0], ctx.saved_tensors[0], 0)
        return None, slope, slope


def price_of(quantizers: Sequence["HGQQuantizer"], sign: Tensor, price: Sloped) -> Tensor:
    """Return what ``price`` gives for the widths max(i + f + sign, 0) of all rounded i and f, end to end in one axis.

    The price is differentiable in them: ``price`` returns its value, a scalar, and its slope by width.
    """
    return _Priced.apply(price, sign, *(quantizer.i for quantizer in quantizers), *(quantizer.f for quantizer in quantizers))


class HGQQuantizer(Quantizer):
    """Trained bits for one tensor.

    Under SAT and SAT_SYM ``i`` and ``f`` are parameters. Under WRAP only ``f`` is: ``i`` follows the values, at once upwards and by
    ``forget`` bits a step downwards, and training does not wrap.

    Args:
        settings: bits to start from, and modes.
        shape: shape of the bit widths, see :func:`pquant.quantization.quantizer.bits_shape`.
        forget: bits by which a tracked ``i`` may fall in one step; infinite for weights, which are all seen each time.
        lr: learning rate of the bits, None for that of the optimizer.
    """

    i: Tensor
    f: Tensor

    def __init__(self, settings: TensorFormat, shape: tuple[int, ...], forget: float, lr: float | None = None) -> None:
        super().__init__()
        self.optimizer_options = {"weight_decay": 0.0} if lr is None else {"weight_decay": 0.0, "lr": lr}
        self.round_mode, self.overflow_mode, self.forget = settings.round_mode, settings.overflow_mode, forget
        self.keeps_negatives = settings.k
        self.auto = settings.i == "auto"
        self.observing = False
        start = 0.0 if settings.i == "auto" else float(settings.i)
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
            return x if self.keeps_negatives else x.clamp(min=0)
        if not self.tracks:
            return _Trained.apply(x, self.i, self.f, self.keeps_negatives, self.round_mode, self.overflow_mode)
        if self.training or math.isinf(self.forget):
            self.track(x)
        if not self.training:
            return quantized(x, *self.format(), self.round_mode, self.overflow_mode)
        return _Trained.apply(x, self.i.clone(), self.f, self.keeps_negatives, self.round_mode, "SAT")

    def each(self) -> Each | None:
        """Return the rounding to trained bits."""
        alone = self.tracks or self.observing
        return None if alone else Each(_Trained, (self.i, self.f), (self.keeps_negatives, self.round_mode, self.overflow_mode))

    @torch.no_grad()
    def track(self, x: Tensor) -> None:
        """Let ``i`` follow the range of ``x``."""
        self.i.copy_(torch.maximum(self.i - self.forget, distributed.highest(self._needed(x))))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Widen ``i`` to hold ``x``; for calibration, and for the last pass before deployment."""
        self.i.copy_(torch.maximum(self.i, self._needed(x)))

    def _needed(self, x: Tensor) -> Tensor:
        return integer_bits(*value_range(x, self.i.shape, self.keeps_negatives), torch.round(self.f), self.round_mode, self.overflow_mode)

    def twin_of(self, source: Quantizer) -> bool:
        """Return whether ``source`` is trained too, with bits for the same values in the same modes, and gives no sign that this one drops."""
        if not isinstance(source, HGQQuantizer) or source.i.shape != self.i.shape or source.keeps_negatives > self.keeps_negatives:
            return False
        return (source.round_mode, source.overflow_mode) == (self.round_mode, self.overflow_mode)

    def bits(self) -> Tensor:
        """Return the bits that an operation pays for, differentiable: i + f, plus the sign under SAT and SAT_SYM, at least 0."""
        return _Bits.apply(self.sign, self.i, self.f)

    @property
    def sign(self) -> int:
        """The sign bit that is paid for."""
        return int(self.keeps_negatives and not self.tracks)

    def format(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rounded bits in force."""
        i, f = torch.round(self.i.detach()).ceil(), torch.round(self.f.detach())
        return torch.full_like(f, self.keeps_negatives), i, f

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
