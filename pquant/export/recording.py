"""Recording of the graph of a model: the calls of layers and functions that compute its output from its input."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pquant.errors import ConfigError
from pquant.export.functions import (
    EXAMPLES,
    FACTORIES,
    JOINS,
    PAIRS,
    READS,
    SUMS,
    Call,
    Operand,
    by_example,
    called,
    in_order,
    overwrites,
    without_batch,
)
from pquant.export.graph import ConstantStep, Graph, LayerStep, Step
from pquant.layers.activation import PQActivation
from pquant.layers.base import QuantizedLayer
from pquant.layers.constant import PQConstant
from pquant.layers.dense import PQDense
from pquant.layers.example import tensors_in
from pquant.layers.layer_norm import PQLayerNorm, PQRMSNorm
from pquant.layers.merge import PQMean, PQMerge, PQScale
from pquant.layers.modes import evaluating
from pquant.layers.softmax import PQSoftmax

LARGEST = 2**15
ANYWHERE = (PQDense, PQActivation, PQScale, PQLayerNorm, PQRMSNorm)
"""Layers that work on the last axes alone, so that any other axis may be the batch axis, or join batch and positions."""


def record(model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """Return the graph of ``model``, compressed or finalized, from one evaluation-mode forward; the model is not changed.

    Raises:
        ConfigError: a call cannot be exported to hardware; the message names it and its module.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    example = torch.zeros(EXAMPLES, *input_shape, device=device)
    recorder = _Recorder(example)
    handles = [handle for name, module in model.named_modules() for handle in recorder.attach(name, module)]
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]), recorder:
            output = model(example)
    finally:
        for handle in handles:
            handle.remove()
    recorder.refuse([output])
    made = recorder.values.get(id(output))
    if made is None or made.axis != 0 or made.joined:
        raise ConfigError("export needs a model that returns one tensor, its batch first, made from its input by layers")
    return Graph(tuple(recorder.steps), tuple(input_shape), made.number)


