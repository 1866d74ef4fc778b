"""Record the graph of a model: which calls of layers and functions make its output of its input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pquant.errors import ConfigError
from pquant.export.functions import EXAMPLES, FACTORIES, JOINS, PAIRS, READS, SUMS, Call, Operand, called, in_order
from pquant.export.graph import ConstantStep, Graph, LayerStep, Step
from pquant.layers.base import QuantizedLayer
from pquant.layers.constant import PQConstant
from pquant.layers.example import tensors_in
from pquant.layers.layer_norm import PQGroupNorm
from pquant.layers.merge import PQMean, PQMerge
from pquant.layers.softmax import PQSoftmax

BATCH_FIRST = (PQMerge, PQMean, PQSoftmax, PQGroupNorm)
"""Layers that count their axes from the first one, which then has to be that of the batch."""


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
    made = recorder.values.get(id(output))
    if made is None or made.axis != 0:
        raise ConfigError("export needs a model that returns one tensor, its batch first, made from its input by layers")
    return Graph(tuple(recorder.steps), tuple(input_shape), made.number)


class _Recorder(TorchFunctionMode):
    """Records the calls of layers, and of functions outside them. It keeps all tensors, so that no id is used twice.

    Tensors that are not made of the model's input are constants of the steps that take them.
    """

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.values = {id(example): Operand(0, tuple(example.shape[1:]), 0)}
        self._opaque: dict[int, str] = {}
        self._kept: list[Tensor] = [example]
        self._inside = [""]
        self._leaf_depth = 0

    def attach(self, name: str, module: nn.Module) -> list[Any]:
        leaf = isinstance(module, QuantizedLayer)

        def enter(*_: Any) -> None:
            self._inside.append(name)
            self._leaf_depth += leaf

        def leave(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._inside.pop()
            self._leaf_depth -= leaf
            if leaf and not self._leaf_depth and not isinstance(layer, PQConstant):
                self._layer(name, layer, [*args, *kwargs.values()][: len(layer.input_quantizers)], output)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, with_kwargs=True)]

    def _layer(self, name: str, layer: Any, given: list[Any], output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ConfigError(f"export: layer '{name}' must return one tensor")
        axis = next((self.values[id(value)].axis for value in given if id(value) in self.values), 0)
        inputs = [self._operand(value, name, output.ndim, axis) for value in given]
        if axis and isinstance(layer, BATCH_FIRST) or any(operand.axis != axis for operand in inputs):
            raise ConfigError(f"export: layer '{name}' gets a tensor whose first axis is not that of the batch")
        shape = tuple(size for at, size in enumerate(output.shape) if at != axis)
        self._add(output, LayerStep(name, tuple(operand.number for operand in inputs), shape, layer, axis), axis)

    def _operand(self, value: Any, where: str, ndim: int, axis: int) -> Operand:
        """Return a value of the model, or a new constant; one of ``ndim`` axes has the batch on ``axis``."""
        if id(value) in self._opaque:
            raise ConfigError(f"export: {where} uses {self._opaque[id(value)]}, which cannot be exported to hardware")
        if id(value) in self.values:
            return self.values[id(value)]
        tensor = value if isinstance(value, Tensor) else torch.tensor(value)
        constants = tensor.detach().cpu().double().numpy().copy()
        if tensor.ndim == ndim:
            if not (constants == constants.take([0], axis)).all():
                raise ConfigError(f"export: {where} uses values that differ between the examples of a batch, but are not made of the input")
            constants = constants.take(0, axis)
        self.steps.append(ConstantStep(f"constant of {where}", (), constants.shape, constants))
        return Operand(len(self.steps), constants.shape, axis)

    def _add(self, output: Tensor, step: Step, axis: int) -> None:
        self.steps.append(step)
        self.values[id(output)] = Operand(len(self.steps), step.shape, axis)
        self._kept.append(output)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and record it if it takes values of the model and no layer is running."""
        kwargs = kwargs or {}
        known = [] if self._leaf_depth else self._known(func, (args, kwargs))
        if not known:
            return func(*args, **kwargs)
        name = _name(func)
        where = self._where(func)
        given = in_order(where, name, args, kwargs) if name in SUMS or name in PAIRS or name in JOINS else known
        ndim, axis = max(tensor.ndim for tensor in given), self.values[id(known[0])].axis
        if (name in SUMS or name in PAIRS) and any(tensor.ndim != ndim or self.values[id(tensor)].axis != axis for tensor in known):
            raise ConfigError(f"export: {where} mixes the examples of a batch")
        operands = [self._operand(tensor, where, ndim, axis) for tensor in given]
        outputs = func(*args, **kwargs)
        made = tensors_in(outputs)
        if any(one is not known[0] or name in SUMS for one in made):
            self._note(Call(name, where, func, args, kwargs, given, operands, made))
        return outputs

    def _where(self, func: Any) -> str:
        return f"{_name(func)} in '{self._inside[-1] or 'model'}'"

    def _known(self, func: Any, call: Any) -> list[Tensor]:
        """Return the tensors that a function takes values of the model from."""
        tensors = tensors_in(call)
        for tensor in tensors:
            if id(tensor) in self._opaque:
                raise ConfigError(f"export: {self._where(func)} uses {self._opaque[id(tensor)]}, which cannot be exported to hardware")
        known = [tensor for tensor in tensors if id(tensor) in self.values]
        if known and _name(func) in READS:
            raise ConfigError(f"export: {self._where(func)} reads values of the model, which hardware cannot")
        return [] if _name(func) in FACTORIES else known

    def _note(self, call: Call) -> None:
        for tensor, steps, axis in called(call, len(self.steps)):
            self.steps += steps[:-1]
            self._add(tensor, steps[-1], axis)
        for indices in call.made[1:]:
            if id(indices) not in self.values:
                self._opaque[id(indices)] = f"the indices of {call.where}"
                self._kept.append(indices)


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))
