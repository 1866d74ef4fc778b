"""The nodes and constants of an ONNX graph."""

import re
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 18, 9
GENERAL, CHANNELS_LAST = "qonnx.custom_op.general", "qonnx.custom_op.channels_last"
DOMAINS = {"": OPSET, GENERAL: 1, CHANNELS_LAST: OPSET}


class Writer:
    """Collects nodes and constants, and builds a model from them.

    Args:
        shapes: shapes of the input and the output, without the batch axis.
    """

    ports = ("input", "output")
    batch: int | str = "batch"
    shares_constants = True

    def __init__(self, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        self.port_shapes = shapes
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.where = ""
        self._known: dict[tuple[Any, ...], str] = {}

    def model(self) -> onnx.ModelProto:
        """Return the checked model."""
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.batch, *shape])
            for name, shape in zip(self.ports, self.port_shapes, strict=True)
        ]
        shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.shapes.items()]
        graph = helper.make_graph(self.nodes, "pquant", ports[:1], ports[1:], self.constants, value_info=shapes)
        domains = sorted({"", GENERAL} | {node.domain for node in self.nodes})
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(name, DOMAINS[name]) for name in domains], ir_version=IR)
        onnx.checker.check_model(model)
        return model

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = re.sub(r"\W+", "_", f"{self.where}_{kind}_{len(self.nodes)}", flags=re.ASCII)
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

    def reshape(self, x: str, shape: tuple[int, ...]) -> str:
        """Return values in a shape."""
        return self.op("Reshape", x, self.constant([-1, *shape], np.int64))

    def finish(self, name: str) -> None:
        """Make a value the output of the graph."""
        given, returned = self.ports
        if name == given:
            self.nodes.append(helper.make_node("Identity", [name], [returned]))
            return
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [returned if one == name else one for one in names]
        self.shapes.pop(name, None)
