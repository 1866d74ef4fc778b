"""The values of :mod:`pquant.export.replay` as alkaid's symbolic wires, which alkaid turns into logic."""

from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from typing import Any, Literal

import numpy as np
from alkaid.trace import FVariable, FVArray, HWConfig, trace
from alkaid.trace.passes import optimize
from alkaid.types import CombLogic

from pquant.export.fixed import Function, check_table
from pquant.export.formats import Constants, Format
from pquant.export.graph import Graph
from pquant.export.replay import input_format, replay

# alkaid's estimates: adders cost a LUT a bit, and carries of any length one delay; with -1 for carries, products of data get negative delays.
COSTS = HWConfig(1, 65534, -1)
WINDOW = 24
TRIALS = 500
NATIVE = ("TRN", "RND", "RND_CONV")
# Each mode is the floor of x plus (steps of the result, steps of x), for x >= 0 and for x < 0.
OFFSETS = {
    "TRN_ZERO": ((0.0, 0), (1.0, -1)),
    "RND_ZERO": ((0.5, -1), (0.5, 0)),
    "RND_INF": ((0.5, 0), (0.5, -1)),
    "RND_MIN_INF": ((0.5, -1), (0.5, -1)),
}
MODES = frozenset((*NATIVE, *OFFSETS, "SAT", "SAT_SYM", "WRAP"))


def logic(graph: Graph, every_layer: bool = False) -> CombLogic:
    """Return a finalized model's graph as combinational logic with flat outputs: the model's, or with ``every_layer`` those of all steps in order.

    Raises:
        ConfigError: a table needs too many entries, or the output does not depend on the input.
    """
    form = input_format(graph)
    low, high = form.limits()
    step = np.where(form.width > 0, np.ldexp(1.0, -form.f), 1.0)
    x = FVArray.from_lhs(low, high, step, hwconf=COSTS)
    values = replay(graph, Wires(np.asarray(x)))
    wanted = values[1:] if every_layer else [values[graph.output]]
    outputs = np.concatenate([value.wires.ravel() for value in wanted])
    traced = trace(x, FVArray(outputs, hwconf=COSTS), optimize=False)
    whole = np.random.default_rng(0).integers(0, np.rint((high - low) / step) + 1, (TRIALS, *low.shape))
    return _optimized(traced, (low + step * whole).reshape(TRIALS, -1))


def _optimized(traced: CombLogic, given: np.ndarray) -> CombLogic:
    """Return logic with fewer operations and the same results for the inputs ``given`` (examples, values).

    alkaid traces its result again for tighter ranges. This can change the sign of a square, or widen the input range of a table beyond the table. In
    these cases the second trace is left out.
    """
    with suppress(AssertionError, RuntimeError):
        expected = traced.predict(given, n_threads=1)
        comb = optimize(traced, keep_dead_inputs=True)
        if np.array_equal(comb.predict(given, n_threads=1), expected):
            return comb
    return optimize(traced, keep_dead_inputs=True, retrace=False)