class _Recorder(TorchFunctionMode):
    """Records the calls of layers, and of functions outside layers. It keeps all tensors alive, so that ids are unique.

    Tensors that are not computed from the model's input are constants of the steps that use them.
    """

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.values = {id(example): Operand(0, tuple(example.shape[1:]))}
        self._opaque: dict[int, ConfigError] = {}
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
                given = list(inspect.signature(layer.forward).bind(*args, **kwargs).arguments.values())
                self._note_layer(name, layer, given[: len(layer.input_quantizers)], output)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, with_kwargs=True)]

    def _note_layer(self, name: str, layer: Any, given: list[Any], output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ConfigError(f"export: layer '{name}' must return one tensor")
        tracked = [value for value in given if id(value) in self.values]
        if not tracked and not (output.ndim and len(output) == EXAMPLES):  # a constant
            return
        like = self.values[id(tracked[0])] if tracked else Operand(0, ())
        inputs = [self._operand(value, name, -1 if _is_matrix(layer, value, number) else output.ndim, like) for number, value in enumerate(given)]
        known = [self.values[id(value)] for value in tracked]
        if any((one.axis, one.joined) != (like.axis, like.joined) for one in known) or not _takes(layer, like, output.ndim, tracked):
            raise ConfigError(f"export: layer '{name}' gets a tensor whose first axis is not that of the batch, or mixes the examples of a batch")
        shape = without_batch(tuple(output.shape), like)
        self._add(output, LayerStep(name, tuple(operand.number for operand in inputs), shape, layer, like.axis), like)

    def _operand(self, value: Any, where: str, ndim: int, like: Operand) -> Operand:
        """Return the operand of a value of the model, or of a new constant, which has the batch axis of ``like`` if it has ``ndim`` axes."""
        self.refuse([value])
        if id(value) in self.values:
            return self.values[id(value)]
        tensor = value if isinstance(value, Tensor) else torch.tensor(value)
        constants = tensor.detach().cpu().double().numpy().copy()
        if tensor.ndim == ndim:
            size = tensor.shape[like.axis]
            if size > 1 and (size % EXAMPLES if like.joined else size != EXAMPLES):
                raise ConfigError(f"export: {where} uses a constant that has not the axis of the batch where the values of the model have it")
            constants = by_example(constants, like) if size > 1 else constants[None] if like.joined else constants.squeeze(like.axis)[None]
            if not (constants == constants[:1]).all():
                raise ConfigError(f"export: {where} uses values that differ between the examples of a batch, but are not made of the input")
            constants = constants[0]
        if not np.isfinite(constants).all() or np.abs(constants).max(initial=0) > LARGEST:
            raise ConfigError(f"export: {where} uses a constant that is not finite, or beyond {LARGEST}, such as a mask")
        self.steps.append(ConstantStep(f"constant of {where}", (), constants.shape, constants))
        return Operand(len(self.steps), constants.shape, like.axis, like.joined)

    def _add(self, output: Tensor, step: Step, like: Operand) -> None:
        self.steps.append(step)
        self.values[id(output)] = Operand(len(self.steps), step.shape, like.axis, like.joined)
        self._opaque.pop(id(output), None)
        self._kept.append(output)

    def refuse(self, tensors: list[Any]) -> None:
        """Raise the stored error if one of the tensors was computed by a function that cannot be exported."""
        for tensor in tensors:
            if id(tensor) in self._opaque:
                raise self._opaque[id(tensor)]

    def _forget(self, tensor: Tensor, error: ConfigError) -> None:
        self._opaque[id(tensor)] = error
        self.values.pop(id(tensor), None)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and record the call if it uses values of the model outside layers."""
        kwargs = kwargs or {}
        known = [] if self._leaf_depth else self._known(func, (args, kwargs))
        if not known:
            return func(*args, **kwargs)
        name = _name(func)
        where = self._where(func)
        given = in_order(where, name, args, kwargs) if name in SUMS or name in PAIRS or name in JOINS else known
        ndim, like = max(tensor.ndim for tensor in given), self.values[id(known[0])]
        others = [self.values[id(tensor)] for tensor in known]
        aligned = all((one.axis, one.joined, tensor.ndim) == (like.axis, like.joined, ndim) for one, tensor in zip(others, known, strict=True))
        if not aligned and (name in SUMS or name in PAIRS):
            raise ConfigError(f"export: {where} mixes the examples of a batch")
        operands = [self._operand(tensor, where, ndim, like) for tensor in given]
        outputs = func(*args, **kwargs)
        made = tensors_in(outputs)
        if overwrites(name):
            self._overwritten(where, made)
        if overwrites(name) or any(one is not known[0] or name in SUMS for one in made):
            self._note(Call(name, where, func, args, kwargs, given, operands, made))
        return outputs

    def _overwritten(self, where: str, made: list[Tensor]) -> None:
        """Refuse further use of all tensors that share memory with a tensor that a function writes into."""
        owners = [_owner(one) for one in made]
        for tensor in self._kept:
            if id(tensor) in self.values and any(_owner(tensor) is owner for owner in owners) and all(tensor is not one for one in made):
                self._opaque[id(tensor)] = ConfigError(f"export: {where} writes into values that are read again, which hardware cannot")

    def _where(self, func: Any) -> str:
        return f"{_name(func)} in '{self._inside[-1] or 'model'}'"

    def _known(self, func: Any, call: Any) -> list[Tensor]:
        """Return the arguments of a function that are values of the model."""
        tensors = tensors_in(call)
        if _name(func) not in FACTORIES:
            self.refuse(tensors)
        known = [tensor for tensor in tensors if id(tensor) in self.values]
        if known and _name(func) in READS:
            raise ConfigError(f"export: {self._where(func)} reads values of the model, which hardware cannot")
        return [] if _name(func) in FACTORIES else known

    def _note(self, call: Call) -> None:
        try:
            for tensor, steps, like in called(call, len(self.steps)):
                self.steps += steps[:-1]
                self._add(tensor, steps[-1], like)
            refused = ConfigError(f"export: {call.where} gives indices, which cannot be exported to hardware")
            self._opaque |= {id(indices): refused for indices in call.made[1:] if id(indices) not in self.values}
        except ConfigError as error:  # raised only if a later step uses the value
            for tensor in call.made:
                self._forget(tensor, error)
        self._kept += call.made


def _is_matrix(layer: Any, value: Any, number: int) -> bool:
    """Return whether a constant is a factor of a product that has no batch axis, for any number of axes."""
    if not isinstance(layer, PQMerge) or not isinstance(value, Tensor):
        return False
    if layer.equation is not None:
        first, _, second = layer.equation.replace(" ", "").partition("->")[0].partition(",")
        return first[:1] != second[:1]
    return layer.kind == "matmul" and value.ndim <= 2


def _takes(layer: Any, like: Operand, ndim: int, tracked: list[Tensor]) -> bool:
    """Return whether a layer with an output of ``ndim`` axes computes each example independently, with the batch axis of ``like``."""
    if isinstance(layer, PQMerge) and not _keeps_batch(layer, ndim, tracked):
        return False
    if not like.joined:
        return not like.axis or isinstance(layer, ANYWHERE)
    if isinstance(layer, (PQMean, PQSoftmax)):
        dims = (layer.dim,) if isinstance(layer.dim, int) else layer.dim
        return not like.axis and all(-len(like.shape) < dim < 0 for dim in dims)
    return not like.axis and isinstance(layer, (*ANYWHERE, PQMerge))


def _keeps_batch(layer: PQMerge, ndim: int, tracked: list[Tensor]) -> bool:
    """Return whether the batch axis of all factors is the first one of the result."""
    if layer.equation is None:
        product = layer.kind == "matmul" and len(tracked) > 1
        return all(one.ndim == ndim for one in tracked) and not (product and ndim < 3) or layer.kind == "matmul" and len(tracked) == 1
    given, _, result = layer.equation.replace(" ", "").partition("->")
    letters = {part[:1] for part in given.split(",")} if len(tracked) > 1 else {result[:1]}
    return letters == {result[:1]}


def _owner(tensor: Tensor) -> Tensor:
    """Return the tensor that owns the memory of a view, or the tensor itself."""
    return tensor if tensor._base is None else tensor._base


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))
