"""Rewinding: the weights of an early epoch, which later rounds or fine-tuning start from again (the lottery ticket, arXiv 1803.03635)."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pquant.layers.queries import pruned_layers
from pquant.pruning.method import Pruner
from pquant.quantization.ebops import BitRegularization
from pquant.quantization.quantizer import Quantizer
from pquant.training.stage import Stage


class SavedWeights:
    """The saved values of a model's parameters and buffers, except those of pruners, quantizers and schedules.

    Args:
        model: a compressed model, or a float one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[str, Tensor] = {}

    def current(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the model that can be saved, by name."""
        inside = tuple(name + "." for name, module in self.model.named_modules() if isinstance(module, (Pruner, Quantizer, BitRegularization)))
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: tensor for name, tensor in tensors if not name.startswith(inside)}

    def save(self) -> None:
        """Save the current values."""
        self.tensors = {name: value.detach().clone() for name, value in self.current().items()}

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Restore the saved values, fold the factors of frozen pruners into the weights, and reset the optimizer's state."""
        for name, tensor in self.current().items():
            tensor.copy_(self.tensors[name])
        for layer in pruned_layers(self.model).values():
            if layer.pruner.stage is Stage.FINETUNE:
                layer.weight.copy_(layer.stored(layer.pruner.fold(layer.arranged(layer.weight))))
        optimizer.state.clear()
