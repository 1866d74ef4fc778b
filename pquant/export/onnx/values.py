"""The values of :mod:`pquant.export.arithmetic` as nodes of an ONNX graph."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Protocol

import numpy as np

from pquant.export.fixed import Fixed, check_table
from pquant.export.formats import Constants, Format

MOST_AXES = 4


class Builder(Protocol):
    """The interface of a graph that nodes are written to."""

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str: ...  # noqa: D102

    def constant(self, values: Any, dtype: Any = np.float32) -> str: ...  # noqa: D102

    def quantize(self, x: "Node", form: Format) -> "Node": ...  # noqa: D102

    def times(self, x: "Node", factors: Constants) -> str: ...  # noqa: D102

    def plus(self, x: "Node", terms: Constants) -> str: ...  # noqa: D102

    def reshape(self, x: str, shape: tuple[int, ...]) -> str: ...  # noqa: D102

    def select(self, nodes: "Sequence[Node]", index: np.ndarray) -> str: ...  # noqa: D102

    def product(self, x: "Node", weight: Constants) -> str: ...  # noqa: D102

    def over_last(self, x: "Node", kind: str) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Node:
    """Values in an ONNX graph: their name, and their range for any input.

    Attributes:
        graph: the graph that nodes are written to.
        name: name of a node's output, or, for constants, of an initializer without a batch axis.
        range: range of the values of one example.
    """

    graph: Builder
    name: str
    range: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the batch axis."""
        return self.range.shape

    @property
    def is_constant(self) -> bool:
        """Whether the values are an initializer."""
        return False

    def made(self, range: Any, kind: str, *inputs: str, **attributes: Any) -> "Node":
        """Return the result of a new node."""
        return Node(self.graph, self.graph.op(kind, *inputs, **attributes), range)

    def gather(self, index: np.ndarray, *others: "Node") -> "Node":
        """Return the values at ``index`` of the concatenation of this and the others; -1 is a zero."""
        every = (self, *others)
        range = self.range.gather(index, *(other.range for other in others))
        if all(one.is_constant for one in every):
            return constant(self.graph, Constants(range.n[0], range.f))
        if others:
            return Node(self.graph, self.graph.select(every, index), range)
        if index.shape == self.shape and is_order(index):
            return self
        if is_order(index) and index.size == math.prod(self.shape):
            return Node(self.graph, self.graph.reshape(self.name, index.shape), range)
        return Node(self.graph, self.graph.select(every, index), range)

    def dot(self, weight: Constants) -> "Node":
        """Return (..., groups, outputs) for values (..., groups, inputs) and a weight (groups, inputs, outputs)."""
        groups, inputs, outputs = weight.n.shape
        range, lead = self.range.dot(weight), self.shape[:-2]
        if groups == outputs == 1 and (weight.n == 1).all() and weight.f == 0:
            return Node(self.graph, self.graph.over_last(self, "sum"), range)
        if groups == 1:
            return Node(self.graph, self.graph.product(self, Constants(weight.n[0], weight.f)), range)
        rows = self.graph.reshape(self.name, (*lead, groups, 1, inputs))
        products = self.graph.op("MatMul", rows, self.graph.constant(weight.floats))
        return Node(self.graph, self.graph.reshape(products, (*lead, groups, outputs)), range)

    def times(self, factors: Constants) -> "Node":
        """Return the products with constants that broadcast."""
        return Node(self.graph, self.graph.times(self, factors), self.range.times(factors))

    def plus(self, terms: Constants) -> "Node":
        """Return the sums with constants that broadcast."""
        return Node(self.graph, self.graph.plus(self, terms), self.range.plus(terms))

    def add(self, other: "Node", sign: int = 1) -> "Node":
        """Return the sum, or the difference for ``sign`` -1."""
        if other.is_constant:
            return self.plus(Constants(sign * other.range.n[0], other.range.f))
        if self.is_constant:
            return other.times(Constants(np.array(sign), 0)).plus(Constants(self.range.n[0], self.range.f))
        return self.made(self.range.add(other.range, sign), "Add" if sign > 0 else "Sub", self.name, other.name)

    def multiply(self, other: "Node") -> "Node":
        """Return the products with other values of the same shape."""
        if other.is_constant:
            return self.times(Constants(other.range.n[0], other.range.f))
        if self.is_constant:
            return other.multiply(self)
        own = self.range if other is self else other.range
        return self.made(self.range.multiply(own), "Mul", self.name, other.name)

    def extreme(self, which: Any) -> "Node":
        """Return the largest or smallest value along the last axis."""
        return Node(self.graph, self.graph.over_last(self, which), self.range.extreme(which))

    def constant(self, values: Constants) -> "Node":
        """Return constants."""
        return constant(self.graph, values)

    def shift(self, bits: int) -> "Node":
        """Return the values times 2^bits."""
        if bits == 0:
            return self
        return Node(self.graph, self.graph.times(self, Constants(np.array(1), -bits)), self.range.shift(bits))

    def quantize(self, form: Format) -> "Node":
        """Return the values in a format."""
        return self.graph.quantize(self, form)

    def relu(self) -> "Node":
        """Return the values, 0 for negative ones."""
        return self.made(self.range.relu(), "Relu", self.name)

    def clip(self, bound: int) -> "Node":
        """Return the values, those beyond -bound or bound replaced by it."""
        return self.made(self.range.clip(bound), "Clip", self.name, self.graph.constant(-bound), self.graph.constant(bound))

    def real(self, functions: Callable[[np.ndarray], np.ndarray] | np.ndarray) -> "Node":
        """Return a function of the values, or of an array of functions that broadcasts with them: tables with one entry per value in its range."""
        each = functions if isinstance(functions, np.ndarray) else np.array(functions, dtype=object)
        return Node(self.graph, self._looked_up(each), self.range.real(functions))

    def table(self, function: Callable[[np.ndarray], np.ndarray]) -> "Node":
        """Return a function of the values, whose results are fixed-point values of any format."""
        return Node(self.graph, self._looked_up(np.array(function, dtype=object)), self.range.table(function))

    def _looked_up(self, functions: np.ndarray) -> str:
        low, high, f = int(self.range.low.min()), int(self.range.high.max()), self.range.f
        check_table(high - low + 1)
        different = list(dict.fromkeys(functions.flat))
        numbers = np.reshape([different.index(function) for function in functions.flat], functions.shape)
        x = np.ldexp(np.arange(low, high + 1, dtype=np.float64), -f)
        table = self.graph.constant(in_float32(np.concatenate([function(x) for function in different])))
        place = self.graph.op("Mul", self.name, self.graph.constant(2.0**f))
        place = self.graph.op("Add", place, self.graph.constant(numbers * len(x) - low))
        return self.graph.op("Gather", table, self.graph.op("Cast", place, to=7), axis=0)


