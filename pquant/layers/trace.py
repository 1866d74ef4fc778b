"""What one forward of a model does: the calls of each layer, and what no layer stands for."""

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, UntypedStorage, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pquant.errors import ConfigError
from pquant.layers.base import Call, Calls, Cost, QuantizedLayer, Shape
from pquant.layers.composite import Composite
from pquant.layers.merge import is_shift

Example = Tensor | tuple[Any, ...] | dict[str, Any]


class Shapes(NamedTuple):
    """The shapes of one call: of its inputs and its output, and the axis of the first input that holds features, from the end."""

    inputs: tuple[Shape, ...]
    output: Shape
    channel_axis: int


# Functions that make no values on a new grid, by their names without underscores: they move values, pick some, add them exactly, make constants, or
# only look at a tensor.
EXACT = frozenset(
    "view reshape flatten unflatten ravel permute transpose movedim moveaxis swapaxes t squeeze unsqueeze expand expand_as repeat "
    "repeat_interleave tile broadcast_to cat concat concatenate stack vstack hstack chunk split tensor_split unbind narrow select index_select "
    "gather getitem setitem get set contiguous clone detach to float type type_as view_as reshape_as copy cpu cuda numpy pad roll flip "
    "pixel_shuffle pixel_unshuffle channel_shuffle tril triu meshgrid dropout dropout1d dropout2d dropout3d max min amax amin maximum minimum "
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d boolean_dispatch fn where masked_fill sort "
    "topk argmax argmin add radd iadd sub rsub isub neg sum zeros ones full eye arange linspace tensor as_tensor zeros_like ones_like full_like "
    "new_zeros new_ones new_full new_tensor eq ne lt le gt ge logical_not all any size dim numel stride item tolist len bool repr has_names "
    "is_nested is_all_true is_floating_point untyped_storage assert".split()
)
# Functions that look at the dtype, device or shape of a tensor alone; of "to" and "type_as" this holds for the second argument.
LIKE = frozenset("new_zeros new_ones new_empty new_full new_tensor zeros_like ones_like empty_like full_like rand_like randn_like".split())
CASTS = frozenset(("to", "type_as"))
CHANNELS_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd)


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and keyword arguments of a model that an example stands for, tensors copied, as a model may write into its input.

    Raises:
        ConfigError: an example of another type.
    """
    if not isinstance(example, (Tensor, tuple, dict)):
        raise ConfigError(
            "example_input, or a batch, must be a tensor, a tuple of the arguments of the model or a dict of its keyword arguments,"
            f" got a {type(example).__name__}"
        )
    example = tree_map_only(Tensor, torch.clone, example)
    return ((), example) if isinstance(example, dict) else (example if isinstance(example, tuple) else (example,), {})


@contextmanager
def same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Leave the states of torch's, numpy's and Python's random numbers as they were, on the devices of the model too."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices={parameter.device for parameter in model.parameters() if parameter.is_cuda}):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class _Multiplications(TorchDispatchMode):
    """Counts the multiplications of matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation of torch and count it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.count += args[0].numel() * args[1].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.count += args[1].numel() * args[2].shape[-1]
        elif name == "convolution":
            self.count += (args[0] if args[6] else result).numel() * args[1][0].numel()
        elif name.startswith("_scaled_dot_product"):
            query, key, value = args[:3]
            self.count += query.numel() // query.shape[-1] * key.shape[-2] * (key.shape[-1] + value.shape[-1])
        return result


