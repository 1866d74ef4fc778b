"""One-shot pruning: a mask from a few batches of data, without training."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pquant.errors import ConfigError
from pquant.layers.base import CompressedLayer, QuantizedLayer
from pquant.layers.calibrate import calibrate
from pquant.layers.convert import compress
from pquant.layers.example import Example, arguments
from pquant.layers.modes import evaluating
from pquant.layers.queries import compressed_layers, weight_layers
from pquant.layers.ties import share_weights
from pquant.pruning.magnitude import Magnitude
from pquant.pruning.method import PruningMethod
from pquant.pruning.window import WindowMethod
from pquant.quantization.quantization import Quantization
from pquant.training.lifecycle import on_batch_end, set_stage
from pquant.training.stage import Horizon, Stage


def prune_one_shot(
    model: nn.Module, method: PruningMethod, calibration_batches: Iterable[Example], quantization: Quantization | None = None
) -> nn.Module:
    """Return a compressed, pruned copy of a trained ``model`` in the fine-tuning stage, ready for :func:`pquant.finalize` or more training.

    The model runs on the batches in evaluation mode, as a train stage of a single step. The window of the method covers all batches;
    ``t_start_collecting_batch`` and ``t_delta`` have no effect. The remaining weights, batch norm statistics and ``model`` itself do not change.

    Args:
        model: a float model, or a compressed one: its quantizers stay, and its mask is written into the weights before the new mask is computed.
        method: Wanda, ActivationPruning, Magnitude, or another method that collects activations over a window.
        calibration_batches: inputs as the model takes them, like ``example_input`` of :func:`pquant.compress`; a few hundred examples are enough.
        quantization: method object for a float model, or None for float values.

    Raises:
        ConfigError: a method that needs training, no batch, or ``quantization`` for a model that is compressed already.
    """
    if not isinstance(method, (WindowMethod, Magnitude)):
        raise ConfigError(_why_not(method))
    batches = list(calibration_batches)
    if not batches:
        raise ConfigError("prune_one_shot needs at least one calibration batch")
    if any(isinstance(module, QuantizedLayer) for module in model.modules()):
        if quantization is not None:
            raise ConfigError("the model given to prune_one_shot is compressed already and keeps its quantization; leave quantization out")
        model = _with_pruning(model, method)
    else:
        model = compress(model, method, quantization, batches[0])
        calibrate(model, batches)
    set_stage(model, Stage.TRAIN, Horizon(epochs=1, steps_per_epoch=1))
    with _watching(model), torch.no_grad():
        for args, kwargs in map(arguments, batches):
            model(*args, **kwargs)
    on_batch_end(model)
    set_stage(model, Stage.FINETUNE)
    return model


def _why_not(method: PruningMethod) -> str:
    """Return why ``method`` cannot prune without training."""
    trained = [parameter for parameter, _ in method.pruner(torch.ones(4, 4), nn.Linear).named_parameters()]
    why = f"trains a {' and a '.join(trained)} for each layer" if trained else "changes its mask with the weights during training"
    advice = "train with it, or take Wanda, ActivationPruning or Magnitude"
    return f"{type(method).__name__} cannot prune in one shot: it {why}, so without training it prunes nothing; {advice}"


@torch.no_grad()
def _with_pruning(model: nn.Module, method: PruningMethod) -> nn.Module:
    """Return a copy of a compressed model with pruners of ``method``; its previous mask is written into the weights."""
    model = copy.deepcopy(model)
    set_stage(model, Stage.FINETUNE)
    layers = compressed_layers(model)
    method.check_names(list(layers))
    for layer in weight_layers(model).values():
        weight = layer.arranged(layer.weight)
        layer.weight.mul_(layer.stored(layer.pruner.hard_mask(weight).expand_as(weight)))
        if layer.bias is not None:
            layer.bias.copy_(layer.pruner.prune_bias(layer.bias, layer.arranged(layer.weight)))
    for layer in layers.values():
        makes_output = layer.pruner.makes_output
        layer.set_pruner(method)
        layer.pruner.makes_output = makes_output
    share_weights(model)
    return model


@contextmanager
def _watching(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, but set the training flag of its layers, so that they pass activations to their pruners."""
    with evaluating(model):
        for module in model.modules():
            if isinstance(module, CompressedLayer):
                module.training = True
        yield
