"""Calls of hls4ml: building its graph of a project, with the settings of its layers."""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

from pquant.errors import ConfigError
from pquant.export.hls4ml.project import Project, Value

log = logging.getLogger(__name__)

NAME = "net"
WEIGHTED = ("Dense", "Conv1D", "Conv2D")
SKIPPED = ["fuse_batch_normalization", "fuse_consecutive_batch_normalization", "merge_linear_activation", "eliminate_linear_activation"]
"""Optimizer passes of hls4ml that are switched off, since they would change types or constants."""


def build(project: Project, output: Value, folder: Path, tool: dict[str, Any], reuse_factor: int, by_layer: dict[str, dict[str, Any]]) -> Any:
    """Return hls4ml's ModelGraph; nothing is written yet.

    Args:
        project: the layers.
        output: the output value of the model.
        folder: the folder that the project is written to later.
        tool: ``backend``, and its arguments ``part``, ``clock_period`` and ``io_type``.
        reuse_factor: reuse factor of layers without weights.
        by_layer: hls4ml's ``Strategy`` and ``ReuseFactor`` of layers with weights, by hls4ml's layer name.

    Raises:
        ConfigError: hls4ml refuses the project.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        from hls4ml.backends import get_backend
        from hls4ml.model.graph import ModelGraph

        settings = {key: value for key, value in tool.items() if key != "backend" and value is not None}
        config = get_backend(tool["backend"]).create_initial_config(**settings)
        layers = {name: {"Precision": types, "Trace": False} for name, types in project.types.items()}
        for layer, settings in by_layer.items():
            layers[layer] |= settings
        config |= {"OutputDir": str(folder), "ProjectName": NAME, "Backend": tool["backend"]}
        model = {"Precision": {"default": "fixed<32,16>"}, "Strategy": "latency", "ReuseFactor": reuse_factor, "BitExact": False}
        config["HLSConfig"] = {"Model": model, "LayerName": layers, "SkipOptimizers": SKIPPED}
        try:
            made = ModelGraph.from_layer_list(config, project.layers, outputs=[output.layer])
        except Exception as error:
            log.debug("hls4ml printed: %s", printed.getvalue())
            raise ConfigError(f"export=hls4ml: hls4ml refuses the project: {str(error) or type(error).__name__}") from error
    return made


def weighted(project: Project, given: dict[str, dict[str, Any]], reuse_factor: int) -> dict[str, dict[str, Any]]:
    """Return ``Strategy`` and ``ReuseFactor`` of all layers with weights, by hls4ml's name; a factor becomes the nearest that hls4ml accepts.

    hls4ml itself does this for most layers, but writes wrong code for others, such as convolutions of one position.

    Args:
        project: the layers.
        given: settings of the model's layers, by dotted name.
        reuse_factor: reuse factor of sums over axes, which have weights of 1.
    """
    from hls4ml.backends import get_backend

    backend = get_backend(project.target.backend)
    found = {}
    for layer in (layer for layer in project.layers if layer["class_name"] in WEIGHTED):
        name = layer["name"]
        settings = given.get(project.origins[name], {"Strategy": "latency", "ReuseFactor": reuse_factor})
        strategy, factor = settings["Strategy"], 1 if name in project.moving else settings["ReuseFactor"]
        if strategy == "resource" or project.target.backend in ("Quartus", "oneAPI"):
            inputs, outputs = layer["weight_data"].reshape(-1, layer["weight_data"].shape[-1]).shape
            factor = backend.get_closest_reuse_factor(backend.get_valid_reuse_factors(inputs, outputs), factor)
        found[name] = {"Strategy": "latency" if name in project.moving else strategy, "ReuseFactor": factor}
    return found


def write(made: Any) -> None:
    """Write the project."""
    with contextlib.redirect_stdout(io.StringIO()):
        made.write()