class Wires:
    """Symbolic fixed-point values.

    If the values are not fixed-point yet (:class:`pquant.export.fixed.Real`), ``functions`` holds the functions that quantization will apply.
    """

    def __init__(self, wires: np.ndarray, functions: np.ndarray | None = None) -> None:
        self.wires, self.functions = wires, functions

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, without a batch axis."""
        return self.wires.shape

    def gather(self, index: np.ndarray, *others: "Wires") -> "Wires":
        """Return the wires at ``index`` of the concatenation of this and the others; -1 is a zero."""
        parts = (self, *others)
        every = np.concatenate([*(part.wires.ravel() for part in parts), [_constant(0.0)]])
        if all(part.functions is None for part in parts):
            return Wires(every[index.ravel()].reshape(index.shape))
        functions = [np.full(part.wires.size, _same) if part.functions is None else part.functions.ravel() for part in parts]
        laid = np.concatenate([*functions, [_same]])
        return Wires(every[index.ravel()].reshape(index.shape), laid[index.ravel()].reshape(index.shape))

    def dot(self, weight: Constants) -> "Wires":
        """Return (..., groups, outputs) for wires (..., groups, inputs) and a weight (groups, inputs, outputs)."""
        matrices = weight.floats
        products = [_product(self.wires[..., group, :], matrix) for group, matrix in enumerate(matrices)]
        return Wires(np.stack(products, axis=-2))

    def times(self, factors: Constants) -> "Wires":
        """Return the products with constants that broadcast."""
        return self._each(factors.floats, lambda wire, factor: wire * factor if factor else _constant(0.0))

    def plus(self, terms: Constants) -> "Wires":
        """Return the sums with constants that broadcast."""
        return self._each(terms.floats, lambda wire, term: wire + term if term else wire)

    def _each(self, constants: np.ndarray, function: Callable[[Any, float], Any]) -> "Wires":
        given = np.broadcast_to(constants, self.shape).ravel()
        return Wires(_array([function(wire, float(one)) for wire, one in zip(self.wires.ravel(), given, strict=True)], self.shape))

    def add(self, other: "Wires", sign: int = 1) -> "Wires":
        """Return the sum, or the difference for ``sign`` -1."""
        pairs = zip(self.wires.ravel(), other.wires.ravel(), strict=True)
        return Wires(_array([a + b if sign > 0 else a - b for a, b in pairs], self.shape))

    def multiply(self, other: "Wires") -> "Wires":
        """Return the products with other wires of the same shape."""
        return Wires(_array([_times(a, b) for a, b in zip(self.wires.ravel(), other.wires.ravel(), strict=True)], self.shape))

    def extreme(self, which: Literal["max", "min"]) -> "Wires":
        """Return the largest or smallest value along the last axis."""
        rows = self.wires.reshape(-1, self.shape[-1])
        return Wires(_array([_extreme(list(row), which) for row in rows], self.shape[:-1]))

    def constant(self, values: Constants) -> "Wires":
        """Return constants."""
        return Wires(_array([_constant(value) for value in values.floats.ravel()], values.n.shape))

    def shift(self, bits: int) -> "Wires":
        """Return the values times 2^bits."""
        return Wires(_array([wire * 2.0**bits for wire in self.wires.ravel()], self.shape))

    def relu(self) -> "Wires":
        """Return the values, 0 for negative ones."""
        return Wires(_array([wire.relu() for wire in self.wires.ravel()], self.shape))

    def clip(self, bound: int) -> "Wires":
        """Return the values, clipped to [-bound, bound]."""
        return Wires(_array([wire.max_of(-float(bound)).min_of(float(bound)) for wire in self.wires.ravel()], self.shape))

    def real(self, functions: Function | np.ndarray) -> "Wires":
        """Return values whose quantization will be a table of a function, or of an array of functions that broadcasts with the values."""
        each = np.empty((), dtype=object)
        each[()] = functions
        return Wires(self.wires, np.broadcast_to(functions if isinstance(functions, np.ndarray) else each, self.shape))

    def table(self, function: Function) -> "Wires":
        """Return a function of the values, whose results are fixed-point values of any format."""
        return Wires(_array([_looked_up(wire, function) for wire in self.wires.ravel()], self.shape))

    def quantize(self, form: Format) -> "Wires":
        """Return the values in a format."""
        form = form.expand(self.shape)
        each = [Format(*bits, form.round_mode, form.overflow_mode) for bits in zip(form.k.ravel(), form.i.ravel(), form.f.ravel(), strict=True)]
        if self.functions is None:
            return Wires(_array([_quantized(wire, one) for wire, one in zip(self.wires.ravel(), each, strict=True)], self.shape))
        tables = [_looked_up(*one) for one in zip(self.wires.ravel(), self.functions.ravel(), each, strict=True)]
        return Wires(_array(tables, self.shape))


def _array(wires: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    flat = np.empty(len(wires), dtype=object)
    flat[:] = wires
    return flat.reshape(shape)


def _constant(value: float) -> FVariable:
    return FVariable.from_const(float(value), hwconf=COSTS)


def _product(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return x @ matrix, for wires (..., inputs)."""
    rows = [_row_product(row, matrix) for row in x.reshape(-1, x.shape[-1])]
    return np.stack(rows).reshape(*x.shape[:-1], -1)


