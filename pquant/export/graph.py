"""The graph of a compressed model, which every exporter reads: the calls of one forward, in order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pquant.errors import ConfigError
from pquant.layers.base import QuantizedLayer

EXAMPLES = 2
SUMS = {"add": (1, 1), "__add__": (1, 1), "__radd__": (1, 1), "__iadd__": (1, 1), "add_": (1, 1)} | {
    "sub": (1, -1),
    "__sub__": (1, -1),
    "__isub__": (1, -1),
    "sub_": (1, -1),
    "neg": (-1,),
    "__neg__": (-1,),
}
MOVES = frozenset(
    "cat concat stack view reshape flatten ravel unflatten permute transpose movedim t squeeze unsqueeze expand expand_as repeat chunk split narrow "
    "select index_select __getitem__ __get__ contiguous clone detach to float dropout dropout1d dropout2d dropout3d pad".split()
)


@dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        name: the layer's dotted name, or a description such as "add in 'block1'".
        inputs: the values it takes: 0 is the model's input, s + 1 what step s gives.
        shape: the shape of its result, without the batch axis.
    """

    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerStep(Step):
    """A call of a layer."""

    layer: nn.Module


@dataclass(frozen=True)
class MoveStep(Step):
    """Moved or selected values: ``index`` has the shape of the result and holds positions in the concatenated inputs; -1 stands for a zero.

    ``sizes`` are the numbers of values of the inputs.
    """

    index: np.ndarray
    sizes: tuple[int, ...]

    @property
    def reshapes(self) -> bool:
        """Whether the step keeps all values of one input in their order."""
        return self.sizes == (self.index.size,) and np.array_equal(self.index.ravel(), np.arange(self.index.size))


@dataclass(frozen=True)
class SumStep(Step):
    """The sum of the inputs, each with its sign; shapes broadcast."""

    signs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """The steps of a model, the shape of its input without the batch axis, and the index of the value that it returns."""

    steps: tuple[Step, ...]
    input_shape: tuple[int, ...]
    output: int

    @property
    def layers(self) -> Iterator[LayerStep]:
        """The steps that are layers."""
        return (step for step in self.steps if isinstance(step, LayerStep))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output, without the batch axis."""
        return self.shape(self.output)

    def shape(self, value: int) -> tuple[int, ...]:
        """Return the shape of a value, without the batch axis."""
        return self.steps[value - 1].shape if value else self.input_shape


def record(model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """Return the graph of ``model``, compressed or finalized, from one evaluation-mode forward; the model is not changed.

    Raises:
        ConfigError: a call cannot be exported to hardware; the message names it and its module.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    example = torch.zeros(EXAMPLES, *input_shape, device=device)
    recorder = _Recorder(example)
    handles = [handle for name, module in model.named_modules() for handle in recorder.attach(name, module)]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), recorder:
            model.eval()
            output = model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(output, Tensor) or id(output) not in recorder.values:
        raise ConfigError("export needs a model that returns one tensor, made from its input by layers")
    return Graph(tuple(recorder.steps), tuple(input_shape), recorder.values[id(output)])


class _Recorder(TorchFunctionMode):
    """Records the calls of layers, and of functions outside them. It keeps all tensors, so that no id is used twice."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.values = {id(example): 0}
        self._kept: list[Tensor] = [example]
        self._inside = [""]
        self._leaf_depth = 0

    def attach(self, name: str, module: nn.Module) -> list[Any]:
        leaf = isinstance(module, QuantizedLayer)

        def enter(*_: Any) -> None:
            self._inside.append(name)
            self._leaf_depth += leaf

        def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._inside.pop()
            self._leaf_depth -= leaf
            if leaf and not self._leaf_depth:
                self._add(output, LayerStep(name, (self._value(inputs[0], name),), tuple(output.shape[1:]), module))

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def _value(self, tensor: Tensor, where: str) -> int:
        if id(tensor) not in self.values:
            raise ConfigError(f"export: {where} uses a tensor that no layer makes from the model's input")
        return self.values[id(tensor)]

    def _add(self, output: Tensor, step: Step) -> None:
        self.steps.append(step)
        self.values[id(output)] = len(self.steps)
        self._kept.append(output)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and record it if it returns tensors and no layer is running."""
        kwargs = kwargs or {}
        if self._leaf_depth:
            return func(*args, **kwargs)
        inputs = [tensor for tensor in _tensors((args, kwargs)) if id(tensor) in self.values]
        before = [self.values[id(tensor)] for tensor in inputs]
        outputs = func(*args, **kwargs)
        made = [tensor for tensor in _tensors(outputs)]
        name = getattr(func, "__name__", str(func))
        if inputs and made and any(made_one is not inputs[0] or name in SUMS for made_one in made):
            self._note(name, func, (args, kwargs), inputs, before, made)
        return outputs

    def _note(self, name: str, func: Callable[..., Any], call: Any, inputs: list[Tensor], before: list[int], made: list[Tensor]) -> None:
        where = f"{name} in '{self._inside[-1] or 'model'}'"
        args, kwargs = call
        if name in SUMS:
            if len(SUMS[name]) != len(inputs) or kwargs.get("alpha", 1) != 1:
                raise ConfigError(f"export: {where} must take values of the model alone, without a factor")
            signs = SUMS[name]
            self._add(made[0], SumStep(where, tuple(before), tuple(made[0].shape[1:]), signs))
        elif name in MOVES:
            moved = func(*_replaced(args, inputs), **_replaced(kwargs, inputs))
            sizes = tuple(tensor[0].numel() for tensor in inputs)
            for output, index in zip(made, _tensors(moved), strict=True):
                self._add(output, MoveStep(where, tuple(before), tuple(output.shape[1:]), _index(where, index, sum(sizes)), sizes))
        else:
            raise ConfigError(f"export: {where} cannot be exported to hardware: use pquant's layers, or move it out of the model")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _replaced(value: Any, inputs: list[Tensor]) -> Any:
    """Return arguments with each input's values replaced by numbers for their positions: 1 + example * total + place; 0 is a padded zero."""
    if isinstance(value, Tensor):
        place = next((at for at, tensor in enumerate(inputs) if tensor is value), None)
        if place is None:
            return value
        total = sum(tensor[0].numel() for tensor in inputs)
        start = sum(tensor[0].numel() for tensor in inputs[:place])
        numbers = torch.arange(value[0].numel()).expand(EXAMPLES, -1) + torch.arange(EXAMPLES)[:, None] * total + start + 1
        return numbers.reshape(value.shape).double()
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(item, inputs) for item in value)
    return {key: _replaced(item, inputs) for key, item in value.items()} if isinstance(value, dict) else value


def _index(where: str, moved: Tensor, total: int) -> np.ndarray:
    index = moved.double().numpy().astype(np.int64) - 1
    if len(index) != EXAMPLES or not np.array_equal(np.where(index[1] < 0, index[1], index[1] - total), index[0]):
        raise ConfigError(f"export: {where} mixes the examples of a batch")
    return index[0]
