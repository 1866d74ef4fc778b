"""The list of modules and functions of a compressed model that stay float."""

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
"""Maps modules that stay float to the reasons."""


def unconverted(model: nn.Module, example_input: Example | None = None) -> list[str]:
    """Return the parts of a compressed model that stay float, one line per module class and, with an example input, per function."""
    return grouped(left_float(model, Trace(model, example_input) if example_input is not None else None, {}))


def grouped(left: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return one line per kind and reason of (kind, name, reason) triples, such as ``12 x gelu (blocks.*.mlp)``."""
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
    """Return the parts that stay float, as (kind, name, reason): a class or function, the name of the module, and the reason or "".

    ``trace`` and ``reasons`` refer to modules of the float model; the compressed model still contains those that were not replaced.
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
    """Return the names of the parameters of a module itself that no Constant layer represents."""
    constants = {child.of for child in module.children() if isinstance(child, PQConstant)}
    return [name for name, parameter in module._parameters.items() if parameter is not None and name not in constants]


def _pattern(text: str) -> str:
    """Return ``text`` with each number in dotted names replaced by a star."""
    return re.sub(r"(?<=\.)\d+\b|\b\d+(?=\.)", "*", text)