def _row_product(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return x @ matrix, for wires (inputs,): alkaid gets only wires that are not constants, and columns that depend on one of them."""
    live = np.array([wire.low < wire.high for wire in x])
    constants = np.array([float(wire.low) for wire in x[~live]]) @ matrix[~live]
    out = _array([_constant(value) for value in constants], constants.shape)
    for part in windows(matrix[live]):
        used = part.any(axis=0)
        # alkaid makes tables of products with single bits, and reads a bit as 0 or 1, even if it is a sign: 0 or -1
        signs = any(wire.low < 0 and sum(wire.kif) == 1 for wire in x[live])
        given = FVArray(x[live], {"binary_lut": False} if signs else None, hwconf=COSTS)
        out[used] += np.asarray(given @ part[:, used])
    return out


def windows(matrix: np.ndarray) -> list[np.ndarray]:
    """Return float32 matrices that sum to ``matrix``; no column of a matrix spans more than WINDOW bits from highest to lowest.

    alkaid's solver uses int32 and silently returns wrong sums for wider columns.
    """
    mantissas, tops = np.frexp(matrix)
    digits = np.ldexp(mantissas, 53).astype(np.int64)
    bottoms = tops - 54 + np.frexp((digits & -digits).astype(np.float64))[1]
    parts = []
    left = matrix != 0
    while left.any():
        lowest = bottoms.min(axis=0, where=left, initial=np.iinfo(np.int32).max)
        inside = left & ((tops <= lowest + WINDOW) | (bottoms == lowest))
        parts.append(np.where(inside, matrix, 0.0))
        left &= ~inside
    return parts


def _quantized(wire: FVariable, form: Format) -> FVariable:
    if wire.low == wire.high:
        return _constant(float(form.quantize(np.array([float(wire.low)]))[0]))
    if form.width == 0:
        return _constant(0.0)
    mode, fraction = form.round_mode, int(wire.kif[2])
    if mode not in NATIVE:
        mode = "TRN"
        if form.f < fraction:
            above, below = (steps * 2.0 ** -int(form.f) + own * 2.0**-fraction for steps, own in OFFSETS[form.round_mode])
            wire = wire + above if above == below or wire.low >= 0 else wire + wire.is_negative() * (below - above) + above
    return wire.quantize(int(form.k), int(form.i), int(form.f), form.overflow_mode, mode)


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _times(a: FVariable, b: FVariable) -> FVariable:
    """Return the product of two wires; one factor may be a constant."""
    if a.low == a.high:
        a, b = b, a
    if b.low < b.high:
        return a * b
    return a * float(b.low) if b.low else _constant(0.0)


def _extreme(wires: list[FVariable], which: Literal["max", "min"]) -> FVariable:
    """Return the largest or smallest of wires, by a tree of comparisons."""
    while len(wires) > 1:
        pairs = [wires[at : at + 2] for at in range(0, len(wires), 2)]
        wires = [reduce(FVariable.max_of if which == "max" else FVariable.min_of, pair) for pair in pairs]
    return wires[0]


def _looked_up(wire: FVariable, function: Function, form: Format | None = None) -> FVariable:
    """Return a function of a wire, quantized to ``form`` if it is given."""
    entries = round((wire.high - wire.low) / wire.step) + 1 if wire.high > wire.low else 1
    check_table(entries)
    table = function(np.float64(wire.low) + np.float64(wire.step) * np.arange(entries))
    table = table if form is None else form.quantize(table)
    return _constant(table[0]) if (table == table[0]).all() else wire.lookup(table)
