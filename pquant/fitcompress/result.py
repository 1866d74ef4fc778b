"""The result of a search: its record in ``fitcompress.json``, and its application to a model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.fitcompress.deferred_quantization import release, released
from pquant.fitcompress.fisher import Fisher
from pquant.fitcompress.search import Path as Way
from pquant.fitcompress.search import State
from pquant.fitcompress.space import CompressionSpace, Format, SearchedLayer, Tensors, global_masks
from pquant.layers.base import CompressedLayer
from pquant.layers.queries import compressed_layers, weight_layers, weight_owners
from pquant.names import check_patterns
from pquant.quantization.quantizer import FixedPointQuantizer


@dataclass(frozen=True)
class LayerResult:
    """Result for one layer: bits of a weight (32: float), format (None: unchanged), number of weights, sparsity, and predicted rise of the loss.

    ``fisher_trace`` and ``input_fisher_trace`` are the traces of the Fisher information of the weight and of the layer's input before compression.
    """

    bits: float
    format: Format | None
    weights: int
    sparsity: float
    predicted_loss: float
    fisher_trace: float
    input_fisher_trace: float


@dataclass(frozen=True)
class Step:
    """One step of the path: its description, the compression after it, and the length of the path up to it."""

    step: str
    compression: float
    length: float


@dataclass(frozen=True)
class Result:
    """The configuration that a search found.

    ``compression`` is the size divided by that of float32 weights; ``reached`` says whether it is at most ``compression_goal``. ``pruning_share`` is
    the pruned fraction of all prunable weights. ``predicted_loss`` is the predicted rise of the loss, from the weights and from the bits of ``data``,
    which are not searched. ``shortest`` says whether the path was proved to be the shortest; ``expanded`` is the number of expanded configurations.
    ``fisher_iterations`` and ``fisher_error`` are the number of batches of the Fisher estimate, and its relative standard error. ``layer_specific``
    holds the bits in the form of ``quantization.layer_specific``.
    """

    compression_goal: float
    compression: float
    reached: bool
    pruning_share: float
    predicted_loss: float
    predicted_loss_data: float
    shortest: bool
    expanded: int
    fisher_iterations: int
    fisher_error: float
    layers: dict[str, LayerResult]
    path: list[Step]
    layer_specific: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, space: CompressionSpace, way: Way, first: Fisher, goal: float) -> Self:
        """Return the result of a search: the path ``way`` through ``space`` for ``model``, with the first Fisher information."""
        formats, losses, layers = space.formats(way.end), space.predicted_loss(way.end), weight_layers(model)
        found = {}
        for name, level in zip(space.names, way.end[1:], strict=True):
            searched = space.layers[name]
            count = searched.weight.numel()
            sparsity = 1 - space.kept(name, way.end[0], level) / max(count, 1)
            traces = float(first.weights[name].sum()), first.inputs[name]
            found[name] = LayerResult(searched.widths[level], formats[name], count, sparsity, losses[name], *traces)
        stretches = zip(way.states, way.states[1:], way.lengths[1:], strict=False)
        return cls(
            compression_goal=goal,
            compression=space.compression(way.end),
            reached=way.reached,
            pruning_share=space.shares[way.end[0]],
            predicted_loss=sum(losses.values()),
            predicted_loss_data=sum(_data_loss(layer, first.inputs[name]) for name, layer in layers.items()),
            shortest=way.shortest,
            expanded=way.expanded,
            fisher_iterations=first.iterations,
            fisher_error=first.error,
            layers=found,
            path=[Step(_step(space, before, after), space.compression(after), length) for before, after, length in stretches],
            layer_specific=_layer_rules(formats, model),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain dictionaries."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the result that a run saved.

        Raises:
            ConfigError: no such file, or not the result of a search.
        """
        try:
            saved = json.loads(path.read_text())
            layers = {name: _layer(entry) for name, entry in saved["layers"].items()}
            return cls(**{**saved, "layers": layers, "path": [Step(**step) for step in saved["path"]]})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"FITCompress.result must be the fitcompress.json of an earlier run, got '{path}' ({error})") from error

    def check_names(self, model: nn.Module) -> None:
        """Raise a ConfigError if this result belongs to another model."""
        layers = weight_layers(model)
        check_patterns("FITCompress.result", self.layers, layers)
        for name, layer in layers.items():
            known = self.layers.get(name)
            if known is None or known.weights != layer.weight.numel():
                has = "no such layer" if known is None else f"{known.weights} weights there"
                raise ConfigError(f"FITCompress.result is of another model: layer '{name}' has {layer.weight.numel()} weights, and the file {has}")


def _layer(entry: Mapping[str, Any]) -> LayerResult:
    return LayerResult(**{**entry, "format": entry["format"] and Format(**entry["format"])})


def saved_layer_rules(path: str) -> dict[str, Any]:
    """Return the ``layer_specific`` of a saved result; configurations use it as the resolver ``fitcompress``.

    Raises:
        ConfigError: no such file, or not what a search writes.
    """
    return Result.read(Path(path)).layer_specific


def _layer_rules(formats: Mapping[str, Format | None], model: nn.Module) -> dict[str, Any]:
    """Return ``layer_specific`` with the formats of the weights: a rule per layer, which keeps its previous settings, then all previous rules.

    Layers that share a weight have the format that ``formats`` has for the first of them.
    """
    rules: dict[str, Any] = {}
    layers, owners = compressed_layers(model), weight_owners(model)
    for name, layer in layers.items():
        own = layer.quantization.rule(name)
        if format := formats[owners[name]]:
            rules[name] = {**own, "weight": {**own.get("weight", {}), **asdict(format)}}
    there = next((layer.quantization.layer_specific for layer in layers.values()), {})
    return {**rules, **{pattern: rule for pattern, rule in there.items() if pattern not in rules}}


def _step(space: CompressionSpace, before: State, after: State) -> str:
    if before[0] != after[0]:
        return f"prune {space.shares[after[0]]:.4f}"
    name, level = next((name, b) for name, a, b in zip(space.names, before[1:], after[1:], strict=True) if a != b)
    return f"{name} to {space.layers[name].widths[level]:g} bits"


def _data_loss(layer: CompressedLayer, trace: float) -> float:
    """Return 1/2 trace step^2 / 12, the predicted rise of the loss from rounding the layer's input."""
    format = released(layer.operand()).format()
    return 0.0 if format is None else trace * float((4.0 ** -format[2]).mean()) / 24


def final_masks(layers: Mapping[str, SearchedLayer], information: Tensors, share: float, formats: Mapping[str, Format | None]) -> Tensors:
    """Return the masks of the prunable layers, which drop the fraction ``share`` with the smallest F w^2, and all weights that round to 0."""
    prunable = {name: layer for name, layer in layers.items() if layer.prunable}
    kept = global_masks({name: information[name] * layer.weight.square() for name, layer in prunable.items()}, share)
    return {name: kept[name] & (layer.rounded(layer.weight * kept[name], formats[name]) != 0) for name, layer in prunable.items()}


@torch.no_grad()
def take_on(model: nn.Module, formats: Mapping[str, Format | None], masks: Mapping[str, Tensor]) -> None:
    """Set the formats and masks of the weights in a compressed model, and restore its quantizers. No weight changes."""
    release(model)
    for name, layer in weight_layers(model).items():
        format = formats[name]
        if format and isinstance(layer.weight_quantizer, FixedPointQuantizer):
            layer.weight_quantizer.fix(format.k, format.i, format.f)
        if name in masks:
            layer.pruner.mask.copy_(masks[name])
