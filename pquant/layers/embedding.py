"""Embeddings."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.layers.base import Calls, QuantizedLayer
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import NoQuantizer, Quantizer


class PQEmbedding(QuantizedLayer, nn.Embedding):
    """``nn.Embedding`` with a quantized table. Its inputs are indices, its table is not pruned, and a lookup costs no EBOPs.

    Takes the arguments of ``nn.Embedding`` except ``max_norm`` and ``sparse`` and, by keyword, ``quantization`` (method object) and ``name``.
    """

    tensors = ("weight", "output")
    weight: Any

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        self.input_quantizer = NoQuantizer()
        self.weight_quantizer = quantization.weight_quantizer(quantization.formats(name).weight, self.weight.shape)
        if self.output_quantizer.is_redundant_after(self.weight_quantizer):
            self.output_quantizer = NoQuantizer()

    def compute(self, x: Tensor) -> Tensor:
        """Return the quantized rows (*, embedding_dim) of indices (*)."""
        return F.embedding(x, self.weight_quantizer(self.weight), self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)

    def is_quantized(self) -> bool:
        """Return whether the table is quantized."""
        return not self.weight_quantizer.is_float

    def output_source(self) -> Quantizer | None:
        """Return the output quantizer, else the table's quantizer; None if the values do not all share one format."""
        source = self.weight_quantizer if self.output_quantizer.is_float else self.output_quantizer
        return None if source.is_float or source.width().ndim else source

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Replace the table by its quantized values and return the layer."""
        super().finalized()
        self.weight = nn.Parameter(self.weight_quantizer(self.weight).clone(), requires_grad=False)
        self.weight_quantizer = self.weight_quantizer.folded()
        return self
