"""QONNX as FINN and hls4ml read it."""

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import onnx

from pquant.errors import ConfigError
from pquant.export.fixed import Constants, Fixed, Format, Real
from pquant.export.graph import Graph, MoveStep, SumStep
from pquant.export.onnx_graph import CHANNELS_LAST, Operand
from pquant.export.onnx_qonnx import QonnxGraph
from pquant.export.replay import parameters, pool_geometry
from pquant.layers.activation import PQActivation
from pquant.layers.dense import PQDense
from pquant.layers.norm import ChannelAffine

ELEMENTWISE = ("Quant", "Relu", "Add", "Sub", "Mul", "Max", "Min")
# Modes that are the same for values that are not negative.
SAME_UNSIGNED = {"TRN_ZERO": "TRN", "RND_INF": "RND"}


class DialectGraph(QonnxGraph):
    """What both read: examples one by one, one Quant node per quantizer, constants that nothing shares."""

    ports = ("global_in", "global_out")
    batch = 1
    shares_constants = False

    def quantize(self, x: Operand, form: Format) -> str:
        """Return ``x`` in a format.

        Raises:
            ConfigError: data of no bits, or of a sign alone.
        """
        k, i, f = (int(bits.ravel()[0]) for bits in (form.k, form.i, form.f))
        if k + i + f < 1 + k:
            what = "no bits" if k + i + f < 1 else "a sign alone"
            raise ConfigError(f"export: '{self.where}' has data of {what}, which a Quant node cannot have: use export.dialect=exact")
        narrow = form.overflow_mode == "SAT_SYM"
        mode = form.round_mode if k else SAME_UNSIGNED.get(form.round_mode, form.round_mode)
        if isinstance(x[1], Fixed) and x[1].f <= f:
            mode = "TRN"
        return self.quantize_as(x, (k, i, f), narrow, mode)

    def quantize_as(self, x: Operand, bits: tuple[int, int, int], narrow: bool, mode: str) -> str:
        """Return ``x`` in a format, rounded as TRN, RND or RND_CONV."""
        raise NotImplementedError

    def average(self, layer: Any, x: Operand) -> str:
        """Return the result of an average pool over a power of two values: a convolution by channel whose weights are all the same."""
        kernel, stride, pads = pool_geometry(layer)
        channels = x[1].shape[0]
        mean = Constants(np.ones((channels, 1, *kernel), np.int64), math.prod(kernel).bit_length() - 1)
        return self.conv(x, mean, None, None, {"pads": pads * 2, "strides": stride, "dilations": (1,) * len(kernel), "group": channels})

    def number(self, values: Constants) -> str:
        """Return constants after a Quant node of the fewest bits that hold them, at least two."""
        return self.quant(self.constant(values.floats), fewest_bits(values), False, "ROUND")

    def weight(self, weight: Constants, form: Format | None) -> str:
        """Return a weight after a Quant node."""
        return self.number(weight)

    def sum(self, step: SumStep, inputs: list[Operand]) -> str:
        """Return the sum of the inputs, each with its sign."""
        return super().sum(step, inputs) if len(inputs) > 1 else self.scaled(inputs[0], -1.0)

    def move(self, step: MoveStep, inputs: list[Operand]) -> str:
        """Return moved values by Reshape, Transpose and Concat."""
        names, shapes = [name for name, _ in inputs], [x.shape for _, x in inputs]
        if step.reshapes:
            return self.op("Reshape", names[0], self.constant([1, *step.shape], np.int64))
        order = transposition(step, shapes)
        if order is not None:
            return self.op("Transpose", names[0], perm=[0, *(axis + 1 for axis in order)])
        axis = concatenation(step, shapes)
        assert axis is not None, "refused before training"
        joined = names[0]
        for name in names[1:]:
            joined = self.op("Concat", joined, name, axis=axis + 1)
        return joined

    def activation(self, layer: PQActivation, x: Operand) -> str:
        """Return the result of an activation; the hard tanh is 1 - relu(2 - relu(x + 1))."""
        if layer.rectifies:
            return x[0]
        if layer.kind == "relu":
            factor = 1.0 if layer.multiplier is None else 2.0 ** int(layer.multiplier)
            return self.scaled(self.rectified(x), factor)
        for number in (1.0, 2.0):
            x = self.rectified(self.shifted(x, number))
            x = self.scaled(x, -1.0), x[1].times(Constants(np.array(-1), 0))
        return self.shifted(x, 1.0)[0]

    def rectified(self, x: Operand) -> Operand:
        """Return the values, 0 for negative ones: an unsigned Quant node that changes nothing else."""
        values = x[1].relu()
        return self.quant(self.op("Relu", x[0]), holding(values), False, "FLOOR"), values

    def shifted(self, x: Operand, offset: float) -> Operand:
        """Return the sum with a number."""
        number = Constants.from_floats(np.array(offset))
        return self.op("Add", self.alone(x), self.bias(number.floats)), x[1].plus(number)

    def alone(self, x: Operand) -> str:
        """Return a value to which a number is added or multiplied."""
        return x[0]

    def model(self) -> onnx.ModelProto:
        """Return the checked model, with the shapes of all values."""
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.infer_shapes import InferShapes

        return ModelWrapper(super().model()).transform(InferShapes()).model


