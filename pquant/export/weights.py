"""The finalized weights: ``model.safetensors``, and ``model.json``, which describes them."""

import math
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from pquant.layers.base import QuantizedLayer
from pquant.metrics import layer_table
from pquant.quantization.quantizer import Quantizer
from pquant.tracking.files import write_atomic, write_json


def save_model(model: nn.Module, folder: Path, described: dict[str, Any] | None = None) -> None:
    """Write the weights of a finalized model, and a description: inputs and outputs, and per layer shape, sparsity and k, i, f of each quantizer.

    ``described`` is :attr:`pquant.data.Splits.interface`.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_atomic(folder / "model.safetensors", safetensors.torch.save(state))
    rows = {row["name"]: row for row in layer_table(model)}
    layers = [
        rows[name] | {"quantizers": {kind: _bits(part) for kind, part in layer.named_children() if isinstance(part, Quantizer)}}
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLayer)
    ]
    write_json(folder / "model.json", {**(described or {}), "layers": layers})


def load_weights(model: nn.Module, path: Path) -> None:
    """Load ``model.safetensors`` into a finalized model of the same architecture and settings; no code in the file is executed."""
    model.load_state_dict(safetensors.torch.load_file(path))


def _bits(quantizer: Quantizer) -> dict[str, Any] | None:
    """Return k, i, f: numbers, or nested lists where they differ by channel or value; None for float."""
    formats = quantizer.format()
    if formats is None:
        return None
    bits = dict(zip("kif", formats, strict=True))
    modes = {mode: getattr(quantizer, mode) for mode in ("round_mode", "overflow_mode") if hasattr(quantizer, mode)}
    return {name: _numbers(value) for name, value in bits.items()} | modes


def _numbers(value: Tensor) -> Any:
    values = value.tolist()
    return int(values) if isinstance(values, float) and math.isfinite(values) else values
