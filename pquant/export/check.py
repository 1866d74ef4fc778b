"""Checks before training: can the model become hardware?"""

import math
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from pquant.errors import ConfigError
from pquant.export.graph import Graph, LayerStep, Step, SumStep, record
from pquant.export.replay import CONVOLUTIONS, NORMS, POOLS, pool_geometry
from pquant.layers.activation import PQActivation
from pquant.layers.base import CompressedLayer, QuantizedLayer
from pquant.layers.dense import PQDense
from pquant.layers.norm import ChannelAffine
from pquant.quantization.fixed_point import ROUND, SATURATING, WRAPPING

NAMED = 5
ALL_MODES = frozenset((*ROUND, *SATURATING, *WRAPPING))
SUPPORTED = (PQDense, *CONVOLUTIONS, *NORMS, *POOLS, PQActivation, ChannelAffine)


def checked(model: nn.Module, input_shape: tuple[int, ...], modes: Collection[str] = ALL_MODES) -> Graph:
    """Return the graph of a compressed or finalized model that can become hardware.

    Args:
        model: the model.
        input_shape: of one input, without the batch axis.
        modes: the rounding and overflow modes of the target.

    Raises:
        ConfigError: some layers cannot be exported; the message names them and the reasons.
    """
    graph = record(model, input_shape)
    problems = list(dict.fromkeys(_problems(graph, modes)))
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ConfigError("export: " + "; ".join(problems[:NAMED]) + more)
    return graph


def multiplications(graph: Graph) -> int:
    """Return the number of multiplications by a weight in one inference, pruned weights included."""
    total = 0
    for step in graph.layers:
        if isinstance(step.layer, PQDense):
            total += math.prod(step.shape) * step.layer.in_features
        elif isinstance(step.layer, CONVOLUTIONS):
            total += math.prod(step.shape) * step.layer.weight[0].numel()
    return total


def _problems(graph: Graph, modes: Collection[str]) -> Iterator[str]:
    fixed = [False]
    for step in graph.steps:
        known = all(fixed[at] for at in step.inputs)
        if isinstance(step, LayerStep):
            known = known or not _quantizer(step, "input").is_float
            yield from (f"layer '{step.name}' {problem}" for problem in _of_layer(step.layer, known, modes))
            known = not _quantizer(step, "output").is_float or not _makes_reals(step.layer)
        elif isinstance(step, SumStep) and not known:
            yield f"{step.name} takes values that nothing quantized"
        fixed.append(known)
    if not fixed[graph.output]:
        yield "nothing quantizes what the model returns"


def _quantizer(step: Step, which: str) -> Any:
    return getattr(step.layer, f"{which}_quantizer")  # type: ignore[attr-defined]


def _of_layer(layer: nn.Module, quantized: bool, modes: Collection[str]) -> Iterator[str]:
    table = isinstance(layer, PQActivation) and bool(layer.function)
    if table or not isinstance(layer, SUPPORTED):
        yield f"is a {layer.kind if table else type(layer).__name__}, which is not supported"
        return
    assert isinstance(layer, QuantizedLayer)
    if not quantized:
        yield "takes values that nothing quantizes: enable its input's quantizer"
    if isinstance(layer, (CompressedLayer, *NORMS, ChannelAffine)):
        for part in ("weight", "bias"):
            there = getattr(layer, part) is not None or isinstance(layer, NORMS)
            if there and getattr(layer, f"{part}_quantizer").is_float:
                yield f"has a {part} that stays float"
    for quantizer in (layer.input_quantizer, layer.output_quantizer):
        for mode in ("round_mode", "overflow_mode"):
            if getattr(quantizer, mode, next(iter(modes))) not in modes:
                yield f"has {mode} {getattr(quantizer, mode)}, which the target does not know"
    if isinstance(layer, POOLS) and (
        layer.ceil_mode or getattr(layer, "divisor_override", None) or any(pool_geometry(layer)[2]) and not layer.count_include_pad
    ):
        yield "is a pool whose windows differ, or with a divisor of its own"


def _makes_reals(layer: nn.Module) -> bool:
    """Return whether a layer's results are not fixed-point values: a tanh, or a mean over a number of values that is not a power of 2."""
    if isinstance(layer, PQActivation):
        return layer.kind == "tanh" and not layer.hard
    return isinstance(layer, POOLS) and math.prod(pool_geometry(layer)[0]).bit_count() != 1
