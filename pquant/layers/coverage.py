"""The fraction of a model that is quantized."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.layers.base import Cost, QuantizedLayer
from pquant.layers.constant import PQConstant
from pquant.layers.replacements import PASSING
from pquant.layers.trace import Trace
from pquant.pruning.method import Pruner
from pquant.quantization.ebops import BitRegularization
from pquant.quantization.quantizer import Quantizer


def note_costs(model: nn.Module, trace: Trace, replaced: Mapping[nn.Module, Any]) -> None:
    """Set ``cost`` on each layer of a compressed model, and on the model the total of all parts that stay float, as ``float_cost``."""
    left = Cost()
    for module, cost in trace.cost.items():
        if module in replaced:
            replaced[module].cost = cost
        elif not isinstance(module, PASSING):
            left += cost
    model.float_cost = left  # type: ignore[assignment]


def coverage(model: nn.Module) -> dict[str, float]:
    """Return the quantized fractions of a compressed or finalized model, each in [0, 1]; 1 where the model has none of the counted values.

    ``parameters`` counts the values of all parameters of the float model. ``multiplications`` counts those of matrix products and convolutions; one
    is quantized if both factors are. ``activations`` counts the values that layers and functions return, except functions that only move, select, add
    or shift values; they are quantized if a layer computes them from quantized values.

    Raises:
        ConfigError: the model was compressed without an example input, so that its calls are not known.
    """
    total = getattr(model, "float_cost", None)
    if not isinstance(total, Cost):
        raise ConfigError("coverage depends on what the model computes: give compress an example_input")
    done = Cost()
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer):
            total += layer.cost
            done += layer.cost if layer.is_quantized() else Cost()
    quantized, parameters = _parameters(model)
    return {
        "parameters": quantized / parameters if parameters else 1.0,
        "multiplications": done.multiplications / total.multiplications if total.multiplications else 1.0,
        "activations": done.activations / total.activations if total.activations else 1.0,
    }


def own_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield (module, name, parameter) for the parameters of the float model; a shared one is repeated. Pruners and quantizers are left out."""
    for module in model.modules():
        if not isinstance(module, (Quantizer, Pruner, BitRegularization)):
            for name, parameter in module._parameters.items():
                if parameter is not None and name != "multiplier":
                    yield module, name, parameter


def parameter_quantizer(module: nn.Module, name: str) -> Quantizer | None:
    """Return the quantizer of a parameter of a module, or None."""
    found = next((child.weight_quantizer for child in module.children() if isinstance(child, PQConstant) and child.of == name), None)
    return found or (getattr(module, f"{name}_quantizer", None) if isinstance(module, QuantizedLayer) else None)


def _parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many parameter values of the float model are quantized, and how many there are."""
    done: dict[int, int] = {}
    total: dict[int, int] = {}
    for module, name, parameter in own_parameters(model):
        total[id(parameter)] = parameter.numel()
        quantizer = parameter_quantizer(module, name)
        if quantizer is not None and not quantizer.is_float or isinstance(module, QuantizedLayer) and module.quantizes(name):
            done[id(parameter)] = parameter.numel()
    return sum(done.values()), sum(total.values())
