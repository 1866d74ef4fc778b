"""Base classes of pruning: the method object holds the settings, and the pruner holds the state of one layer."""

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

    Layers and training call ``forward``, ``hard_mask`` and ``penalty``, which depend on the stage. A subclass defines those of the train stage:

    | stage    | forward in training    | forward in evaluation                      | penalty                |
    |----------|------------------------|--------------------------------------------|------------------------|
    | pretrain | ``weight``             | ``weight``                                 | 0                      |
    | train    | :meth:`train_weight`   | :meth:`fold` of it times :meth:`train_mask`| :meth:`train_penalty`  |
    | finetune | ``weight`` times mask  | the same                                   | 0                      |

    In evaluation the model always computes what it would compute if finalized, so that ``finalize`` does not change outputs.

    Args:
        method: the method object, whose fields the pruner reads.
        weight: the weight to prune, output channels first; only its shape, dtype and device are used.
    """

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the plain attributes that are saved in the state_dict, in addition to the stage."""
    optimizer_options: Mapping[str, Any] = {"weight_decay": 0.0}
    """Options of the optimizer group that holds this pruner's parameters."""
    makes_output: bool = False
    """Whether the layer computes the model's output, so that methods keep all its channels by default; set by ``compress``."""

    layer: str = ""
    """Name of the layer, for messages."""

    mask: Tensor

    def __init__(self, method: "PruningMethod", weight: Tensor) -> None:
        super().__init__()
        self.method = method
        self.stage = Stage.PRETRAIN
        self.horizon: Horizon | None = None
        self.register_buffer("mask", torch.ones(weight.shape, dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer uses in this stage; differentiable, without side effects."""
        if self.stage is Stage.PRETRAIN:
            return weight
        if self.stage is Stage.FINETUNE:
            return weight * self.mask
        return self.train_weight(weight) if self.training else self.fold(weight) * self.train_mask(weight)

    def hard_mask(self, weight: Tensor) -> Tensor:
        """Return a boolean tensor that broadcasts with ``weight``, true for weights that remain if the model is finalized now."""
        return self.train_mask(weight) if self.stage is Stage.TRAIN else self.mask

    def penalty(self, weight: Tensor) -> Tensor:
        """Return the method's auxiliary loss, a scalar; 0 outside the train stage."""
        return self.train_penalty(weight) if self.stage is Stage.TRAIN else weight.new_zeros(())

    def train_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that training steps of the train stage use."""
        return weight * self.train_mask(weight)

    def train_mask(self, weight: Tensor) -> Tensor:
        """Return the boolean mask of the train stage, true for weights that remain if the model is finalized now."""
        return self.mask

    def train_penalty(self, weight: Tensor) -> Tensor:
        """Return the auxiliary loss of the train stage."""
        return weight.new_zeros(())

    def fold(self, weight: Tensor) -> Tensor:
        """Return the weight to store when the mask is frozen: it includes a factor or shrinkage of the remaining weights."""
        return weight

    def prune_bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """Return the bias (out,) that the layer uses with ``weight``. Methods that remove whole channels remove their bias too."""
        return bias

    @property
    def needs(self) -> frozenset[str]:
        """Which activations training steps must pass to :meth:`observe` now: "input", "output" or none."""
        return frozenset()

    def observe(self, x: Tensor) -> None:
        """Record the quantized input of the layer, or its output before quantization, as :attr:`needs` requests."""

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> Tensor:
        """Freeze the mask, enter the fine-tuning stage and return the new value of the weight parameter."""
        if self.stage is Stage.FINETUNE:
            return weight
        folded = self.fold(weight) if self.stage is Stage.TRAIN else weight
        self.mask.copy_(self.hard_mask(weight).expand_as(self.mask))
        self.stage = Stage.FINETUNE
        return folded

    def on_stage_start(self, stage: Stage, horizon: Horizon | None = None) -> None:
        """Start the pretrain or train stage. :meth:`freeze` starts fine-tuning, since it needs the weight."""
        self.stage, self.horizon = stage, horizon or self.horizon

    def on_batch_end(self, weight: Tensor) -> None:
        """Update the pruner after one optimizer step."""

    def on_epoch_end(self, weight: Tensor, loss: float | None = None) -> None:
        """Update the pruner after one epoch; ``loss`` is its mean training loss without auxiliary terms, if the training loop passes it."""

    def on_round_end(self, weight: Tensor) -> None:
        """Update the pruner after one round of the train stage, except the last round."""

    def get_extra_state(self) -> dict[str, Any]:
        """Return the stage and the plain attributes named in ``state``."""
        horizon = self.horizon and [self.horizon.epochs, self.horizon.steps_per_epoch, self.horizon.rounds]
        return {"stage": self.stage.value, "horizon": horizon, **{name: getattr(self, name) for name in self.state}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`get_extra_state` returned."""
        self.stage = Stage(state["stage"])
        self.horizon = state["horizon"] and Horizon(*state["horizon"])
        for name in self.state:
            setattr(self, name, state[name])


class NoPruner(Pruner):
    """The pruner of a weight that is not pruned; it has no state and changes nothing."""

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
"""Maps the name of each layer that takes part in pruning to its (pruner, weight)."""


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
    """Whether the remaining weights change their values when the mask is frozen, so that quantization must come after pruning."""

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
        """The minimum sparsity of the prunable weights after training; None if the method has no such target."""
        return None

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> Pruner:
        """Return the pruner of one layer, with all its parameters and buffers.

        Args:
            weight: (out, in) or (out, in / groups, *kernel).
            layer_type: class of the layer, for methods that treat kinds differently.
        """
        raise NotImplementedError

    def prunes(self, name: str) -> bool:
        """Return whether the layer called ``name`` is pruned."""
        return self.enable_pruning and not any(matches(pattern, name) for pattern in self.disable_pruning_for_layers)

    def prepare(self, layers: PrunedWeights) -> None:
        """Make decisions that depend on all layers, such as global budgets, once at the start of the train stage."""

    def check_names(self, names: list[str]) -> None:
        """Raise a ConfigError when ``disable_pruning_for_layers`` names no layer of the model."""
        check_patterns(f"{type(self).__name__}.disable_pruning_for_layers", self.disable_pruning_for_layers, names)

    def warnings(self, horizon: Horizon) -> list[str]:
        """Return one message per setting that does not suit a train stage of this length, with a value that does."""
        return []


@schema("pruning", "none")
@dataclass(frozen=True)
class NoPruning(PruningMethod):
    """No pruning."""

    def prunes(self, name: str) -> bool:
        """Return False."""
        return False

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> Pruner:
        """Return a pruner that keeps all weights."""
        return NoPruner()
