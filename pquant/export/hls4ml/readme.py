"""The README of the project."""

import importlib.metadata
from dataclasses import dataclass
from typing import Any

from pquant.export.hls4ml.layout import channels_last, same, torch_order
from pquant.export.hls4ml.project import Value
from pquant.export.text import render


@dataclass(frozen=True)
class Built:
    """hls4ml's graph, input and output values of the project with their types, and hls4ml's settings by layer."""

    made: Any
    input: Value
    output: Value
    layers: dict[str, dict[str, Any]]
    types: dict[str, str]


def readme(built: Built, backend: str, compiler: str, verified: int) -> str:
    """Return the text of the README."""
    ports = [
        {"name": name, "shape": value.order.shape, "axes": _axes(value), "type": built.types[name]}
        for name, value in (("input", built.input), ("output", built.output))
    ]
    layers = [{"name": name, "strategy": one["Strategy"], "reuse_factor": one["ReuseFactor"]} for name, one in built.layers.items()]
    version = importlib.metadata.version("hls4ml")
    return render("hls4ml.md.j2", version=version, backend=backend, compiler=compiler, verified=verified, ports=ports, layers=layers)


def _axes(value: Value) -> str:
    shape = value.bounds.shape
    if value.order.shape == shape and same(value.order, torch_order(shape)):
        return "as in torch"
    assert same(value.order, channels_last(shape))
    return f"{(*range(1, len(shape)), 0)} of {shape}"
