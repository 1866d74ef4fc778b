"""All weights and biases of a model pruned and quantized in one pass a forward: small tensors cost less together than one by one."""

from typing import Any

import torch
from torch import Tensor, nn

from pquant.layers.compressed import CompressedLayer, weight_layers
from pquant.pruning.method import prune_together
from pquant.quantization.quantizer import quantize_together


class Together:
    """Gives the compressed layers of a model their effective parameters for the time of each forward of the model.

    The values are those of :meth:`CompressedLayer.effective`, bit for bit. A layer that is called by itself takes its own, and so does every layer
    in a compiled step, where the compiler fuses.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, CompressedLayer)]
        self.owners = list(weight_layers(model).values())
        owner = {id(layer.weight): index for index, layer in enumerate(self.owners)}
        self.owner = [owner[id(layer.weight)] for layer in self.layers]

    def begin(self, model: nn.Module, args: Any) -> None:
        """Compute all effective parameters, before a forward."""
        if torch.compiler.is_compiling():
            return
        weights = self._pruned([layer.weight for layer in self.owners], first=True)
        biased = [layer for layer in self.layers if layer.bias is not None]
        quantizers = [layer.weight_quantizer for layer in self.owners] + [layer.bias_quantizer for layer in biased]
        quantized = quantize_together(quantizers, weights + [layer.bias for layer in biased])
        biases = iter(quantized[len(weights) :])
        weights = quantized[: len(weights)]
        seen = [layer.weight if layer.pruning_first else weight for layer, weight in zip(self.owners, weights, strict=True)]
        weights = self._pruned(weights, first=False)
        for layer, owner in zip(self.layers, self.owner, strict=True):
            bias = None if layer.bias is None else layer.pruner.prune_bias(next(biases), seen[owner])
            layer.__dict__["ready"] = (weights[owner], bias)

    def _pruned(self, weights: list[Tensor], first: bool) -> list[Tensor]:
        """Return the weights, those pruned that are pruned before (``first``) or after they are quantized."""
        which = [index for index, layer in enumerate(self.owners) if layer.pruning_first == first]
        pruned = prune_together([self.owners[index].pruner for index in which], [weights[index] for index in which])
        results = dict(enumerate(weights)) | dict(zip(which, pruned, strict=True))
        return list(results.values())

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forget them, after a forward or its failure."""
        for layer in self.layers:
            layer.__dict__["ready"] = None


def join(model: nn.Module) -> None:
    """Let the layers of ``model`` compute their parameters together from now on."""
    part(model)
    together = Together(model)
    model.register_forward_pre_hook(together.begin)
    model.register_forward_hook(together.end, always_call=True)


def part(model: nn.Module) -> None:
    """Let each layer of ``model`` compute its own parameters again."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Together)]:
            del hooks[key]
