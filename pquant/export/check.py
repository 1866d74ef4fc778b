"""Checks, before training, that a model can be exported to hardware."""

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from torch import nn

from pquant.errors import ConfigError
from pquant.export.arithmetic import AVERAGES, CONVOLUTIONS, NORMS, TRANSPOSED, is_supported
from pquant.export.fixed import TABLE_BITS
from pquant.export.formats import EXACT_BITS, Constants, Format
from pquant.export.graph import ConstantStep, Graph, LayerStep, ReduceStep, ScaleStep, Step, SumStep
from pquant.export.integers import Accumulator, accumulators
from pquant.export.products import STATISTICS, products_of
from pquant.export.recording import record
from pquant.export.replay import input_formats, nests
from pquant.export.windows import pool_geometry, pool_sizes
from pquant.layers.activation import PQActivation
from pquant.layers.dense import PQDense
from pquant.layers.finalize import finalize
from pquant.layers.merge import PQMean, PQMerge, PQScale
from pquant.layers.softmax import PQSoftmax
from pquant.quantization.fixed_point import ROUND, SATURATING, WRAPPING
from pquant.quantization.hgq import HGQQuantizer

NAMED = 5
CONSTANT_BITS = 16
ALL_MODES = frozenset((*ROUND, *SATURATING, *WRAPPING))


def checked(model: nn.Module, input_shape: tuple[int, ...], modes: Collection[str] = ALL_MODES) -> Graph:
    """Return the graph of a compressed or finalized model, after checking that it can be exported to hardware.

    Args:
        model: the model.
        input_shape: shape of one input, without the batch axis.
        modes: the rounding and overflow modes of the target.

    Raises:
        ConfigError: some layers cannot be exported; the message names them and the reasons.
    """
    graph = record(model, input_shape)
    refuse("export", _problems(graph, modes))
    return graph


def refuse(export: str, problems: Iterable[str]) -> None:
    """Raise a ConfigError with the first different problems and the number of further ones; do nothing without problems."""
    different = list(dict.fromkeys(problems))
    if different:
        more = f"; and {len(different) - NAMED} more" if len(different) > NAMED else ""
        raise ConfigError(f"{export}: {'; '.join(different[:NAMED])}{more}")


def check_arithmetic(model: nn.Module, input_shape: tuple[int, ...], most_bits: int | None = None) -> None:
    """Compute one input in integers with a compressed model as if training had ended. This finds tables that are too large for the current formats.

    Args:
        model: the compressed model.
        input_shape: shape of one input, without the batch axis.
        most_bits: largest width of a sum in the target, sign included, in bits; None: any.

    Raises:
        ConfigError: a layer cannot be computed, or needs wider sums; the message names it.
    """
    graph = record(finalize(model), input_shape)
    check_widths(accumulators(graph), most_bits)


def check_widths(rows: Iterable[Accumulator], most_bits: int | None) -> None:
    """Raise a ConfigError that names a layer whose sums need more than ``most_bits`` bits."""
    for row in rows:
        if most_bits is not None and row.partial_bits > most_bits:
            raise ConfigError(
                f"export: layer '{row.layer}' needs {row.partial_bits} bits for a sum, more than {most_bits}: give its data or weights fewer bits"
            )


def multiplications(graph: Graph) -> int:
    """Return the number of multiplications in one inference, including those by pruned weights."""
    total = 0
    for step in graph.layers:
        layer: Any = step.layer
        values = math.prod(step.shape)
        if isinstance(layer, PQDense):
            total += values * layer.in_features
        elif isinstance(layer, CONVOLUTIONS):
            total += values * layer.weight[0].numel()
        elif isinstance(layer, TRANSPOSED):
            total += math.prod(graph.shape(step.inputs[0])) * layer.weight[0].numel()
        elif isinstance(layer, PQMerge):
            total += products_of(layer, *(graph.shape(value) for value in step.inputs))
        elif isinstance(layer, (PQSoftmax, *STATISTICS)):
            total += values * (1 if isinstance(layer, PQSoftmax) else 2)
    return total


def _problems(graph: Graph, modes: Collection[str]) -> Iterator[str]:
    fixed = [False]
    for step in graph.steps:
        known = all(fixed[at] for at in step.inputs)
        if isinstance(step, LayerStep):
            yield from (f"layer '{step.name}' {problem}" for problem in _of_layer(step, [fixed[at] for at in step.inputs], graph, modes))
            known = not _makes_reals(step, graph) or not _quantizer(step, "output").is_float
        elif isinstance(step, ConstantStep):
            if _significant_bits(step.constants) > CONSTANT_BITS:
                yield f"{step.name} has values of more than {CONSTANT_BITS} significant bits"
            known = True
        elif isinstance(step, (SumStep, ReduceStep, ScaleStep)) and not known:
            yield f"{step.name} takes values that are not quantized: try quantization.quantize_output=true"
        fixed.append(known)
    yield from _of_input(graph)
    if not fixed[graph.output]:
        yield "the outputs of the model are not quantized: try quantization.quantize_output=true"


