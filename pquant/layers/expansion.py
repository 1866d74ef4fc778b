"""Replacement of attention, recurrent layers and function calls of a float model by float layers that compute the same."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from pquant.layers.attention import PQMultiheadAttention
from pquant.layers.capture import Arguments, NotCaptured, bound
from pquant.layers.composite import Composite
from pquant.layers.example import Example, arguments, resized, same_random_numbers, tensors_in
from pquant.layers.functional import takes_layers, with_layers
from pquant.layers.recurrent import PQGRU, PQLSTM, PQRNN, PQGRUCell, PQLSTMCell, PQRNNCell
from pquant.layers.replacements import REPLACEMENTS
from pquant.layers.trace import Trace, is_layer
from pquant.layers.unconverted import Reasons

COMPOSITES: dict[type[nn.Module], type[Composite]] = {
    kind.float_class: kind for kind in (PQMultiheadAttention, PQLSTM, PQGRU, PQRNN, PQLSTMCell, PQGRUCell, PQRNNCell)
}
ACTIVATIONS: dict[Callable[..., Tensor], type[nn.Module]] = {F.relu: nn.ReLU, F.gelu: nn.GELU, torch.relu: nn.ReLU}
"""Activation functions that torch's transformer layers hold as attributes, and the modules that replace them."""


def composites(model: nn.Module, trace: Trace | None) -> tuple[dict[nn.Module, nn.Module], Reasons]:
    """Return the replacements of attention and recurrent layers of a model, and the reasons why others stay float."""
    used: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            used[id(parameter)] = used.get(id(parameter), 0) + 1
    replaced: dict[nn.Module, nn.Module] = {}
    reasons: Reasons = {}
    for module in model.modules():
        if type(module) not in COMPOSITES:
            continue
        reason = _why_float(module, trace, used)
        if reason:
            reasons[module] = reason
        else:
            replaced[module] = COMPOSITES[type(module)].of(module)
    return replaced, reasons


def _why_float(module: nn.Module, trace: Trace | None, used: Mapping[int, int]) -> str | None:
    if any(used[id(parameter)] > 1 for parameter in module.parameters()):
        return "another module has the same parameters"
    if trace is None:
        return None
    if module in trace.packed:
        return "it gets packed sequences; pad them to one length"
    if module in trace.read_elsewhere:
        return f"its parameters are also read by {trace.read_elsewhere[module]}"
    return None if module in trace.called else "the example input does not reach it"


def use_modules_for_activations(model: nn.Module) -> None:
    """Let torch's transformer layers call activation modules instead of activation functions."""
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)) and vars(module).get("activation") in ACTIVATIONS:
            function = module.__dict__.pop("activation")
            module.activation = ACTIVATIONS[function]()
            kind = type(module)  # its __setstate__ sets F.relu on a copy that has no plain attribute `activation`
            module.__class__ = type(kind.__name__, (kind,), {"__setstate__": nn.Module.__setstate__, "__module__": kind.__module__})


def torch_subclasses(model: nn.Module, trace: Trace, example: Example) -> dict[nn.Module, nn.Module]:
    """Return the replacements of subclasses of torch layers whose forward does what torch's does and then calls their children in order.

    The replacement is a sequence of the torch layer and the children. A layer without children gets torch's forward instead, in place, so that it is
    converted itself.
    """
    wanted = {module: base for module in model.modules() if module in trace.called and not is_layer(module) and (base := _base(module))}
    calls, _ = _calls(model, list(wanted), [example])
    replaced: dict[nn.Module, nn.Module] = {}
    for module, base in wanted.items():
        if set(vars(module)["_parameters"]) - {"weight", "bias"} or "forward" in vars(module) or not calls[module]:
            continue
        if not all(_does_as_its_base(module, base, calls[module][0], training, drawn) for training in (True, False) for drawn in (False, True)):
            continue
        kind = type(module)
        if next(module.children(), None) is None:
            module.__class__ = type(kind.__name__, (kind,), {"forward": base.forward, "__module__": kind.__module__})
        else:
            replaced[module] = nn.Sequential(OrderedDict(layer=_as_its_base(module, base), **dict(module.named_children())))
            replaced[module].train(module.training)
    return replaced