def fewest_bits(values: Constants) -> tuple[int, int, int]:
    """Return the fewest k, i, f that hold constants, at least two bits."""
    k = int((values.n < 0).any())
    width = max(int(np.where(values.n < 0, ~values.n, values.n).max(initial=0)).bit_length(), 2 - k)
    return k, width - values.f, values.f


def holding(values: Fixed) -> tuple[int, int, int]:
    """Return the k, i, f that hold all of a tensor's values, at least two bits."""
    return fewest_bits(Constants(np.array([values.low.min(), values.high.max()]), values.f))


def transposition(step: MoveStep, shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the order of the axes if a step is a transposition, of at most 3 axes."""
    if len(shapes) > 1 or len(shapes[0]) > 3:
        return None
    places = np.arange(math.prod(shapes[0])).reshape(shapes[0])
    orders = permutations(range(len(shapes[0])))
    return next((order for order in orders if np.array_equal(places.transpose(order), step.index)), None)


def concatenation(step: MoveStep, shapes: list[tuple[int, ...]]) -> int | None:
    """Return the axis along which a step concatenates its inputs, None if it does something else."""
    ranks = {len(shape) for shape in shapes} | {step.index.ndim}
    if len(shapes) < 2 or len(ranks) > 1:
        return None
    starts = np.cumsum([0, *step.sizes[:-1]])
    places = [start + np.arange(math.prod(shape)).reshape(shape) for start, shape in zip(starts, shapes, strict=True)]
    for axis in range(step.index.ndim):
        others = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
        if len(others) == 1 and np.array_equal(np.concatenate(places, axis), step.index):
            return axis
    return None


class FinnGraph(DialectGraph):
    """Inputs that are quantized already, ReLUs before unsigned Quant nodes, and no value on the threshold between two steps.

    FINN turns a Quant node into thresholds at half steps, whatever its rounding, and qonnx rounds to the nearest: a small offset moves values off the
    thresholds, so that both round to the same step.
    """

    def quantize_as(self, x: Operand, bits: tuple[int, int, int], narrow: bool, mode: str) -> str:
        """Return ``x`` in a format, rounded as TRN or RND."""
        (name, values), (k, _, f) = x, bits
        if isinstance(values, Fixed) and values.f > f:
            name, _ = self.shifted(x, 2.0 ** -(values.f + 1) - (2.0 ** -(f + 1) if mode == "TRN" else 0.0))
        return self.quant(name if k else self.op("Relu", name), bits, narrow, "ROUND")


class Hls4mlGraph(DialectGraph):
    """Channels-last convolutions and pools, and constants behind Quant nodes, so that hls4ml knows the exact precision of everything.

    hls4ml rounds down or halves to even: halves are rounded up by an offset of half a step and truncation. It merges a product with a sum that follows
    and forgets a precision then, so a Quant node that changes nothing stands between them.
    """

    def __init__(self, graph: Graph) -> None:
        self._axes: dict[str, int] = {}  # of values that are channels-last, without the batch's
        self._swapped: dict[str, str] = {}
        self._fixed: set[str] = set()
        self._mergeable: set[str] = set()
        super().__init__(graph)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; values change their layout where it needs another."""
        axes = [self._axes[x] for x in inputs if x in self._axes]
        elementwise = kind in ELEMENTWISE and axes
        if not attributes.get("domain") == CHANNELS_LAST:
            inputs = tuple(x if x in self._fixed else self.last(x, axes[0]) if elementwise else self.first(x) for x in inputs)
        y = super().op(kind, *inputs, **attributes)
        if elementwise:
            self._axes[y] = axes[0]
        return y

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Return the name of an initializer."""
        name = super().constant(values, dtype)
        self._fixed.add(name)
        return name

    def number(self, values: Constants) -> str:
        """Return constants after a Quant node of the fewest bits that hold them, at least two."""
        name = super().number(values)
        self._fixed.add(name)
        return name

    def bias(self, values: np.ndarray) -> str:
        """Return what is added by channel."""
        return self.number(Constants.from_floats(values))

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

    def alone(self, x: Operand) -> str:
        """Return a value that hls4ml merges with no sum or product that follows."""
        return self.quant(x[0], holding(x[1]), False, "FLOOR") if x[0] in self._mergeable else x[0]

    def quantize(self, x: Operand, form: Format) -> str:
        """Return ``x`` in a format; values that are no fixed-point numbers yet are truncated to half steps before halves are rounded up."""
        if isinstance(x[1], Real) and form.round_mode in ("RND", "RND_INF"):
            halves = replace(form, f=form.f + 1, round_mode="TRN")
            x = super().quantize(x, halves), x[1].quantize(halves)
        return super().quantize(x, form)

    def quantize_as(self, x: Operand, bits: tuple[int, int, int], narrow: bool, mode: str) -> str:
        """Return ``x`` in a format, rounded as TRN, RND or RND_CONV."""
        if mode == "RND":
            x = self.shifted(x, 2.0 ** (-bits[2] - 1))
        return self.quant(x[0], bits, narrow, "ROUND" if mode == "RND_CONV" else "FLOOR")

    def rectified(self, x: Operand) -> Operand:
        """Return the values, 0 for negative ones, by saturation."""
        values = x[1].relu()
        return self.quant(x[0], holding(values), False, "FLOOR"), values

    def move(self, step: MoveStep, inputs: list[Operand]) -> str:
        """Return moved values; hls4ml takes a transposition before a flattening into the weight that follows, and then fails, but not before two."""
        if step.reshapes and len(step.shape) == 1 < len(inputs[0][1].shape):
            rows = self.op("Reshape", inputs[0][0], self.constant([1, 1, *step.shape], np.int64))
            inputs = [(rows, inputs[0][1])]
        return super().move(step, inputs)

    def scaled(self, x: Operand, factor: float) -> str:
        """Return the product with a number."""
        return x[0] if factor == 1.0 else self._product(x, Constants.from_floats(np.array(factor)))

    def _product(self, x: Operand, factors: Constants) -> str:
        name = self.op("Mul", self.alone(x), self.number(factors))
        self._mergeable.add(name)
        return name

    def dense(self, layer: PQDense, x: Operand) -> str:
        """Return the result of a dense layer; of more than one row, of a convolution with a kernel of 1."""
        *lead, inputs = x[1].shape
        if not lead:
            return super().dense(layer, x)
        rows = self.op("Reshape", x[0], self.constant([1, math.prod(lead), inputs], np.int64))
        self.shapes[rows] = (1, math.prod(lead), inputs)
        weight = parameters(layer, "weight").reshape(layer.out_features, inputs, 1)
        y = self._conv_last(rows, weight, self.bias_of(layer), {"pads": (0, 0), "strides": (1,), "dilations": (1,), "group": 1})
        return self.op("Reshape", y, self.constant([1, *lead, layer.out_features], np.int64))

    def conv(self, x: Operand, weight: Constants, form: Format | None, bias: np.ndarray | None, geometry: dict[str, Any]) -> str:
        """Return a convolution with a weight (outputs, inputs, *kernel)."""
        axes = weight.n.ndim - 1
        name = self.last(x[0], axes)
        self.shapes[name] = (1, *x[1].shape[1:], x[1].shape[0])
        y = self._conv_last(name, weight, bias, geometry)
        self._axes[y] = axes
        return y

    def _conv_last(self, x: str, weight: Constants, bias: np.ndarray | None, geometry: dict[str, Any]) -> str:
        """Return a convolution of a value with its channels last; without a bias hls4ml would merge it with a sum that follows."""
        given = Constants(np.moveaxis(weight.n, 1, -1), weight.f)
        added = self.bias(np.zeros(len(weight.n)) if bias is None else bias)
        weights = self.number(given)
        self.shapes[weights] = given.n.shape
        y = self.op("Conv", x, weights, added, domain=CHANNELS_LAST, kernel_shape=weight.n.shape[2:], **geometry)
        if geometry["group"] > 1:
            self._mergeable.add(y)
        return y

    def affine(self, layer: ChannelAffine, x: Operand) -> str:
        """Return the result of a channel affine."""
        factors, terms = (parameters(layer, part) for part in ("weight", "bias"))
        axes = 0 if x[0] in self._axes else len(x[1].shape) - 1
        by_channel = [part.reshape(-1, *(1,) * axes) for part in (factors, terms)]
        y = self._product(x, by_channel[0])
        if not terms.n.any():
            return y
        products = x[1].times(factors.reshape(-1, *(1,) * (len(x[1].shape) - 1)))
        return self.op("Add", self.alone((y, products)), self.number(by_channel[1]))
