"""A record of one forward of a model: the calls of each layer, and the functions called outside layers."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from pquant.layers.base import Cost, QuantizedLayer, Shape
from pquant.layers.composite import Composite
from pquant.layers.example import Example, arguments, same_random_numbers, tensors_in
from pquant.layers.merge import is_shift
from pquant.layers.replacements import REPLACEMENTS


class Shapes(NamedTuple):
    """The shapes of the inputs and the output of one call, and the feature axis of the first input, as a negative number."""

    inputs: tuple[Shape, ...]
    output: Shape
    channel_axis: int


# Functions, by their names without underscores, whose results need no new format: they move, select or exactly add values, create constants, or
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
# Functions that read only the dtype, device or shape of a tensor; for "to" and "type_as" this holds for the second argument.
LIKE = frozenset("new_zeros new_ones new_empty new_full new_tensor zeros_like ones_like empty_like full_like rand_like randn_like".split())
CASTS = frozenset(("to", "type_as"))
CHANNELS_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd)


def multiplications(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Return how many multiplications a torch function does in matrix products, convolutions, attention or recurrences; 0 for other functions."""
    given = tensors_in((args, kwargs))
    made = tensors_in(result)[0].numel() if tensors_in(result) else 0
    if name in ("linear", "matmul", "rmatmul", "mm", "bmm", "mv", "dot"):
        return made * given[0].shape[-1]
    if name in ("addmm", "baddbmm"):
        return made * given[1].shape[-1]
    if name == "einsum":
        letters = {
            letter: size for part, tensor in zip(args[0].split("->")[0].split(","), given, strict=False) for letter, size in _sizes(part, tensor)
        }
        return math.prod(letters.values()) if len(given) > 1 else 0
    if name in ("conv1d", "conv2d", "conv3d"):
        return made * given[1][0].numel()
    if name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        return given[0].numel() * given[1][0].numel()
    if name == "scaled_dot_product_attention":
        query, key, value = given[:3]
        return query.numel() // query.shape[-1] * key.shape[-2] * (key.shape[-1] + value.shape[-1])
    if name == "multi_head_attention_forward":
        query, key = given[:2]
        width, batch = query.shape[-1], query.numel() // (query.shape[0] * query.shape[-1])
        return batch * width * (2 * query.shape[0] * width + 2 * key.shape[0] * width + 2 * query.shape[0] * key.shape[0])
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        return given[0].numel() // given[0].shape[-1] * sum(weight.numel() for weight in given[1:] if weight.ndim == 2)
    return 0


def _sizes(part: str, tensor: Tensor) -> list[tuple[str, int]]:
    """Return (letter, size) for each axis of an einsum operand; the axes of an ellipsis have digits instead of letters, counted from the end."""
    letters = part.replace(" ", "")
    hidden = "".join(chr(ord("0") + at) for at in range(tensor.ndim - len(letters.replace("...", ""))))
    return list(zip(letters.replace("...", hidden[::-1]), tensor.shape, strict=True))


class Trace(TorchFunctionMode):
    """The record of one forward of a copy of ``model`` on an example input, in evaluation or training mode. ``model`` is left untouched.

    The copy runs ``nn.ReLU(inplace=True)`` out of place, to distinguish later uses of its input from uses of its output.

    Attributes:
        shapes: for each layer the shapes of its calls.
        order: the layers in the order of their first calls.
        feeds: for each input of each layer the layer whose output it is, unchanged; None if it is not the output of a layer, or differs by call.
        functions: for each module the names of the functions that it calls outside layers and that change values.
        called: all modules that are called, layers or not.
        packed: modules that get packed sequences.
        cost: multiplications and output values of each layer, and of each module that calls functions.
        read_elsewhere: modules whose parameters are read outside them, with the name of the function and module that reads them.
        overwriting: in-place ReLUs whose input, or a tensor that the input is a view of, is used again.
        output: the output of the model.
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
        self._count = 0
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
        with torch.no_grad(), same_random_numbers(model), self:
            self.output = twin(*args, **kwargs)
        self._note_overwritten(tensors_in(self.output))
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
            counts.append(self._count)
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
                self.cost[module] += Cost(self._count - before, _values(output))
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
        """Return the layer that returned ``x``; None if ``x`` was written into afterwards, or a hook replaced it."""
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
        """Run ``func``, and record calls that change values outside layers, or read a parameter of another module or an overwritten tensor."""
        name = getattr(func, "__name__", str(func))
        result = func(*args, **(kwargs or {}))
        if not self._inside:
            return result
        made = multiplications(name.strip("_"), args, kwargs or {}, result)
        self._count += made
        where, module = self._inside[-1]
        if self._leaf_depth == 0 and not self._is_exact(name, args, result) and not isinstance(module, Composite):
            self.functions[module].add(name.strip("_"))
            self.cost[module] += Cost(made, _values(result))
        if name not in LIKE and tensors_in(result):
            used = list(tensors_in(args[:1] if name in CASTS else (args, kwargs)))
            self._note_overwritten(used)
            for tensor in used:
                owners = self._owners.get(id(tensor), set())
                if owners and module not in owners:
                    self.read_elsewhere.update(dict.fromkeys(owners, f"{name} in '{where or 'model'}'"))
        return result

    @staticmethod
    def _is_exact(name: str, args: Any, result: Any) -> bool:
        """Return whether a call only moves, selects, adds or shifts values, or returns no float values."""
        if name.strip("_") in EXACT or not any(tensor.is_floating_point() for tensor in tensors_in(result)):
            return True
        numbers = [value for value in args if isinstance(value, (int, float))] if len(args) == 2 else []
        return name.strip("_") in ("mul", "rmul", "imul", "div", "truediv", "idiv") and len(numbers) == 1 and is_shift(numbers[0])


def is_layer(module: nn.Module) -> bool:
    """Return whether a module counts as one layer, whatever it calls.

    A layer is a :class:`QuantizedLayer`, or a module without children whose forward belongs to torch or pquant or whose class has a replacement.
    """
    known = type(module) in REPLACEMENTS or str(type(module).forward.__module__).startswith(("torch.nn.", "pquant.layers."))
    return isinstance(module, QuantizedLayer) or known and next(module.children(), None) is None


def common(first: tuple[nn.Module | None, ...], second: tuple[nn.Module | None, ...]) -> tuple[nn.Module | None, ...]:
    """Return a tuple with the module at each index where both tuples agree, and None where they differ."""
    return tuple(one if one is other else None for one, other in zip(first, second, strict=False))


def _values(output: Any) -> int:
    """Return the number of float values in ``output``."""
    return sum(tensor.numel() for tensor in tensors_in(output) if tensor.is_floating_point())


def _storage(tensor: Tensor) -> UntypedStorage | None:
    """Return the storage that a tensor shares with its views; None for a sparse tensor."""
    return tensor.untyped_storage() if tensor.layout is torch.strided else None
