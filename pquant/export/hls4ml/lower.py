"""Conversion of the recorded graph of a finalized model to hls4ml's layers."""

from dataclasses import replace
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.export.check import refuse
from pquant.export.formats import Constants, Format
from pquant.export.graph import ConstantStep, Graph, LayerStep, MoveStep, ReduceStep, ScaleStep, SumStep
from pquant.export.hls4ml import layers, precision
from pquant.export.hls4ml.elements import scaled
from pquant.export.hls4ml.layout import channels_last, torch_order
from pquant.export.hls4ml.merges import lower_merge, lower_pair, lower_reduction, lower_sum
from pquant.export.hls4ml.moves import lower_move
from pquant.export.hls4ml.pools import lower_pool, windows_of
from pquant.export.hls4ml.project import Project, Target, Value
from pquant.export.replay import input_format, quantized_input, replay
from pquant.layers.merge import PQMerge
from pquant.layers.softmax import PQSoftmax


def lower(graph: Graph, target: Target) -> tuple[Project, Value, Value]:
    """Return the project of a finalized model, its input, and its output, which is in torch's order.

    Raises:
        ConfigError: layers that hls4ml does not support, or does not compute bit-exactly; the message names them and the reasons.
    """
    project = Project(target)
    values, problems = [_input(project, graph)], []
    uses = np.bincount([at for step in graph.steps for at in step.inputs] + [graph.output], minlength=len(graph.steps) + 1)
    for at, step in enumerate(graph.steps, 1):
        try:
            value = _step(project, graph, at, values)
        except ConfigError as error:
            text = str(error).removeprefix("export: ")
            problems.append(text if f"'{step.name}'" in text else f"'{step.name}': {text}")
            value = _substitute(project, graph, at)
        values.append(replace(value, castable=value.castable and uses[at] == 1))
    try:
        output = project.arrange("output", values[graph.output], torch_order(graph.output_shape))
    except ConfigError as error:
        problems.append(f"the model's output: {error}")
    refuse("export=hls4ml", problems)
    return project, values[0], output


def _input(project: Project, graph: Graph) -> Value:
    """Return the model's input, in the order that its first layer needs."""
    form = input_format(graph)
    bounds = quantized_input(graph, np.zeros((1, *graph.input_shape)))
    order = channels_last(graph.input_shape) if _takes_channels(graph) else torch_order(graph.input_shape)
    types = {"result": precision.uniform(form) or precision.of_values(bounds)}
    value = Value("", order, bounds, form.expand(graph.input_shape))
    return project.add("InputLayer", "input", [], value, types, input_shape=list(order.shape))


def _takes_channels(graph: Graph) -> bool:
    """Return whether the input has the rank that the model's convolutions and pools take."""
    rank = len(graph.input_shape)
    return any(isinstance(step.layer, layers.BY_POSITION) and len(graph.shape(step.inputs[0])) == rank > 1 for step in graph.layers)


def _step(project: Project, graph: Graph, at: int, values: list[Value]) -> Value:
    step = graph.steps[at - 1]
    inputs = [values[given] for given in step.inputs]
    if isinstance(step, ConstantStep):
        constants = Constants.from_floats(step.constants)
        return Value("", torch_order(step.shape), values[0].bounds.constant(constants), constants=constants)
    if isinstance(step, MoveStep):
        return Value("", torch_order(step.shape), None) if _beside(graph, at) else lower_move(project, step, inputs)
    if isinstance(step, ReduceStep):
        return _reduction(project, graph, step, values)
    if isinstance(step, ScaleStep):
        return scaled(project, step.name, inputs[0], step.factor)
    if isinstance(step, SumStep):
        return lower_sum(project, step, inputs)
    assert isinstance(step, LayerStep)
    return _layer(project, graph, at, inputs)


def _beside(graph: Graph, at: int) -> bool:
    """Return whether a move only joins values for a maximum or minimum over their last axis."""
    readers = [step for step in graph.steps if at in step.inputs]
    last = (len(graph.shape(at)) - 1,)
    return at != graph.output and len(readers) == 1 and isinstance(readers[0], ReduceStep) and readers[0].kind != "sum" and readers[0].dims == last


def _reduction(project: Project, graph: Graph, step: ReduceStep, values: list[Value]) -> Value:
    at = step.inputs[0]
    if not at or not _beside(graph, at) or not isinstance(graph.steps[at - 1], MoveStep):
        return lower_reduction(project, step, values[at])
    move: Any = graph.steps[at - 1]
    inputs = [values[given] for given in move.inputs]
    made = lower_pair(project, step.name, inputs, step.kind, move.index) if not step.keepdim else None
    pool = windows_of(move.index, inputs[0].bounds.shape) if made is None and len(inputs) == 1 and step.kind == "max" else None
    if pool is not None:
        return lower_pool(project, step.name, inputs[0], pool, inputs[0].bounds.gather(move.index).extreme("max"), False)
    return made if made is not None else lower_reduction(project, step, lower_move(project, move, inputs))


def _layer(project: Project, graph: Graph, at: int, inputs: list[Value]) -> Value:
    step: Any = graph.steps[at - 1]
    layer = step.layer
    if not isinstance(layer, PQSoftmax):
        forms = [Format.of(getattr(layer, place)) for place in layer.input_quantizers]
        inputs = [project.cast(f"{step.name}_input", value, form) for value, form in zip(inputs, forms, strict=True)]
    output = Format.of(layer.output_quantizer)
    if isinstance(layer, PQMerge):
        value = lower_merge(project, step, inputs)
    else:
        value = layers.lower_layer(project, step, inputs[0], _agreed(graph, at) if output is None else output, _guard(graph))
    return project.cast(f"{step.name}_output", value, output)


def _agreed(graph: Graph, at: int) -> Format | None:
    """Return the format to which the only layer that reads a value quantizes it; None if it has several readers, or one that is not a layer."""
    readers = [number for number, step in enumerate(graph.steps, 1) if at in step.inputs]
    if len(readers) != 1 or at == graph.output:
        return None
    step = graph.steps[readers[0] - 1]
    if isinstance(step, MoveStep) and len(step.inputs) == 1:
        return _agreed(graph, readers[0])
    if not isinstance(step, LayerStep) or isinstance(step.layer, PQSoftmax):
        return None
    reader: Any = step.layer
    form = Format.of(getattr(reader, reader.input_quantizers[step.inputs.index(at)]))
    return form if form is not None and precision.uniform(form) else None


def _guard(graph: Graph) -> int:
    """Return the largest number of fractional bits of any data."""
    forms = [Format.of(getattr(step.layer, f"{which}_quantizer")) for step in graph.layers for which in ("input", "output")]
    return max(int(form.f.max()) for form in forms if form is not None)


def _substitute(project: Project, graph: Graph, at: int) -> Value:
    """Return a substitute for a value that could not be computed, so that further problems are found."""
    bounds = replay(graph, quantized_input(graph, np.zeros((1, *graph.input_shape))))[at]
    shape = graph.shape(at)
    project.types[""] = {"result": precision.text(True, 1, 1)}
    return Value("", channels_last(shape) if len(shape) > 1 else torch_order(shape), bounds)