class Trace(TorchFunctionMode):
    """One forward of a copy of ``model`` on an example input, in evaluation or in training mode; the model itself is left untouched.

    ``nn.ReLU(inplace=True)`` runs out of place in it, so that a later use of its input can be told from one of its output.

    Attributes:
        shapes: for each layer the (input, output) shapes of its calls.
        order: those modules in the order of their first calls.
        feeds: for each layer the layer whose output each of its inputs is as it is, or None when that differs by call or is no layer's.
        functions: for each module the names of the functions that it calls outside layers and that change values.
        called: all modules that are called, layers or not.
        packed: those that get sequences of different lengths.
        cost: for each layer, and for each module that calls functions, its multiplications and the values that it makes.
        read_elsewhere: layers whose parameters something else reads, by the name of what does.
        overwriting: in-place ReLUs whose input, or a tensor that it is a view of, is used again.
        output: what the model gave.
    """

    def __init__(self, model: nn.Module, example: Example, training: bool = False) -> None:
        super().__init__()
        self.shapes: dict[nn.Module, list[Shapes]] = defaultdict(list)
        self.order: list[nn.Module] = []
        self.feeds: dict[nn.Module, tuple[nn.Module | None, ...]] = {}
        self.functions: dict[nn.Module, set[str]] = defaultdict(set)
        self.called: set[nn.Module] = set()
        self.packed: set[nn.Module] = set()
        self.cost: dict[nn.Module, Cost] = defaultdict(Cost)
        self._counter = _Multiplications()
        self.read_elsewhere: dict[nn.Module, str] = {}
        self.overwriting: set[nn.Module] = set()
        self._made: dict[int, tuple[nn.Module, Tensor, int]] = {}
        self._overwritten: dict[UntypedStorage | None, set[nn.Module]] = defaultdict(set)
        self._inside: list[tuple[str, nn.Module]] = []
        self._leaf_depth, self._features_last = 0, False
        self._owners: dict[int, set[nn.Module]] = defaultdict(set)
        twin = copy.deepcopy(model)
        twin.train(training)
        twin.requires_grad_(False)
        for (name, module), copied in zip(model.named_modules(), twin.modules(), strict=True):
            for parameter in (parameter for parameter in copied._parameters.values() if parameter is not None):
                self._owners[id(parameter)].add(module)
            self._watch(name, module, copied)
        args, kwargs = arguments(example)
        with torch.no_grad(), same_random_numbers(model), self._counter, self:
            self.output = twin(*args, **kwargs)
        self._note_overwritten(_tensors(self.output))
        self._made.clear()
        self._overwritten.clear()

    def _watch(self, name: str, module: nn.Module, copied: nn.Module) -> None:
        leaf = is_layer(module)
        in_place = type(copied) is nn.ReLU and copied.inplace
        feed: list[tuple[nn.Module | None, ...]] = []
        counts: list[int] = []

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = (*args, *kwargs.values())
            feed.append(tuple(self._maker(x) for x in inputs if isinstance(x, Tensor)))
            counts.append(self._counter.count)
            self.called.add(module)
            if any(isinstance(x, PackedSequence) for x in inputs):
                self.packed.add(module)
            self._inside.append((name, module))
            self._leaf_depth += leaf

        def made(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if leaf and isinstance(output, Tensor):
                self._made[id(output)] = (module, output, output._version)

        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._inside.pop()
            self._leaf_depth -= leaf
            inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            makers, before = feed.pop(), counts.pop()
            if leaf and not self._leaf_depth:
                self.cost[module] += Cost(self._counter.count - before, _values(output))
            if leaf and inputs and isinstance(output, Tensor):
                self._note(module, inputs, output, makers)
                if in_place:
                    self._overwritten[_storage(inputs[0])].add(module)

        if type(copied) is nn.ReLU:
            copied.inplace = False
        copied.register_forward_pre_hook(enter, with_kwargs=True)
        copied.register_forward_hook(made, prepend=True)
        copied.register_forward_hook(leave, with_kwargs=True)

    def _maker(self, x: Tensor) -> nn.Module | None:
        """Return the layer that made ``x``, provided that nothing wrote into it since, nor that a hook put another in its place."""
        module, made, version = self._made.get(id(x), (None, None, 0))
        return module if made is not None and made._version == version and _storage(made) not in self._overwritten else None

    def _note(self, module: nn.Module, inputs: list[Tensor], y: Tensor, feed: tuple[nn.Module | None, ...]) -> None:
        x = inputs[0]
        if module not in self.shapes:
            self.order.append(module)
            self.feeds[module] = feed
        else:
            self.feeds[module] = common(self.feeds[module], feed)
        if isinstance(module, nn.Linear) or isinstance(module, CHANNELS_SECOND):
            self._features_last = isinstance(module, nn.Linear)
        channel_axis = -1 if self._features_last else min(1 - x.ndim, -1)
        if isinstance(module, nn.modules.conv._ConvNd):
            channel_axis = -1 - len(module.kernel_size)
        self.shapes[module].append(Shapes(tuple(tuple(tensor.shape) for tensor in inputs), tuple(y.shape), channel_axis))

    def _note_overwritten(self, used: list[Tensor]) -> None:
        if self._overwritten:
            self.overwriting.update(*(self._overwritten.get(_storage(tensor), ()) for tensor in used))

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and note when it changes values outside any layer, or reads a layer's parameter or an overwritten tensor."""
        name = getattr(func, "__name__", str(func))
        before = self._counter.count
        result = func(*args, **(kwargs or {}))
        if not self._inside:
            return result
        where, module = self._inside[-1]
        if self._leaf_depth == 0 and not self._is_exact(name, args, result) and not isinstance(module, Composite):
            self.functions[module].add(name.strip("_"))
            self.cost[module] += Cost(self._counter.count - before, _values(result))
        if name not in LIKE and _tensors(result):
            used = list(_tensors(args[:1] if name in CASTS else (args, kwargs)))
            self._note_overwritten(used)
            for tensor in used:
                owners = self._owners.get(id(tensor), set())
                if owners and module not in owners:
                    self.read_elsewhere.update(dict.fromkeys(owners, f"{name} in '{where or 'model'}'"))
        return result

    @staticmethod
    def _is_exact(name: str, args: Any, result: Any) -> bool:
        """Return whether a call only moves, picks, adds or shifts values, or makes none that are float."""
        if name.strip("_") in EXACT or not any(tensor.is_floating_point() for tensor in _tensors(result)):
            return True
        numbers = [value for value in args if isinstance(value, (int, float))] if len(args) == 2 else []
        return name.strip("_") in ("mul", "rmul", "imul", "div", "truediv", "idiv") and len(numbers) == 1 and is_shift(numbers[0])


def is_layer(module: nn.Module) -> bool:
    """Return whether a module counts as one layer, whatever it calls: a quantized one, or one without children whose forward is torch's or ours."""
    known = str(type(module).forward.__module__).startswith(("torch.nn.", "pquant.layers."))
    return isinstance(module, QuantizedLayer) or known and next(module.children(), None) is None


def common(first: tuple[nn.Module | None, ...], second: tuple[nn.Module | None, ...]) -> tuple[nn.Module | None, ...]:
    """Return the modules that both have in the same place, None elsewhere."""
    return tuple(one if one is other else None for one, other in zip(first, second, strict=False))


def _values(output: Any) -> int:
    """Return how many float values there are."""
    return sum(tensor.numel() for tensor in _tensors(output) if tensor.is_floating_point())


def _tensors(value: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _storage(tensor: Tensor) -> UntypedStorage | None:
    """Return the memory that a tensor and its views have in common; None for sparse ones."""
    return tensor.untyped_storage() if tensor.layout is torch.strided else None


def traced(model: nn.Module, example: Example) -> tuple[Trace, dict[nn.Module, Calls]]:
    """Return a trace of the model, and the calls of each of its layers with shapes for one example.

    It is that of evaluation, but ``feeds`` holds for training too, and ``overwriting`` has what either needs. Where the model does not take the
    example in training, nothing feeds a layer for certain, and all in-place ReLUs may be needed as such.

    Two examples of different batch size tell which axis of a layer's input is the batch. That of the model's input is the first, unless what the
    model gives for one element of that axis depends on the others, and not so for the second axis (attention in the order sequence, batch, features).
    """
    trace, training = Trace(model, example), _in_training(model, example)
    _check_batch(model, trace, example)
    trace.feeds = {module: common(feed, training.feeds.get(module, ()) if training else ()) for module, feed in trace.feeds.items()}
    trace.overwriting.update(training.overwriting if training else trace.shapes)
    chosen = _pair(model, example, 0)
    if chosen is None or not chosen[2]:
        second = _pair(model, example, 1)
        chosen = second if second and second[2] else chosen
    if chosen is None:
        return trace, {module: tuple(map(_as_it_is, calls)) for module, calls in trace.shapes.items()}
    two, three, _ = chosen
    return trace, {module: _for_one_example(calls, three.shapes.get(module, [])) for module, calls in two.shapes.items()}


def materialize(model: nn.Module, example: Example) -> None:
    """Give lazy modules the shapes and parameters that they get in a forward on the example."""
    if not any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        return
    twin, (args, kwargs) = copy.deepcopy(model), arguments(example)
    twin.eval()
    with torch.no_grad(), same_random_numbers(model):
        twin(*args, **kwargs)
    pairs = list(zip(model.modules(), twin.modules(), strict=True))
    for module, made in [pair for pair in pairs if isinstance(pair[0], LazyModuleMixin)]:
        made.training = module.training
        module.__class__, module.__dict__ = type(made), vars(made)


def _in_training(model: nn.Module, example: Example) -> Trace | None:
    """Return the trace in training mode, of two examples where batch norm cannot do with one; None where the model takes neither."""
    with suppress(Exception):
        return Trace(model, example, training=True)
    with suppress(Exception):
        return Trace(model, resized(example, 0, 2), training=True)
    return None


def _check_batch(model: nn.Module, trace: Trace, example: Example) -> None:
    """Raise a ConfigError where a convolution gets the example as one without a batch axis."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            for (shape, *_), *_ in trace.shapes.get(module, []):
                if len(shape) == len(module.kernel_size) + 1 and [len(shape)] == [tensor.ndim for tensor in _tensors(example)][:1]:
                    raise ConfigError(
                        f"example_input must be a batch: layer '{name}' got an input of shape {shape}, which has no batch axis; give"
                        " example_input.unsqueeze(0)"
                    )


def _pair(model: nn.Module, example: Example, axis: int) -> tuple[Trace, Trace, bool] | None:
    """Return the traces of two and of three examples, with ``axis`` for the batch, and whether each example's output is independent of the others.

    None where the model does not take them, whatever it raises.
    """
    with suppress(Exception):
        two, three = (Trace(model, resized(example, axis, count)) for count in (2, 3))
        return two, three, _independent(two, three)
    return None


def resized(example: Example, axis: int, count: int) -> Example:
    """Return the example with ``count`` elements along an axis, in all tensors that are as long there as the first one.

    Raises:
        IndexError: no tensor is there, or the first one has no other axis behind that one.
    """
    first = _tensors(example)[0]
    length = first.shape[: first.ndim - 1][axis]
    order = torch.arange(count) % length

    def of_count(x: Tensor) -> Tensor:
        return x.index_select(axis, order.to(x.device)) if x.ndim > axis and x.shape[axis] == length else x

    return tree_map_only(Tensor, of_count, example)


def _independent(two: Trace, three: Trace) -> bool:
    """Return whether the first two examples got the same outputs beside a third one as without it."""
    for small, large in zip(_tensors(two.output), _tensors(three.output), strict=False):
        axes = [axis for axis, (a, b) in enumerate(zip(small.shape, large.shape, strict=False)) if a != b]
        if small.ndim != large.ndim or len(axes) != 1:
            return False
        part = large.narrow(axes[0], 0, small.shape[axes[0]])
        if small.is_floating_point() and small.numel():
            size = float(small.nan_to_num(0, 0, 0).abs().max())
            if not torch.allclose(small, part, rtol=1e-3, atol=1e-4 * size, equal_nan=True):
                return False
    return True


def _as_it_is(shapes: Shapes) -> Call:
    (first, *others), outputs, channel_axis = shapes
    if len(first) < 2 or channel_axis == -len(first):
        return Call(first, outputs, None, channel_axis, tuple((shape, None) for shape in others))
    return Call(
        (1, *first[1:]),
        (1, *outputs[1:]),
        0,
        channel_axis,
        tuple(((1, *shape[1:]), 0) if shape[:1] == first[:1] else (shape, None) for shape in others),
    )


def _for_one_example(two: list[Shapes], three: list[Shapes]) -> Calls:
    """Return the calls of one example, from those of two and of three; where each example has calls of its own, its share of them."""
    if len(two) != len(three):
        share = two[: max(2 * len(two) - len(three), 1)]
        return tuple(Call(inputs[0], outputs, None, axis, tuple((shape, None) for shape in inputs[1:])) for inputs, outputs, axis in share)
    calls = []
    for (inputs, outputs, channel_axis), (more_inputs, more_outputs, _) in zip(two, three, strict=True):
        first, *others = (_of_one(*pair) for pair in zip(inputs, more_inputs, strict=True))
        calls.append(Call(first[0], _of_one(outputs, more_outputs)[0], first[1], channel_axis, tuple(others)))
    return tuple(calls)


def _of_one(two: Shape, three: Shape) -> tuple[Shape, int | None]:
    """Return the shape for one example and its batch axis, from the shapes for two and for three."""
    growing = [axis for axis, (a, b) in enumerate(zip(two, three, strict=False)) if a != b]
    return tuple(2 * a - b for a, b in zip(two, three, strict=False)), growing[0] if growing else None
