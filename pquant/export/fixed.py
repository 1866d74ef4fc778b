"""Exact fixed-point arithmetic on integers, in numpy: values n * 2^-f with n an int64."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from pquant.errors import ConfigError
from pquant.quantization.quantizer import Quantizer

EXACT_BITS = 53


@dataclass(frozen=True)
class Format:
    """Bits and modes of data: integer arrays that broadcast with it, without the batch axis; see :mod:`pquant.quantization.fixed_point`."""

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
        """Return the format with a k, i, f for each value of ``shape``."""
        k, i, f = (np.broadcast_to(bits, shape) for bits in (self.k, self.i, self.f))
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
        """Return float64 values of (batch, *shape), exact as long as both they and the result have at most 53 bits."""
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


def _round(x: np.ndarray, mode: str) -> np.ndarray:
    """Return rounded integers; the code adds no half to ``x``, as that sum could itself round."""
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
    """Weights as integers n times 2^-f, with the least such f."""

    n: np.ndarray
    f: int

    @classmethod
    def of(cls, what: str, values: Tensor, quantizer: Quantizer) -> "Constants":
        """Return the integers of finalized parameters.

        Raises:
            ConfigError: parameters that stayed float, or a value outside its format; ``what`` names the tensor.
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


@dataclass(frozen=True)
class Real:
    """Values that are not fixed-point numbers yet, (batch, *shape) float64: the model's input, a tanh, a mean over a number of values that is not
    a power of 2.
    """

    x: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the batch axis."""
        return self.x.shape[1:]

    def gather(self, index: np.ndarray, *others: "Real") -> "Real":
        """Return the values at ``index`` of the concatenation of this and the others."""
        return Real(_gather([self.x, *(other.x for other in others)], index, 1))

    def quantize(self, form: Format) -> "Fixed":
        """Return the values in a format."""
        form = form.expand(self.shape)
        f = int(form.f.max(initial=0, where=form.width > 0))
        low, high = (np.ldexp(bound, f).astype(np.int64) for bound in form.limits())
        return Fixed(np.ldexp(form.quantize(self.x), f).astype(np.int64), f, low, high)

    def floats(self) -> np.ndarray:
        """Return the values as float64."""
        return self.x


@dataclass(frozen=True)
class Fixed:
    """Fixed-point values n * 2^-f.

    Attributes:
        n: int64 of (batch, *shape).
        f: fractional bits that all share.
        low, high: int64 of ``shape``: the bounds of n for any input.
        peak: the largest intermediate |n| in the sums and products that computed the values.
    """

    n: np.ndarray
    f: int
    low: np.ndarray
    high: np.ndarray
    peak: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the batch axis."""
        return self.n.shape[1:]

    @property
    def largest(self) -> int:
        """The largest |n| for any input."""
        return _peak(np.maximum(abs(self.low), abs(self.high)))

    def floats(self) -> np.ndarray:
        """Return the values as float64."""
        return np.ldexp(self.n.astype(np.float64), -self.f)

    def gather(self, index: np.ndarray, *others: "Fixed") -> "Fixed":
        """Return the values at ``index`` of the concatenation of this and the others; -1 is a zero."""
        every = _aligned(self, *others)
        low, high = (_gather([getattr(value, bound) for value in every], index, 0) for bound in ("low", "high"))
        return Fixed(_gather([value.n for value in every], index, 1), every[0].f, low, high)

    def dot(self, weight: Constants) -> "Fixed":
        """Return (..., groups, outputs) for values (..., groups, inputs) and a weight (groups, inputs, outputs)."""
        positive, negative = np.maximum(weight.n, 0), np.minimum(weight.n, 0)
        peak = _peak(_matmul(np.maximum(abs(self.low), abs(self.high)), abs(weight.n)))
        low = _matmul(self.low, positive) + _matmul(self.high, negative)
        high = _matmul(self.high, positive) + _matmul(self.low, negative)
        return Fixed(_matmul(self.n, weight.n), self.f + weight.f, low, high, peak)

    def times(self, factors: Constants) -> "Fixed":
        """Return the products with constants that broadcast."""
        peak = _peak(np.maximum(abs(self.low), abs(self.high)) * abs(factors.n).astype(np.float64))
        ends = self.low * factors.n, self.high * factors.n
        return Fixed(self.n * factors.n, self.f + factors.f, np.minimum(*ends), np.maximum(*ends), peak)

    def shift(self, bits: int) -> "Fixed":
        """Return the values times 2^bits."""
        return replace(self, f=self.f - bits)

    def plus(self, terms: Constants) -> "Fixed":
        """Return the sums with constants that broadcast."""
        mine, n = self.at(max(self.f, terms.f)), terms.n << max(self.f - terms.f, 0)
        before = max(mine.peak, mine.largest)
        return Fixed(mine.n + n, mine.f, mine.low + n, mine.high + n, _peak(np.array(before + abs(n).max(initial=0))))

    def add(self, other: "Fixed", sign: int = 1) -> "Fixed":
        """Return the sum, or the difference for ``sign`` -1."""
        a, b = _aligned(self, other)
        ends = (b.low, b.high) if sign > 0 else (-b.high, -b.low)
        low, high = a.low + ends[0], a.high + ends[1]
        return Fixed(a.n + sign * b.n, a.f, low, high, _peak(np.maximum(abs(low), abs(high))))

    def quantize(self, form: Format) -> "Fixed":
        """Return the values in a format."""
        new = Real(self.floats()).quantize(form)
        if not form.overflow_mode.startswith("SAT"):
            return new
        ends = Real(np.ldexp(np.stack([self.low, self.high]).astype(np.float64), -self.f)).quantize(form)
        return Fixed(new.n, new.f, *ends.n)

    def relu(self) -> "Fixed":
        """Return the values, 0 for negative ones."""
        n, low, high = (np.maximum(n, 0) for n in (self.n, self.low, self.high))
        return Fixed(n, self.f, low, high, self.peak)

    def clip(self, bound: int) -> "Fixed":
        """Return the values, those beyond -bound or bound replaced by it."""
        mine = self.at(max(self.f, 0))
        n, low, high = (np.clip(n, -bound << mine.f, bound << mine.f) for n in (mine.n, mine.low, mine.high))
        return Fixed(n, mine.f, low, high, mine.peak)

    def real(self, function: Any) -> Real:
        """Return ``function`` of the values."""
        return Real(function(self.floats()))

    def at(self, f: int) -> "Fixed":
        """Return the same values with at least as many fractional bits."""
        n, low, high = (n << (f - self.f) for n in (self.n, self.low, self.high))
        return Fixed(n, f, low, high, _peak(np.array(self.peak) * 2.0 ** (f - self.f)))


def _aligned(*values: Fixed) -> list[Fixed]:
    f = max(value.f for value in values)
    return [value.at(f) for value in values]


def _gather(arrays: list[np.ndarray], index: np.ndarray, axes: int) -> np.ndarray:
    """Return the elements at ``index`` of the concatenated arrays, 0 where it is -1; the first ``axes`` axes stay."""
    lead = arrays[0].shape[:axes]
    flat = np.concatenate([array.reshape(*lead, -1) for array in arrays] + [np.zeros((*lead, 1), arrays[0].dtype)], axis=-1)
    return flat[..., index]


def _matmul(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the products by group of (..., groups, inputs) and (groups, inputs, outputs).

    They go through float64, which has every digit of sums below 2^53.
    """
    products = [x[..., group, :].astype(np.float64) @ weight[group].astype(np.float64) for group in range(len(weight))]
    return np.stack(products, axis=-2).astype(np.int64)


def _peak(most: np.ndarray) -> int:
    largest = float(np.max(most, initial=0))
    if largest >= 2**EXACT_BITS:
        raise ConfigError(f"sums of more than {EXACT_BITS} bits: fewer bits in weights or data are needed")
    return int(largest)
