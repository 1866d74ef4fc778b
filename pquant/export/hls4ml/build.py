"""hls4ml itself: its graph of a project, what it makes of our settings, and its C++ compiled."""

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
"""Passes of hls4ml that would change types or constants."""


def build(project: Project, output: Value, folder: Path, tool: dict[str, Any], reuse_factor: int, by_layer: dict[str, dict[str, Any]]) -> Any:
    """Return hls4ml's ModelGraph; nothing is written yet.

    Args:
        project: the layers.
        output: what the model returns.
        folder: of the project, for later.
        tool: ``backend``, and what hls4ml's backend takes: ``part``, ``clock_period``, ``io_type``.
        reuse_factor: of layers without weights.
        by_layer: hls4ml's ``Strategy`` and ``ReuseFactor`` of those with weights, by dotted name.

    Raises:
        ConfigError: hls4ml refuses the project.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        from hls4ml.backends import get_backend
        from hls4ml.model.graph import ModelGraph

        settings = {key: value for key, value in tool.items() if key != "backend" and value is not None}
        config = get_backend(tool["backend"]).create_initial_config(**settings)
        layers = {name: {"Precision": types, "Trace": False} for name, types in project.types.items()}
        for layer in (layer for layer in project.layers if layer["class_name"] in WEIGHTED):
            name = layer["name"]
            layers[name] |= {"ReuseFactor": 1} if name in project.moving else by_layer.get(project.origins[name], {})
        config |= {"OutputDir": str(folder), "ProjectName": NAME, "Backend": tool["backend"]}
        model = {"Precision": {"default": "fixed<32,16>"}, "Strategy": "latency", "ReuseFactor": reuse_factor, "BitExact": False}
        config["HLSConfig"] = {"Model": model, "LayerName": layers, "SkipOptimizers": SKIPPED}
        try:
            made = ModelGraph.from_layer_list(config, project.layers, outputs=[output.layer])
        except Exception as error:
            log.debug("hls4ml printed: %s", printed.getvalue())
            raise ConfigError(f"export=hls4ml: hls4ml refuses the project: {str(error) or type(error).__name__}") from error
    return made


def reuse_factors(made: Any, project: Project) -> dict[str, int]:
    """Return the reuse factor that hls4ml takes for each layer with shared multipliers, by dotted name."""
    layers = [layer for layer in made.get_layers() if layer.get_attr("strategy") == "resource" and layer.name not in project.moving]
    return {project.origins.get(layer.name, layer.name): int(layer.get_attr("reuse_factor")) for layer in layers}


def compiled(made: Any) -> Path:
    """Write the project, compile it and return the library.

    Raises:
        RuntimeError: it cannot be compiled; the message has the last lines that hls4ml printed.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        made.write()
        try:
            library = Path(made.config.backend.compile(made))
        except Exception as error:
            raise RuntimeError(f"{error}: {printed.getvalue().strip()[-500:]}") from error
    if not library.exists():
        raise RuntimeError(f"the compiler made no library: {library.parents[1] / 'build_lib.sh'} shows its messages")
    return library
