"""The QONNX dialect of hls4ml."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.export.arithmetic import parameters
from pquant.export.fixed import Real
from pquant.export.formats import Constants, Format
from pquant.export.graph import Graph
from pquant.export.onnx.dialects import MINUS, Bits, DialectGraph, holding
from pquant.export.onnx.values import Node, concatenation, transposition
from pquant.export.onnx.writer import CHANNELS_LAST
from pquant.layers.dense import PQDense

MOST_AXES = 3
SELECTED_BITS = 18
MERGING = ("Add", "Sub", "Mul", "MatMul", "Conv")
ELEMENTWISE = ("Quant", "Relu", "Add", "Sub", "Mul", "Max", "Min")


class Hls4mlGraph(DialectGraph):
    """QONNX for hls4ml: channels-last convolutions and pools, and constants after Quant nodes, so that hls4ml knows every precision exactly.

    hls4ml rounds down, or halves to even. Rounding halves up is done by an offset of half a step and truncation. hls4ml merges products and sums with
    constants into the following node, and may lose a precision; a Quant node that changes nothing prevents this.
    """

    def __init__(self, graph: Graph) -> None:
        self._axes: dict[str, int] = {}  # number of axes of channels-last values, without the batch axis
        self._swapped: dict[str, str] = {}
        self._fixed: set[str] = set()
        self._loose: dict[str, Bits] = {}  # formats of results that hls4ml would merge with the following node
        super().__init__(graph)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; inputs are transposed if the node needs another layout."""
        axes = [self._axes[x] for x in inputs if x in self._axes]
        elementwise = kind in ELEMENTWISE and axes
        if kind in MERGING:
            inputs = tuple(self._apart(x) for x in inputs)
        if attributes.get("domain") != CHANNELS_LAST:
            inputs = tuple(x if x in self._fixed else self.last(x, axes[0]) if elementwise else self.first(x) for x in inputs)
        y = super().op(kind, *inputs, **attributes)
        if elementwise:
            self._axes[y] = axes[0]
        return y

    def _apart(self, x: str) -> str:
        """Return a value that hls4ml does not merge with a following sum or product."""
        if x not in self._loose:
            return x
        y = self.quant(x, self._loose[x], False, "FLOOR")
        if x in self.shapes:
            self.shapes[y] = self.shapes[x]
        return y

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Return the name of an initializer."""
        name = super().constant(values, dtype)
        self._fixed.add(name)
        return name

    def weight(self, weight: Constants, form: Format | None) -> str:
        """Return a weight after a Quant node."""
        name = super().weight(weight, form)
        self._fixed.add(name)
        return name

    def number(self, values: Constants) -> str:
        """Return constants after a Quant node."""
        return self.weight(values, None)

    def last(self, x: str, axes: int) -> str:
        """Return a value of ``axes`` axes channels-last."""
        if x in self._axes:
            return x
        if x not in self._swapped:
            self._swapped[x] = super().op("Transpose", x, perm=[0, *range(2, axes + 1), 1])
            self._axes[self._swapped[x]] = axes
        return self._swapped[x]

    def first(self, x: str) -> str:
        """Return a value channels-first."""
        if x not in self._axes:
            return x
        if x not in self._swapped:
            axes = self._axes[x]
            self._swapped[x] = super().op("Transpose", x, perm=[0, axes, *range(1, axes)])
        return self._swapped[x]

    def batched(self, x: Node) -> str:
        """Return the name of values channels-first."""
        return self.first(x.name)

    def shared(self, x: Node) -> Node:
        """Return a value that several steps use; a separate node prevents hls4ml from giving all of them the format of one."""
        if isinstance(x.range, Real) or self._maker(x.name) == "Quant":
            return x
        return Node(self, self.quant(x.name, holding(x.range), False, "FLOOR"), x.range)

    def computed(self, x: Node) -> Node:
        """Return the result of a layer that is one operator, before its output quantizer."""
        if self._maker(x.name) in ("Add", "Conv"):
            self._loose[x.name] = holding(x.range)
        return x

    def _maker(self, name: str) -> str:
        return next((node.op_type for node in reversed(self.nodes) if node.output[0] == name), "")

    def quantizer(self, x: Node, form: Format) -> str:
        """Return the name of ``x`` in a format; before halves are rounded up, float values are truncated to half steps."""
        if isinstance(x.range, Real) and form.round_mode in ("RND", "RND_INF"):
            x = x.quantize(replace(form, f=form.f + 1, round_mode="TRN"))
        return super().quantizer(x, form)

    def quantizer_of(self, x: Node, bits: Bits, narrow: bool, mode: str) -> str:
        """Return the name of ``x`` in a format, rounded as TRN, RND or RND_CONV."""
        if mode == "RND":
            x = x.plus(Constants.from_floats(np.array(2.0 ** (-bits[2] - 1))))
        return self.quant(x.name, bits, narrow, "ROUND" if mode == "RND_CONV" else "FLOOR")

    def rectified(self, x: Node) -> Node:
        """Return the values, 0 for negative ones, by saturation."""
        values = x.range.relu()
        return Node(self, self.quant(x.name, holding(values), False, "FLOOR"), values)

    def times(self, x: Node, factors: Constants) -> str:
        """Return the products with constants."""
        if (factors.floats == 1).all():
            return x.name
        name = self.op("Mul", x.name, self.number(self._laid(x, factors)))
        self._loose[name] = holding(x.range.times(factors))
        return name

    def plus(self, x: Node, terms: Constants) -> str:
        """Return the sums with constants."""
        if not terms.n.any():
            return x.name
        name = self.op("Add", x.name, self.number(self._laid(x, terms)))
        self._loose[name] = holding(x.range.plus(terms))
        return name

    def _laid(self, x: Node, values: Constants) -> Constants:
        """Return constants in the layout of ``x``."""
        if x.name not in self._axes or values.n.ndim == 0:
            return values
        whole = values.n.reshape(*(1,) * (len(x.shape) - values.n.ndim), *values.n.shape)
        return Constants(np.moveaxis(whole, 0, -1), values.f)

    def select(self, nodes: Sequence[Node], index: np.ndarray) -> str:
        """Return moved or selected values."""
        axis = concatenation(index, [node.shape for node in nodes])
        if any(node.is_constant for node in nodes):
            return self.gathered(nodes, index)
        if axis is not None:
            return self._joined([node.name for node in nodes], axis + 1)
        order = transposition(index, nodes[0].shape) if len(nodes) == 1 and index.ndim <= MOST_AXES else None
        return self.gathered(nodes, index) if order is None else self.op("Transpose", nodes[0].name, perm=[0, *(axis + 1 for axis in order)])

    def _joined(self, names: list[str], axis: int) -> str:
        """Return concatenated values, two at a time."""
        joined = names[0]
        for name in names[1:]:
            joined = self.op("Concat", joined, name, axis=axis)
        return joined

    def gathered(self, nodes: Sequence[Node], index: np.ndarray) -> str:
        """Return values selected by a dense layer, which becomes plain wires where weights are constants of the logic.

        Raises:
            ConfigError: the dense layer would have too many weights.
        """
        data = [node for node in nodes if not node.is_constant]
        kept = np.concatenate([np.full(math.prod(node.shape), not node.is_constant) for node in nodes] + [[False]])
        terms = np.concatenate([(node.range.floats() if node.is_constant else np.zeros(node.shape)).ravel() for node in nodes] + [[0.0]])
        count = int(kept.sum())
        if count * index.size > 2**SELECTED_BITS:
            said = f"selects values with a matrix of {count * index.size} entries, more than 2^{SELECTED_BITS}"
            raise ConfigError(f"export.dialect=hls4ml: {self.where} {said}")
        flat = self._joined([self.reshape(node.name, (math.prod(node.shape),)) for node in data], 1)
        places = np.where(kept, np.cumsum(kept) - 1, -1)[index.ravel()]
        y = self.op("MatMul", flat, self.number(Constants((np.arange(count)[:, None] == places).astype(np.int64), 0)))
        y = self.op("Add", y, self.number(Constants.from_floats(terms[index.ravel()]))) if terms[index].any() else y
        range = nodes[0].range.gather(index, *(node.range for node in nodes[1:]))
        return self.reshape(y if isinstance(range, Real) else self.quant(y, holding(range), False, "FLOOR"), index.shape)

    def over_last(self, x: Node, kind: str) -> str:
        """Return the sum, kept as an axis of one value, or the largest or smallest value over the last axis, by a dense layer or a max pool."""
        *lead, size = x.shape
        if kind == "sum":
            return self.product(x, Constants(np.ones((size, 1), np.int64), 0))
        if kind == "min":
            opposite = x.times(MINUS)
            return Node(self, self.over_last(opposite, "max"), opposite.range.extreme("max")).times(MINUS).name
        image = self.reshape(x.name, (math.prod(lead), size, 1))
        self.shapes[image] = (1, math.prod(lead), size, 1)
        y = self.op("MaxPool", image, domain=CHANNELS_LAST, kernel_shape=(1, size), strides=(1, size), pads=(0, 0, 0, 0))
        return self.reshape(y, tuple(lead))

    def product(self, x: Node, weight: Constants) -> str:
        """Return the matrix products of the last axis with a weight (inputs, outputs)."""
        return self._rows(x, weight, None)

    def reshape(self, x: str, shape: tuple[int, ...]) -> str:
        """Return values in a shape.

        hls4ml merges a transposition before a flattening into the following weight, and then fails; with two reshapes it does not. It does not
        support shapes without axes.
        """
        shape = shape or (1,)
        if len(shape) == 1:
            x = self.op("Reshape", x, self.constant([1, 1, *shape], np.int64))
        return super().reshape(x, shape)

    def dense(self, layer: PQDense, x: Node) -> str:
        """Return the result of a dense layer."""
        weight = parameters(layer, "weight")
        return self._rows(x, Constants(weight.n.T, weight.f), self.bias_of(layer))

    def _rows(self, x: Node, weight: Constants, bias: Constants | None) -> str:
        """Return the result of a dense layer; for more than one row, by a convolution with a kernel of size 1."""
        lead, (inputs, outputs) = x.shape[:-1], weight.n.shape
        if math.prod(lead) == 1:
            flat = x.name if not lead else self.reshape(x.name, (inputs,))
            y = self.op("MatMul", flat, self.number(weight))
            y = y if bias is None else self.op("Add", y, self.number(bias))
            return y if not lead else self.reshape(y, (*lead, outputs))
        rows = self.reshape(x.name, (math.prod(lead), inputs))
        self.shapes[rows] = (1, math.prod(lead), inputs)
        kernel = Constants(weight.n.T[..., None], weight.f)
        y = self._conv_last(rows, kernel, bias, {"pads": (0, 0), "strides": (1,), "dilations": (1,), "group": 1})
        return self.reshape(y, (*lead, outputs))

    def conv(self, x: Node, weight: Constants, form: Format | None, bias: Constants | None, geometry: dict[str, Any]) -> str:
        """Return a convolution with a weight (outputs, inputs, *kernel), with zeros instead of dilation, which hls4ml reads wrongly."""
        axes = weight.n.ndim - 1
        weight, geometry = dilated(weight, geometry["dilations"]), geometry | {"dilations": (1,) * (axes - 1)}
        name = self.last(x.name, axes)
        self.shapes[name] = (1, *x.shape[1:], x.shape[0])
        y = self._conv_last(name, weight, bias, geometry)
        self._axes[y] = axes
        return y

    def _conv_last(self, x: str, weight: Constants, bias: Constants | None, geometry: dict[str, Any]) -> str:
        """Return a convolution of a channels-last value; without a bias hls4ml would merge it with a following sum."""
        given = Constants(np.moveaxis(weight.n, 1, -1), weight.f)
        added = self.number(Constants(np.zeros(len(weight.n), np.int64), 0) if bias is None else bias)
        weights = self.number(given)
        self.shapes[weights] = given.n.shape
        return self.op("Conv", x, weights, added, domain=CHANNELS_LAST, kernel_shape=weight.n.shape[2:], **geometry)

    def pool(self, x: Node, geometry: dict[str, Any], more: dict[str, Any]) -> str:
        """Return a max pool; a second axis is added to pools over one axis, which hls4ml reads wrongly."""
        axes, (channels, *sizes) = len(x.shape), x.shape
        name = self.last(x.name, axes)
        if axes == 2:
            name = super().op("Reshape", name, self.constant([1, 1, *sizes, channels], np.int64))
            geometry = {"kernel_shape": (1, *geometry["kernel_shape"]), "strides": (1, *geometry["strides"]), "pads": [0, geometry["pads"][0]] * 2}
        self.shapes[name] = (1, *[1] * (3 - axes), *sizes, channels)
        y = self.op("MaxPool", name, domain=CHANNELS_LAST, **geometry)
        if axes == 2:
            y = super().op("Reshape", y, self.constant([1, -1, channels], np.int64))
        self._axes[y] = axes
        return y


def dilated(weight: Constants, dilation: Sequence[int]) -> Constants:
    """Return a weight (outputs, inputs, *kernel) with zeros between its values."""
    steps = tuple(slice(None, None, step) for step in dilation)
    sizes = [step * (size - 1) + 1 for step, size in zip(dilation, weight.n.shape[2:], strict=True)]
    n = np.zeros((*weight.n.shape[:2], *sizes), np.int64)
    n[(slice(None), slice(None), *steps)] = weight.n
    return Constants(n, weight.f)
