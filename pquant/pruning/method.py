"""What a pruning method is: a frozen description (the method object) and the state it gives each layer (the pruner)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pquant.names import check_patterns, matches
from pquant.settings import Settings, schema, setting
from pquant.training.stage import Horizon, Stage


class Pruner(nn.Module):
    """The state of one pruned weight.

    Layers and training call ``forward``, ``hard_mask`` and ``penalty``, which follow the stage; a method gives what they are in the train stage:

    | stage    | forward in training    | forward in evaluation                      | penalty                |
    |----------|------------------------|--------------------------------------------|------------------------|
    | pretrain | ``weight``             | ``weight``                                 | 0                      |
    | train    | :meth:`train_weight`   | :meth:`fold` of it times :meth:`train_mask`| :meth:`train_penalty`  |
    | finetune | ``weight`` times mask  | the same                                   | 0                      |

    Evaluation always shows what would be finalized, so that entering a stage or finalizing moves no output.

    Args:
        method: the method object, whose fields the pruner reads.
        weight: the weight to prune, output channels first; only its shape, dtype and device are used.
    """

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the plain attributes that belong to the state_dict, beside the stage."""
    optimizer_options: Mapping[str, Any] = {"weight_decay": 0.0}
    """Options of the optimizer group that holds this pruner's parameters."""
    makes_output: bool = False
    """Whether the layer makes the model's output, which no method may take channels from unasked; set by ``compress``."""

    mask: Tensor

    def __init__(self, method: "PruningMethod", weight: Tensor) -> None:
        super().__init__()
        self.method = method
        self.stage = Stage.PRETRAIN
        self.horizon: Horizon | None = None
        self.register_buffer("mask", torch.ones(weight.shape, dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer computes with at this stage; differentiable, and without side effects."""
        if self.stage is Stage.PRETRAIN:
            return weight
        if self.stage is Stage.FINETUNE:
            return weight * self.mask
        return self.train_weight(weight) if self.training else self.fold(weight) * self.train_mask(weight)

    def hard_mask(self, weight: Tensor) -> Tensor:
        """Return a boolean tensor that broadcasts with ``weight``: what survives if the model is finalized now."""
        return self.train_mask(weight) if self.stage is Stage.TRAIN else self.mask

    def penalty(self, weight: Tensor) -> Tensor:
        """Return the method's auxiliary loss, a scalar; 0 outside the train stage."""
        return self.train_penalty(weight) if self.stage is Stage.TRAIN else weight.new_zeros(())

    def train_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that steps of the train stage compute with."""
        return weight * self.train_mask(weight)

    def train_mask(self, weight: Tensor) -> Tensor:
        """Return the boolean mask that the method would prune by now, in the train stage."""
        return self.mask

    def train_penalty(self, weight: Tensor) -> Tensor:
        """Return the auxiliary loss of the train stage."""
        return weight.new_zeros(())

    def fold(self, weight: Tensor) -> Tensor:
        """Return what the surviving weights become when the mask is frozen: a factor or shrinkage stays with them."""
        return weight

    def prune_bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """Return the bias as the layer computes with it beside ``weight``; methods that remove whole channels remove their bias too."""
        return bias

    @property
    def needs(self) -> frozenset[str]:
        """Which activations :meth:`observe` must see in training steps now: "input", "output" or none."""
        return frozenset()

    def observe(self, x: Tensor) -> None:
        """See the layer's (quantized) input, or its output before quantization, as asked by :attr:`needs`."""

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> Tensor:
        """Fix the mask for good and return what the weight parameter becomes."""
        if self.stage is Stage.FINETUNE:
            return weight
        folded = self.fold(weight) if self.stage is Stage.TRAIN else weight
        self.mask.copy_(self.hard_mask(weight).expand_as(self.mask))
        self.stage = Stage.FINETUNE
        return folded

    def on_stage_start(self, stage: Stage, horizon: Horizon | None = None) -> None:
        """Enter pretraining or training; fine-tuning is entered by :meth:`freeze`, which needs the weight."""
        self.stage, self.horizon = stage, horizon or self.horizon

    def on_batch_end(self, weight: Tensor) -> None:
        """Follow one optimizer step."""

    def on_epoch_end(self, weight: Tensor, loss: float | None = None) -> None:
        """Follow one epoch; ``loss`` is its mean training loss without auxiliary terms, where the loop tells it."""

    def on_round_end(self, weight: Tensor) -> None:
        """Follow one round of the train stage that is not the last."""

    def get_extra_state(self) -> dict[str, Any]:
        """Return the stage and the plain attributes named in ``state``."""
        horizon = self.horizon and [self.horizon.epochs, self.horizon.steps_per_epoch, self.horizon.rounds]
        return {"stage": self.stage.value, "horizon": horizon, **{name: getattr(self, name) for name in self.state}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.stage = Stage(state["stage"])
        self.horizon = state["horizon"] and Horizon(*state["horizon"])
        for name in self.state:
            setattr(self, name, state[name])


class NoPruner(Pruner):
    """A weight that is not pruned: the same interface, no state, no cost."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.stage, self.horizon = Stage.PRETRAIN, None

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``weight``."""
        return weight

    def hard_mask(self, weight: Tensor) -> Tensor:
        """Return a mask that keeps everything."""
        return torch.ones((), dtype=torch.bool, device=weight.device)

    def freeze(self, weight: Tensor) -> Tensor:
        """Return ``weight``."""
        return weight

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state


PrunedWeights = Mapping[str, tuple[Pruner, Tensor]]
"""The layers that take part in pruning: name to (pruner, weight)."""


@dataclass(frozen=True)
class PruningMethod(Settings):
    """Base of all method objects: the fields that every method shares. It holds no tensors.

    Args:
        disable_pruning_for_layers: names or globs of layers that are not pruned, such as ``layers.0`` or ``features.*``.
        enable_pruning: whether anything is pruned; false switches the method off and keeps its settings.
        threshold_decay: a regularization weight of the method's paper: of the mask's L1 norm in CS, the weight decay of trained thresholds in other
            methods. Methods without either accept only 0.
    """

    decays_thresholds: ClassVar[bool] = False
    rescales: ClassVar[bool] = False
    """Whether surviving weights change their values when the mask is frozen, so that they must be quantized after it."""

    disable_pruning_for_layers: list[str] = setting([])
    enable_pruning: bool = True
    threshold_decay: float = setting(0.0, ge=0)

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.threshold_decay and not self.decays_thresholds:
            raise self.error("threshold_decay", "0, as the method trains no threshold")

    @property
    def goal(self) -> float | None:
        """The share of zeros among the prunable weights that training ends with, at least; None if there is no such target."""
        return None

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> Pruner:
        """Return the state of one layer's weight, all parameters and buffers built at once.

        Args:
            weight: (out, in) or (out, in / groups, *kernel).
            layer_type: class of the layer, for methods that treat kinds differently.
        """
        raise NotImplementedError

    def prunes(self, name: str) -> bool:
        """Return whether the layer called ``name`` takes part."""
        return self.enable_pruning and not any(matches(pattern, name) for pattern in self.disable_pruning_for_layers)

    def prepare(self, layers: PrunedWeights) -> None:
        """Take model-wide decisions, once, as the train stage begins (global budgets)."""

    def check_names(self, names: list[str]) -> None:
        """Raise a ConfigError when ``disable_pruning_for_layers`` names no layer of the model."""
        check_patterns(f"{type(self).__name__}.disable_pruning_for_layers", self.disable_pruning_for_layers, names)

    def warnings(self, horizon: Horizon) -> list[str]:
        """Return what this method cannot reach in a train stage of this length, and which value would; empty when all is well."""
        return []


@schema("pruning", "none")
@dataclass(frozen=True)
class NoPruning(PruningMethod):
    """No pruning."""

    def prunes(self, name: str) -> bool:
        """Return False."""
        return False

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> Pruner:
        """Return the pruner that keeps everything."""
        return NoPruner()