def _of_input(graph: Graph) -> Iterator[str]:
    """Yield a problem if several layers quantize the model's input with trained bits that one port could not represent exactly."""
    found: list[tuple[str, Format, np.ndarray]] = []
    with suppress(ConfigError):  # an unquantized input has another error
        found += input_formats(graph)
    names = dict.fromkeys(name for name, _, _ in found)
    layers = [step.layer for step in graph.layers if step.name in names]
    trained = any(isinstance(part, HGQQuantizer) for layer in layers for part in layer.children())
    if len(names) > 1 and trained and not nests([(form.round_mode, form.overflow_mode) for _, form, _ in found]):
        yield (
            f"layers {', '.join(names)} quantize the model's input with trained bits, which may come to differ: one port holds them only with "
            "quantization.round_mode RND or TRN, and layers that all saturate or all wrap"
        )


def _quantizer(step: Step, which: str) -> Any:
    return getattr(step.layer, f"{which}_quantizer")  # type: ignore[attr-defined]


def _significant_bits(constants: np.ndarray) -> int:
    return int(abs(Constants.from_floats(constants).n).max(initial=0)).bit_length()


def _of_layer(step: LayerStep, fixed: list[bool], graph: Graph, modes: Collection[str]) -> Iterator[str]:
    layer: Any = step.layer
    if not is_supported(layer) and not isinstance(layer, NORMS):
        yield f"is a {type(layer).__name__}, which is not supported: leave it out, and use its outputs, such as embedding vectors, as inputs"
        return
    if not all(known or not getattr(layer, place).is_float for known, place in zip(fixed, layer.input_quantizers, strict=True)):
        yield "takes values that are not quantized: enable its input quantizer"
    for tensor in layer.tensors:
        quantizer = getattr(layer, f"{tensor}_quantizer", None)
        width = None if quantizer is None or quantizer.is_float or quantizer.format() is None else _width(quantizer)
        if width is not None and width > EXACT_BITS:
            yield f"has an {tensor} of {width} bits, more than {EXACT_BITS}"
        if tensor in ("input", "output"):
            for mode in ("round_mode", "overflow_mode"):
                if getattr(quantizer, mode, next(iter(modes))) not in modes:
                    yield f"has {mode} {getattr(quantizer, mode)}, which the target does not support"
        elif quantizer is not None and quantizer.is_float and (tensor not in ("weight", "bias") or _has(layer, tensor)):
            yield f"has {'an' if tensor[0] in 'aeio' else 'a'} {tensor} that stays float"
    bits = _table_bits(step, graph)
    if bits is not None and bits > TABLE_BITS:
        yield f"needs a table of 2^{bits} entries, more than 2^{TABLE_BITS}: quantize its input to fewer bits"


def _table_bits(step: LayerStep, graph: Graph) -> int | None:
    """Return the input bits of the largest table of a layer with its current formats; None without a table, or if the formats are not known."""
    layer: Any = step.layer
    if isinstance(layer, PQSoftmax):
        if layer.exponential_quantizer.is_float:
            return None
        count = graph.shape(step.inputs[0])[layer.dim if layer.dim < 0 else layer.dim - 1]
        distances = 0 if layer.operand().is_float else _width(layer.operand()) + 1
        return max(distances, _width(layer.exponential_quantizer) + math.ceil(math.log2(count)))
    operand = layer.operand()
    if not _makes_reals(step, graph) or operand.is_float:
        return None
    if isinstance(layer, PQActivation):
        return _width(operand)
    size = math.prod(pool_geometry(layer, len(step.shape) - 1)[0]) if isinstance(layer, AVERAGES) else _averaged(step, graph)
    return _width(operand) + math.ceil(math.log2(size))


def _width(quantizer: Any) -> int:
    return int(quantizer.width().max())


def _averaged(step: LayerStep, graph: Graph) -> int:
    """Return the number of values in a mean."""
    return math.prod(graph.shape(step.inputs[0])) // math.prod(step.shape)


def _has(layer: Any, tensor: str) -> bool:
    """Return whether a layer has a weight or bias; parameters of an activation do not count."""
    return not isinstance(layer, (PQActivation, PQScale)) and (isinstance(layer, NORMS) or getattr(layer, tensor, None) is not None)


def _makes_reals(step: LayerStep, graph: Graph) -> bool:
    """Return whether a layer's results are real values: results of a table, or means over a number of values that is not a power of 2."""
    layer: Any = step.layer
    if isinstance(layer, PQActivation):
        return bool(layer.function) or layer.kind == "tanh" and not layer.hard
    if isinstance(layer, PQMean):
        return _averaged(step, graph).bit_count() != 1
    if not isinstance(layer, AVERAGES):
        return False
    sizes = set(pool_sizes(graph.shape(step.inputs[0]), layer, step.shape[1:]).flat)
    return len(sizes) > 1 or int(sizes.pop()).bit_count() != 1
