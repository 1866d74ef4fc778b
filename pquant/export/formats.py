"""Formats of fixed-point data, and constants in them, in numpy: values n * 2^-f with n an int64."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pquant.errors import ConfigError
from pquant.quantization.quantizer import Quantizer

EXACT_BITS = 53


@dataclass(frozen=True)
class Format:
    """Bits and modes of data: integer arrays that broadcast with the data, without the batch axis; see :mod:`pquant.quantization.fixed_point`."""

    k: np.ndarray
    i: np.ndarray
    f: np.ndarray
    round_mode: str
    overflow_mode: str

    @classmethod
    def of(cls, quantizer: Quantizer) -> "Format | None":
        """Return the format of a finalized quantizer, None if its values stay float."""
        formats = quantizer.format()
        if formats is None:
            return None
        k, i, f = (np.asarray(bits.detach().cpu().numpy()).astype(np.int64) for bits in formats)
        return cls(k, i, f, getattr(quantizer, "round_mode", "TRN"), getattr(quantizer, "overflow_mode", "SAT"))

    def expand(self, shape: tuple[int, ...]) -> "Format":
        """Return the format with a k, i, f for each value of ``shape``; bits with a batch axis, of size 1, lose it."""
        k, i, f = (np.broadcast_to(_without_batch(bits, shape), shape) for bits in (self.k, self.i, self.f))
        return Format(k, i, f, self.round_mode, self.overflow_mode)

    def within(self, shape: tuple[int, ...]) -> "Format":
        """Return the format with bits that have no batch axis, for data of ``shape``."""
        k, i, f = (_without_batch(bits, shape) for bits in (self.k, self.i, self.f))
        return Format(k, i, f, self.round_mode, self.overflow_mode)

    @property
    def width(self) -> np.ndarray:
        """Total bits, at least 0."""
        return np.maximum(self.k + self.i + self.f, 0)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest integers n, where values are n * 2^-f; both 0 without bits."""
        top = np.where(self.width > 0, np.left_shift(1, np.maximum(self.i + self.f, 0)), 0)
        high = np.maximum(top - 1, 0)
        return -self.k * (high if self.overflow_mode == "SAT_SYM" else top), high

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest values."""
        low, high = self.bounds()
        return np.ldexp(low.astype(np.float64), -self.f), np.ldexp(high.astype(np.float64), -self.f)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Return float64 values (batch, *shape) in this format; exact if values and results have at most 53 bits."""
        low, high = self.bounds()
        n = _round(np.ldexp(x, self.f), self.round_mode)
        n = np.clip(n, low, high) if self.overflow_mode.startswith("SAT") else self._wrap(n, low)
        return np.where(self.width > 0, np.ldexp(n, -self.f), 0.0)

    def _wrap(self, n: np.ndarray, low: np.ndarray) -> np.ndarray:
        count = np.ldexp(1.0, self.width)
        if self.overflow_mode == "WRAP":
            return low + np.mod(n - low, count)
        wrapped = np.mod(n - low, 2 * count)
        return low + np.where(wrapped >= count, 2 * count - 1 - wrapped, wrapped)


def _without_batch(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if bits.ndim <= len(shape):
        return bits
    return bits.squeeze(next(axis for axis, size in enumerate(bits.shape) if size == 1))


def _round(x: np.ndarray, mode: str) -> np.ndarray:
    """Return rounded integers, without adding 1/2 to ``x``, since the sum could be rounded itself."""
    down = np.floor(x)
    above = x - down
    up = {
        "TRN": False,
        "TRN_ZERO": (x < 0) & (above > 0),
        "RND": above >= 0.5,
        "RND_CONV": (above > 0.5) | (above == 0.5) & (np.mod(down, 2) == 1),
        "RND_ZERO": (above > 0.5) | (above == 0.5) & (x < 0),
        "RND_INF": (above > 0.5) | (above == 0.5) & (x > 0),
        "RND_MIN_INF": above > 0.5,
    }[mode]
    return down + up


@dataclass(frozen=True)
class Constants:
    """Weights as integers n times 2^-f, with the smallest possible f."""

    n: np.ndarray
    f: int

    @classmethod
    def of(cls, what: str, values: Tensor, quantizer: Quantizer) -> "Constants":
        """Return the integers of finalized parameters.

        Raises:
            ConfigError: the parameters are float, or a value is not in its format; the message names the tensor, ``what``.
        """
        x = values.detach().cpu().double().numpy()
        form = Format.of(quantizer)
        if form is None:
            raise ConfigError(f"export: {what} is not quantized")
        low, high = form.limits()
        off = (np.ldexp(x, form.f) % 1 != 0) | (x < low) | (x > high) & (x != 0)
        off &= x != 0
        if off.any():
            place = tuple(int(at) for at in np.argwhere(off)[0])
            bits = ", ".join(f"{name}={np.broadcast_to(getattr(form, name), x.shape)[place]}" for name in "kif")
            raise ConfigError(f"export: {what}{list(place)} is {x[place]:.10g}, which is not a value of the format {bits}")
        return cls.from_floats(x)

    @classmethod
    def from_floats(cls, x: np.ndarray) -> "Constants":
        """Return the integers of float64 values."""
        nonzero = x[x != 0]
        f = int((EXACT_BITS - np.frexp(nonzero)[1] - _trailing_zeros(nonzero)).max()) if nonzero.size else 0
        return cls(np.ldexp(x, f).astype(np.int64), f)

    @property
    def floats(self) -> np.ndarray:
        """The values as float64."""
        return np.ldexp(self.n.astype(np.float64), -self.f)

    def reshape(self, *shape: int) -> "Constants":
        """Return the same constants in another shape."""
        return Constants(self.n.reshape(shape), self.f)


def _trailing_zeros(x: np.ndarray) -> np.ndarray:
    mantissa = np.abs(np.ldexp(np.frexp(x)[0], 53)).astype(np.int64)
    return np.log2((mantissa & -mantissa).astype(np.float64)).astype(np.int64)
