"""Computation of a recorded model with any kind of values that implements hardware arithmetic."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.export.arithmetic import compute, quantized
from pquant.export.fixed import Real
from pquant.export.formats import Constants, Format
from pquant.export.graph import ConstantStep, Graph, LayerStep, MoveStep, ReduceStep, ScaleStep, Step, SumStep
from pquant.export.products import reduced, spread
from pquant.layers.base import QuantizedLayer
from pquant.layers.softmax import PQSoftmax

MINUS = Constants(np.array(-1), 0)


def replay(graph: Graph, x: Any, callback: Callable[[Step, Any], None] = lambda step, value: None) -> list[Any]:
    """Return all values of a finalized model's graph; value 0 is the input ``x``. ``callback`` gets each layer's result before its output quantizer.

    Raises:
        ConfigError: hardware cannot compute a layer; the message names it.
    """
    values = [x]
    for step in graph.steps:
        inputs = [values[at] for at in step.inputs]
        try:
            value = x.constant(Constants.from_floats(step.constants)) if isinstance(step, ConstantStep) else call(step, inputs)
            if isinstance(step, (LayerStep, SumStep, ReduceStep)):
                callback(step, value)
            values.append(quantized(value, step.layer.output_quantizer) if isinstance(step, LayerStep) else value)
        except ConfigError as error:
            raise error if str(error).startswith("export:") else ConfigError(f"export: layer '{step.name}': {error}") from error
    return values


def call(step: Step, inputs: list[Any]) -> Any:
    """Return the result of a step; for a layer, before its output quantizer."""
    if isinstance(step, MoveStep):
        return inputs[0].gather(step.index, *inputs[1:])
    if isinstance(step, ScaleStep):
        value = inputs[0] if step.factor > 0 else inputs[0].times(MINUS)
        return value.shift(math.frexp(abs(step.factor))[1] - 1)
    if isinstance(step, ReduceStep):
        return reduced(inputs[0], step.kind, step.dims, step.shape)
    if isinstance(step, SumStep):
        whole = [spread(value, step.shape) for value in inputs]
        first = whole[0] if step.signs[0] > 0 else whole[0].times(MINUS)
        return first if len(whole) == 1 else first.add(whole[1], step.signs[1])
    assert isinstance(step, LayerStep) and isinstance(step.layer, QuantizedLayer)
    if not isinstance(step.layer, PQSoftmax):  # a softmax scales its input before it quantizes it
        inputs = [quantized(value, getattr(step.layer, place)) for value, place in zip(inputs, step.layer.input_quantizers, strict=True)]
    return compute(step.layer, step.shape, *inputs)


def input_format(graph: Graph) -> Format:
    """Return the format of the model's input in hardware, in the shape of the input; values that no layer uses have no bits.

    It is the format of the layers that quantize the input. If their formats differ, it is one that contains all of them. For a rounded format it has
    one more fractional bit, so that each layer rounds the truncated input as it would round the float input.

    Raises:
        ConfigError: the input is used unquantized, or in formats that no single format contains.
    """
    found = list(input_formats(graph))
    if not found:
        raise ConfigError("export: no layer quantizes the model's input: use layers that dry_run=true lists, with quantization.quantize_input=true")
    bits = np.full((len(found), 3, math.prod(graph.input_shape)), np.nan)
    for row, (_, form, index) in zip(bits, found, strict=True):
        form = form.expand(index.shape)
        row[:, index[index >= 0]] = np.stack([form.k, form.i, form.f])[:, index >= 0]
    modes = {(form.round_mode, form.overflow_mode): name for name, form, _ in found}
    if len(modes) == 1 and ((bits == np.fmax.reduce(bits)) | np.isnan(bits)).all():
        return _format(graph, bits, *next(iter(modes)))
    if not nests(modes):
        raise ConfigError(
            f"export: '{found[-1][0]}' quantizes the model's input in another format than '{found[0][0]}': one format of the input holds both only "
            "if they round by RND or TRN, and all saturate or all wrap"
        )
    bits[:, 2] += np.array([form.round_mode == "RND" for _, form, _ in found])[:, None]
    return _format(graph, bits, "TRN", "WRAP" if found[0][1].overflow_mode == "WRAP" else "SAT")


def nests(modes: Iterable[tuple[str, str]]) -> bool:
    """Return whether one format can contain several formats with these rounding and overflow modes, so that all results are those of float inputs."""
    rounding, overflow = ({mode[at] for mode in modes} for at in (0, 1))
    return rounding <= {"TRN", "RND"} and (overflow == {"WRAP"} or overflow <= {"SAT", "SAT_SYM"})


def _format(graph: Graph, bits: np.ndarray, round_mode: str, overflow_mode: str) -> Format:
    k, i, f = np.nan_to_num(np.fmax.reduce(bits)).astype(np.int64).reshape(3, *graph.input_shape)
    return Format(k, i, f, round_mode, overflow_mode)


def input_formats(graph: Graph) -> Iterator[tuple[str, Format, np.ndarray]]:
    """Yield the name of each layer that uses the model's input, its input format, and the places of its values in the input, -1 for other values."""
    places: dict[int, np.ndarray] = {0: np.arange(math.prod(graph.input_shape)).reshape(graph.input_shape)}
    for at, step in enumerate(graph.steps, 1):
        taken = [value for value in step.inputs if value in places]
        if not taken:
            continue
        if isinstance(step, MoveStep):
            parts = [places.get(value, np.full(size, -1)).ravel() for value, size in zip(step.inputs, step.sizes, strict=True)]
            moved = np.concatenate([*parts, [-1]])[step.index]
            if (moved >= 0).any():
                places[at] = moved
            continue
        for number, value in enumerate(step.inputs):
            if value in places:
                form = _form(step, number)
                if form is None:
                    raise ConfigError(f"export: '{step.name}' uses the model's input without quantizing it")
                yield step.name, form, places[value]


def _form(step: Step, number: int) -> Format | None:
    """Return the format of a layer's input ``number``; None if the layer does not quantize it directly."""
    if not isinstance(step, LayerStep) or isinstance(step.layer, PQSoftmax) and step.layer.factor != 1:
        return None
    layer: Any = step.layer
    return Format.of(getattr(layer, layer.input_quantizers[number]))


def quantized_input(graph: Graph, x: np.ndarray) -> Any:
    """Return float64 examples (batch, *input shape) quantized to the input format of the hardware."""
    return Real(x).quantize(input_format(graph))
