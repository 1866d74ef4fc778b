"""The values of :mod:`pquant.export.replay` as alkaid's symbolic wires, from which it makes logic."""

from collections.abc import Callable
from typing import Any

import numpy as np
from alkaid.trace import FVariable, FVArray, HWConfig, trace
from alkaid.trace.passes import optimize
from alkaid.types import CombLogic

from pquant.errors import ConfigError
from pquant.export.fixed import Constants, Format
from pquant.export.graph import Graph
from pquant.export.replay import input_format, replay

COSTS = HWConfig(1, -1, -1)
TABLE_BITS = 16
WINDOW = 24
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
    try:
        return optimize(traced, keep_dead_inputs=True)
    except AssertionError:  # tracing its result again, alkaid can find a wider range for the input of a table than the table has
        return optimize(traced, keep_dead_inputs=True, retrace=False)


class Wires:
    """Symbolic fixed-point values; ``function`` is still to be applied if they are not fixed-point yet (:class:`pquant.export.fixed.Real`)."""

    def __init__(self, wires: np.ndarray, function: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.wires, self.function = wires, function

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, without a batch axis."""
        return self.wires.shape

    def gather(self, index: np.ndarray, *others: "Wires") -> "Wires":
        """Return the wires at ``index`` of the concatenation of this and the others; -1 is a zero."""
        every = np.concatenate([self.wires.ravel(), *(other.wires.ravel() for other in others), [_constant(0.0)]])
        return Wires(every[index], self.function)

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

    def shift(self, bits: int) -> "Wires":
        """Return the values times 2^bits."""
        return Wires(_array([wire * 2.0**bits for wire in self.wires.ravel()], self.shape))

    def relu(self) -> "Wires":
        """Return the values, 0 for negative ones."""
        return Wires(_array([wire.relu() for wire in self.wires.ravel()], self.shape))

    def clip(self, bound: int) -> "Wires":
        """Return the values, clipped to [-bound, bound]."""
        return Wires(_array([wire.max_of(-float(bound)).min_of(float(bound)) for wire in self.wires.ravel()], self.shape))

    def real(self, function: Callable[[np.ndarray], np.ndarray]) -> "Wires":
        """Return values whose quantization will be a table of ``function``."""
        return Wires(self.wires, function)

    def quantize(self, form: Format) -> "Wires":
        """Return the values in a format."""
        form = form.expand(self.shape)
        each = [Format(*bits, form.round_mode, form.overflow_mode) for bits in zip(form.k.ravel(), form.i.ravel(), form.f.ravel(), strict=True)]
        quantized = (lambda wire, one: _looked_up(wire, one, self.function)) if self.function else _quantized
        return Wires(_array([quantized(wire, one) for wire, one in zip(self.wires.ravel(), each, strict=True)], self.shape))


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
    """Return x @ matrix, for wires (inputs,): alkaid gets those that are no constants, and the columns that depend on one."""
    live = np.array([wire.low < wire.high for wire in x])
    constants = np.array([float(wire.low) for wire in x[~live]]) @ matrix[~live]
    out = _array([_constant(value) for value in constants], constants.shape)
    for part in windows(matrix[live]):
        used = part.any(axis=0)
        # alkaid makes tables of products with bits, and takes a bit for 0 or 1, also where it is a sign: 0 or -1
        signs = any(wire.low < 0 and sum(wire.kif) == 1 for wire in x[live])
        given = FVArray(x[live], {"binary_lut": False} if signs else None, hwconf=COSTS)
        out[used] += np.asarray(given @ part[:, used])
    return out


def windows(matrix: np.ndarray) -> list[np.ndarray]:
    """Return matrices that sum to ``matrix``, of float32 values, in none of which a column has more than WINDOW bits from highest to lowest.

    alkaid's solver counts in int32 and silently gives wrong sums beyond.
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


def _looked_up(wire: FVariable, form: Format, function: Callable[[np.ndarray], np.ndarray]) -> FVariable:
    entries = round((wire.high - wire.low) / wire.step) + 1
    if entries > 2**TABLE_BITS:
        raise ConfigError(f"a table of {entries} entries is needed, more than 2^{TABLE_BITS}: quantize its input to fewer bits")
    table = form.quantize(function(wire.low + wire.step * np.arange(entries)))
    return _constant(table[0]) if (table == table[0]).all() else wire.lookup(table)
