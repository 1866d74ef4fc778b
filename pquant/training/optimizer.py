"""The optimizer, and what it is given: parameters in groups, each with the options it needs."""

import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pquant.layers.activation import PQActivation
from pquant.pruning.method import Pruner
from pquant.quantization.quantizer import Quantizer

Groups = list[dict[str, Any]]
MakesOptimizer = Callable[[Groups], Optimizer]
TOLD = ("add_param_group", "zero_grad", "step", "state_dict", "load_state_dict")
"""Methods of PyTorch's optimizers that tell the compiler something."""


def uncompiled(optimizer: MakesOptimizer) -> MakesOptimizer:
    """Return what makes the same optimizer without the compiler.

    PyTorch's own optimizers tell ``torch.compile`` what to leave out of a graph. A step that is in none needs no telling, which would import the
    compiler and take almost as long as importing PyTorch.
    """
    given = optimizer if isinstance(optimizer, partial) else partial(optimizer)
    cls = given.func
    if not (inspect.isclass(cls) and cls.__module__.startswith("torch.optim.")):
        return optimizer
    methods = {name: inspect.unwrap(getattr(cls, name)) for name in TOLD}
    methods["step"] = _unmarked(torch.no_grad()(methods["step"]))
    return partial(type(cls.__name__, (cls,), methods), *given.args, **given.keywords)


def _unmarked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return an optimizer's step without its mark for the profiler, a third of the time of a small step; hooks are called all the same."""
    marked = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def quick(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        own, of_all = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks, _global_optimizer_pre_hooks or _global_optimizer_post_hooks
        return (marked if own or of_all else step)(self, *args, **kwargs)

    quick.hooked = True  # type: ignore[attr-defined]
    return quick


def parameter_groups(model: nn.Module) -> Groups:
    """Return optimizer groups: the model's own parameters under the optimizer's options, thresholds, scores and bit widths under theirs.

    What pruning and quantization train takes no weight decay unless the method asks for it (``threshold_decay``).
    """
    groups: Groups = []
    taken: set[int] = set()
    for module in model.modules():
        if isinstance(module, (Pruner, Quantizer)):
            options: dict[str, Any] = dict(module.optimizer_options)
            own = [parameter for parameter in module.parameters() if id(parameter) not in taken]
        elif isinstance(module, PQActivation) and module.multiplier is not None:
            options, own = {"weight_decay": 0.0}, [module.multiplier]
        else:
            continue
        taken.update(map(id, own))
        _group(groups, options)["params"].extend(own)
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken and parameter.requires_grad]
    return [{"params": rest}] + [group for group in groups if group["params"]]


def _group(groups: Groups, options: dict[str, Any]) -> dict[str, Any]:
    for group in groups:
        if {key: value for key, value in group.items() if key != "params"} == options:
            return group
    groups.append({"params": [], **options})
    return groups[-1]
