"""Replacement of calls of ``torch``, ``torch.nn.functional`` and tensor methods by layers."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pquant.layers.activation import KINDS
from pquant.layers.attention import ScaledDotProductAttention
from pquant.layers.capture import VALUE, Arguments, NotCaptured, attribute, captured, guard_number, is_of_sizes
from pquant.layers.constant import Constant
from pquant.layers.example import tensors_in
from pquant.layers.merge import Mean, Merge, Scale, is_shift

Operands = tuple[Any, ...]
Made = tuple[nn.Module, Operands]
"""A float layer, and its arguments: nodes of the graph, or values."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "gelu": ("approximate",),
    "elu": ("alpha",),
    "celu": ("alpha",),
    "leaky_relu": ("negative_slope",),
    "hardtanh": ("min_val", "max_val"),
    "softplus": ("beta", "threshold"),
    "softshrink": ("lambd",),
    "hardshrink": ("lambd",),
}
"""Parameters of functional activations after the input, in order."""
ACTIVATIONS = frozenset(KINDS) - {"prelu"}
POOLS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
SAME = {
    "bmm": "matmul",
    "imul": "mul",
    "imatmul": "matmul",
    "multiply": "mul",
    "truediv": "div",
    "itruediv": "div",
    "true_divide": "div",
    "divide": "div",
}
SAME |= {"rmul": "mul", "swish": "silu", "clip": "clamp"}
JOINS = frozenset(
    "add iadd sub isub mul imul cat concat concatenate stack expand expand_as repeat unsqueeze squeeze view reshape flatten permute "
    "transpose contiguous getitem index_select chunk split to matmul einsum where".split()
)
"""Functions of a parameter that a layer does not replace together with the parameter; the parameter becomes a Constant layer."""
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Relative and absolute tolerance between a layer and the function call that it replaces, for float rounding."""
MASKED = 1e6


def name_of(target: Any) -> str:
    """Return the plain name of a called function or method: ``mul`` for ``operator.mul``, ``torch.mul``, ``Tensor.__mul__`` and ``Tensor.mul_``."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    name = name.strip("_")
    return SAME.get(name, name)


def _is_values(node: Any) -> bool:
    """Return whether an argument is a node whose value is a float tensor."""
    value = node.meta.get(VALUE) if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def _options(node: fx.Node, names: Sequence[str], tensors: Sequence[str] = ()) -> dict[str, Any]:
    """Return the arguments of a call after its input, by name. Only those in ``tensors`` may be nodes.

    Raises:
        _NoLayer: another argument is a node, or the call has more arguments than ``names``.
    """
    options = {**dict(zip(names, node.args[1:], strict=False)), **{key: value for key, value in node.kwargs.items() if key not in ("input", "self")}}
    made = [name for name, value in options.items() if name not in tensors and fx.map_arg(value, lambda inner: None) != value]
    if made or len(node.args) > len(names) + 1:
        raise _NoLayer
    return options


class _NoLayer(Exception):
    """Raised for a call with arguments that its layer does not support."""


def _activation(node: fx.Node) -> Made | None:
    name = name_of(node.target)
    if name == "relu":
        in_place = bool(_options(node, ("inplace",)).get("inplace")) or str(node.target).endswith("relu_")
        return nn.ReLU(in_place), (_input(node),)
    options = {key: value for key, value in _options(node, OPTIONS.get(name, ())).items() if key != "inplace"}
    return KINDS[name](**options), (_input(node),)


