"""All weights and biases of a model pruned and quantized in one pass a forward: small tensors cost less together than one by one."""

from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pquant.course import SAME, Course, Each, Over, stands_for
from pquant.flat import SMALL, in_order
from pquant.layers.base import CompressedLayer
from pquant.watched import Unchanged, changes

TRAINING = attrgetter("training")
Steps = tuple[Each, Each, Each]


class _Ready(NamedTuple):
    """A layer, and which of the results are its effective weight and bias."""

    layer: CompressedLayer
    weight: int
    bias: int | None
    masks_bias: bool


class _Plan(NamedTuple):
    """What all parameters go through in one mode; those ``as_they_are`` come first among the results, then those of each course."""

    holds: Unchanged
    as_they_are: list[Tensor]
    courses: list[Course]
    ready: list[_Ready]


class Together:
    """Gives the compressed layers of a model their effective parameters for the time of each forward of the model.

    The values are those of :meth:`CompressedLayer.effective`, bit for bit. A layer that is called by itself takes its own, and so does every layer
    in a compiled step, where the compiler fuses, and one whose parameters are large, or go through anything but elementwise functions.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, CompressedLayer)]
        self.at = -1

    def begin(self, model: nn.Module, args: Any) -> None:
        """Compute all effective parameters, before a forward."""
        if torch.compiler.is_compiling():
            return
        plan = self._plan()
        tensors = [*plan.as_they_are]
        for course in plan.courses:
            tensors += course()
        for layer, weight, bias, masks_bias in plan.ready:
            shift = None if bias is None else tensors[bias]
            layer.__dict__["ready"] = (tensors[weight], layer.pruner.prune_bias(shift, layer.weight) if masks_bias and shift is not None else shift)

    def _plan(self) -> _Plan:
        """Return the plan for the modes that the layers are in. It holds until a module changes, or one of its tensors is exchanged."""
        if self.at != changes():
            self.plans: dict[tuple[bool, ...], _Plan] = {}
            self.modules = [module for layer in self.layers for module in _parts(layer)]
            self.at = changes()
        modes = tuple(map(TRAINING, self.modules))
        plan = self.plans.get(modes)
        if plan is None or not plan.holds.still():
            plan = self.plans[modes] = self._made()
        return plan

    def _made(self) -> _Plan:
        joined = [layer for layer in self.layers if _joins(layer)]
        steps: dict[Tensor, Steps] = {}
        for layer in joined:
            pruned, quantized, biased = _each(layer)
            assert pruned and quantized and biased
            masked = _bias_each(layer)
            steps[layer.weight] = (pruned, quantized, SAME) if layer.pruning_first else (SAME, quantized, pruned)
            if layer.bias is not None:
                steps[layer.bias] = (SAME, biased, masked or SAME)
        as_they_are = [tensor for tensor, own in steps.items() if all(each is SAME for each in own)]
        groups = _groups({tensor: own for tensor, own in steps.items() if any(each is not SAME for each in own)})
        courses = [_course(group) for group in groups]
        order = [*as_they_are, *(tensor for group in groups for run in group for tensor in run)]
        number = {tensor: place for place, tensor in enumerate(order)}
        ready = [_Ready(layer, number[layer.weight], number.get(layer.bias), _bias_each(layer) is None) for layer in joined]
        used = [*as_they_are, *(tensor for course in courses for tensor in course.tensors)]
        return _Plan(Unchanged([module for layer in joined for module in _parts(layer)], used), as_they_are, courses, ready)

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forget them, after a forward or its failure."""
        for layer in self.layers:
            layer.__dict__["ready"] = None


def _parts(layer: CompressedLayer) -> tuple[nn.Module, ...]:
    return layer, layer.pruner, layer.weight_quantizer, layer.bias_quantizer


def _each(layer: CompressedLayer) -> tuple[Each | None, Each | None, Each | None]:
    modules = layer.pruner, layer.weight_quantizer, layer.bias_quantizer
    pruned, quantized, biased = (module.each() if stands_for(type(module), "each", "forward") else None for module in modules)
    return pruned, quantized, biased


def _bias_each(layer: CompressedLayer) -> Each | None:
    """Return what the pruner does to the bias, as an elementwise function; None where it is none."""
    return layer.pruner.each_bias() if stands_for(type(layer.pruner), "each_bias", "prune_bias") else None


def _joins(layer: CompressedLayer) -> bool:
    """Return whether the layer's parameters are its own, small, and go through elementwise functions alone."""
    own = all(layer._parameters.get(name) is getattr(layer, name) for name in ("weight", "bias"))
    masks_what_it_sees = not layer.pruning_first and _bias_each(layer) is None
    return own and not layer.baked and not masks_what_it_sees and layer.weight.numel() <= SMALL and None not in _each(layer)


def _groups(steps: dict[Tensor, Steps]) -> list[list[dict[Tensor, Steps]]]:
    """Return the tensors in groups that are quantized alike, each in runs that are pruned alike."""
    groups: dict[Any, dict[Any, dict[Tensor, Steps]]] = {}
    for tensor in in_order(steps):
        own = steps[tensor]
        before, bits, after = [(each.function, each.settings) for each in own]
        groups.setdefault((bits, tensor.dtype, tensor.device), {}).setdefault((before, after), {})[tensor] = own
    return [list(group.values()) for group in groups.values()]


def _course(runs: Sequence[dict[Tensor, Steps]]) -> Course:
    tensors, ends = [tensor for run in runs for tensor in run], [0, *accumulate(map(len, runs))]
    before, bits, after = zip(*(own for run in runs for own in run.values()), strict=True)
    spans = list(zip(ends, ends[1:], strict=False))
    passes = [(before, span) for span in spans] + [(bits, (0, len(tensors)))] + [(after, span) for span in spans]
    return Course(tensors, [Over(begin, end, each[begin:end]) for each, (begin, end) in passes if each[begin] is not SAME])


def join(model: nn.Module) -> None:
    """Let the layers of ``model`` compute their parameters together from now on."""
    part(model)
    together = Together(model)
    model.register_forward_pre_hook(together.begin)
    model.register_forward_hook(together.end, always_call=True)


def part(model: nn.Module) -> None:
    """Let each layer of ``model`` compute its own parameters again."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Together)]:
            del hooks[key]
