"""What the optimizer is given: parameters in groups, each with the options it needs."""

from typing import Any

from torch import nn

from pquant.layers.activation import PQActivation
from pquant.pruning.method import Pruner
from pquant.quantization.quantizer import Quantizer

Groups = list[dict[str, Any]]


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
