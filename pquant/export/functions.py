"""The hardware steps of torch functions outside layers: moves, sums, extremes and bit shifts."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pquant.errors import ConfigError
from pquant.export.graph import ConstantStep, MoveStep, ReduceStep, ScaleStep, Step, SumStep
from pquant.export.windows import pool_windows
from pquant.layers.example import tensors_in
from pquant.layers.merge import is_shift

EXAMPLES = 7
"""Batch size of a recorded forward: a number that rarely equals or divides the size of another axis."""
SUMS = {
    **dict.fromkeys(("add", "__add__", "__radd__", "__iadd__", "add_"), (1, 1)),
    **dict.fromkeys(("sub", "__sub__", "__isub__", "sub_", "subtract"), (1, -1)),
    **dict.fromkeys(("rsub", "__rsub__"), (-1, 1)),
    **dict.fromkeys(("neg", "__neg__", "negative"), (-1,)),
}
MOVES = frozenset(
    "view view_as reshape reshape_as flatten ravel unflatten permute transpose swapaxes swapdims moveaxis movedim t squeeze unsqueeze expand "
    "expand_as broadcast_to repeat tile repeat_interleave chunk split tensor_split unbind narrow select index_select flip roll __getitem__ __get__ "
    "__iter__ contiguous clone detach to float dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout pad pixel_shuffle "
    "pixel_unshuffle channel_shuffle".split()
)
JOINS = frozenset("cat concat concatenate stack hstack vstack".split())
FACTORIES = frozenset("new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like new_tensor".split())
READS = frozenset(
    "item tolist numpy __array__ __bool__ __int__ __float__ __index__ __complex__ __contains__ __setitem__ equal allclose is_nonzero".split()
)
SHIFTS = frozenset("mul __mul__ __rmul__ __imul__ mul_ multiply div __truediv__ __itruediv__ div_ divide true_divide".split())
REDUCTIONS: dict[str, Literal["sum", "max", "min"]] = {"sum": "sum", "amax": "max", "amin": "min", "max": "max", "min": "min"}
PAIRS: dict[str, Literal["max", "min"]] = {"maximum": "max", "fmax": "max", "max": "max", "minimum": "min", "fmin": "min", "min": "min"}
CLAMPS = frozenset("clamp clamp_ clip clip_ clamp_min clamp_min_ clamp_max clamp_max_".split())
POOLS = {f"{kind}max_pool{rank}d": rank for rank in (1, 2, 3) for kind in ("", "adaptive_")}
POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


@dataclass(frozen=True)
class Operand:
    """A value of the graph: its number, its shape without the batch axis, and the batch axis of its tensor.

    ``joined`` says that the batch axis also contains the positions of each example, as after ``x.reshape(batch * positions, features)``; ``shape``
    then has the positions on this axis.
    """

    number: int
    shape: tuple[int, ...]
    axis: int = 0
    joined: bool = False

    @property
    def size(self) -> int:
        """The number of values of one example."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Call:
    """A call of a function: the function, its arguments, the tensors among them with their values, and the tensors that it returned."""

    name: str
    where: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: list[Tensor]
    operands: list[Operand]
    made: list[Tensor]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the operands."""
        return tuple(operand.number for operand in self.operands)

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the shape of a tensor with the batch axis of the first operand, without that axis."""
        return without_batch(tuple(tensor.shape), self.operands[0])

    def refused(self, why: str = "cannot be exported to hardware: use pquant's layers, or move it out of the model") -> ConfigError:
        """Return the error that names the call."""
        return ConfigError(f"export: {self.where} {why}")


Made = Iterator[tuple[Tensor, list[Step], Operand]]
"""Triples of a tensor, the steps that compute it, and an operand that describes its batch axis."""


def without_batch(shape: tuple[int, ...], like: Operand) -> tuple[int, ...]:
    """Return a shape without the batch axis, whose index is that of the operand ``like``."""
    if like.joined:
        return *shape[: like.axis], shape[like.axis] // EXAMPLES, *shape[like.axis + 1 :]
    return tuple(size for at, size in enumerate(shape) if at != like.axis)


def by_example(values: np.ndarray, like: Operand) -> np.ndarray:
    """Return the values of a batch with the batch axis, whose index is that of the operand ``like``, moved to the front."""
    if like.joined:
        values = values.reshape(*values.shape[: like.axis], EXAMPLES, -1, *values.shape[like.axis + 1 :])
    return np.moveaxis(values, like.axis, 0)


