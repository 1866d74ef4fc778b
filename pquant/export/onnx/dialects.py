"""The common base of the QONNX dialects of FINN and hls4ml, and the dialect of FINN."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from pquant.export.fixed import Fixed
from pquant.export.formats import Constants, Format
from pquant.export.graph import LayerStep, ReduceStep, SumStep
from pquant.export.onnx.check import has_equal_windows
from pquant.export.onnx.graph import MERGES
from pquant.export.onnx.qonnx import QonnxGraph
from pquant.export.onnx.values import Node
from pquant.export.products import spread
from pquant.export.replay import call, quantized_input
from pquant.export.windows import pool_geometry
from pquant.layers.activation import PQActivation

# Rounding modes that are equal for values that are not negative.
SAME_UNSIGNED = {"TRN_ZERO": "TRN", "RND_INF": "RND"}
MINUS, ONE, TWO = (Constants(np.array(number), 0) for number in (-1, 1, 2))
ONE_BIT = Format(np.array(0), np.array(1), np.array(0), "TRN", "SAT")
Bits = tuple[int, int, int]


class DialectGraph(QonnxGraph):
    """QONNX that both tools read: batch size 1, one Quant node per quantizer, constants that are not shared between nodes."""

    ports = ("global_in", "global_out")
    batch = 1
    shares_constants = False

    def quantizer(self, x: Node, form: Format) -> str:
        """Return the name of ``x``, quantized to a format."""
        k, i, f = (int(bits.ravel()[0]) for bits in (form.k, form.i, form.f))
        narrow = form.overflow_mode == "SAT_SYM"
        if k + i + f < 1 + narrow * k:
            return self.zero(x).name
        if k + i + f == k:
            wider = x.quantize(replace(form, i=form.i + 1, overflow_mode="SAT_SYM"))
            return self.rectified(wider.times(MINUS)).times(MINUS).name
        mode = form.round_mode if k else SAME_UNSIGNED.get(form.round_mode, form.round_mode)
        if isinstance(x.range, Fixed) and x.range.f <= f:
            mode = "TRN"
        return self.quantizer_of(x, (k, i, f), narrow, mode)

    def zero(self, x: Node) -> Node:
        """Return zeros, for formats without bits: the part of ``x`` above its highest value."""
        if not isinstance(x.range, Fixed):
            x = x.quantize(ONE_BIT)
        return self.rectified(x.plus(Constants(np.array(-int(x.range.high.max())), x.range.f)))

    def quantizer_of(self, x: Node, bits: Bits, narrow: bool, mode: str) -> str:
        """Return the name of ``x`` in a format, rounded as TRN, RND or RND_CONV."""
        raise NotImplementedError

    def weight(self, weight: Constants, form: Format | None) -> str:
        """Return a weight after a Quant node with the fewest bits that hold it, at least two."""
        return self.quant(self.constant(weight.floats), fewest_bits(weight), False, "ROUND")

    def average(self, step: LayerStep, x: Node) -> str | None:
        """Return the result of an average pool over a power of two values: a convolution by channel whose weights are all the same."""
        kernel, stride, pads = pool_geometry(step.layer, len(x.shape) - 1)
        if not has_equal_windows(step, x.shape):
            return None
        weight = Constants(np.ones((x.shape[0], 1, *kernel), np.int64), math.prod(kernel).bit_length() - 1)
        return self.conv(x, weight, None, None, {"pads": pads * 2, "strides": stride, "dilations": (1,) * len(kernel), "group": x.shape[0]})

    def operator(self, step: LayerStep, inputs: list[Node]) -> str | None:
        """Return the result of a layer for its quantized inputs; the hard tanh is 1 - relu(2 - relu(x + 1))."""
        layer: Any = step.layer
        if not isinstance(layer, PQActivation):
            return super().operator(step, inputs)
        if layer.rectifies:
            return inputs[0].name
        if layer.kind == "relu":
            y = self.rectified(inputs[0])
            return y.shift(0 if layer.multiplier is None else int(layer.multiplier)).name
        y = inputs[0]
        for number in (ONE, TWO):
            y = self.rectified(y.plus(number)).times(MINUS)
        return y.plus(ONE).name

    def rectified(self, x: Node) -> Node:
        """Return the values, with negative ones replaced by 0, by an unsigned Quant node that changes nothing else."""
        values = x.range.relu()
        return Node(self, self.quant(self.op("Relu", x.name), holding(values), False, "FLOOR"), values)

    def sum(self, step: SumStep, inputs: list[Node]) -> Node:
        """Return the sum or difference of two values, which are broadcast first."""
        return call(step, inputs)

    def reduce(self, step: ReduceStep, x: Node) -> Node:
        """Return the sum or an extreme over axes, which are moved to the end first."""
        return call(step, [x])

    def merge(self, step: LayerStep, inputs: list[Node]) -> str | None:
        """Return the larger or smaller of two values, or None: other functions are written as several operators."""
        layer: Any = step.layer
        if layer.kind not in ("maximum", "minimum"):
            return None
        return self.op(MERGES[layer.kind], *(spread(x, step.shape).name for x in inputs))

    def model(self) -> onnx.ModelProto:
        """Return the checked model, with the shapes of all values."""
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.infer_shapes import InferShapes

        return ModelWrapper(super().model()).transform(InferShapes()).model


def fewest_bits(values: Constants) -> Bits:
    """Return the fewest k, i, f that hold constants, at least two bits."""
    k = int((values.n < 0).any())
    width = max(int(np.where(values.n < 0, ~values.n, values.n).max(initial=0)).bit_length(), 2 - k)
    return k, width - values.f, values.f


def holding(values: Fixed) -> Bits:
    """Return the k, i, f that hold all of a tensor's values, at least two bits."""
    return fewest_bits(Constants(np.array([values.low.min(), values.high.max()]), values.f))


class FinnGraph(DialectGraph):
    """QONNX for FINN: inputs are quantized already, a ReLU stands before each unsigned Quant node, and no value lies on a rounding threshold.

    FINN turns a Quant node into thresholds at half steps for every rounding mode, and qonnx rounds to the nearest. A small offset moves values off
    the thresholds, so that both round to the same step.
    """

    def input_range(self) -> Any:
        """Return the range of the model's input, which FINN's accelerator takes as integers."""
        return quantized_input(self.graph, np.zeros((1, *self.graph.input_shape)))

    def quantizer_of(self, x: Node, bits: Bits, narrow: bool, mode: str) -> str:
        """Return the name of ``x`` in a format, rounded as TRN or RND."""
        k, _, f = bits
        if x.range.f > f:
            offset = 2.0 ** -(x.range.f + 1) - (2.0 ** -(f + 1) if mode == "TRN" else 0.0)
            x = x.plus(Constants.from_floats(np.array(offset)))
        return self.quant(x.name if k else self.op("Relu", x.name), bits, narrow, "ROUND")
