"""The calls that a training loop makes for a compressed model: at each stage, step, epoch and round. The trainer, or your own loop, makes them."""

import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.layers.base import CompressedLayer, QuantizedLayer
from pquant.layers.queries import ebops_budget, pruned_layers
from pquant.metrics import bit_use, ebops
from pquant.pruning.method import Pruner, PruningMethod
from pquant.training.bit_range import BitRange
from pquant.training.stage import Horizon, Stage


def set_stage(model: nn.Module, stage: Stage, horizon: Horizon | None = None) -> None:
    """Start ``stage`` in every layer of a compressed model.

    The start of TRAIN makes the decisions of the pruning method that depend on all layers. The start of FINETUNE freezes the masks.

    Args:
        model: a model that :func:`pquant.compress` returned.
        stage: the stage to start.
        horizon: length of the train stage. Methods with a schedule (CS, PDP, AutoSparse...) and an EBOPs target need it at the start of TRAIN.

    Raises:
        ConfigError: a ``horizon`` of another type; TRAIN starts with an EBOPs target but without a ``horizon``; a stage before FINETUNE starts after
            it, with a method that rescales weights.
        RuntimeError: TRAIN starts with a method that has a schedule but without a ``horizon``.
    """
    stage = Stage(stage)
    if horizon is not None and not isinstance(horizon, Horizon):
        raise ConfigError(f"set_stage: horizon must be a Horizon(epochs, steps_per_epoch), got {horizon!r}")
    if stage is Stage.TRAIN:
        _begin_budget(model, horizon)
    pruned = pruned_layers(model)
    if stage is not Stage.FINETUNE:
        _check_order(stage, pruned)
    for layer in pruned.values():
        layer.start_pruner(stage, horizon)
    if stage is Stage.TRAIN:
        groups: dict[int, tuple[PruningMethod, dict[str, tuple[Pruner, Tensor]]]] = {}
        for name, layer in pruned.items():
            method = layer.pruner.method
            groups.setdefault(id(method), (method, {}))[1][name] = (layer.pruner, layer.seen().detach())
        for method, layers in groups.values():
            method.prepare(layers)
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.on_stage_start(stage)


def _check_order(stage: Stage, pruned: dict[str, CompressedLayer]) -> None:
    """Raise a ConfigError where a pruner that rescales weights would rescale those that the start of FINETUNE has stored."""
    for name, layer in pruned.items():
        if layer.pruner.stage is Stage.FINETUNE and layer.pruner.method.rescales:
            raise ConfigError(f"set_stage: {stage.name} cannot follow FINETUNE, which has stored the rescaled weight of layer '{name}'")


def _begin_budget(model: nn.Module, horizon: Horizon | None) -> None:
    if (budget := ebops_budget(model)) is None:
        return
    if horizon is None:
        raise ConfigError("Quantization.target_ebops needs the length of the train stage: set_stage(model, Stage.TRAIN, Horizon(epochs, steps))")
    use = bit_use(model)
    budget.begin(use, horizon.epochs * horizon.rounds)
    budget.announce(use.ebops)


def check_budget(model: nn.Module, ebops: float) -> dict[str, float]:
    """Log if a trained model of ``ebops`` misses its EBOPs target; return the target as ``target_ebops``, or {} without a target."""
    budget = ebops_budget(model)
    if budget is None or not budget.has_begun:
        return {}
    budget.report(ebops)
    return {"target_ebops": budget.target}


class StepEvents:
    """The updates after an optimizer step: those of the pruners, and the limits of trained bits (:class:`BitRange`).

    The constructor collects the layers of the model once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.pruned = [layer for layer in pruned_layers(model).values() if type(layer.pruner).on_batch_end is not Pruner.on_batch_end]
        self.bit_range = BitRange(model)

    @torch.no_grad()
    def __call__(self) -> None:
        """Make the updates after one optimizer step."""
        for layer in self.pruned:
            layer.pruner.on_batch_end(layer.seen())
        self.bit_range.on_batch_end()


def on_batch_end(model: nn.Module) -> None:
    """Update a compressed model after one optimizer step; see :class:`StepEvents`."""
    StepEvents(model)()


def on_epoch_end(model: nn.Module, loss: float | None = None) -> None:
    """Update the schedules of a compressed model after one epoch.

    ``loss`` is the mean training loss of the epoch without :func:`pquant.penalty`; only autotuning of AutoSparse needs it.
    """
    budget, pruned = ebops_budget(model), pruned_layers(model)
    before = ebops(model) if pruned and budget is not None and budget.has_begun else 0.0
    for layer in pruned.values():
        layer.pruner.on_epoch_end(layer.seen(), loss)
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.on_epoch_end()
    if budget is not None and budget.has_begun:
        budget.follow(bit_use(model), before)
    BitRange(model).warn()


def on_round_end(model: nn.Module) -> None:
    """Update a compressed model after one round of the train stage, except the last round."""
    for layer in pruned_layers(model).values():
        layer.pruner.on_round_end(layer.seen())
