"""A recorded finalized model as an ONNX graph; each subclass writes quantizers in its own way."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pquant.errors import ConfigError
from pquant.export.arithmetic import AVERAGES, CONVOLUTIONS, parameters
from pquant.export.formats import Constants, Format
from pquant.export.graph import Graph, LayerStep, MoveStep, SumStep
from pquant.export.windows import padding, pool_geometry
from pquant.layers.activation import PQActivation
from pquant.layers.dense import PQDense
from pquant.layers.norm import ChannelAffine

OPSET, IR = 18, 9
QONNX = "qonnx.custom_op.general"
# Modes of qonnx for values of any sign, and those that are the same for values that are not negative.
ROUNDING = {"TRN": "FLOOR", "TRN_ZERO": "DOWN", "RND_CONV": "ROUND", "RND_INF": "HALF_UP", "RND_ZERO": "HALF_DOWN"}
UNSIGNED = ROUNDING | {"RND": "HALF_UP", "RND_MIN_INF": "HALF_DOWN"}
PADDING = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class PlainGraph:
    """Standard operators alone: a quantizer is Max, Min, Mul and Floor, Ceil or Round, all exact in float32 up to 24 bits."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[Any, ...], str] = {}
        self.where = ""
        values = ["input"]
        for step in graph.steps:
            self.where = step.name
            inputs = [values[at] for at in step.inputs]
            if isinstance(step, LayerStep):
                values.append(self._layer(step, inputs[0]))
            elif isinstance(step, SumStep):
                values.append(self.op(["Neg", "Add" if step.signs[-1] > 0 else "Sub"][len(inputs) - 1], *inputs))
            elif isinstance(step, MoveStep):
                values.append(self._move(step, inputs))
        self.nodes.append(helper.make_node("Identity", [values[graph.output]], ["output"]))
        self.shapes = graph.input_shape, graph.output_shape

    def model(self) -> onnx.ModelProto:
        """Return the checked model; its batch axis is free."""
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
            for name, shape in zip(("input", "output"), self.shapes, strict=True)
        ]
        graph = helper.make_graph(self.nodes, "pquant", ports[:1], ports[1:], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(QONNX, 1)], ir_version=IR)
        onnx.checker.check_model(model)
        return model

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"{self.where}/{kind}_{len(self.nodes)}".replace(" ", "_").replace("'", "")
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Return the name of an initializer; equal arrays share one."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self._known)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def quantize(self, x: str, form: Format) -> str:
        """Return ``x`` in a format."""
        low, high = form.limits()
        saturates = form.overflow_mode.startswith("SAT")
        if saturates:
            x = self.op("Min", self.op("Max", x, self.constant(low)), self.constant(high))
        n = self._rounded(self.op("Mul", x, self.constant(np.ldexp(1.0, form.f))), form.round_mode)
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

    def weight(self, weight: Constants, form: Format) -> str:
        """Return a weight."""
        return self.constant(weight.floats)

    def _layer(self, step: LayerStep, x: str) -> str:
        layer: Any = step.layer
        for quantizer in (layer.input_quantizer, None, layer.output_quantizer):
            form = Format.of(quantizer) if quantizer is not None else None
            if quantizer is None:
                x = self._compute(layer, x)
            elif form is not None:
                x = self.quantize(x, form)
        return x

    def _compute(self, layer: Any, x: str) -> str:
        if isinstance(layer, PQDense):
            weight = parameters(layer, "weight")
            y = self.op("MatMul", x, self.weight(Constants(weight.n.T, weight.f), Format.of(layer.weight_quantizer)))  # type: ignore[arg-type]
            return self._biased(y, layer, (-1,))
        if isinstance(layer, CONVOLUTIONS):
            return self._convolution(layer, x)
        if isinstance(layer, ChannelAffine):
            factors, terms = (parameters(layer, part).floats.reshape(-1, *(1,) * (len(layer.calls[0].input) - 2)) for part in ("weight", "bias"))
            return self.op("Add", self.op("Mul", x, self.constant(factors)), self.constant(terms))
        if isinstance(layer, AVERAGES):
            kernel, stride, pads = pool_geometry(layer, len(layer.calls[0].input) - 2)
            return self.op("AveragePool", x, kernel_shape=kernel, strides=stride, pads=pads * 2, count_include_pad=1)
        if isinstance(layer, PQActivation):
            return self._activation(layer, x)
        raise ConfigError(f"export: layer '{self.where}' is a {type(layer).__name__}, which is not supported")

    def _convolution(self, layer: Any, x: str) -> str:
        pads = list(zip(*padding(layer), strict=True))
        if layer.padding_mode in PADDING:
            before, after = ([0, 0, *part] for part in pads)
            x, pads = (
                self.op("Pad", x, self.constant(before + after, np.int64), mode=PADDING[layer.padding_mode]),
                [(0,) * len(layer.kernel_size)] * 2,
            )
        weight = self.weight(parameters(layer, "weight"), Format.of(layer.weight_quantizer))  # type: ignore[arg-type]
        geometry = {"strides": layer.stride, "dilations": layer.dilation, "group": layer.groups, "kernel_shape": layer.kernel_size}
        y = self.op("Conv", x, weight, pads=[*pads[0], *pads[1]], **geometry)
        return self._biased(y, layer, (-1, *(1,) * len(layer.kernel_size)))

    def _biased(self, y: str, layer: Any, shape: tuple[int, ...]) -> str:
        return y if layer.bias is None else self.op("Add", y, self.constant(parameters(layer, "bias").floats.reshape(shape)))

    def _activation(self, layer: PQActivation, x: str) -> str:
        if layer.kind == "tanh":
            return self.op("Clip", x, self.constant(-1.0), self.constant(1.0)) if layer.hard else self.op("Tanh", x)
        if layer.rectifies:
            return x
        y = self.op("Relu", x)
        return y if layer.multiplier is None else self.op("Mul", y, self.constant(2.0 ** int(layer.multiplier)))

    def _move(self, step: MoveStep, inputs: list[str]) -> str:
        shape = self.constant([-1, *step.shape], np.int64)
        if step.reshapes:
            return self.op("Reshape", inputs[0], shape)
        flat = [self.op("Flatten", x, axis=1) for x in inputs]
        laid = self.op("Concat", *flat, axis=1) if len(flat) > 1 else flat[0]
        if (step.index < 0).any():
            laid = self.op("Pad", laid, self.constant([0, 0, 0, 1], np.int64))
        return self.op("Reshape", self.op("Gather", laid, self.constant(step.index.ravel(), np.int64), axis=1), shape)


