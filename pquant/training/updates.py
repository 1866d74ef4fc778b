"""The updates of an optimizer, with small parameters end to end: many small tensors cost it more than their values do."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from pquant.flat import SMALL, in_order, joined, laid
from pquant.pruning.method import Pruner

ELEMENTWISE = (
    optim.Adadelta,
    optim.Adagrad,
    optim.Adam,
    optim.Adamax,
    optim.AdamW,
    optim.ASGD,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Rprop,
    optim.SGD,
)
"""Optimizers that treat each value by itself."""


class _EndToEnd:
    """Parameters whose values lie in one tensor, ``whole``, which is what the optimizer updates."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        shapes = tuple(parameter.shape for parameter in parameters)
        self.parameters, self.laid = parameters, laid(shapes, shapes)
        self.whole = nn.Parameter(self.laid.end_to_end([parameter.detach() for parameter in parameters]))
        for parameter, part in zip(parameters, self.laid.apart(self.whole.detach()), strict=True):
            parameter.data = part

    def take_gradients(self) -> None:
        """Lay the gradients end to end; a missing one counts as 0, unless all are missing."""
        gradients = [parameter.grad for parameter in self.parameters]
        if all(gradient is None for gradient in gradients):
            self.whole.grad = None
            return
        whole = [torch.zeros_like(one) if gradient is None else gradient for one, gradient in zip(self.parameters, gradients, strict=True)]
        run = joined(whole)
        self.whole.grad = self.laid.end_to_end(whole) if run is None else run


def _merged(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return groups of parameters, those with equal options made one."""
    merged: list[dict[str, Any]] = []
    for group in groups:
        twin = next((other for other in merged if other | {"params": []} == group | {"params": []}), None)
        if twin is None:
            merged.append(group)
        else:
            twin["params"] += group["params"]
    return merged


class Updates:
    """The updates that an optimizer makes to the parameters of a model, at the price of a few tensors where they are many small ones.

    Groups with equal options become one, and the small parameters of each group move into one tensor (those of pruners, which some stages leave
    alone, into one of their own), where they are updated, bit for bit as one by one; only a fused kernel may round the last values of a tensor in
    another way. It is done once, before the first step and before a scheduler is made, and to optimizers that treat each value by itself.

    Args:
        optimizer: that of all trained parameters of the model, without a state yet; its groups get the new tensors.
        model: the model on its device.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self.optimizer = optimizer
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.joined: list[_EndToEnd] = []
        if not isinstance(optimizer, ELEMENTWISE):
            return
        if not isinstance(optimizer, optim.SGD):  # whose fused kernel wants the momenta of a group to begin together
            optimizer.param_groups[:] = _merged(optimizer.param_groups)
        of_pruners = {id(parameter) for module in model.modules() if isinstance(module, Pruner) for parameter in module.parameters()}
        for group in optimizer.param_groups:
            alike: dict[Any, list[nn.Parameter]] = {}
            for parameter in in_order(group["params"]):
                joins = parameter.numel() <= SMALL and parameter.is_contiguous()
                key = parameter.dtype, parameter.device, id(parameter) in of_pruners
                alike.setdefault(key if joins else id(parameter), []).append(parameter)
            joined = [_EndToEnd(several) for several in alike.values() if len(several) > 1]
            group["params"] = [one.whole for one in joined] + [several[0] for several in alike.values() if len(several) == 1]
            self.joined += joined

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Make the update that the gradients ask for."""
        for one in self.joined:
            one.take_gradients()
        self.optimizer.step()
        torch.autograd.graph.increment_version([parameter for one in self.joined for parameter in one.parameters])

    def memory(self, parameter: nn.Parameter) -> list[Tensor]:
        """Return what the optimizer remembers of a parameter, value by value."""
        for one in self.joined:
            for index, member in enumerate(one.parameters):
                if member is parameter:
                    kept = [value for value in self.optimizer.state.get(one.whole, {}).values() if value.shape == one.whole.shape]
                    return [one.laid.apart(value)[index] for value in kept]
        state = self.optimizer.state.get(parameter, {})
        return [value for value in state.values() if isinstance(value, Tensor) and value.is_floating_point()]
