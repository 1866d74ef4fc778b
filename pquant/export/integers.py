"""The finalized model in integers: the reference of every export, and files for writing hardware code by hand."""

import copy
import io
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pquant.errors import ExportError
from pquant.export.arithmetic import parameters
from pquant.export.fixed import Fixed
from pquant.export.formats import Constants, Format
from pquant.export.graph import ConstantStep, Graph, LayerStep, MoveStep, ReduceStep, ScaleStep, Step, SumStep
from pquant.export.replay import quantized_input, replay
from pquant.layers.base import QuantizedLayer
from pquant.tracking.files import write_atomic, write_json

log = logging.getLogger(__name__)

FLOAT32_BITS = 24
TABLES = ("exponential", "reciprocal")
BATCH = 500


@dataclass(frozen=True)
class Accumulator:
    """The accumulator of one layer: bits (sign included) of its result and of its largest partial sum, and whether float32 is exact for it."""

    layer: str
    bits: int
    partial_bits: int
    float32_exact: bool


@dataclass(frozen=True)
class Verified:
    """A model that equals its integer model on ``count`` vectors: inputs and outputs as integers with f fractional bits, accumulators by layer."""

    inputs: np.ndarray
    input_f: int
    outputs: np.ndarray
    output_f: int
    accumulators: list[Accumulator]

    @property
    def count(self) -> int:
        """The number of vectors compared."""
        return len(self.inputs)

    @property
    def input_values(self) -> np.ndarray:
        """The inputs as float64."""
        return np.ldexp(self.inputs.astype(np.float64), -self.input_f)

    @property
    def output_values(self) -> np.ndarray:
        """The outputs as float64."""
        return np.ldexp(self.outputs.astype(np.float64), -self.output_f)


def accumulators(graph: Graph) -> list[Accumulator]:
    """Return the width of every layer's and sum's accumulator, for any input."""
    rows: list[Accumulator] = []

    def note(step: Step, value: Any) -> None:
        if isinstance(value, Fixed):
            bits, partial = (int(most).bit_length() + 1 for most in (value.largest, max(value.peak, value.largest)))
            rows.append(Accumulator(step.name, bits, partial, max(value.peak, value.largest) <= 2**FLOAT32_BITS))

    replay(graph, quantized_input(graph, np.zeros((1, *graph.input_shape))), note)
    return rows


def verify(model: nn.Module, graph: Graph, vectors: np.ndarray) -> Verified:
    """Compare a finalized model, layer by layer, with its integer model on float32 vectors (count, *input shape).

    If an accumulator needs more than float32's 24 bits, a warning names the layer and the model is compared in float64.

    Raises:
        ExportError: they differ; the message has the layer, the place and both values.
    """
    rows = accumulators(graph)
    wide = [row for row in rows if not row.float32_exact]
    for row in wide:
        log.warning("layer '%s' needs %d bits for a sum, more than float32 has: the model is checked in float64", row.layer, row.partial_bits)
    reference = copy.deepcopy(model).to(torch.float64 if wide else torch.float32)
    for layer in reference.modules():
        if isinstance(layer, QuantizedLayer):
            layer.tabled = _in_float32  # type: ignore[method-assign]
    reference.eval()
    reference_graph = _outputs_of(reference, {step.name for step in graph.layers})
    inputs, outputs = [], []
    for start in range(0, len(vectors), BATCH):
        batch = vectors[start : start + BATCH]
        values = replay(graph, quantized_input(graph, batch.astype(np.float64)))
        with torch.no_grad():
            result = reference(torch.from_numpy(batch).to(torch.float64 if wide else torch.float32))
        for step, seen in _paired(graph, reference_graph, len(batch)):
            _compare(step.name, seen.movedim(step.batch_axis, 0).reshape(-1, *step.shape), values[graph.steps.index(step) + 1], start)
        reference_graph.clear()
        _compare("the model's output", result, values[graph.output], start)
        inputs.append(values[0])
        outputs.append(values[graph.output])
    f = inputs[0].f, outputs[0].f
    return Verified(np.concatenate([x.n for x in inputs]), f[0], np.concatenate([x.n for x in outputs]), f[1], rows)


