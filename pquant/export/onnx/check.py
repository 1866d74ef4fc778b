"""Checks, before training, that the dialect of hls4ml or FINN can express a model."""

import math
from collections.abc import Iterator
from typing import Any

from pquant.export.arithmetic import AVERAGES, CONVOLUTIONS, MAXIMA, NORMS
from pquant.export.check import refuse
from pquant.export.graph import ConstantStep, Graph, LayerStep, MoveStep, ReduceStep, Step, SumStep
from pquant.export.onnx.values import concatenation, transposition
from pquant.export.windows import pool_geometry, pool_sizes
from pquant.layers.activation import PQActivation
from pquant.layers.dense import PQDense
from pquant.layers.merge import PQMean, PQMerge, PQScale
from pquant.layers.norm import ChannelAffine
from pquant.quantization.fixed_point import SATURATING

ROUNDED = {"hls4ml": ("TRN", "RND", "RND_CONV"), "finn": ("TRN", "RND")}
ROUNDED_UNSIGNED = ("TRN_ZERO", "RND_INF")
WITH_CONSTANTS = ("add", "sub", "mul")
AXES = 3


def check_dialect(graph: Graph, dialect: str) -> None:
    """Raise a ConfigError that names the layers and functions of a compressed or finalized model which the dialect cannot express."""
    refuse(f"export.dialect={dialect}", _problems(graph, dialect))


def _problems(graph: Graph, dialect: str) -> Iterator[str]:
    constants = {at for at, step in enumerate(graph.steps, 1) if isinstance(step, ConstantStep)}
    for step in graph.steps:
        shapes = [graph.shape(value) for value in step.inputs]
        some = bool(constants & set(step.inputs))
        if isinstance(step, LayerStep):
            found = *_of_layer(step, shapes, some, dialect), *_of_formats(step, dialect)
            yield from (f"layer '{step.name}' {problem}" for problem in found)
        else:
            yield from (f"{step.name} {problem}" for problem in _of_function(step, shapes, some, dialect))
    if graph.output == 0 or graph.output in constants:
        yield "the model returns its input, or constants"


def _of_function(step: Step, shapes: list[tuple[int, ...]], constants: bool, dialect: str) -> Iterator[str]:
    if dialect == "hls4ml":
        return
    if isinstance(step, MoveStep) and constants:
        yield "moves constants"
    elif isinstance(step, ReduceStep):
        yield "reduces axes"
    elif isinstance(step, SumStep) and len(set(shapes)) > 1 and not constants:
        yield "broadcasts values"
    elif isinstance(step, MoveStep) and not step.reshapes:
        one = len(shapes) == 1 and transposition(step.index, shapes[0]) is not None
        if not one and concatenation(step.index, shapes) is None:
            yield "selects or repeats values"


def _of_layer(step: LayerStep, shapes: list[tuple[int, ...]], constants: bool, dialect: str) -> Iterator[str]:
    layer: Any = step.layer
    if isinstance(layer, PQActivation):
        if layer.function or layer.kind == "tanh" and not layer.hard:
            yield f"is a {layer.kind}, which needs a table"
    elif isinstance(layer, PQMerge):
        yield from _of_merge(layer, shapes, constants, dialect)
    elif isinstance(layer, PQMean) and dialect == "hls4ml":
        count = math.prod(shapes[0]) // math.prod(step.shape)
        if count.bit_count() != 1:
            yield f"averages {count} values, not a power of 2"
    elif isinstance(layer, (CONVOLUTIONS, AVERAGES, MAXIMA)):
        if len(shapes[0]) > AXES:
            yield "has three spatial axes"
        yield from _of_convolution(layer) if isinstance(layer, CONVOLUTIONS) else _of_pool(step, shapes[0], dialect)
    elif not isinstance(layer, (PQDense, PQScale, ChannelAffine, *NORMS)):
        yield f"is a {type(layer).__name__}, which is not supported"


def _of_merge(layer: Any, shapes: list[tuple[int, ...]], constants: bool, dialect: str) -> Iterator[str]:
    if constants:
        if layer.kind not in WITH_CONSTANTS:
            yield f"has constants as a factor of {layer.kind}"
    elif dialect == "finn" and (layer.kind not in WITH_CONSTANTS or len(set(shapes)) > 1):
        yield f"is '{layer.kind}' of two tensors{' that broadcast' if layer.kind in WITH_CONSTANTS else ''}"


def _of_convolution(layer: Any) -> Iterator[str]:
    if layer.padding_mode != "zeros":
        yield f"pads by {layer.padding_mode}"
    if layer.groups > 1 and not layer.groups == layer.in_channels == layer.out_channels:
        yield f"has {layer.groups} groups of channels: only 1, or one channel in and out of each, is known"


def _of_pool(step: LayerStep, shape: tuple[int, ...], dialect: str) -> Iterator[str]:
    layer: Any = step.layer
    kernel, stride, pads = pool_geometry(layer, len(shape) - 1)
    if isinstance(layer, AVERAGES):
        sizes = sorted(set(pool_sizes(shape, layer, step.shape[1:]).flat))
        if len(sizes) > 1 or int(sizes[0]).bit_count() != 1:
            yield f"averages {' or '.join(map(str, sizes))} values, not a power of 2"
        elif dialect == "finn" and not has_equal_windows(step, shape):
            yield "is a pool whose windows differ, or with a divisor of its own"
        return
    if set(layer.dilation if isinstance(layer.dilation, tuple) else (layer.dilation,)) != {1}:
        yield "is a dilated pool"
    needed = [(out - 1) * gap + width for out, gap, width in zip(step.shape[1:], stride, kernel, strict=True)]
    if any(pad and need != size + 2 * pad or need > size + 2 * pad for need, size, pad in zip(needed, shape[1:], pads, strict=True)):
        yield "is a pool that pads both ends of an axis differently"


def _of_formats(step: LayerStep, dialect: str) -> Iterator[str]:
    layer: Any = step.layer
    for place in (*layer.input_quantizers, "output_quantizer"):
        quantizer = getattr(layer, place)
        formats = quantizer.format()
        if formats is None:
            continue
        if max(bits.numel() for bits in formats) > 1:
            yield "has data of several formats: use quantization.data_granularity=per_tensor"
        if getattr(quantizer, "overflow_mode", "SAT") not in SATURATING:
            yield f"has overflow_mode {quantizer.overflow_mode}: use quantization.overflow_mode_data=SAT or SAT_SYM"
        known = ROUNDED[dialect] + (() if bool(formats[0].any()) else ROUNDED_UNSIGNED)
        if getattr(quantizer, "round_mode", "TRN") not in known:
            yield f"has round_mode {quantizer.round_mode}: use quantization.round_mode={' or '.join(ROUNDED[dialect])}"


def has_equal_windows(step: LayerStep, shape: tuple[int, ...]) -> bool:
    """Return whether every window of an average pool covers the whole kernel, without places beyond the padding."""
    kernel, stride, pads = pool_geometry(step.layer, len(shape) - 1)
    whole = set(pool_sizes(shape, step.layer, step.shape[1:]).flat) == {math.prod(kernel)}
    ends = zip(step.shape[1:], stride, kernel, shape[1:], pads, strict=True)
    return whole and all((out - 1) * gap + width <= size + 2 * pad for out, gap, width, size, pad in ends)
