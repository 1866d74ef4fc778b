"""The graph of the forward of one module, in which each submodule call is one node: torch.fx, J. Reed et al., arXiv 2112.08429."""

import copy
import inspect
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from pquant.layers.example import same_random_numbers

Arguments = dict[str, Any]
"""The arguments of one call of a module by parameter name, defaults included."""
VALUE = "value"
"""Key of a node's ``meta`` that holds the value of the node in the recorded call."""
KNOWN = ("torch", "pquant")
GUARD = "the model was compressed with an example_input"
CONSTANT = "_tensor_constant"
"""Prefix of the names that torch.fx gives to tensors that a forward creates."""
COMMON = ("device", "dtype", "ndim", "layout", "is_cuda")


class NotCaptured(Exception):
    """Raised for a forward that cannot be represented as a graph; the message says why."""


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Return the arguments of a call by parameter name.

    Raises:
        NotCaptured: the forward has ``*args`` or ``**kwargs``.
    """
    signature = inspect.signature(type(module).forward)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise NotCaptured("its forward takes *args or **kwargs")
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        raise NotCaptured("its forward takes arguments by keyword alone")
    call = signature.bind(module, *args, **kwargs)
    call.apply_defaults()
    return dict(list(call.arguments.items())[1:])


class _Proxy(fx.Proxy):
    """A value in the graph. An attribute that all calls have in common, such as a dtype, is returned as the plain value."""

    def __getattr__(self, name: str) -> Any:
        value = self.node.meta[VALUE]
        if isinstance(value, Tensor) and name in ("requires_grad", "grad_fn", "is_leaf", "data"):
            raise NotCaptured(f"it looks at the {name} of a tensor")
        return getattr(value, name) if name in COMMON and isinstance(value, Tensor) else super().__getattr__(name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _in_place(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.imatmul, operator.ipow):
    setattr(_Proxy, f"__{_function.__name__}__", _in_place(_function))


class _Tracer(fx.Tracer):
    """Records and computes the calls of one forward. It follows branches that depend on sizes, and adds a check of each to the graph."""

    def __init__(self, arguments: Arguments) -> None:
        super().__init__()
        self.arguments, self.computing = arguments, False
        self.proxy_buffer_attributes = True
        self.seen: dict[nn.Module, dict[str, Any]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.computing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        if kind == "call_function" and inspect.isfunction(target) and str(target.__module__).partition(".")[0] not in KNOWN:
            return target(*args, **kwargs)  # a function that its author marked with torch.fx.wrap
        if kind != "placeholder" and not _grad_enabled():
            raise NotCaptured("it switches gradients off")
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self.computing = True
        try:
            with torch.no_grad(), same_random_numbers(self.root):
                value = proxy.node.meta[VALUE] = self._computed(kind, target, proxy.node)
        finally:
            self.computing = False
        if kind == "placeholder" and not isinstance(value, Tensor):
            self._guard(self.create_proxy("call_function", _equals, (proxy, value), {}), f"argument '{target}' must be {value!r}, as in the example")
            return value
        return proxy

    def _computed(self, kind: str, target: Any, node: fx.Node) -> Any:
        if kind == "placeholder":
            return self.arguments[target]
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
        if kind == "call_module":
            module = self.root.get_submodule(target)
            result = module(*args, **kwargs)
            self.note_state(module)
            return result
        kept = [*self.root.parameters(), *self.root.buffers(), *(value for value in self.arguments.values() if isinstance(value, Tensor))]
        versions = [tensor._version for tensor in kept]
        result = None
        if kind == "call_function":
            result = target(*args, **kwargs)
        elif kind == "call_method":
            result = getattr(args[0], target)(*args[1:], **kwargs)
        elif kind == "get_attr":
            result = attribute(self.root, target)
        if versions != [tensor._version for tensor in kept]:
            raise NotCaptured("it writes into its input, a parameter or a buffer")
        return result

    def note_state(self, module: nn.Module) -> None:
        """Record the attributes of a module and of its submodules."""
        self.seen.update({inner: _state(inner) for inner in module.modules()})

    def _value(self, node: fx.Node) -> Any:
        """Return the value of a node. A constant tensor has no value yet, since torch.fx creates its node without :meth:`create_proxy`."""
        return node.meta[VALUE] if VALUE in node.meta else node.meta.setdefault(VALUE, attribute(self.root, str(node.target)))

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return which branch the call takes, and add a check to the graph that other calls take it too. Only sizes may decide a branch."""
        value = obj.node.meta[VALUE]
        if not is_of_sizes(obj.node):
            raise NotCaptured("values decide what it computes")
        self._guard(self.create_proxy("call_function", _equals, (obj, bool(value)), {}), "a size leads to another branch than in the example")
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Any:
        """Return an iterator over the parts of a result, such as those of a split."""
        value = obj.node.meta[VALUE]
        if not isinstance(value, (tuple, list)):
            return super().iter(obj)
        return iter([self.create_proxy("call_function", operator.getitem, (obj, at), {}) for at in range(len(value))])

    def _guard(self, holds: fx.Proxy, otherwise: str) -> None:
        self.create_proxy("call_function", torch._assert, (holds, f"{GUARD}: {otherwise}"), {})


