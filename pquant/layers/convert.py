"""Conversion of a float model to a compressed model."""

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from pquant.errors import ConfigError
from pquant.layers.base import NO_PRUNING, NO_QUANTIZATION, Calls, CompressedLayer, QuantizedLayer, check_precision
from pquant.layers.calibrate import auto_quantizers, calibrate
from pquant.layers.calls import traced
from pquant.layers.coverage import note_costs
from pquant.layers.example import Example, materialize, tensors_in
from pquant.layers.expansion import COMPOSITES, composites, functions_to_layers, torch_subclasses, use_modules_for_activations
from pquant.layers.pool import POOLS, fixed_pool
from pquant.layers.queries import counted_layers
from pquant.layers.replacements import KEEPING, REPLACEMENTS, replace_modules
from pquant.layers.ties import check_ties, share_weights
from pquant.layers.trace import Trace
from pquant.layers.unconverted import Reasons, grouped, left_float
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import FixedPointQuantizer

log = logging.getLogger(__name__)

OWN = ("forward", "_conv_forward", "_output_padding", "_check_input_dim")
"""Methods of torch's layers that define what a layer computes."""


def compress(
    model: nn.Module, pruning: PruningMethod | None = None, quantization: Quantization | None = None, example_input: Example | None = None
) -> nn.Module:
    """Return a copy of ``model`` whose layers prune and quantize; ``model`` itself is left untouched.

    A layer is replaced if its class has a replacement in :mod:`pquant.layers.replacements`, or is a subclass that does not override the forward of
    such a class. With an example input, attention, recurrent layers and calls of functions are also converted. Shared parameters and shared modules
    stay shared; layers that share a weight share its mask and bits. A warning lists the parts that stay float, see :func:`unconverted`.

    Args:
        model: any module, for example a single ``nn.Linear``.
        pruning: method object, or None for no pruning.
        quantization: method object, or None for float values.
        example_input: a batch as the model takes it: a tensor, a tuple of arguments, or a dict of keyword arguments. It gives the shapes that
            adaptive pools and the EBOPs of convolutions need, and the range of data with ``i: auto``. The layers before a layer on the path of the
            example also decide whether its input needs a quantizer, so later calls must take the same path.

    Raises:
        ConfigError: an argument of another type; a layer name in the settings that the model does not have; settings that a layer cannot take, or
            that differ for layers that share a weight; a model with a part that is compiled or compressed already, has complex or half precision
            parameters, computes weights in hooks or parametrizations, or holds layers in objects other than modules and containers; an example of
            another type, without a batch axis or without examples.
    """
    pruning, quantization = pruning or NO_PRUNING, quantization or NO_QUANTIZATION
    _check_types(model=(model, nn.Module), pruning=(pruning, PruningMethod), quantization=(quantization, Quantization))
    _check_model(model)
    if example_input is not None:
        _check_example(example_input)
    model, reasons = _expanded(copy.deepcopy(model), example_input)
    trace, calls = traced(model, example_input) if example_input is not None else (None, {})
    layers = {name: _plain(module, calls) for name, module in model.named_modules()}
    kinds = {name: kind for name, layer in layers.items() if (kind := counterpart(layer)) and _has_statistics(layer)}
    quantization.check_names(list(kinds))
    quantization.check_tensors({name: _tensors(layers[name], kind) for name, kind in kinds.items()})
    pruning.check_names([name for name, kind in kinds.items() if issubclass(kind, CompressedLayer)])

    replaced: dict[nn.Module, nn.Module] = {}
    for name, kind in kinds.items():
        layer, original = layers[name], model.get_submodule(name)
        reason = _why_float(original, trace)
        if reason:
            reasons[original] = reason
            continue
        if isinstance(layer, nn.ReLU):
            layer.inplace = layer.inplace and (trace is None or original in trace.overwriting)
        replaced[original] = kind.from_float(layer, name, pruning, quantization, calls.get(original, ()))
    devices = {parameter.device for parameter in model.parameters()}
    model = replace_modules(model, replaced)
    _check_references(model, replaced)
    if len(devices) == 1:
        model.to(devices.pop())
    share_weights(model)
    check_ties(model, pruning)
    _mark_output_layer([replaced[module] for module in trace.order if module in replaced] if trace else list(model.modules()))
    _warn_of_no_bits(replaced.values())
    _share_budget(model)
    if trace:
        _connect(trace, replaced)
        note_costs(model, trace, replaced)
        quantization.check_positions(_positions(model))
        throwaway = copy.deepcopy(model, {id(quantizer): quantizer for quantizer in auto_quantizers(model)})
        calibrate(throwaway, [example_input])  # type: ignore[list-item]
    if quantization.regularizes_ebops and not counted_layers(model):
        log.warning("no layer has trained bits that its EBOPs depend on: the weight and the target of EBOPs have no effect")
    for line in grouped(left_float(model, trace, reasons)):
        log.warning("stays float: %s", line)
    return model


