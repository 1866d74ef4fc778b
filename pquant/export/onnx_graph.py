"""A recorded finalized model as an ONNX graph; each subclass writes quantizers in its own way."""

import re
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pquant.errors import ConfigError
from pquant.export.fixed import Constants, Format, Real
from pquant.export.graph import Graph, LayerStep, MoveStep, Step, SumStep
from pquant.export.replay import CONVOLUTIONS, POOLS, padding, parameters, pool_geometry, replay
from pquant.layers.activation import PQActivation
from pquant.layers.dense import PQDense
from pquant.layers.norm import ChannelAffine

OPSET, IR = 18, 9
GENERAL, CHANNELS_LAST = "qonnx.custom_op.general", "qonnx.custom_op.channels_last"
DOMAINS = {"": OPSET, GENERAL: 1, CHANNELS_LAST: OPSET}
PADDING = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
Operand = tuple[str, Any]
"""The name of a value, and its range: :class:`pquant.export.fixed.Fixed` or :class:`pquant.export.fixed.Real`."""


class PlainGraph:
    """Standard operators alone: a quantizer is Max, Min, Mul and Floor, Ceil or Round, all exact in float32 up to 24 bits."""

    ports = ("input", "output")
    batch: int | str = "batch"
    shares_constants = True

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[Any, ...], str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.where = ""
        results: dict[int, Any] = {}
        ranges = replay(graph, Real(np.zeros((1, *graph.input_shape))), lambda step, value: results.update({id(step): value}))
        values: list[Operand] = [(self.ports[0], ranges[0])]
        for step, range_ in zip(graph.steps, ranges[1:], strict=True):
            self.where = step.name
            values.append((self._step(step, [values[at] for at in step.inputs], results.get(id(step))), range_))
        self._name_output(values[graph.output][0])

    def model(self) -> onnx.ModelProto:
        """Return the checked model."""
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.batch, *shape])
            for name, shape in zip(self.ports, (self.graph.input_shape, self.graph.output_shape), strict=True)
        ]
        shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.shapes.items()]
        graph = helper.make_graph(self.nodes, "pquant", ports[:1], ports[1:], self.constants, value_info=shapes)
        domains = sorted({"", GENERAL} | {node.domain for node in self.nodes})
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(name, DOMAINS[name]) for name in domains], ir_version=IR)
        onnx.checker.check_model(model)
        return model

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = re.sub(r"\W+", "_", f"{self.where}_{kind}_{len(self.nodes)}")
        name = f"layer_{name}" if name[0].isdigit() else name
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Return the name of an initializer; equal arrays share one."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes(), None if self.shares_constants else len(self.constants))
        if key not in self._known:
            self._known[key] = f"constant_{len(self._known)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def quantize(self, x: Operand, form: Format) -> str:
        """Return ``x`` in a format."""
        low, high = form.limits()
        saturates = form.overflow_mode.startswith("SAT")
        y = x[0]
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
        """Return a weight."""
        return self.constant(weight.floats)

    def bias(self, values: np.ndarray) -> str:
        """Return what is added by channel."""
        return self.constant(values)

    def _step(self, step: Step, inputs: list[Operand], result: Any) -> str:
        if isinstance(step, LayerStep):
            return self._layer(step, inputs, result)
        if isinstance(step, SumStep):
            return self.sum(step, inputs)
        assert isinstance(step, MoveStep)
        return self.move(step, inputs)

    def _layer(self, step: LayerStep, inputs: list[Operand], result: Any) -> str:
        layer: Any = step.layer
        operands = []
        for place, x in zip(layer.input_quantizers, inputs, strict=True):
            form = Format.of(getattr(layer, place))
            operands.append(x if form is None else (self.quantize(x, form), x[1].quantize(form)))
        y = self.compute(layer, *operands)
        form = Format.of(layer.output_quantizer)
        return y if form is None else self.quantize((y, result), form)

    def compute(self, layer: Any, x: Operand) -> str:
        """Return the result of a layer for its quantized input, before its output quantizer."""
        if isinstance(layer, PQDense):
            return self.dense(layer, x)
        if isinstance(layer, CONVOLUTIONS):
            return self.convolution(layer, x)
        if isinstance(layer, ChannelAffine):
            return self.affine(layer, x)
        if isinstance(layer, POOLS):
            return self.average(layer, x)
        if isinstance(layer, PQActivation):
            return self.activation(layer, x)
        raise ConfigError(f"export: layer '{self.where}' is a {type(layer).__name__}, which is not supported")

    def dense(self, layer: PQDense, x: Operand) -> str:
        """Return the result of a dense layer."""
        weight, bias = parameters(layer, "weight"), self.bias_of(layer)
        y = self.op("MatMul", x[0], self.weight(Constants(weight.n.T, weight.f), Format.of(layer.weight_quantizer)))
        return y if bias is None else self.op("Add", y, self.bias(bias))

    def bias_of(self, layer: Any) -> np.ndarray | None:
        """Return the bias of a layer, None if there is none or it is all 0."""
        bias = None if layer.bias is None else parameters(layer, "bias").floats
        return bias if bias is not None and bias.any() else None

    def convolution(self, layer: Any, x: Operand) -> str:
        """Return the result of a convolution."""
        pads = list(zip(*padding(layer), strict=True))
        if layer.padding_mode in PADDING:
            before, after = ([0, 0, *part] for part in pads)
            x = self.op("Pad", x[0], self.constant(before + after, np.int64), mode=PADDING[layer.padding_mode]), x[1]
            pads = [(0,) * len(layer.kernel_size)] * 2
        weight, form = parameters(layer, "weight"), Format.of(layer.weight_quantizer)
        geometry = {"pads": [*pads[0], *pads[1]], "strides": layer.stride, "dilations": layer.dilation, "group": layer.groups}
        return self.conv(x, weight, form, self.bias_of(layer), geometry)

    def conv(self, x: Operand, weight: Constants, form: Format | None, bias: np.ndarray | None, geometry: dict[str, Any]) -> str:
        """Return a convolution with a weight (outputs, inputs, *kernel) of a format."""
        inputs = [x[0], self.weight(weight, form), *([] if bias is None else [self.bias(bias)])]
        return self.op("Conv", *inputs, kernel_shape=weight.n.shape[2:], **geometry)

    def affine(self, layer: ChannelAffine, x: Operand) -> str:
        """Return the result of a channel affine."""
        factors, terms = (parameters(layer, part).floats.reshape(-1, *(1,) * (len(x[1].shape) - 1)) for part in ("weight", "bias"))
        return self.op("Add", self.op("Mul", x[0], self.constant(factors)), self.constant(terms))

    def average(self, layer: Any, x: Operand) -> str:
        """Return the result of an average pool."""
        kernel, stride, pads = pool_geometry(layer)
        return self.op("AveragePool", x[0], kernel_shape=kernel, strides=stride, pads=pads * 2, count_include_pad=1)

    def activation(self, layer: PQActivation, x: Operand) -> str:
        """Return the result of an activation."""
        if layer.kind == "tanh":
            return self.op("Clip", x[0], self.constant(-1.0), self.constant(1.0)) if layer.hard else self.op("Tanh", x[0])
        if layer.rectifies:
            return x[0]
        y = self.op("Relu", x[0])
        return y if layer.multiplier is None else self.scaled((y, x[1]), 2.0 ** int(layer.multiplier))

    def scaled(self, x: Operand, factor: float) -> str:
        """Return the product with a number."""
        return self.op("Mul", x[0], self.constant(factor))

    def sum(self, step: SumStep, inputs: list[Operand]) -> str:
        """Return the sum of the inputs, each with its sign."""
        return self.op(["Neg", "Add" if step.signs[-1] > 0 else "Sub"][len(inputs) - 1], *(name for name, _ in inputs))

    def move(self, step: MoveStep, inputs: list[Operand]) -> str:
        """Return moved or selected values."""
        shape = self.constant([-1, *step.shape], np.int64)
        if step.reshapes:
            return self.op("Reshape", inputs[0][0], shape)
        flat = [self.op("Flatten", x, axis=1) for x, _ in inputs]
        laid = self.op("Concat", *flat, axis=1) if len(flat) > 1 else flat[0]
        if (step.index < 0).any():
            laid = self.op("Pad", laid, self.constant([0, 0, 0, 1], np.int64))
        return self.op("Reshape", self.op("Gather", laid, self.constant(step.index.ravel(), np.int64), axis=1), shape)

    def _name_output(self, name: str) -> None:
        given, returned = self.ports
        if name == given or any(constant.name == name for constant in self.constants):
            self.nodes.append(helper.make_node("Identity", [name], [returned]))
            return
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [returned if one == name else one for one in names]
        self.shapes.pop(name, None)


class QdqGraph(PlainGraph):
    """QuantizeLinear and DequantizeLinear around data of at most 8 bits; they round halves to even, so only RND_CONV becomes one."""

    def quantize(self, x: Operand, form: Format) -> str:
        """Return ``x`` in a format."""
        whole = form.f.size == form.k.size == 1 and form.width.max() <= 8 and form.overflow_mode.startswith("SAT")
        if not whole or form.round_mode != "RND_CONV":
            return super().quantize(x, form)
        low, high = form.limits()
        y = self.op("Min", self.op("Max", x[0], self.constant(low)), self.constant(high))
        scale, zero = self.constant(np.ldexp(1.0, -form.f).reshape(())), self.constant(0, np.int8 if form.k.any() else np.uint8)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", y, scale, zero), scale, zero)
