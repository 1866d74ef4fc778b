"""Quantizers: modules that map a tensor to its fixed-point values and report their format."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pquant.quantization.fixed_point import SATURATING, Grid, OverflowMode, RoundMode, fixed_point, grid, in_float32, pow2, rounded, straight_through
from pquant.settings import Settings, setting

FLOAT_BITS = 32.0
MOST_BITS = 32.0
"""Largest magnitude of ``i`` and ``f``, in the settings and in training; bits."""
MOST_VALUE = 2.0**31
Granularity = Literal["per_tensor", "per_channel", "per_weight"]


@dataclass(frozen=True)
class TensorFormat(Settings):
    """How one tensor is quantized: its bits, its modes, and what shares a bit width.

    The batch axis of data is always shared. The channel axis of a weight is its first; that of data is the feature axis of the layer: the last of a
    dense layer, the second of a convolution, pool or batch norm.

    Args:
        k: whether the tensor has a sign.
        i: integer bits, without the sign; "auto": chosen from the values seen in calibration.
        f: fractional bits; may be negative.
        round_mode: how a value between two steps of the format is rounded.
        overflow_mode: how values outside the range of the format are represented.
        granularity: which values share a bit width.
        enable: whether the tensor is quantized.
        min_f: fewest fractional bits that training may choose; null: any number.
        dynamic: whether the binary point of an input or output with fixed bits follows each batch (:mod:`pquant.quantization.dynamic`).

    Raises:
        ConfigError: a value out of range, ``f`` below ``min_f``, or a dynamic format without a number of integer bits.
    """

    k: bool = False
    i: int | Literal["auto"] = setting(0, ge=-32, le=32)
    f: int = setting(0, ge=-32, le=32)
    round_mode: RoundMode = "RND"
    overflow_mode: OverflowMode = "SAT"
    granularity: Granularity = "per_tensor"
    enable: bool = True
    min_f: int | None = setting(None, ge=-32, le=32)
    dynamic: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.min_f is not None and self.f < self.min_f:
            raise self.error("f", f"at least min_f = {self.min_f}")
        if self.dynamic and self.i == "auto":
            raise self.error("i", "a number with dynamic ranges, whose width is k + i + f")


def bits_shape(granularity: str, shape: tuple[int, ...], channel_axis: int | None = 0) -> tuple[int, ...]:
    """Return the shape of the bit widths of a tensor of ``shape``: one for the tensor, one per channel, or one per value.

    Per channel, the shape starts at the channel axis, so that it broadcasts over any axes before it. Without a channel axis one bit width is shared.
    """
    if granularity == "per_tensor" or granularity == "per_channel" and channel_axis is None:
        return ()
    if granularity == "per_weight":
        return tuple(shape)
    axis = (channel_axis or 0) % max(len(shape), 1)
    return tuple(shape[axis : axis + 1]) + (1,) * (len(shape) - axis - 1)


def integer_bits(low: Tensor, high: Tensor, f: Tensor, round_mode: str, overflow_mode: str) -> Tensor:
    """Return the fewest integer bits that hold [low, high], low <= 0 <= high, after rounding to ``f`` fractional bits; 0 where both are 0."""
    step = pow2(-f)
    above = _log2_ceil(rounded(high, f, round_mode) + step)
    below = rounded(low, f, round_mode).neg()
    below = torch.where(below > 0, _log2_ceil(below + step if overflow_mode == "SAT_SYM" else below), above)
    return torch.where((low == 0) & (high == 0), 0, torch.maximum(above, below))


def _log2_ceil(x: Tensor) -> Tensor:
    """Return the smallest integer n with x <= 2^n, exactly, for x > 0."""
    mantissa, exponent = torch.frexp(x)
    return (exponent - (mantissa == 0.5).int()).to(x.dtype)


def value_range(x: Tensor, shape: torch.Size, k: Tensor | bool) -> tuple[Tensor, Tensor]:
    """Return min(0, x) and max(0, x) over the values that share a bit width, each of ``shape``. The minimum is 0 where negatives are not kept."""
    if not x.numel():
        return x.new_zeros(shape), x.new_zeros(shape)
    missing = x.ndim - len(shape)
    shared = list(range(missing)) + [axis + missing for axis, size in enumerate(shape) if size == 1]
    low, high = (x.amin(shared), x.amax(shared)) if shared else (x, x)
    return low.reshape(shape).clamp(max=0) * k, high.reshape(shape).clamp(min=0)


def observable(x: Tensor) -> Tensor:
    """Return ``x`` for calibration: clamped to the range of the widest format, and 0 where it is not finite."""
    return torch.where(torch.isfinite(x), x, 0).clamp(-MOST_VALUE, MOST_VALUE)


class Quantizer(nn.Module):
    """Base class of quantizers. A quantizer maps values to quantized values and reports their format."""

    optimizer_options: Mapping[str, Any] = {"weight_decay": 0.0}
    """Options of the optimizer group that holds this quantizer's parameters."""
    observing = False
    """Whether calls widen the range; :func:`pquant.calibrate` and :func:`pquant.trace_ranges` set it for the duration of a call."""
    auto = False
    """Whether calibration chooses the integer bits."""
    tracks = False
    """Whether the integer bits follow the range of the values in training."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, quantized to the format, with a straight-through gradient."""
        raise NotImplementedError

    def format(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the current (k, i, f), integer-valued tensors that broadcast with the data; None when the values stay float."""
        raise NotImplementedError

    def width(self) -> Tensor:
        """Return the current width k + i + f in bits, at least 0; 32 for float values."""
        formats = self.format()
        return torch.tensor(FLOAT_BITS) if formats is None else sum(formats).clamp(min=0)  # type: ignore[union-attr]

    def bits(self) -> Tensor:
        """Return the bits that count in EBOPs; differentiable where they are trained."""
        return self.width()

    def is_redundant_after(self, source: "Quantizer") -> bool:
        """Return whether this quantizer is not needed after ``source``: it would not change the values, or it would train the same bits again."""
        return False

    def mean_width(self) -> float | None:
        """Return the mean of :meth:`width`, or None for float values."""
        return None if self.is_float else float(self.width().mean())

    @property
    def is_float(self) -> bool:
        """Whether the values stay float."""
        return isinstance(self, NoQuantizer)

    def start_tracing(self) -> None:
        """Prepare for :func:`pquant.trace_ranges`, which chooses the final integer bits; for quantizers with ``tracks``."""

    def folded(self) -> "Quantizer":
        """Return a quantizer for values that are quantized already: it returns them unchanged and keeps the format."""
        formats = self.format()
        return self if formats is None else FoldedQuantizer(*formats)

    def finalized(self) -> "Quantizer":
        """Return the quantizer of a finalized model that replaces this one."""
        return self


class NoQuantizer(Quantizer):
    """The quantizer of values that stay float: it changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def format(self) -> None:
        """Return None: there is no format."""
        return None


class FoldedQuantizer(Quantizer):
    """The format of stored values that are quantized already; it changes nothing."""

    k: Tensor
    i: Tensor
    f: Tensor

    def __init__(self, k: Tensor, i: Tensor, f: Tensor) -> None:
        super().__init__()
        for name, bits in zip("kif", (k, i, f), strict=True):
            self.register_buffer(name, bits.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def format(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the stored (k, i, f)."""
        return self.k, self.i, self.f


class FixedPointQuantizer(Quantizer):
    """A quantizer with fixed bits: one format for the tensor, or one per channel or value.

    Args:
        settings: bits and modes.
        shape: shape of the bit widths, () for one format; see :func:`bits_shape`.

    Calibration (``i: auto``) sets ``i`` to the range of all values observed so far, so that ``i`` never falls.
    """

    k: Tensor
    i: Tensor
    f: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, settings: TensorFormat, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.round_mode, self.overflow_mode = settings.round_mode, settings.overflow_mode
        self.auto = settings.i == "auto"
        self.register_buffer("k", torch.full(shape, float(settings.k)))
        self.register_buffer("i", torch.full(shape, torch.nan if self.auto else float(settings.i)))
        self.register_buffer("f", torch.full(shape, float(settings.f)))
        if self.auto:
            self.register_buffer("low", torch.zeros(shape))
            self.register_buffer("high", torch.zeros(shape))
        self._read_bits()

    @classmethod
    def of(cls, bits: tuple[Tensor, Tensor, Tensor], round_mode: RoundMode, overflow_mode: OverflowMode) -> "FixedPointQuantizer":
        """Return the quantizer with the given (k, i, f), tensors of one shape."""
        new = cls(TensorFormat(round_mode=round_mode, overflow_mode=overflow_mode), tuple(bits[1].shape)).to(bits[1].device)
        for buffer, values in zip((new.k, new.i, new.f), bits, strict=True):
            buffer.copy_(values)
        new._read_bits()
        return new

    def _read_bits(self) -> None:
        """Compute the grid of the current bits. A single format is read into Python numbers here, so that no training step waits for the GPU."""
        self.calibrated = not bool(self.i.isnan().any())
        self.numbers = (int(self.k), int(self.i), int(self.f)) if self.calibrated and self.i.ndim == 0 else None
        modes = self.round_mode, self.overflow_mode
        self.one_grid = grid(*self.numbers, *modes) if self.numbers else None
        if self.numbers is None:
            k, i, f = (bits.double() for bits in self.format())
            for name, values in grid(k, i, f, *modes)._asdict().items():
                if isinstance(values, Tensor):
                    self.register_buffer(f"grid_{name}", values, persistent=False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._read_bits()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, quantized to the format. In calibration, widen the range and return ``x`` unquantized, clamped at 0 without a sign."""
        x = in_float32(x)
        if self.observing:
            self.observe(x)
            return x if self.k.any() else x.clamp(min=0)
        if not self.calibrated:
            raise RuntimeError("integer bits are 'auto' and calibration has not run: give compress an example_input, or call pquant.calibrate")
        return straight_through(x, self._grid(x.dtype))

    def _grid(self, dtype: torch.dtype) -> Grid:
        """Return the grid of the current bits, for values of a dtype."""
        if self.one_grid is not None:
            return self.one_grid
        low, high, scale, step = (getattr(self, f"grid_{name}").to(dtype) for name in ("low", "high", "scale", "step"))
        return Grid(low, high, scale, step, self.round_mode, self.overflow_mode)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Widen the range and the integer bits to hold the finite values of ``x``; the range is limited, see :func:`observable`."""
        low, high = value_range(observable(x), self.i.shape, self.k)
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))
        self.i.copy_(integer_bits(self.low, self.high, self.f, self.round_mode, self.overflow_mode))
        self._read_bits()

    @torch.no_grad()
    def fix(self, k: int, i: int, f: int) -> None:
        """Set one format that calibration does not change."""
        self.auto = False
        for buffer, bits in zip((self.k, self.i, self.f), (k, i, f), strict=True):
            buffer.fill_(bits)
        self._read_bits()

    def is_redundant_after(self, source: Quantizer) -> bool:
        """Return whether ``source`` has one fixed, uncalibrated format all of whose values this format contains."""
        if not isinstance(source, FixedPointQuantizer) or self.auto or source.auto or self.numbers is None or source.numbers is None:
            return False
        symmetric = self.overflow_mode == "SAT_SYM" and source.overflow_mode != "SAT_SYM" and source.numbers[0]
        return not symmetric and all(mine >= theirs for mine, theirs in zip(self.numbers, source.numbers, strict=True))

    def format(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the current (k, i, f)."""
        return self.k, self.i, self.f

    def extra_repr(self) -> str:
        """Return the format and modes in one line."""
        bits = "k={} i={} f={}".format(*self.numbers) if self.numbers else f"bits of shape {tuple(self.i.shape)}"
        return f"{bits}, {self.round_mode}, {self.overflow_mode}"


class MantissaQuantizer(Quantizer):
    """A quantizer that keeps a number of significant bits, each value with its own binary point.

    It is used for parameters that multiply per channel and whose range is not known beforehand, such as gamma / sigma of a batch norm. They are
    constants in hardware, where a binary point costs nothing.
    """

    def __init__(self, settings: TensorFormat) -> None:
        super().__init__()
        self.k = int(settings.k)
        self.significant = settings.f + (settings.i if isinstance(settings.i, int) else 0)
        self.round_mode = settings.round_mode
        self.overflow_mode: OverflowMode = settings.overflow_mode if settings.overflow_mode in SATURATING else "SAT"

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with ``significant`` bits."""
        x = in_float32(x)
        return fixed_point(x, *self.format_of(x), self.round_mode, self.overflow_mode)

    def format_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the (k, i, f) of each value of ``x``: ``i`` is the fewest integer bits that hold the rounded value, at least -32.

        A negative value that rounds to minus a power of two saturates instead, unless it is minus a power of two itself.
        """
        mantissa, exponent = torch.frexp(x.detach())
        exponent = exponent + (rounded(mantissa.clamp(min=0), self.significant, self.round_mode) == 1).int()
        if self.k and self.overflow_mode == "SAT":
            exponent = exponent - (mantissa == -0.5).int()
        i = exponent.clamp(min=-32).to(x.dtype)
        return torch.full_like(i, self.k), i, self.significant - i

    def format(self) -> None:
        """Return None: each value has its own format."""
        return None