class QonnxGraph(PlainGraph):
    """Quant nodes of QONNX for weights and data, if one can express the quantizer; otherwise standard operators.

    A Quant saturates, has one number of bits and at least two of them when signed, and rounds halves to even, up or down in size: a signed RND
    (halves up) is a truncation to half steps, half a step added, and another truncation.
    """

    def quantize(self, x: str, form: Format) -> str:
        """Return ``x`` in a format."""
        bits = {(int(k), int(i), int(f)) for k, i, f in zip(form.k.ravel(), form.i.ravel(), form.f.ravel(), strict=True)}
        k, i, f = next(iter(bits))
        modes = UNSIGNED if k == 0 else ROUNDING
        if len(bits) > 1 or k + i + f < 1 + k or not form.overflow_mode.startswith("SAT"):
            return super().quantize(x, form)
        narrow = int(form.overflow_mode == "SAT_SYM" and k)
        if form.round_mode in modes:
            return self._quant(x, (k, i, f), narrow, modes[form.round_mode])
        if form.round_mode != "RND":
            return super().quantize(x, form)
        halves = self._quant(x, (k, i + 1, f + 1), 0, "FLOOR")
        return self._quant(self.op("Add", halves, self.constant(2.0 ** (-f - 1))), (k, i, f), narrow, "FLOOR")

    def weight(self, weight: Constants, form: Format) -> str:
        """Return a weight after a Quant node with enough bits for all its values."""
        k, i, f = (int(bits.max()) for bits in (form.k, form.i, form.f))
        plain = super().weight(weight, form)
        return self._quant(plain, (k, i, f), 0, "ROUND") if k + i + f > 1 else plain

    def _quant(self, x: str, bits: tuple[int, int, int], narrow: int, mode: str) -> str:
        k, i, f = bits
        operands = (self.constant(2.0**-f), self.constant(0.0), self.constant(float(k + i + f)))
        return self.op("Quant", x, *operands, domain=QONNX, signed=k, narrow=narrow, rounding_mode=mode)


class QdqGraph(PlainGraph):
    """QuantizeLinear and DequantizeLinear around data of at most 8 bits; they round halves to even, so only RND_CONV becomes one."""

    def quantize(self, x: str, form: Format) -> str:
        """Return ``x`` in a format."""
        whole = form.f.size == form.k.size == 1 and form.width.max() <= 8 and form.overflow_mode.startswith("SAT")
        if not whole or form.round_mode != "RND_CONV":
            return super().quantize(x, form)
        low, high = form.limits()
        x = self.op("Min", self.op("Max", x, self.constant(low)), self.constant(high))
        scale, zero = self.constant(np.ldexp(1.0, -form.f).reshape(())), self.constant(0, np.int8 if form.k.any() else np.uint8)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, scale, zero), scale, zero)