def in_order(where: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the operands of a sum, maximum, minimum or concatenation in order, with numbers as tensors.

    Raises:
        ConfigError: the call has a factor too.
    """
    if name in JOINS:
        return tensors_in((args, kwargs))
    given = [*(kwargs[key] for key in ("input",) if key in kwargs), *args, *(kwargs[key] for key in ("other",) if key in kwargs)]
    if name not in SUMS and not (len(given) == 2 and isinstance(given[1], Tensor)):
        return tensors_in(given[:1])
    if kwargs.get("alpha", 1) != 1 or len(given) > len(SUMS.get(name, (1, 1))):
        raise ConfigError(f"export: {where} must take values of the model alone, without a factor")
    return [value if isinstance(value, Tensor) else torch.tensor(value) for value in given]


def overwrites(name: str) -> bool:
    """Return whether a function writes into its first argument."""
    return name.endswith("_") and not name.endswith("__") or name.startswith("__i") and name not in ("__invert__", "__int__", "__index__", "__iter__")


def called(call: Call, before: int) -> Made:
    """Yield each tensor that a call returns, with its steps, which are numbered from ``before``, and its batch axis.

    Raises:
        ConfigError: the function cannot be exported; the message names it.
    """
    name, like = call.name, call.operands[0]
    if not call.made[0].is_floating_point():
        raise call.refused()
    if name in SUMS:
        yield call.made[0], [SumStep(call.where, call.numbers, call.shape(call.made[0]), SUMS[name])], like
    elif name in PAIRS and len(call.operands) == 2:
        yield call.made[0], _extreme(call, PAIRS[name], before), like
    elif name in ("relu", "relu_"):
        yield call.made[0], _extreme(call, "max", before), like
    elif name in CLAMPS:
        yield call.made[0], _clamped(call, before), like
    elif name in POOLS:
        yield call.made[0], _pool(call, before), like
    elif name in REDUCTIONS:
        yield _reduced(call)
    elif name in SHIFTS:
        yield call.made[0], [ScaleStep(call.where, call.numbers, call.shape(call.made[0]), _factor(call))], like
    elif name in MOVES or name in JOINS or name == "interpolate" and call.kwargs.get("mode", "nearest") == "nearest":
        yield from _moved(call, before)
    else:
        raise call.refused()


def _extreme(call: Call, kind: Literal["max", "min"], before: int) -> list[Step]:
    """Return the steps for the larger or smaller of two values that broadcast, or of one value and 0: join both in a last axis and reduce it."""
    shape = call.shape(call.made[0])
    starts = np.cumsum([0, *(operand.size for operand in call.operands)])
    places = [np.arange(one.size).reshape(one.shape) + start for one, start in zip(call.operands, starts, strict=False)]
    index = np.stack([*(np.broadcast_to(place, shape) for place in places), *[np.full(shape, -1)] * (2 - len(places))], -1)
    return _over_last(call, index, kind, shape, before)


def _over_last(call: Call, index: np.ndarray, kind: Literal["max", "min"], shape: tuple[int, ...], before: int) -> list[Step]:
    moved = MoveStep(call.where, call.numbers, index.shape, index, tuple(operand.size for operand in call.operands))
    return [moved, ReduceStep(call.where, (before + 1,), shape, kind, (len(shape),), False)]


def _clamped(call: Call, before: int) -> list[Step]:
    """Return the steps of a clamp: the maximum of the value and the lower bound, then the minimum of the result and the upper bound."""
    names = ("max",) if "max" in call.name else ("min", "max")
    bounds = dict(zip(names, call.args[1:], strict=False)) | {name: value for name, value in call.kwargs.items() if name in names}
    x = call.operands[0]
    steps: list[Step] = []
    index = np.stack([np.arange(x.size).reshape(x.shape), np.full(x.shape, x.size)], -1)
    number = x.number
    for name, kind in (("min", "max"), ("max", "min")):
        bound = bounds.get(name)
        if isinstance(bound, Tensor) and bound.ndim:
            raise call.refused()
        if bound is not None:
            steps.append(ConstantStep(f"constant of {call.where}", (), (), np.array(float(bound))))
            steps.append(MoveStep(call.where, (number, before + len(steps)), index.shape, index, (x.size, 1)))
            steps.append(ReduceStep(call.where, (before + len(steps),), x.shape, kind, (len(x.shape),), False))  # type: ignore[arg-type]
            number = before + len(steps)
    return steps


def _pool(call: Call, before: int) -> list[Step]:
    """Return the steps of a max pool: its windows in a last axis, and their largest values."""
    x, sizes = call.operands[0], tuple(call.made[0].shape[-POOLS[call.name] :])
    if len(call.made) > 1 or len(x.shape) != 1 + len(sizes) or x.axis or x.joined:
        raise call.refused()
    if call.name.startswith("adaptive"):
        if any(size % out for size, out in zip(x.shape[1:], sizes, strict=True)):
            raise call.refused("has windows that differ in size")
        kernel = tuple(size // out for size, out in zip(x.shape[1:], sizes, strict=True))
        pool = SimpleNamespace(kernel_size=kernel, stride=kernel, padding=0)
    else:
        given = {"stride": None, "padding": 0, "dilation": 1} | dict(zip(POOL_ARGUMENTS, call.args[1:], strict=False)) | call.kwargs
        pool = SimpleNamespace(**given | {"stride": given["stride"] or None})
    places = pool_windows(x.shape, pool, sizes).reshape(*call.shape(call.made[0]), -1)
    return _over_last(call, np.where(places < 0, places.max(-1, keepdims=True), places), "max", call.shape(call.made[0]), before)


def _reduced(call: Call) -> tuple[Tensor, list[Step], Operand]:
    x, like = call.given[0], call.operands[0]
    axis = like.axis
    given = dict(zip(("dim", "keepdim"), call.args[1:], strict=False))
    given |= {"dim" if key == "axis" else key: value for key, value in call.kwargs.items()}
    dim = given.get("dim")
    axes = range(x.ndim) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
    dims = sorted(one % x.ndim for one in axes)
    if axis in dims:
        raise call.refused("mixes the examples of a batch")
    keepdim = bool(given.get("keepdim"))
    new = Operand(0, (), axis if keepdim else axis - sum(one < axis for one in dims), like.joined)
    own = tuple(one - (one > axis and not like.joined) for one in dims)
    shape = without_batch(tuple(call.made[0].shape), new)
    return call.made[0], [ReduceStep(call.where, call.numbers, shape, REDUCTIONS[call.name], own, keepdim)], new


def _factor(call: Call) -> float:
    """Return the factor of a product or quotient with a number.

    Raises:
        ConfigError: the other factor is not a number, or not a power of two.
    """
    others = [value for value in (*call.args, *call.kwargs.values()) if value is not call.given[0]]
    if "div" in call.name and next(iter((*call.args, *call.kwargs.values()))) is not call.given[0]:
        raise call.refused()
    if len(others) != 1 or len(call.operands) > 1 or not isinstance(others[0], (int, float, Tensor)) or torch.as_tensor(others[0]).ndim:
        raise call.refused()
    number = float(others[0])
    factor = 1 / number if "div" in call.name and number else number
    if not factor or not is_shift(factor):
        raise call.refused()
    return factor


def _moved(call: Call, before: int) -> Made:
    args, kwargs, value = call.args, call.kwargs, 0.0
    if call.name == "pad":
        given = dict(zip(("pad", "mode", "value"), args[1:], strict=False)) | kwargs
        args, value = args[:1], float(given.pop("value", None) or 0)
        kwargs = given
    moved = call.function(*_replaced(args, call), **_replaced(kwargs, call))
    numbers, sizes = call.numbers, tuple(operand.size for operand in call.operands)
    for output, places in zip(call.made, tensors_in(moved), strict=True):
        index, like = _index(call, places, sum(sizes))
        steps: list[Step] = []
        if value:
            steps, index = [ConstantStep(f"constant of {call.where}", (), (), np.array(value))], np.where(index < 0, sum(sizes), index)
            numbers, sizes = (*numbers, before + 1), (*sizes, 1)
        yield output, [*steps, MoveStep(call.where, numbers, index.shape, index, sizes)], like


def _replaced(value: Any, call: Call) -> Any:
    """Return arguments with the values of each operand replaced by numbers of their places, 1 + example * total + place; 0 is a padded zero."""
    if isinstance(value, Tensor):
        at = next((at for at, tensor in enumerate(call.given) if tensor is value), None)
        if at is None:
            return value
        own = call.operands[at]
        total, start = sum(one.size for one in call.operands), sum(one.size for one in call.operands[:at])
        places = torch.arange(own.size).reshape(own.shape).double() + start + 1
        return (torch.cat if own.joined else torch.stack)([places + example * total for example in range(EXAMPLES)], own.axis)
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(item, call) for item in value)
    return {key: _replaced(item, call) for key, item in value.items()} if isinstance(value, dict) else value


def _index(call: Call, moved: Tensor, total: int) -> tuple[Any, Operand]:
    """Return the places of one example, and an operand that describes the batch axis.

    Raises:
        ConfigError: the examples of a batch are mixed.
    """
    index = moved.double().numpy().astype(np.int64) - 1
    alone = [Operand(0, (), axis) for axis, size in enumerate(index.shape) if size == EXAMPLES]
    joined = [Operand(0, (), axis, joined=True) for axis, size in enumerate(index.shape) if size and size % EXAMPLES == 0]
    for like in (*alone, *joined):
        apart = by_example(index, like)
        starts = np.arange(EXAMPLES).reshape(-1, *(1,) * (apart.ndim - 1)) * total
        if (np.where(apart < 0, apart, apart - starts) == apart[0]).all() and (apart[0] < total).all():
            return apart[0], like
    raise call.refused("mixes the examples of a batch")