def _input(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _softmax(node: fx.Node) -> Made | None:
    options = _options(node, ("dim",))
    return None if options.get("dim") is None or options.get("dtype") else (nn.Softmax(options["dim"]), (_input(node),))


def _product(node: fx.Node) -> Made | None:
    if len(node.args) != 2:
        return None
    first, second = node.args
    if _is_values(first) and _is_values(second):
        return (Merge("mul"), (first, second)) if name_of(node.target) == "mul" else None
    values, number = (first, second) if _is_values(first) else (second, first)
    divides = name_of(node.target) == "div"
    made = number if isinstance(number, fx.Node) else None
    number = number if made is None else made.meta[VALUE]
    if not _is_values(values) or not isinstance(number, (int, float)) or divides and values is second:
        return None
    if is_shift(number) or made is not None and not is_of_sizes(made):
        return None
    if made is not None:
        guard_number(node.graph, made)
    return Scale(float(number), divides), (values,)


def _square(node: fx.Node) -> Made | None:
    exponent = 2 if name_of(node.target) == "square" else _options(node, ("exponent",)).get("exponent")
    return (Merge("mul"), (_input(node), _input(node))) if exponent == 2 else None


def _matmul(node: fx.Node) -> Made | None:
    return (Merge("matmul"), tuple(node.args)) if len(node.args) == 2 and all(map(_is_values, node.args)) else None


def _einsum(node: fx.Node) -> Made | None:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    return (Merge("einsum", str(equation)), tuple(operands)) if len(operands) == 2 and all(map(_is_values, operands)) else None


def _mean(node: fx.Node) -> Made | None:
    options = _options(node, ("dim", "keepdim"))
    dim = options.get("dim")
    axes = tuple(dim) if isinstance(dim, (list, tuple)) else (dim,)
    if dim is None or options.get("dtype") or not all(isinstance(axis, int) for axis in axes):
        return None
    return Mean(axes if isinstance(dim, (list, tuple)) else dim, bool(options.get("keepdim"))), (_input(node),)


def _clamp(node: fx.Node) -> Made | None:
    options = _options(node, ("min", "max"))
    low, high = options.get("min"), options.get("max")
    if low == 0 and high is None:
        return nn.ReLU(), (_input(node),)
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or low >= high:
        return None
    return nn.Hardtanh(float(low), float(high)), (_input(node),)


def _average_pool(node: fx.Node) -> Made | None:
    name = name_of(node.target)
    adaptive, rank = name.startswith("adaptive"), name[-2:]
    layer: Any = getattr(nn, f"{'Adaptive' * adaptive}AvgPool{rank}")
    return layer(**_options(node, ("output_size",) if adaptive else POOLS)), (_input(node),)


def _norm(node: fx.Node) -> Made | None:
    options = _options(node, ("normalized_shape", "weight", "bias", "eps"), ("weight", "bias"))
    own = {name: options[name] for name in ("weight", "bias") if options.get(name) is not None}
    if "bias" in own and "weight" not in own or not all(_is_used_here_alone(values) for values in own.values()):
        return None
    layer = nn.LayerNorm(options["normalized_shape"], options.get("eps", 1e-5), "weight" in own, "bias" in own)
    for name, values in own.items():
        setattr(layer, name, values.meta[VALUE])
    layer.taken = {name: str(values.target) for name, values in own.items()}  # type: ignore[assignment]
    return layer, (_input(node),)


def _is_used_here_alone(node: fx.Node) -> bool:
    """Return whether a node is a parameter of the module itself that only one call uses."""
    others = [other for other in node.graph.nodes if other.op == "get_attr" and other.target == node.target]
    return node.op == "get_attr" and "." not in str(node.target) and len(others) == len(node.users) == 1


def _attention(node: fx.Node) -> Made | None:
    options = _options(node, ("key", "value", "attn_mask", "dropout_p", "is_causal"), ("query", "key", "value", "attn_mask"))
    if "query" in options or options.get("enable_gqa") or not isinstance(options.get("dropout_p", 0.0), (int, float)):
        return None
    scale = options.get("scale")
    scale = 1 / math.sqrt(node.args[0].meta[VALUE].shape[-1]) if scale is None else scale  # type: ignore[union-attr]
    layer = ScaledDotProductAttention(float(scale), float(options.get("dropout_p", 0.0)))
    return layer, (node.args[0], options["key"], options["value"], options.get("attn_mask"), bool(options.get("is_causal", False)))


def _dropout(node: fx.Node) -> Made | None:
    options = _options(node, ("p", "training", "inplace"))
    return (nn.Dropout(options.get("p", 0.5)), (_input(node),)) if options.get("training", True) else None


LAYERS: dict[str, Callable[[fx.Node], Made | None]] = {
    **dict.fromkeys(ACTIVATIONS, _activation),
    "softmax": _softmax,
    "mul": _product,
    "div": _product,
    "pow": _square,
    "square": _square,
    "matmul": _matmul,
    "einsum": _einsum,
    "mean": _mean,
    "clamp": _clamp,
    **dict.fromkeys([f"{kind}avg_pool{rank}d" for kind in ("", "adaptive_") for rank in (1, 2, 3)], _average_pool),
    "layer_norm": _norm,
    "scaled_dot_product_attention": _attention,
    "dropout": _dropout,
}
"""Function that builds the layer for a call, by the name of the call; it returns None where no layer fits."""
SHORT = {"scaled_dot_product_attention": "attention"}


def takes_layers(name: str) -> bool:
    """Return whether a layer can replace calls of a function of this name."""
    return name_of(name) in LAYERS or name == "linear"


def with_layers(module: nn.Module, calls: Sequence[Arguments]) -> None:
    """Replace the function calls in the forward of ``module`` by calls of new child layers; its class becomes a subclass with that forward.

    Args:
        module: the module, changed in place; its present children do not change.
        calls: the arguments of its calls, in evaluation.

    Raises:
        NotCaptured: the forward cannot be traced, differs in training, or the layers do not return the values of the functions.
    """
    twin = copy.deepcopy(module)
    graph, constants = captured(twin, calls[0], training=True)
    _check_modes(graph, captured(twin, calls[0], training=False)[0])
    for name, value in constants.items():
        twin.register_buffer(name, value, persistent=False)
    before = set(dict(twin.named_children()))
    changed = _parameters_to_layers(twin, graph) + _functions_to_layers(twin, graph)
    if not changed:
        return
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    graph.lint()
    forward = type(fx.GraphModule(twin, graph)).forward
    kind = type(module)
    twin.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    _check_equal(module, twin, calls)
    for name, child in twin.named_children():
        if name not in before:
            module.add_module(name, child)
            _take_parameters(module, child)
    for name, value in constants.items():
        module.register_buffer(name, value, persistent=False)
    module.__class__ = twin.__class__


def _take_parameters(module: nn.Module, child: nn.Module) -> None:
    """Move the parameters that a replaced function used from the module to the new child."""
    for name, own in vars(child).pop("taken", {}).items():
        child._parameters[name] = module._parameters.pop(own)


def _functions_to_layers(module: nn.Module, graph: fx.Graph) -> int:
    count = 0
    for node in list(graph.nodes):
        make = LAYERS.get(name_of(node.target)) if node.op in ("call_function", "call_method") else None
        if not _is_values(node):
            continue
        if name_of(node.target) == "linear" and (owner := _owner(module, node)):
            _call(graph, node, owner, (_input(node),))
            count += 1
        try:
            made = make(node) if make else None
        except _NoLayer:
            made = None
        if made is not None:
            _put(module, graph, node, *made)
            count += 1
    return count


def _parameters_to_layers(module: nn.Module, graph: fx.Graph) -> int:
    count = 0
    for node in [node for node in graph.nodes if node.op == "get_attr" and isinstance(attribute(module, node.target), nn.Parameter)]:
        if node.users and all(name_of(user.target) in JOINS for user in node.users):
            name = _free(module, f"{node.target.rpartition('.')[2]}_constant")
            module.add_module(name, Constant(tuple(node.meta[VALUE].shape), node.target))
            with graph.inserting_after(node):
                new = graph.call_module(name, (node,))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
            count += 1
    return count


def _put(module: nn.Module, graph: fx.Graph, node: fx.Node, layer: nn.Module, operands: Operands) -> None:
    """Add ``layer`` as a child of the module, and replace the node by a call of it."""
    called = name_of(node.target)
    name = _free(module, SHORT.get(called, called))
    module.add_module(name, layer.train(module.training))
    _call(graph, node, name, operands)


def _call(graph: fx.Graph, node: fx.Node, name: str, operands: Operands) -> None:
    """Replace a node by a call of the child ``name``."""
    with graph.inserting_before(node):
        new = graph.call_module(name, operands)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _owner(module: nn.Module, node: fx.Node) -> str:
    """Return the name of the dense layer whose weight and bias a call of ``linear`` uses, or "" where they do not belong to one dense layer."""
    options = _options(node, ("weight", "bias"), ("weight", "bias"))
    paths = [
        value.target if isinstance(value, fx.Node) and value.op == "get_attr" else None for value in (options.get("weight"), options.get("bias"))
    ]
    owner = str(paths[0]).rpartition(".")[0]
    layer = attribute(module, owner) if owner else None
    bias = None if options.get("bias") is None else f"{owner}.bias"
    fits = type(layer) is nn.Linear and paths == [f"{owner}.weight", bias] and (bias is None) == (layer.bias is None)
    return owner if fits else ""


def _free(module: nn.Module, name: str) -> str:
    """Return ``name``, with a number appended where the module already has an attribute of this name."""
    names = [name, *(f"{name}_{number}" for number in range(1, 1000))]
    return next(name for name in names if not hasattr(module, name))


def _check_modes(training: fx.Graph, evaluation: fx.Graph) -> None:
    """Raise NotCaptured where a forward makes other calls in training than in evaluation, except for dropout."""

    def described(graph: fx.Graph) -> list[tuple[Any, ...]]:
        return [(node.op, node.target, *_plain(node)) for node in graph.nodes]

    if described(training) != described(evaluation):
        raise NotCaptured("it computes something else in training")


def _plain(node: fx.Node) -> tuple[Any, Any]:
    """Return the arguments of a node, with nodes replaced by their names, and without the arguments that control dropout."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda inner: inner.name)
    name = name_of(node.target)
    if name == "dropout":
        return args[:1], None
    if name == "scaled_dot_product_attention":
        return args[:4], {key: value for key, value in kwargs.items() if key != "dropout_p"}
    return args, kwargs


@torch.no_grad()
def _check_equal(module: nn.Module, other: nn.Module, calls: Sequence[Arguments]) -> None:
    """Raise NotCaptured where two modules differ in evaluation, for calls in which ``module`` raises no error."""
    module, other = copy.deepcopy(module), copy.deepcopy(other)
    module.eval()
    other.eval()
    for arguments in calls:
        mine = _result(module, arguments)
        if isinstance(mine, Exception):
            continue
        theirs = _result(other, arguments)
        if isinstance(theirs, Exception):
            sizes = isinstance(theirs, AssertionError)
            raise NotCaptured("sizes decide what it computes" if sizes else " ".join(str(theirs).split())[:160]) from theirs
        for expected, given in zip(tensors_in(mine), tensors_in(theirs), strict=False):
            if expected.is_floating_point() and not _is_close(expected, given):
                raise NotCaptured("the layers that would replace its calls return other values")


def _result(module: nn.Module, arguments: Arguments) -> Any:
    """Return the result of a module for a call, or the exception that it raises."""
    try:
        with torch.random.fork_rng(devices=[]):
            return module(*copy.deepcopy(list(arguments.values())))
    except Exception as error:
        return error


def _is_close(expected: Tensor, given: Tensor) -> bool:
    """Return whether values are equal up to rounding. Values of at least ``MASKED``, such as those of masks, do not raise the tolerance."""
    usual = expected[expected.abs() < MASKED]
    tolerance = ABSOLUTE * float(usual.abs().max()) if usual.numel() else 0.0
    return expected.shape == given.shape and torch.allclose(expected, given.to(expected), RELATIVE, tolerance, equal_nan=True)
