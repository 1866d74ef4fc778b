"""What one forward of a model does: the calls of each layer, and what no layer stands for."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from pquant.layers.base import Call, Calls, QuantizedLayer, Shape

Example = Tensor | tuple[Tensor, ...]

# Functions that move values without changing them, or add them exactly: nothing to quantize.
EXACT = frozenset(
    "add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__ sub_ neg __neg__ cat concat stack view reshape flatten ravel unflatten "
    "permute transpose movedim t squeeze unsqueeze expand expand_as repeat chunk split narrow select index_select __getitem__ __get__ "
    "__set__ size dim numel stride contiguous clone detach to float type max_pool1d max_pool2d max_pool3d _max_pool1d _max_pool2d "
    "_max_pool3d boolean_dispatch fn dropout dropout1d dropout2d dropout3d pad is_floating_point __len__ __bool__ __repr__ has_names".split()
)
# Functions that look at the dtype, device or shape of a tensor alone; of "to" and "type_as" this holds for the second argument.
LIKE = frozenset("new_zeros new_ones new_empty new_full new_tensor zeros_like ones_like empty_like full_like rand_like randn_like".split())
CASTS = frozenset(("to", "type_as"))
CHANNELS_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd)


class Trace(TorchFunctionMode):
    """One evaluation-mode forward of ``model`` on an example input; the model is left as it was.

    ``nn.ReLU(inplace=True)`` runs out of place in it, so that a later use of its input can be told from one of its output.

    Attributes:
        shapes: for each layer (childless module) the (input, output) shapes of its calls.
        order: those modules in the order of their first calls.
        feeds: for each layer the layer whose output it is given as it is, or None when that differs by call or is no layer's.
        functions: "relu in 'block1'"-like descriptions of calls made outside layers that change values.
        read_elsewhere: layers whose parameters something else reads, by the name of what does.
        overwriting: in-place ReLUs whose input is used again.
        output: what the model gave.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.shapes: dict[nn.Module, list[tuple[Shape, Shape, int]]] = defaultdict(list)
        self.order: list[nn.Module] = []
        self.feeds: dict[nn.Module, nn.Module | None] = {}
        self.functions: list[str] = []
        self.read_elsewhere: dict[nn.Module, str] = {}
        self.overwriting: set[nn.Module] = set()
        self._made: dict[int, tuple[nn.Module, Tensor, int]] = {}
        self._overwritten: dict[int, tuple[nn.Module, Tensor]] = {}
        self._inside: list[tuple[str, nn.Module]] = []
        self._leaf_depth, self._features_last = 0, False
        self._owners: dict[int, set[nn.Module]] = defaultdict(set)
        for module in model.modules():
            for parameter in (parameter for parameter in module._parameters.values() if parameter is not None):
                self._owners[id(parameter)].add(module)
        in_place = [module for module in model.modules() if type(module) is nn.ReLU and module.inplace]
        handles = [handle for name, module in model.named_modules() for handle in self._watch(name, module, module in in_place)]
        modes = {module: module.training for module in model.modules()}
        try:
            for relu in in_place:
                relu.inplace = False
            with torch.no_grad(), torch.random.fork_rng(devices=[]), self:
                self.output = model.eval()(*(example if isinstance(example, tuple) else (example,)))
            self._note_overwritten(_tensors(self.output))
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode
            for relu in in_place:
                relu.inplace = True

    def _watch(self, name: str, module: nn.Module, in_place: bool) -> list[Any]:
        leaf = isinstance(module, QuantizedLayer) or next(module.children(), None) is None
        feed: list[nn.Module | None] = []

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            feed.append(self._maker((*args, *kwargs.values())))
            self._inside.append((name, module))
            self._leaf_depth += leaf

        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._inside.pop()
            self._leaf_depth -= leaf
            inputs = (*args, *kwargs.values())
            if leaf and inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                self._note(module, inputs[0], output, feed[-1])
                if in_place:
                    self._overwritten[id(inputs[0])] = (module, inputs[0])

        return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave, with_kwargs=True)]

    def _maker(self, inputs: tuple[Any, ...]) -> nn.Module | None:
        """Return the layer that made the first input, provided that nothing wrote into it since."""
        module, made, version = self._made.get(id(inputs[0]), (None, None, 0)) if inputs else (None, None, 0)
        return module if made is not None and made._version == version else None

    def _note(self, module: nn.Module, x: Tensor, y: Tensor, feed: nn.Module | None) -> None:
        if module not in self.shapes:
            self.order.append(module)
            self.feeds[module] = feed
        elif self.feeds[module] is not feed:
            self.feeds[module] = None
        if isinstance(module, nn.Linear) or isinstance(module, CHANNELS_SECOND):
            self._features_last = isinstance(module, nn.Linear)
        self.shapes[module].append((tuple(x.shape), tuple(y.shape), -1 if self._features_last else min(1 - x.ndim, -1)))
        self._made[id(y)] = (module, y, y._version)

    def _note_overwritten(self, used: list[Tensor]) -> None:
        for tensor in used:
            for seen in (tensor, tensor._base):
                if seen is not None and id(seen) in self._overwritten:
                    self.overwriting.add(self._overwritten[id(seen)][0])

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and note when it changes values outside any layer, or reads a layer's parameter or an overwritten tensor."""
        name = getattr(func, "__name__", str(func))
        result = func(*args, **(kwargs or {}))
        if not self._inside:
            return result
        if self._leaf_depth == 0 and name not in EXACT:
            description = f"{name} in '{self._inside[-1][0] or 'model'}'"
            if description not in self.functions:
                self.functions.append(description)
        if name not in LIKE and _tensors(result):
            used = list(_tensors(args[:1] if name in CASTS else (args, kwargs)))
            self._note_overwritten(used)
            where, module = self._inside[-1]
            for tensor in used:
                owners = self._owners.get(id(tensor), set())
                if owners and module not in owners:
                    self.read_elsewhere.update(dict.fromkeys(owners, f"{name} in '{where or 'model'}'"))
        return result