def counterpart(layer: nn.Module) -> type[QuantizedLayer] | None:
    """Return the quantized class that replaces ``layer``: a torch layer, or a subclass that keeps torch's forward. None if there is none."""
    kind = type(layer)
    if kind in REPLACEMENTS:
        return REPLACEMENTS[kind]
    if isinstance(layer, LazyModuleMixin):
        return None
    base = next((base for base in kind.__mro__ if base in REPLACEMENTS), None)
    if base is None or any(getattr(kind, name, None) is not getattr(base, name, None) for name in OWN):
        return None
    return type(f"PQ{kind.__name__}", (REPLACEMENTS[base], kind), {"__module__": REPLACEMENTS[base].__module__})


def _expanded(model: nn.Module, example: Example | None) -> tuple[nn.Module, Reasons]:
    """Return a model whose attention, recurrent layers and function calls are replaced by float layers, and the reasons where they are not."""
    use_modules_for_activations(model)
    _use_layers_of_transformers(model)
    trace = None
    if example is not None:
        materialize(model, example)
        trace = Trace(model, example)
    made, reasons = composites(model, trace)
    if example is not None and trace is not None:
        made |= torch_subclasses(model, trace, example)
    model = replace_modules(model, made)
    if example is not None and trace is not None:
        reasons |= functions_to_layers(model, trace, example)
    return model, reasons


def _tensors(layer: nn.Module, kind: type[QuantizedLayer]) -> list[str]:
    """Return the names of the tensors that the settings can give a format for, when ``kind`` replaces ``layer``."""
    always = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    return [name for name in kind.tensors if always or getattr(layer, name, kind) is not None]


def _positions(model: nn.Module) -> dict[str, int]:
    """Return the largest number of positions in a call of each layer, by dotted name."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    return {name: max(map(layer.positions, layer.calls), default=1) for name, layer in layers.items()}


def _share_budget(model: nn.Module) -> None:
    """Let all layers hold one budget of EBOPs."""
    held = [layer.regularization for layer in model.modules() if isinstance(layer, QuantizedLayer) and layer.regularization is not None]
    for regularization in held[1:]:
        regularization.budget = held[0].budget


def _warn_of_no_bits(layers: Iterable[nn.Module]) -> None:
    """Log a warning for fixed formats of zero width, whose values are all 0."""
    names: dict[str, list[str]] = {}
    for layer in layers:
        for place, quantizer in layer.named_children():
            if isinstance(quantizer, FixedPointQuantizer) and quantizer.numbers and sum(quantizer.numbers) <= 0:
                k, i, f = quantizer.numbers
                names.setdefault(f"k={k} i={i} f={f}", []).append(f"{layer.name} {place.removesuffix('_quantizer')}".strip())
    for bits, places in names.items():
        log.warning("the format %s has no bits, so that all values are 0: %s", bits, ", ".join(places))


def _check_types(**arguments: tuple[Any, type]) -> None:
    """Raise a ConfigError for an argument, given with its type, that is of another type."""
    for name, (given, kind) in arguments.items():
        if not isinstance(given, kind):
            found = f"the class {given.__name__}" if isinstance(given, type) else f"an object of {type(given).__name__}"
            raise ConfigError(f"compress: {name} must be an object of {kind.__name__}, got {found}")


def _check_example(example: Example) -> None:
    """Raise a ConfigError if the first tensor of an example input is empty."""
    first = next(iter(tensors_in(example)), None)
    if first is not None and not first.numel():
        raise ConfigError(f"example_input must hold at least one example, got a tensor of shape {tuple(first.shape)}")


def _check_model(model: nn.Module) -> None:
    """Raise a ConfigError where the model cannot be compressed."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError("compress takes an nn.Module, got TorchScript, whose layers it cannot replace")
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod"):
            compiled = f"model.{name}" if name else "model"
            raise ConfigError(f"compress takes models before torch.compile: put {compiled}._orig_mod there, and compile the compressed model")
        if isinstance(module, QuantizedLayer):
            raise ConfigError(f"the model is compressed already: layer '{name}' is a {type(module).__name__}; call compress on the float model")
        if not any(isinstance(module, kind) for kind in (*REPLACEMENTS, *COMPOSITES)):
            continue
        if parametrize.is_parametrized(module):
            made = next(iter(module.parametrizations))
            advice = f"torch.nn.utils.parametrize.remove_parametrizations(layer, '{made}')"
            raise ConfigError(f"layer '{name}' has a parametrization that makes its {made}: call {advice} first")
        if isinstance(getattr(module, "weight", None), torch.Tensor) and "weight" not in module._parameters:
            advice = "torch.nn.utils.prune.remove, remove_weight_norm or remove_spectral_norm, whichever made the hook"
            raise ConfigError(f"layer '{name}' has a hook that computes its weight in each forward: call {advice} first")
    check_precision({name: parameter.dtype for name, parameter in model.named_parameters()})


