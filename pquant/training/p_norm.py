"""Optimizers with p-norm weight decay: N. J. Outmezguine and N. Levi, "Decoupled Weight Decay for Any p Norm", 2024, arXiv 2404.10824."""

from collections.abc import Callable, Iterable
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer


class _PNormDecay(Optimizer):
    """A mixin that replaces the weight decay of the next base class: first a step of that optimizer without weight decay, then the p-norm decay."""

    def __init_subclass__(cls) -> None:
        """Give a subclass the signature of its optimizer plus ``p_norm``."""
        own, of_optimizer = Parameter("p_norm", Parameter.KEYWORD_ONLY, default=1.0, annotation=float), signature(cls.__mro__[2])
        cls.__signature__ = of_optimizer.replace(parameters=[*of_optimizer.parameters.values(), own])  # type: ignore[attr-defined]

    def __init__(self, params: Iterable[Any], *args: Any, p_norm: float = 1.0, **options: Any) -> None:
        if not 0 < p_norm <= 2:
            raise ValueError(f"p_norm must be in (0, 2], got {p_norm}")
        super().__init__(params, *args, **options)
        for group in self.param_groups:
            group.setdefault("p_norm", p_norm)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; a parameter without a gradient does not change."""
        decaying = [group for group in self.param_groups if group["lr"] and group["weight_decay"]]
        strengths = [group["weight_decay"] for group in decaying]
        sizes = [[(weight, weight.abs()) for weight in group["params"] if weight.grad is not None] for group in decaying]
        try:
            for group in decaying:
                group["weight_decay"] = 0.0
            loss = super().step(closure)
        finally:
            for group, strength in zip(decaying, strengths, strict=True):
                group["weight_decay"] = strength
        for group, weights in zip(decaying, sizes, strict=True):
            for weight, size in weights:
                weight.mul_(decay_factor(size, group["p_norm"], group["lr"] * group["weight_decay"]))
        return loss


def decay_factor(size: Tensor, p: float, strength: float) -> Tensor:
    """Return the factor 1 / (1 + p strength |w|^(p - 2)) of each weight, from its ``size`` |w|; the ``strength`` is above 0."""
    power = size.pow(2 - p)
    return power / (power + p * strength)


class PAdam(_PNormDecay, Adam):
    """Adam, with each weight multiplied by 1 / (1 + p lr weight_decay |w|^(p - 2)) after each step, where |w| is the value before the step.

    That is a proximal step on the regularization ``weight_decay`` times the sum of |w|^p. With p = 2 all weights shrink by the same factor
    (decoupled weight decay). With a smaller p, small weights shrink faster and come near 0, where a pruning method removes them at little cost.

    Args:
        params: parameters, or groups of them; a group may have a ``weight_decay`` and a ``p_norm`` of its own.
        p_norm: p, in (0, 2].
        options: the arguments of :class:`torch.optim.Adam`; ``weight_decay``, at least 0, is the strength of the decay.

    Raises:
        ValueError: an argument out of range.
    """


class PSGD(_PNormDecay, SGD):
    """SGD with the weight decay of :class:`PAdam`.

    Args:
        params: parameters, or groups of them.
        p_norm: p, in (0, 2].
        options: the arguments of :class:`torch.optim.SGD`; ``weight_decay``, at least 0, is the strength of the decay.

    Raises:
        ValueError: an argument out of range.
    """