def guard_number(graph: fx.Graph, node: fx.Node) -> None:
    """Add a check to the graph that a number has the same value as in the recorded call."""
    with graph.inserting_after(node):
        holds = graph.call_function(_equals, (node, node.meta[VALUE]))
    with graph.inserting_after(holds):
        graph.call_function(torch._assert, (holds, f"{GUARD}: a factor computed from sizes was {node.meta[VALUE]} there and differs for this input"))


def is_of_sizes(node: fx.Node) -> bool:
    """Return whether a node is a number computed from sizes of tensors alone."""
    if isinstance(node.meta.get(VALUE), Tensor):
        return False
    of_tensors = (node.op == "call_method" and node.target in ("size", "numel", "dim")) or (node.target is getattr and node.args[1] == "shape")
    return bool(of_tensors) or node.op == "placeholder" or all(map(is_of_sizes, node.all_input_nodes))


_grad_enabled = torch.is_grad_enabled


def _state(module: nn.Module) -> dict[str, Any]:
    """Return a snapshot of a module's attributes that differs after an attribute was set or a container in one was changed."""
    values = {name: value for name, value in vars(module).items() if not name.startswith(CONSTANT) and name != "_buffers"}
    return {name: (id(value), len(value) if isinstance(value, (list, dict, set)) else 0) for name, value in values.items()}


@contextmanager
def _refusing(tracer: _Tracer) -> Iterator[None]:
    """Raise NotCaptured where the forward uses what a graph cannot represent: an autograd.Function, autocast, or the gradient mode."""

    def refusal(original: Any, said: str) -> Any:
        def refused(*args: Any, **kwargs: Any) -> Any:
            if tracer.computing:
                return original(*args, **kwargs)
            raise NotCaptured(said)

        return refused

    original = inspect.getattr_static(torch.autograd.Function, "apply")

    def apply(kind: Any, *args: Any) -> Any:
        return original.__get__(None, kind)(*args)

    with (
        mock.patch.object(torch.autograd.Function, "apply", classmethod(refusal(apply, "it calls an autograd.Function"))),
        mock.patch.object(torch.autocast, "__enter__", refusal(torch.autocast.__enter__, "it switches autocast")),
        mock.patch.object(torch, "is_grad_enabled", refusal(torch.is_grad_enabled, "it asks whether gradients are computed")),
    ):
        yield


def _equals(value: Any, expected: Any) -> bool:
    return bool(value) is expected if isinstance(expected, bool) else value == expected if expected is not None else value is None


def attribute(module: nn.Module, path: str) -> Any:
    """Return the attribute of a module at a dotted path."""
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def captured(module: nn.Module, arguments: Arguments, training: bool) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Return the graph of a module's forward in one mode, and the constant tensors in it by name. The module is left untouched.

    The ``meta`` of each node holds its value in the call with ``arguments``.

    Raises:
        NotCaptured: the forward cannot be traced, sets attributes, draws random numbers in Python, takes tensors inside other arguments, or
            does something that a graph cannot represent.
    """
    if "forward" in vars(module):
        raise NotCaptured("it has a forward of its own")
    twin = copy.deepcopy(module)
    twin.train(training)
    arguments = tree_map_only(Tensor, torch.clone, arguments)
    for value in arguments.values():
        if not isinstance(value, (Tensor, int, float, bool, str, type(None), torch.dtype, torch.device)):
            raise NotCaptured(f"it takes a {type(value).__name__}")
    tracer = _Tracer(arguments)
    tracer.note_state(twin)
    try:
        with torch.enable_grad(), same_random_numbers(twin), _refusing(tracer):
            numbers = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
            graph = tracer.trace(twin)
            drawn = numbers[:2] != (random.getstate(), str(np.random.get_state())) or not torch.equal(numbers[2], torch.get_rng_state())
    except NotCaptured:
        raise
    except Exception as error:
        raise NotCaptured(" ".join(str(error).split())[:160] or type(error).__name__) from error
    if drawn:
        raise NotCaptured("random numbers decide what it computes")
    for inner, before in tracer.seen.items():
        changed = [name for name, value in _state(inner).items() if before.get(name) != value]
        if changed:
            raise NotCaptured(f"it keeps state of its own: {changed[0]}")
    return graph, {name: value for name, value in vars(twin).items() if name.startswith(CONSTANT)}