class ConstantNode(Node):
    """Values of an initializer, without a batch axis."""

    @property
    def is_constant(self) -> bool:
        """Whether the values are an initializer."""
        return True


def constant(graph: Builder, values: Constants) -> Node:
    """Return constants as values."""
    return ConstantNode(graph, graph.constant(values.floats), Fixed(values.n[None], values.f, values.n, values.n))


def in_float32(x: np.ndarray) -> np.ndarray:
    """Return float64 values as float32. A value that float32 cannot represent becomes its odd neighbour, so that none becomes a tie in rounding."""
    near = x.astype(np.float32)
    other = np.nextafter(near, np.where(near < x, np.inf, -np.inf).astype(np.float32))
    return np.where((near == x) | (near.view(np.int32) & 1 == 1), near, other)


def is_order(index: np.ndarray) -> bool:
    """Return whether an index keeps values in their order."""
    return np.array_equal(index.ravel(), np.arange(index.size))


def transposition(index: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the order of the axes if an index transposes values of a shape with few axes, else None."""
    if len(shape) > MOST_AXES or sorted(index.shape) != sorted(shape):
        return None
    places = np.arange(math.prod(shape)).reshape(shape)
    orders = (order for order in permutations(range(len(shape))) if tuple(shape[axis] for axis in order) == index.shape)
    return next((order for order in orders if np.array_equal(places.transpose(order), index)), None)


def spread_from(index: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape, with leading axes of one value, from which an index broadcasts values of a shape."""
    padded = (*(1,) * (index.ndim - len(shape)), *shape)
    if len(padded) > index.ndim or any(size not in (1, wide) for size, wide in zip(padded, index.shape, strict=True)):
        return None
    places = np.arange(math.prod(shape)).reshape(padded)
    return padded if np.array_equal(np.broadcast_to(places, index.shape), index) else None


def concatenation(index: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Return the axis along which an index concatenates values of two shapes or more."""
    if len(shapes) < 2 or {len(shape) for shape in shapes} != {index.ndim}:
        return None
    starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    places = [start + np.arange(math.prod(shape)).reshape(shape) for start, shape in zip(starts, shapes, strict=False)]
    for axis in range(index.ndim):
        others = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
        if len(others) == 1 and np.array_equal(np.concatenate(places, axis), index):
            return axis
    return None
