"""What the pruned layers of a model do beside their effective weights: losses, steps, masks, with one call for all layers of a method."""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pquant import flat
from pquant.flat import Laid, apart, end_to_end, is_plain
from pquant.training.stage import Stage
from pquant.watched import Unchanged

Measure = Literal["value", "magnitude", "square"]
MEASURES = get_args(Measure)


class Pruned(Protocol):
    """A layer whose ``weight`` its ``pruner`` prunes."""

    weight: Tensor
    pruner: Any


class Group:
    """Layers that one method prunes, one by one; a method that can take them in one pass names a subclass.

    A subclass is made when all are in the train stage, and used until a module changes or one of its tensors is exchanged.
    """

    def __init__(self, layers: Sequence[Pruned]) -> None:
        self.layers = self.following = layers
        self.adds_loss = any(layer.pruner.adds_loss for layer in layers)

    @classmethod
    def is_for(cls, layer: Pruned) -> bool:
        """Return whether the group takes such a layer."""
        return True

    def penalty(self) -> Tensor:
        """Return the auxiliary losses of all, a scalar."""
        return torch.stack([layer.pruner.penalty(layer.weight) for layer in self.layers]).sum()

    def follow_step(self) -> None:
        """Follow one optimizer step."""
        for layer in self.following:
            layer.pruner.on_batch_end(layer.weight)

    def masks(self) -> Tensor:
        """Return the masks that the price of bits takes, of all as floats, end to end in one axis."""
        masks = [layer.pruner.priced_mask(layer.weight).detach() for layer in self.layers]
        return end_to_end(masks, tuple(layer.weight.shape for layer in self.layers)).to(self.layers[0].weight.dtype)


class OnePass(Group):
    """What subclasses share that take all layers in one pass: their pruners and weights, and the weights as loops take them.

    A pruner of a subclass may give other answers, so that only those of ``takes`` itself are taken. Everything works on other devices and dtypes too;
    ``looped`` says whether loops take the weights and the pruners' own tensors.
    """

    takes: ClassVar[type[nn.Module]]

    @classmethod
    def is_for(cls, layer: Pruned) -> bool:
        """Return whether the layer's weight is its own, and in training."""
        return type(layer.pruner) is cls.takes and layer.pruner.stage is Stage.TRAIN and isinstance(layer.weight, nn.Parameter)

    def __init__(self, layers: Sequence[Pruned]) -> None:
        super().__init__(layers)
        self.pruners, self.weights = [layer.pruner for layer in layers], [layer.weight for layer in layers]
        self.shapes = tuple(weight.shape for weight in self.weights)
        self.sizes = np.array([weight.numel() for weight in self.weights])
        self.total = int(self.sizes.sum())
        own = [tensor for pruner in self.pruners for tensor in (*pruner.parameters(), *pruner.buffers()) if tensor.is_floating_point()]
        self.looped = all(map(is_plain, self.weights + own))

    def above(self, values: Sequence[Tensor], thresholds: Sequence[Tensor], over: Laid, measure: Measure = "magnitude") -> Tensor:
        """Return 1 where what is measured of values is above the threshold spread over them, else 0, end to end in one axis; for loops."""
        masks = torch.empty(self.total)
        kind = MEASURES.index(measure)
        loops().above(addresses(values), addresses(thresholds), over.counts, over.repeats, kind, masks.data_ptr())
        return masks


@cache
def loops() -> ModuleType:
    """Return :mod:`pquant.pruning.loops`, which takes half a second to load."""
    from pquant.pruning import loops

    return loops


def addresses(tensors: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    """Return where the values of tensors lie in memory."""
    return np.array(flat.addresses(*tensors))


class Groups:
    """The pruned layers of a model by method."""

    def __init__(self, layers: Sequence[Pruned]) -> None:
        self.layers = layers
        self.one_by_one = [Group([layers[place] for place in places]) for places in _by_method(layers)]
        self.plan: Unchanged | None = None

    def penalties(self) -> list[Tensor]:
        """Return the auxiliary losses of each group that has one."""
        return [group.penalty() for group in self._now() if group.adds_loss]

    def follow_step(self) -> None:
        """Follow one optimizer step."""
        for group in self._now():
            group.follow_step()

    def masks(self) -> Tensor:
        """Return the masks that the price of bits takes, of all layers as floats, end to end in one axis, in the layers' order."""
        groups = self._now()
        if len(groups) == 1:
            return groups[0].masks()
        masks: dict[int, Tensor] = {}
        for places, group in zip(_by_method(self.layers), groups, strict=True):
            masks |= zip(places, apart(group.masks(), tuple(self.layers[place].weight.shape for place in places)), strict=True)
        return torch.cat([masks[place].flatten() for place in range(len(self.layers))])

    def _now(self) -> list[Group]:
        if torch.compiler.is_compiling():
            return self.one_by_one
        if self.plan is None or not self.plan.still():
            self._plan()
        return self.groups

    def _plan(self) -> None:
        layers: list[Any] = [*self.layers]
        self.groups = [_group([layers[place] for place in places]) for places in _by_method(layers)]
        used = [tensor for layer in layers for tensor in (layer.weight, *layer.pruner.parameters(), *layer.pruner.buffers())]
        floats = [tensor for tensor in used if tensor.is_floating_point()]
        self.plan = Unchanged([module for layer in layers for module in (layer, layer.pruner)], floats)


def _by_method(layers: Sequence[Pruned]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for place, layer in enumerate(layers):
        groups.setdefault(id(getattr(layer.pruner, "method", None)), []).append(place)
    return list(groups.values())


def _group(layers: Sequence[Pruned]) -> Group:
    kind: type[Group] = getattr(getattr(layers[0].pruner, "method", None), "group", Group)
    alike = len({(layer.weight.dtype, layer.weight.device) for layer in layers}) == 1
    group = (kind if alike and all(map(kind.is_for, layers)) else Group)(layers)
    group.following = [layer for layer in layers if layer.pruner.follows_steps]
    return group