def _in_float32(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the values of a table, whose function is computed in float32."""
    return function(x.float()).to(x.dtype)


def _paired(graph: Graph, outputs: Sequence[tuple[str, torch.Tensor]], count: int) -> Iterator[tuple[LayerStep, torch.Tensor]]:
    """Yield each layer step with its output for ``count`` examples. A call on constants alone is not a step, and has the values of one example."""
    given = iter(outputs)
    for step in graph.layers:
        size = count * math.prod(step.shape)
        yield step, next(output for name, output in given if name == step.name and output.numel() == size)


def _outputs_of(model: nn.Module, names: Collection[str]) -> list[tuple[str, torch.Tensor]]:
    """Return a list to which each call of the named layers appends the name and a copy of the output."""
    seen: list[tuple[str, torch.Tensor]] = []
    for name, module in model.named_modules():
        if name in names:
            module.register_forward_hook(lambda _, inputs, output, name=name: seen.append((name, output.clone())))
    return seen


def first_difference(seen: np.ndarray, expected: np.ndarray) -> tuple[int, ...]:
    """Return the index (vector, *place) of the first value that differs between two arrays of one shape."""
    return tuple(np.argwhere(seen != expected)[0].tolist())


def _compare(name: str, seen: torch.Tensor, value: Any, start: int) -> None:
    given, expected = seen.double().numpy(), value.floats()
    if np.array_equal(given, expected):
        return
    if given.shape != expected.shape:
        raise ExportError(f"'{name}' has shape {given.shape[1:]} in the model, but {expected.shape[1:]} in integers")
    if not isinstance(value, Fixed):
        return
    where = first_difference(given, expected)
    vector, *place = where
    raise ExportError(
        f"model and integers differ at '{name}'{place}, vector {start + vector}: "
        f"the model gives {given[where]:.10g}, the integers {expected[where]:.10g}"
    )


def write_integers(graph: Graph, verified: Verified, folder: Path, data: Mapping[str, Any] | None = None) -> None:
    """Write ``integers.npz`` (weights, biases, places, test vectors and their outputs as integers) and ``integers.json``, which describes them.

    ``layers`` has the constants and formats of each layer. ``steps`` lists the input values of each step: 0 is the input, s + 1 the result of step s.
    ``data`` is :attr:`pquant.data.Splits.described`.
    """
    arrays: dict[str, np.ndarray] = {"vectors.inputs": verified.inputs, "vectors.outputs": verified.outputs}
    layers = []
    for step in graph.layers:
        layer: Any = step.layer
        row: dict[str, Any] = {"name": step.name, "type": type(layer).__name__, "settings": layer.extra_repr(), "output_shape": step.shape}
        for part in ("weight", "bias"):
            if getattr(layer, part, None) is not None and hasattr(layer, f"{part}_quantizer"):
                constants = parameters(layer, part)
                arrays[f"{step.name}.{part}"] = constants.n
                row[part] = {"array": f"{step.name}.{part}", "f": constants.f} | {"format": _format(getattr(layer, f"{part}_quantizer"))}
        row |= {kind: _format(getattr(layer, f"{kind}_quantizer")) for kind in ("input", "output")}
        row |= {kind: _format(getattr(layer, f"{kind}_quantizer")) for kind in layer.tensors if kind in TABLES}
        layers.append(row)
    content = io.BytesIO()
    steps = [_described(number, step, arrays) for number, step in enumerate(graph.steps)]
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_atomic(folder / "integers.npz", content.getvalue())
    described = {
        "about": "value = integer * 2^-f, with the f given with each array; formats are k (sign), i (integer bits), f (fractional bits)",
        "data": dict(data or {}),
        "vectors": {"inputs": {"f": verified.input_f}, "outputs": {"f": verified.output_f}},
        "layers": layers,
        "steps": steps,
        "output": graph.output,
        "accumulators": [vars(row) for row in verified.accumulators],
    }
    write_json(folder / "integers.json", described)


def _described(number: int, step: Step, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a step as plain values; the places of a move, and array constants, are added to ``arrays``."""
    row: dict[str, Any] = {"name": step.name, "kind": type(step).__name__.removesuffix("Step").lower(), "inputs": step.inputs, "shape": step.shape}
    if isinstance(step, MoveStep):
        arrays[f"steps.{number}.index"] = step.index
        row["index"] = f"steps.{number}.index"
    elif isinstance(step, ConstantStep):
        constants = Constants.from_floats(step.constants)
        arrays[f"steps.{number}.constants"] = constants.n
        row |= {"constants": f"steps.{number}.constants", "f": constants.f}
    elif isinstance(step, SumStep):
        row["signs"] = step.signs
    elif isinstance(step, ScaleStep):
        row["factor"] = step.factor
    elif isinstance(step, ReduceStep):
        row |= {"reduction": step.kind, "dims": step.dims, "keepdim": step.keepdim}
    return row


def _format(quantizer: Any) -> dict[str, Any] | None:
    form = Format.of(quantizer)
    return None if form is None else vars(form)
