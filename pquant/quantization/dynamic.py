"""Data whose format follows each batch: the width is fixed, and the binary point is chosen from the range of the batch."""

import torch
from torch import Tensor

from pquant.quantization.fixed_point import grid, in_float32, straight_through
from pquant.quantization.quantizer import MOST_BITS, FixedPointQuantizer, Quantizer, TensorFormat, integer_bits, observable, value_range
from pquant.training import distributed


class DynamicQuantizer(Quantizer):
    """A quantizer of fixed width, k + i + f of the settings, whose integer bits are chosen anew for each training batch.

    A batch gets the smallest ``i`` that holds all its rounded values, and f = width - k - i. ``min_f`` is a lower bound of f; values beyond the
    range that it leaves overflow. Evaluation uses an ``i`` that follows the training batches: it rises at once, and falls by at most ``forget``
    bits per batch. Before the first batch it is the ``i`` of the settings. :func:`pquant.trace_ranges` sets it to the range of the values in given
    batches, and a finalized model keeps it.

    Args:
        settings: k, i and f, whose sum is the width, and the rounding and overflow modes.
        shape: shape of the bit widths, see :func:`pquant.quantization.quantizer.bits_shape`.
        forget: bits by which the ``i`` of evaluation may fall in one batch.
    """

    i: Tensor
    tracks = True

    def __init__(self, settings: TensorFormat, shape: tuple[int, ...], forget: float) -> None:
        super().__init__()
        self.round_mode, self.overflow_mode, self.forget = settings.round_mode, settings.overflow_mode, forget
        self.k, self.first_i = int(settings.k), float(settings.i)
        self.magnitude = self.first_i + settings.f
        self.least_i = max(-MOST_BITS, self.magnitude - MOST_BITS)
        self.most_i = MOST_BITS if settings.min_f is None else min(MOST_BITS, self.magnitude - settings.min_f)
        self.register_buffer("i", torch.full(shape, torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, quantized to the format of its own range in training and calibration, else to the format of evaluation."""
        x = in_float32(x)
        i = self._follow(x) if self.training or self.observing else self.format()[1]
        i = i.to(x.dtype)
        return straight_through(x, grid(self.k, i, self.magnitude - i, self.round_mode, self.overflow_mode))

    @torch.no_grad()
    def _follow(self, x: Tensor) -> Tensor:
        """Return the integer bits that hold ``x``, and update those of evaluation."""
        needed = self.needed(observable(x))
        if self.observing:
            self.i.copy_(torch.fmax(self.i, needed))
        else:
            distributed.highest(needed)
            self.i.copy_(torch.fmax(self.i - self.forget, needed))
        return needed

    def needed(self, x: Tensor) -> Tensor:
        """Return the fewest integer bits that hold the finite values of ``x``, rounded to the fractional bits that these integer bits leave."""
        low, high = value_range(x, self.i.shape, bool(self.k))
        largest = torch.maximum(high, -low)
        i = integer_bits(low, high, self._fractional(torch.frexp(largest).exponent.to(largest.dtype)), self.round_mode, self.overflow_mode)
        i = torch.maximum(i, integer_bits(low, high, self._fractional(i), self.round_mode, self.overflow_mode))
        return self._bounded(i)

    def _bounded(self, i: Tensor) -> Tensor:
        return i.clamp(self.least_i, max(self.least_i, self.most_i))

    def _fractional(self, i: Tensor) -> Tensor:
        return self.magnitude - self._bounded(i)

    @torch.no_grad()
    def start_tracing(self) -> None:
        """Forget all values observed so far."""
        self.i.fill_(torch.nan)

    def format(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the (k, i, f) of evaluation."""
        i = self._bounded(torch.round(torch.nan_to_num(self.i, nan=self.first_i)))
        return torch.full_like(i, self.k), i, self.magnitude - i

    def is_redundant_after(self, source: Quantizer) -> bool:
        """Return whether ``source`` already quantizes the same values to this format."""
        if not isinstance(source, DynamicQuantizer) or source.i.shape != self.i.shape:
            return False
        mine, theirs = ((one.k, one.magnitude, one.most_i, one.round_mode, one.overflow_mode) for one in (self, source))
        return mine == theirs

    def finalized(self) -> Quantizer:
        """Return a quantizer with the format of evaluation, fixed."""
        return FixedPointQuantizer.of(self.format(), self.round_mode, self.overflow_mode)

    def extra_repr(self) -> str:
        """Return the width and modes in one line."""
        return f"k={self.k} width={self.k + self.magnitude:g}, {self.round_mode}, {self.overflow_mode}"