def _base(module: nn.Module) -> Any:
    """Return the class of torch layers with a replacement that a module inherits from, or None."""
    return next((base for base in type(module).__mro__ if base in REPLACEMENTS), None)


def _as_its_base(module: nn.Module, base: Any) -> nn.Module:
    """Return a torch layer of class ``base`` with the parameters, buffers and settings of ``module``, but without its children."""
    layer = base.__new__(base)
    layer.__dict__.update({name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()})
    layer._modules = {}
    return layer


@torch.no_grad()
def _does_as_its_base(module: nn.Module, base: Any, call: Arguments, training: bool, drawn: bool) -> bool:
    """Return whether a call returns, bit for bit, what torch's layer followed by the children of the module returns.

    With ``drawn`` all parameters and buffers get random values first. This reveals parameters without effect at their initial value, such as a gain
    of 1 or a mask of ones.
    """
    module = copy.deepcopy(module)
    if drawn:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)).mul_(4).to(tensor.dtype))
    other = copy.deepcopy(module)
    module.train(training)
    other.train(training)
    with suppress(Exception), torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        expected = module(**copy.deepcopy(call))
        torch.set_rng_state(state)
        given = _as_its_base(other, base)(*copy.deepcopy(list(call.values()))[:1])
        for child in other.children():
            given = child(given)
        same = isinstance(expected, Tensor) and torch.equal(expected, given)
        return same and all(map(torch.equal, module.buffers(), other.buffers()))
    return False


def functions_to_layers(model: nn.Module, trace: Trace, example: Example) -> Reasons:
    """Replace function calls in the forwards of a model's modules by layers; return the reasons for the modules where this is not possible."""
    wanted = [module for module in model.modules() if module in trace.called and _may_call_layers(module, trace)]
    calls, reasons = _calls(model, wanted, _of_two_sizes(example))
    for module in wanted:
        if module in reasons or not calls[module]:
            continue
        try:
            with_layers(module, calls[module])
        except NotCaptured as reason:
            reasons[module] = str(reason)
    return reasons


def _of_two_sizes(example: Example) -> list[Example]:
    """Return the example and, if it has a batch axis, one of another batch size: 3, or 2 where the example has 3."""
    with suppress(IndexError):
        count = 2 if len(tensors_in(example)[0]) == 3 else 3
        return [example, resized(example, 0, count)]
    return [example]


def _may_call_layers(module: nn.Module, trace: Trace) -> bool:
    """Return whether a module calls functions that a layer can replace, or has parameters itself."""
    if is_layer(module) or isinstance(module, Composite):
        return False
    return any(map(takes_layers, trace.functions.get(module, ()))) or any(parameter is not None for parameter in module._parameters.values())


def _calls(model: nn.Module, wanted: list[nn.Module], examples: list[Example]) -> tuple[dict[nn.Module, list[Arguments]], Reasons]:
    """Return the arguments of the calls of the modules ``wanted``, and the reasons for modules whose arguments have no names.

    Examples for which the model raises an error are left out."""
    calls: dict[nn.Module, list[Arguments]] = {module: [] for module in wanted}
    reasons: Reasons = {}
    if not wanted:
        return calls, reasons
    twin = copy.deepcopy(model)
    twin.eval()
    for module, copied in zip(model.modules(), twin.modules(), strict=True):
        if module in calls:

            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], module: nn.Module = module) -> None:
                try:
                    calls[module].append(tree_map_only(Tensor, torch.clone, bound(module, args, kwargs)))
                except NotCaptured as reason:
                    reasons[module] = str(reason)

            copied.register_forward_pre_hook(note, with_kwargs=True)
    for example in examples:
        args, kwargs = arguments(example)
        with suppress(Exception), torch.no_grad(), same_random_numbers(model):
            twin(*args, **kwargs)
    return calls, reasons
