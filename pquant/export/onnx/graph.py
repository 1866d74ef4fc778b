"""A recorded finalized model as an ONNX graph; each subclass writes quantizers in its own way."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.export.arithmetic import AVERAGES, CONVOLUTIONS, MAXIMA, TRANSPOSED, compute, parameters, quantized
from pquant.export.fixed import Real
from pquant.export.formats import Constants, Format
from pquant.export.graph import ConstantStep, Graph, LayerStep, ReduceStep, Step, SumStep
from pquant.export.onnx.check import has_equal_windows
from pquant.export.onnx.values import Node, concatenation, constant, spread_from, transposition
from pquant.export.onnx.writer import Writer
from pquant.export.replay import call
from pquant.export.windows import padding, pool_geometry
from pquant.layers.dense import PQDense
from pquant.layers.merge import PQMerge
from pquant.layers.softmax import PQSoftmax

PADDING = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
MERGES = {"add": "Add", "sub": "Sub", "mul": "Mul", "maximum": "Max", "minimum": "Min", "matmul": "MatMul", "einsum": "Einsum"}
REDUCTIONS = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin"}


class PlainGraph(Writer):
    """A graph of standard operators: a quantizer is Max, Min, Mul and Floor, Ceil or Round, all exact in float32 up to 24 bits.

    Layers that ONNX has become one operator; other layers are written as several operators.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__((graph.input_shape, graph.output_shape))
        self.graph = graph
        values = [Node(self, self.ports[0], self.input_range())]
        uses = Counter(value for step in graph.steps for value in step.inputs)
        for number, step in enumerate(graph.steps, 1):
            self.where = step.name
            try:
                y = self._step(step, [values[at] for at in step.inputs])
            except ConfigError as error:
                raise error if str(error).startswith("export") else ConfigError(f"export: layer '{step.name}': {error}") from error
            values.append(self.shared(y) if uses[number] + (number == graph.output) > 1 else y)
        self.finish(self.batched(values[graph.output]))

    def shared(self, x: Node) -> Node:
        """Return a value that several steps use."""
        return x

    def input_range(self) -> Any:
        """Return the range of the model's input."""
        return Real(np.zeros((1, *self.graph.input_shape)))

    def quantize(self, x: Node, form: Format) -> Node:
        """Return ``x``, quantized to a format."""
        form = form.within(x.shape)
        values = x.range.quantize(form)
        return constant(self, Constants(values.n[0], values.f)) if x.is_constant else Node(self, self.quantizer(x, form), values)

    def quantizer(self, x: Node, form: Format) -> str:
        """Return the name of ``x`` in a format."""
        low, high = form.limits()
        saturates = form.overflow_mode.startswith("SAT")
        y = x.name
        if saturates:
            y = self.op("Min", self.op("Max", y, self.constant(low)), self.constant(high))
        n = self._rounded(self.op("Mul", y, self.constant(np.ldexp(1.0, form.f))), form.round_mode)
        if not saturates:
            first, count = self.constant(form.bounds()[0]), self.constant(np.ldexp(1.0, form.width))
            turns = self.op("Floor", self.op("Div", self.op("Sub", n, first), count))
            n = self.op("Sub", n, self.op("Mul", turns, count))
        return self.op("Mul", n, self.constant(np.where(form.width > 0, np.ldexp(1.0, -form.f), 0.0)))

    def _rounded(self, x: str, mode: str) -> str:
        if mode in ("TRN", "RND_CONV"):
            return self.op("Floor" if mode == "TRN" else "Round", x)
        if mode in ("RND", "RND_MIN_INF"):
            first, then = ("Floor", "Ceil") if mode == "RND" else ("Ceil", "Floor")
            return self._halved(x, first, then)
        size = self.op("Abs", x)
        size = self.op("Floor", size) if mode == "TRN_ZERO" else self._halved(size, *(("Floor", "Ceil") if mode == "RND_INF" else ("Ceil", "Floor")))
        return self.op("Mul", self.op("Sign", x), size)

    def _halved(self, x: str, first: str, then: str) -> str:
        doubled = self.op(first, self.op("Mul", x, self.constant(2.0)))
        return self.op(then, self.op("Mul", doubled, self.constant(0.5)))

    def weight(self, weight: Constants, form: Format | None) -> str:
        """Return a weight of a format."""
        return self.constant(weight.floats)

    def product(self, x: Node, weight: Constants) -> str:
        """Return the matrix products of the last axis with a weight (inputs, outputs)."""
        return self.op("MatMul", x.name, self.constant(weight.floats))

    def over_last(self, x: Node, kind: str) -> str:
        """Return the sum, kept as an axis of one value, or the largest or smallest value over the last axis."""
        return self.op(REDUCTIONS[kind], x.name, self.constant([-1], np.int64), keepdims=int(kind == "sum"))

    def number(self, values: Constants) -> str:
        """Return the name of constants without a format."""
        return self.constant(values.floats)

    def times(self, x: Node, factors: Constants) -> str:
        """Return the products with constants."""
        return self.op("Mul", x.name, self.number(factors))

    def plus(self, x: Node, terms: Constants) -> str:
        """Return the sums with constants."""
        return self.op("Add", x.name, self.number(terms))

    def select(self, nodes: Sequence[Node], index: np.ndarray) -> str:
        """Return moved or selected values of one example or several; -1 is a zero."""
        names, shapes = [self.batched(node) for node in nodes], [node.shape for node in nodes]
        axis = concatenation(index, shapes)
        if axis is not None:
            return self.op("Concat", *names, axis=axis + 1)
        order, padded = (found(index, shapes[0]) if len(nodes) == 1 else None for found in (transposition, spread_from))
        if order is not None:
            return self.op("Transpose", names[0], perm=[0, *(axis + 1 for axis in order)])
        if padded is not None:
            return self.op("Expand", self.reshape(names[0], padded), self.constant([1, *index.shape], np.int64))
        return self.gathered(nodes, index)

    def gathered(self, nodes: Sequence[Node], index: np.ndarray) -> str:
        """Return the values at ``index`` of the concatenated values."""
        flat = [self.op("Flatten", self.batched(node), axis=1) for node in nodes]
        laid = self.op("Concat", *flat, axis=1) if len(flat) > 1 else flat[0]
        if (index < 0).any():
            laid = self.op("Pad", laid, self.constant([0, 0, 0, 1], np.int64))
        return self.reshape(self.op("Gather", laid, self.constant(index.ravel(), np.int64), axis=1), index.shape)

    def batched(self, x: Node) -> str:
        """Return the name of values with a batch axis."""
        if not x.is_constant:
            return x.name
        examples = self.op("Shape", self.ports[0], start=0, end=1)
        sizes = self.op("Concat", examples, self.constant(x.shape, np.int64), axis=0)
        return self.op("Expand", x.name, sizes)

    def _step(self, step: Step, inputs: list[Node]) -> Node:
        if isinstance(step, ConstantStep):
            return constant(self, Constants.from_floats(step.constants))
        if all(x.is_constant for x in inputs):
            value = call(step, [x.range for x in inputs])
            value = quantized(value, step.layer.output_quantizer) if isinstance(step, LayerStep) else value
            return constant(self, Constants.from_floats(value.floats()[0]))
        if isinstance(step, LayerStep):
            return self._layer(step, inputs)
        if isinstance(step, SumStep) and len(inputs) == 2:
            return self.sum(step, inputs)
        if isinstance(step, ReduceStep):
            return self.reduce(step, inputs[0])
        return call(step, inputs)

    def reduce(self, step: ReduceStep, x: Node) -> Node:
        """Return the sum or an extreme over axes."""
        dims = self.constant([dim + 1 for dim in step.dims], np.int64)
        return x.made(call(step, [x.range]), REDUCTIONS[step.kind], x.name, dims, keepdims=int(step.keepdim))

    def sum(self, step: SumStep, inputs: list[Node]) -> Node:
        """Return the sum or difference of two values that broadcast."""
        names = [x.name for x in inputs]
        kind = "Add" if step.signs == (1, 1) else "Sub"
        return inputs[0].made(call(step, [x.range for x in inputs]), kind, *(names[::-1] if step.signs[0] < 0 else names))

    def _layer(self, step: LayerStep, inputs: list[Node]) -> Node:
        layer: Any = step.layer
        if not isinstance(layer, PQSoftmax):  # a softmax scales its input before it quantizes it
            forms = [Format.of(getattr(layer, place)) for place in layer.input_quantizers]
            inputs = [x if form is None else x.quantize(form) for x, form in zip(inputs, forms, strict=True)]
        name = self.operator(step, inputs)
        if name is None:
            y = compute(layer, step.shape, *inputs)
        else:
            y = self.computed(Node(self, name, compute(layer, step.shape, *(x.range for x in inputs))))
        form = Format.of(layer.output_quantizer)
        return y if form is None else y.quantize(form)

    def computed(self, x: Node) -> Node:
        """Return the result of a layer that is one operator, before its output quantizer."""
        return x

    def operator(self, step: LayerStep, inputs: list[Node]) -> str | None:
        """Return the result of a layer for its quantized inputs if the layer is one operator of ONNX, else None."""
        layer: Any = step.layer
        if isinstance(layer, PQDense):
            return self.dense(layer, inputs[0])
        if isinstance(layer, CONVOLUTIONS):
            return self.convolution(layer, inputs[0])
        if isinstance(layer, TRANSPOSED):
            return self.transposed(step, inputs[0])
        if isinstance(layer, AVERAGES):
            return self.average(step, inputs[0])
        if isinstance(layer, MAXIMA):
            return self.maximum(step, inputs[0])
        return self.merge(step, inputs) if isinstance(layer, PQMerge) else None

    def dense(self, layer: PQDense, x: Node) -> str:
        """Return the result of a dense layer."""
        weight, bias = parameters(layer, "weight"), self.bias_of(layer)
        y = self.op("MatMul", x.name, self.weight(Constants(weight.n.T, weight.f), Format.of(layer.weight_quantizer)))
        return y if bias is None else self.op("Add", y, self.number(bias))

    def bias_of(self, layer: Any) -> Constants | None:
        """Return the bias of a layer; None without a bias, or if it is all 0."""
        bias = None if layer.bias is None else parameters(layer, "bias")
        return bias if bias is not None and bias.n.any() else None

    def convolution(self, layer: Any, x: Node) -> str:
        """Return the result of a convolution."""
        pads = list(zip(*padding(layer), strict=True))
        if layer.padding_mode in PADDING:
            before, after = ([0, 0, *part] for part in pads)
            x = x.made(x.range, "Pad", x.name, self.constant(before + after, np.int64), mode=PADDING[layer.padding_mode])
            pads = [(0,) * len(layer.kernel_size)] * 2
        geometry = {"pads": [*pads[0], *pads[1]], "strides": layer.stride, "dilations": layer.dilation, "group": layer.groups}
        return self.conv(x, parameters(layer, "weight"), Format.of(layer.weight_quantizer), self.bias_of(layer), geometry)

    def conv(self, x: Node, weight: Constants, form: Format | None, bias: Constants | None, geometry: dict[str, Any]) -> str:
        """Return a convolution with a weight (outputs, inputs, *kernel) of a format."""
        inputs = [x.name, self.weight(weight, form), *([] if bias is None else [self.number(bias)])]
        return self.op("Conv", *inputs, kernel_shape=weight.n.shape[2:], **geometry)

    def transposed(self, step: LayerStep, x: Node) -> str:
        """Return the result of a transposed convolution."""
        layer: Any = step.layer
        weight = Constants.from_floats(layer.weight.detach().cpu().double().numpy())
        pads = padding(layer)
        ends = [
            (size - 1) * stride + dilation * (kernel - 1) + 1 - pad - out
            for size, stride, dilation, kernel, (pad, _), out in zip(
                x.shape[1:], layer.stride, layer.dilation, layer.kernel_size, pads, step.shape[1:], strict=True
            )
        ]
        more = [max(-end, 0) for end in ends]
        both = [pad for pad, _ in pads] + [max(end, 0) for end in ends]
        bias = self.bias_of(layer)
        inputs = [x.name, self.weight(weight, Format.of(layer.weight_quantizer)), *([] if bias is None else [self.number(bias)])]
        geometry = {"strides": layer.stride, "dilations": layer.dilation, "group": layer.groups, "kernel_shape": layer.kernel_size}
        return self.op("ConvTranspose", *inputs, pads=both, output_padding=more, **geometry)

    def average(self, step: LayerStep, x: Node) -> str | None:
        """Return the result of an average pool whose windows all have the same size."""
        kernel, stride, pads = pool_geometry(step.layer, len(x.shape) - 1)
        alike = has_equal_windows(step, x.shape)
        return self.op("AveragePool", x.name, kernel_shape=kernel, strides=stride, pads=pads * 2, count_include_pad=1) if alike else None

    def maximum(self, step: LayerStep, x: Node) -> str:
        """Return the result of a max pool."""
        layer: Any = step.layer
        kernel, stride, pads = pool_geometry(layer, len(x.shape) - 1)
        dilation = (layer.dilation,) * len(kernel) if isinstance(layer.dilation, int) else tuple(layer.dilation)
        needed = [(out - 1) * step + gap * (width - 1) + 1 for out, step, gap, width in zip(step.shape[1:], stride, dilation, kernel, strict=True)]
        ends = [max(need - pad - size, 0) for need, pad, size in zip(needed, pads, x.shape[1:], strict=True)]
        return self.pool(x, {"kernel_shape": kernel, "strides": stride, "pads": [*pads, *ends]}, {"dilations": dilation})

    def pool(self, x: Node, geometry: dict[str, Any], more: dict[str, Any]) -> str:
        """Return a max pool."""
        return self.op("MaxPool", x.name, **geometry, **more)

    def merge(self, step: LayerStep, inputs: list[Node]) -> str | None:
        """Return the result of a function of two tensors."""
        layer: Any = step.layer
        a, b = inputs
        if layer.kind == "matmul" and min(len(a.shape), len(b.shape)) < 2 or layer.kind == "einsum" and (a.is_constant or b.is_constant):
            return None
        attributes = {"equation": layer.equation} if layer.kind == "einsum" else {}
        return self.op(MERGES[layer.kind], a.name, b.name, **attributes)
