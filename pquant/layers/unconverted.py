"""What of a compressed model stays float."""

import re
from collections.abc import Iterable

from torch import nn

from pquant.layers.base import QuantizedLayer
from pquant.layers.composite import Composite
from pquant.layers.constant import PQConstant
from pquant.layers.example import Example
from pquant.layers.functional import takes_layers
from pquant.layers.replacements import PASSING
from pquant.layers.trace import Trace, is_layer

MOST_NAMES = 5
Reasons = dict[nn.Module, str]
"""Why a module stays as it is."""


def unconverted(model: nn.Module, example_input: Example | None = None) -> list[str]:
    """Return what stays float in a compressed model, one line for each kind: classes of modules, and functions when an example input is given."""
    return grouped(left_float(model, Trace(model, example_input) if example_input is not None else None, {}))


def grouped(left: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return one line for each kind of what stays float and each reason: ``12 x gelu (blocks.*.mlp)``."""
    places: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for kind, name, reason in left:
        places.setdefault((kind, _pattern(reason)), []).append((name or "model", reason))
    lines = []
    for (kind, pattern), found in places.items():
        names = [name for name, _ in found]
        reason = pattern if len(found) > 1 else found[0][1]
        patterns = names if len(names) <= MOST_NAMES else list(dict.fromkeys(map(_pattern, names)))
        more = f" and {len(patterns) - MOST_NAMES} more" if len(patterns) > MOST_NAMES else ""
        count = f"{len(names)} x " if len(names) > 1 else ""
        lines.append(f"{count}{kind} ({', '.join(patterns[:MOST_NAMES])}{more}){': ' + reason if reason else ''}")
    return lines


def left_float(model: nn.Module, trace: Trace | None, reasons: Reasons) -> list[tuple[str, str, str]]:
    """Return what stays float: the kind, a class or a function, the name of the module, and why, where that is known.

    Modules of ``trace`` and ``reasons`` are those of the float model, which the compressed one has still where they were not replaced.
    """
    inside = tuple(name + "." if name else "" for name, module in model.named_modules() if isinstance(module, QuantizedLayer))
    left = []
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer) or type(module) in PASSING or name.startswith(inside):
            continue
        reason = reasons.get(module, "")
        functions = sorted(trace.functions.get(module, ())) if trace else []
        counts = is_layer(module) or trace is None and next(module.children(), None) is None or _own_parameters(module)
        if counts and not isinstance(module, Composite) or reason and not functions:
            left.append((type(module).__name__, name, reason))
        else:
            left += [(function, name, reason if takes_layers(function) else "") for function in functions]
    return left


def _own_parameters(module: nn.Module) -> list[str]:
    """Return the parameters of a module that no layer stands for."""
    constants = {child.of for child in module.children() if isinstance(child, PQConstant)}
    return [name for name, parameter in module._parameters.items() if parameter is not None and name not in constants]


def _pattern(text: str) -> str:
    """Return a text with a star for each number in dotted names."""
    return re.sub(r"(?<=\.)\d+\b|\b\d+(?=\.)", "*", text)
