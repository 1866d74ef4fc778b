"""The life of a compressed model: one call a stage, a step, an epoch, a round. The trainer makes them; so does a user's own loop."""

from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.layers.base import QuantizedLayer, ebops_budget, pruned_layers
from pquant.metrics import bit_use, ebops
from pquant.pruning.method import Pruner, PruningMethod
from pquant.training.bit_range import BitRange
from pquant.training.stage import Horizon, Stage


def set_stage(model: nn.Module, stage: Stage, horizon: Horizon | None = None) -> None:
    """Bring every layer of a compressed model into ``stage``.

    Entering TRAIN takes the method's model-wide decisions; entering FINETUNE freezes the masks.

    Args:
        model: what :func:`pquant.compress` gave.
        stage: the stage to enter.
        horizon: how long the train stage will last. Methods with a schedule (CS, PDP, AutoSparse...) and a target of EBOPs need it to enter TRAIN.

    Raises:
        ConfigError: no ``horizon`` to enter TRAIN with a target of EBOPs.
    """
    stage = Stage(stage)
    if stage is Stage.TRAIN:
        _begin_budget(model, horizon)
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


def _begin_budget(model: nn.Module, horizon: Horizon | None) -> None:
    if (budget := ebops_budget(model)) is None:
        return
    if horizon is None:
        raise ConfigError("Quantization.target_ebops needs the length of the train stage: set_stage(model, Stage.TRAIN, Horizon(epochs, steps))")
    use = bit_use(model)
    budget.begin(use, horizon.epochs * horizon.rounds)
    budget.announce(use.ebops)


def check_budget(model: nn.Module, ebops: float) -> dict[str, float]:
    """Say how a trained model of ``ebops`` stands to its target of EBOPs; return the target as ``target_ebops``, nothing where there is none."""
    budget = ebops_budget(model)
    if budget is None or not budget.has_begun:
        return {}
    budget.report(ebops)
    return {"target_ebops": budget.target}


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
    budget = ebops_budget(model)
    before = ebops(model) if budget is not None and budget.has_begun else 0.0
    for layer in pruned_layers(model).values():
        layer.pruner.on_epoch_end(layer.seen(), loss)
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.on_epoch_end()
    if budget is not None and budget.has_begun:
        budget.follow(bit_use(model), before)
    BitRange(model).warn()


def on_round_end(model: nn.Module) -> None:
    """Follow one round of the train stage that is not the last."""
    for layer in pruned_layers(model).values():
        layer.pruner.on_round_end(layer.seen())