def _tensors(value: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def traced(model: nn.Module, example: Example) -> tuple[Trace, dict[nn.Module, Calls]]:
    """Return a trace of the model, and the calls of each of its layers with shapes for one example.

    Two examples of different batch size tell which axis of a layer's input is the batch. That of the model's input is the first, unless what the
    model gives for one element of that axis depends on the others, and not so for the second axis (attention in the order sequence, batch, features).
    """
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        Trace(model, example)  # lazy modules take their shapes from the example
    chosen = None
    for axis in (0, 1):
        pair = _pair(model, example, axis)
        chosen = chosen or pair
        if pair and _independent(*pair):
            chosen = pair
            break
    if chosen is None:
        alone = Trace(model, example)
        return alone, {module: tuple(_as_it_is(*call) for call in calls) for module, calls in alone.shapes.items()}
    two, three = chosen
    return two, {module: _for_one_example(calls, three.shapes.get(module, [])) for module, calls in two.shapes.items()}


def _pair(model: nn.Module, example: Example, axis: int) -> tuple[Trace, Trace] | None:
    """Return the traces of two and of three examples, with ``axis`` for the batch; None where the model does not take them."""
    first = example[0] if isinstance(example, tuple) else example
    if first.ndim < axis + 2:
        return None
    try:
        return Trace(model, _resized(example, axis, 2)), Trace(model, _resized(example, axis, 3))
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
        return None


def _resized(example: Example, axis: int, count: int) -> Example:
    """Return the example with ``count`` elements along an axis, in all inputs that are as long there as the first one."""
    inputs = example if isinstance(example, tuple) else (example,)
    length = inputs[0].shape[axis]
    order = torch.arange(count, device=inputs[0].device) % length
    resized = tuple(x.index_select(axis, order) if x.ndim > axis and x.shape[axis] == length else x for x in inputs)
    return resized if isinstance(example, tuple) else resized[0]


def _independent(two: Trace, three: Trace) -> bool:
    """Return whether the first two examples got the same outputs beside a third one as without it."""
    for small, large in zip(_tensors(two.output), _tensors(three.output), strict=False):
        axes = [axis for axis, (a, b) in enumerate(zip(small.shape, large.shape, strict=False)) if a != b]
        if small.ndim != large.ndim or len(axes) != 1:
            return False
        part = large.narrow(axes[0], 0, small.shape[axes[0]])
        if small.is_floating_point() and not torch.allclose(small, part, rtol=1e-3, atol=1e-4 * float(small.abs().max())):
            return False
    return True


def _as_it_is(inputs: Shape, outputs: Shape, channel_axis: int) -> Call:
    if len(inputs) < 2:
        return Call(inputs, outputs, None, channel_axis)
    return Call((1, *inputs[1:]), (1, *outputs[1:]), 0, channel_axis)


def _for_one_example(two: list[tuple[Shape, Shape, int]], three: list[tuple[Shape, Shape, int]]) -> Calls:
    """Return the calls of one example, from those of two and of three; where each example has calls of its own, its share of them."""
    if len(two) != len(three):
        return tuple(Call(inputs, outputs, None, axis) for inputs, outputs, axis in two[: max(2 * len(two) - len(three), 1)])
    calls = []
    for (inputs, outputs, channel_axis), (more_inputs, more_outputs, _) in zip(two, three, strict=True):
        growing = [axis for axis, (a, b) in enumerate(zip(inputs, more_inputs, strict=False)) if a != b]
        one = [tuple(2 * a - b for a, b in zip(*pair, strict=False)) for pair in ((inputs, more_inputs), (outputs, more_outputs))]
        calls.append(Call(one[0], one[1], growing[0] if growing else None, channel_axis))
    return tuple(calls)