def _why_float(layer: nn.Module, trace: Trace | None) -> str | None:
    """Return why a layer stays float although its class has a replacement; None if it is replaced."""
    for name in vars(layer):
        if callable(getattr(type(layer), name, None)):
            return f"it has a {name} of its own"
    if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)) and not layer.weight.numel():
        return "it has no weights"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
        return "it has max_norm or sparse gradients"
    if isinstance(layer, nn.Softmax) and layer.dim is None:
        return "it has no dim"
    if getattr(layer, "return_indices", False):
        return "it returns indices"
    if trace is None:
        return None
    if layer in trace.read_elsewhere:
        return f"its parameters are also read by {trace.read_elsewhere[layer]}"
    return None if layer in trace.shapes else "the example input does not reach it"


def _use_layers_of_transformers(model: nn.Module) -> None:
    """Switch off fused kernels and nested tensors in torch's transformers, which would bypass the converted layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _plain(module: nn.Module, calls: dict[nn.Module, Calls]) -> nn.Module:
    """Return the module to convert: for an adaptive pool the plain pool with the same result on the example input, else the module itself."""
    if type(module) in POOLS and module in calls:
        return fixed_pool(module, calls[module]) or module
    return module


def _has_statistics(layer: nn.Module) -> bool:
    """Return whether a norm can be replaced: a batch norm must have running statistics, an instance norm must not."""
    return getattr(layer, "track_running_stats", True) is not isinstance(layer, nn.modules.instancenorm._InstanceNorm)


def _check_references(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> None:
    """Raise a ConfigError where an object still refers to a layer that was replaced, and could still call it."""
    copied: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copy.deepcopy(model, copied)
    for original, layer in replaced.items():
        if id(original) in copied:
            raise ConfigError(
                f"layer '{layer.name}' is also held by an object in which compress cannot replace it:"
                " hold layers in attributes of modules, or in lists, tuples, sets or dictionaries there"
            )


def _mark_output_layer(in_order: list[nn.Module]) -> None:
    weighted = [module for module in in_order if isinstance(module, CompressedLayer)]
    if weighted:
        weighted[-1].pruner.makes_output = True


def _connect(trace: Trace, replaced: dict[nn.Module, nn.Module]) -> None:
    """Connect each layer to the quantizers that produce its inputs, where only modules that move or select values lie between them."""
    for original in filter(replaced.__contains__, trace.order):
        layer: Any = replaced[original]
        for number, feed in enumerate(trace.feeds[original][: len(layer.input_quantizers)]):
            moved = False
            while isinstance(feed, KEEPING):
                feed, moved = (trace.feeds[feed] or (None,))[0], True
            maker = replaced.get(feed) if feed is not None else None
            source = maker.output_source() if isinstance(maker, QuantizedLayer) else None
            if source is not None and not (moved and source.width().ndim):
                layer.connect(source, number)
