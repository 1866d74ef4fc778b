"""The refusal of a model whose output ignores its input."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from pquant.errors import ConstantOutputError
from pquant.export.fixed import Format
from pquant.export.graph import Graph, LayerStep
from pquant.export.integers import Verified
from pquant.export.replay import quantized_input, replay

log = logging.getLogger(__name__)

EXAMPLES = 500
ADVICE = (
    "lower quantization.hgq_beta or hgq_gamma, prune less, or give it more bits, and train again; "
    "from_run=<run> from_epoch=<epoch> exports an earlier model of a run's Pareto archive"
)


def check_outputs(graph: Graph, verified: Verified, classes: Sequence[str] = ()) -> None:
    """Refuse a finalized model whose outputs are all constant over the test vectors, and log a warning for single constant outputs.

    Args:
        graph: the graph of the model.
        verified: its outputs on the test vectors.
        classes: the names of the outputs, if any.

    Raises:
        ConstantOutputError: all outputs are constant; the message names the first layer whose output is constant, and the reason.
    """
    outputs = verified.outputs.reshape(verified.count, -1)
    constant = (outputs == outputs[:1]).all(axis=0)
    if constant.all():
        found = f"the model gives the same output on all {verified.count:,} vectors: nothing of its input passes {_first(graph, verified)}"
        raise ConstantOutputError(f"export: {found}; {ADVICE}")
    for place in np.flatnonzero(constant).tolist():
        name = f" ('{classes[place]}')" if len(classes) == len(constant) else ""
        value = np.ldexp(float(outputs[0, place]), -verified.output_f)
        log.warning("output %d%s is %.6g on all %s vectors: the model ignores its input there", place, name, value, f"{verified.count:,}")


def _first(graph: Graph, verified: Verified) -> str:
    """Return, as text, the first layer whose output is constant, with the reason."""
    given = verified.input_values[:EXAMPLES]
    values = [value.floats() for value in replay(graph, quantized_input(graph, given))]
    constant = [bool((value == value[:1]).all()) for value in values]
    at = graph.output
    while graph.steps[at - 1].inputs and all(constant[index] and index for index in graph.steps[at - 1].inputs):
        at = min(graph.steps[at - 1].inputs)
    step = graph.steps[at - 1]
    reason = _reason(step.layer) if isinstance(step, LayerStep) else ""
    return f"{'layer ' if isinstance(step, LayerStep) else ''}'{step.name}'{f' ({reason})' if reason else ''}"


def _reason(layer: nn.Module) -> str:
    weight = getattr(layer, "weight", None)
    if _has_no_bits(getattr(layer, "input_quantizer", None)):
        return "its input has no bits"
    if weight is not None and not bool(weight.any()):
        return f"all {weight.numel():,} weights are 0"
    return "its output has no bits" if _has_no_bits(getattr(layer, "output_quantizer", None)) else "its results do not differ"


def _has_no_bits(quantizer: Any) -> bool:
    form = None if quantizer is None else Format.of(quantizer)
    return form is not None and not form.width.any()
