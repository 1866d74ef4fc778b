"""The life of a compressed model: one call a stage, a step, an epoch, a round. The trainer makes them; so does a user's own loop."""

from torch import Tensor, nn

from pquant.layers.base import QuantizedLayer, pruned_layers
from pquant.pruning.method import Pruner, PruningMethod
from pquant.training.bit_range import BitRange
from pquant.training.stage import Horizon, Stage


def set_stage(model: nn.Module, stage: Stage, horizon: Horizon | None = None) -> None:
    """Bring every layer of a compressed model into ``stage``.

    Entering TRAIN takes the method's model-wide decisions; entering FINETUNE freezes the masks.

    Args:
        model: what :func:`pquant.compress` gave.
        stage: the stage to enter.
        horizon: how long the train stage will last. Methods with a schedule (CS, PDP, AutoSparse...) need it to enter TRAIN.
    """
    stage = Stage(stage)
    pruned = pruned_layers(model)
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


class StepEvents:
    """What follows an optimizer step: pruners count, raise multipliers and guard, and trained bits are kept in the range of a format.

    It looks for the layers once, when it is made.
    """

    def __init__(self, model: nn.Module) -> None:
        self.pruned = [layer for layer in pruned_layers(model).values() if type(layer.pruner).on_batch_end is not Pruner.on_batch_end]
        self.bit_range = BitRange(model)

    def __call__(self) -> None:
        """Follow one step."""
        for layer in self.pruned:
            layer.pruner.on_batch_end(layer.seen())
        self.bit_range.on_batch_end()


def on_batch_end(model: nn.Module) -> None:
    """Follow one optimizer step; see :class:`StepEvents`."""
    StepEvents(model)()


def on_epoch_end(model: nn.Module, loss: float | None = None) -> None:
    """Follow one epoch: schedules. ``loss`` is its mean training loss without :func:`pquant.penalty`; AutoSparse tunes itself by it."""
    for layer in pruned_layers(model).values():
        layer.pruner.on_epoch_end(layer.seen(), loss)
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.on_epoch_end()
    BitRange(model).warn()


def on_round_end(model: nn.Module) -> None:
    """Follow one round of the train stage that is not the last."""
    for layer in pruned_layers(model).values():
        layer.pruner.on_round_end(layer.seen())
