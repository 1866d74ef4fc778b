"""Exact fixed-point arithmetic on integers, in numpy: values n * 2^-f with n an int64."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pquant.errors import ConfigError
from pquant.export.formats import EXACT_BITS, Constants, Format

TABLE_BITS = 16
Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Real:
    """Values that are not quantized yet, (batch, *shape) float64.

    Examples are the model's input, a tanh, and a mean over a number of values that is not a power of 2.
    """

    x: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the batch axis."""
        return self.x.shape[1:]

    def gather(self, index: np.ndarray, *others: "Real | Fixed") -> "Real":
        """Return the values at ``index`` of the concatenation of this and the others; -1 is a zero."""
        return Real(_gather([self.x, *(other.floats() for other in others)], index, 1))

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
        f: fractional bits of all values.
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
        return _peak(self._sizes())

    def floats(self) -> np.ndarray:
        """Return the values as float64."""
        return np.ldexp(self.n.astype(np.float64), -self.f)

    def gather(self, index: np.ndarray, *others: "Real | Fixed") -> "Real | Fixed":
        """Return the values at ``index`` of the concatenation of this and the others; -1 is a zero."""
        fixed = [other for other in others if isinstance(other, Fixed)]
        if len(fixed) < len(others):
            return Real(self.floats()).gather(index, *others)
        every = _aligned(self, *fixed)
        low, high = (_gather([getattr(value, bound) for value in every], index, 0) for bound in ("low", "high"))
        return Fixed(_gather([value.n for value in every], index, 1), every[0].f, low, high)

    def dot(self, weight: Constants) -> "Fixed":
        """Return (..., groups, outputs) for values (..., groups, inputs) and a weight (groups, inputs, outputs)."""
        positive, negative = np.maximum(weight.n, 0), np.minimum(weight.n, 0)
        peak = _peak(_matmul(self._sizes(), abs(weight.n)))
        low = _matmul(self.low, positive) + _matmul(self.high, negative)
        high = _matmul(self.high, positive) + _matmul(self.low, negative)
        return Fixed(_matmul(self.n, weight.n), self.f + weight.f, low, high, peak)

    def times(self, factors: Constants) -> "Fixed":
        """Return the products with constants that broadcast."""
        peak = _peak(self._sizes() * abs(factors.n).astype(np.float64))
        ends = self.low * factors.n, self.high * factors.n
        return Fixed(self.n * factors.n, self.f + factors.f, np.minimum(*ends), np.maximum(*ends), peak)

    def multiply(self, other: "Fixed") -> "Fixed":
        """Return the products with other values of the same shape. With the values themselves, the products are squares, with a range from 0."""
        peak = _peak(self._sizes() * other._sizes().astype(np.float64))
        ends = np.stack([a * b for a in (self.low, self.high) for b in (other.low, other.high)])
        low = np.where((self.low < 0) & (self.high > 0), 0, ends.min(0)) if other is self else ends.min(0)
        return Fixed(self.n * other.n, self.f + other.f, low, ends.max(0), peak)

    def extreme(self, which: Literal["max", "min"]) -> "Fixed":
        """Return the largest or smallest value along the last axis."""
        n, low, high = (getattr(ends, which)(-1) for ends in (self.n, self.low, self.high))
        return Fixed(n, self.f, low, high, self.peak)

    def constant(self, values: Constants) -> "Fixed":
        """Return constants as values with the batch size of this object."""
        return Fixed(np.broadcast_to(values.n, (len(self.n), *values.n.shape)), values.f, values.n, values.n)

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
        """Return the values, with negative ones replaced by 0."""
        n, low, high = (np.maximum(n, 0) for n in (self.n, self.low, self.high))
        return Fixed(n, self.f, low, high, self.peak)

    def clip(self, bound: int) -> "Fixed":
        """Return the values, clipped to [-bound, bound]."""
        mine = self.at(max(self.f, 0))
        n, low, high = (np.clip(n, -bound << mine.f, bound << mine.f) for n in (mine.n, mine.low, mine.high))
        return Fixed(n, mine.f, low, high, mine.peak)

    def real(self, functions: Function | np.ndarray) -> Real:
        """Return a function of the values, or an array of functions, which broadcasts with them."""
        x = self.floats()
        if not isinstance(functions, np.ndarray):
            return Real(functions(x))
        each, y = np.broadcast_to(functions, self.shape), np.empty_like(x)
        for function in set(functions.flat):
            y[:, each == function] = function(x[:, each == function])
        return Real(y)

    def table(self, function: Function) -> "Fixed":
        """Return a function of the values, whose results are fixed-point values of any format.

        Raises:
            ConfigError: the values can be more than 2^TABLE_BITS different ones.
        """
        low, high = int(self.low.min()), int(self.high.max())
        check_table(high - low + 1)
        results = Constants.from_floats(function(np.ldexp(np.arange(low, high + 1, dtype=np.float64), -self.f)))
        return Fixed(results.n[self.n - low], results.f, np.full(self.shape, results.n.min()), np.full(self.shape, results.n.max()))

    def _sizes(self) -> np.ndarray:
        return np.maximum(abs(self.low), abs(self.high))

    def at(self, f: int) -> "Fixed":
        """Return the same values with at least as many fractional bits."""
        n, low, high = (n << (f - self.f) for n in (self.n, self.low, self.high))
        return Fixed(n, f, low, high, _peak(np.array(self.peak) * 2.0 ** (f - self.f)))


def check_table(entries: int) -> None:
    """Raise a ConfigError if a table is too large."""
    if entries > 2**TABLE_BITS:
        raise ConfigError(f"a table of {entries} entries is needed, more than 2^{TABLE_BITS}: quantize its input to fewer bits")


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

    They are computed in float64, in which sums below 2^53 are exact.
    """
    products = [x[..., group, :].astype(np.float64) @ weight[group].astype(np.float64) for group in range(len(weight))]
    return np.stack(products, axis=-2).astype(np.int64)


def _peak(most: np.ndarray) -> int:
    largest = float(np.max(most, initial=0))
    if largest >= 2**EXACT_BITS:
        raise ConfigError(f"sums of more than {EXACT_BITS} bits: fewer bits in weights or data are needed")
    return int(largest)
