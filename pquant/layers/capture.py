"""The graph of one module's own forward, in which the modules it calls are single nodes: torch.fx, J. Reed et al., arXiv 2112.08429."""

import copy
import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

Arguments = dict[str, Any]
"""The arguments of one call of a module by parameter name, defaults included."""
VALUE = "value"
"""Key of a node's ``meta`` under which its value in the call stands."""
KNOWN = ("torch", "pquant")
CONSTANT = "_tensor_constant"
"""What torch.fx calls tensors that a forward makes of nothing."""
COMMON = ("device", "dtype", "ndim", "layout", "is_cuda")


class NotCaptured(Exception):
    """A forward that no graph stands for; the message says why."""


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Return the arguments of a call by parameter name.

    Raises:
        NotCaptured: the forward has ``*args`` or ``**kwargs``.
    """
    signature = inspect.signature(type(module).forward)
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in signature.parameters.values()):
        raise NotCaptured("its forward takes *args or **kwargs")
    call = signature.bind(module, *args, **kwargs)
    call.apply_defaults()
    return dict(list(call.arguments.items())[1:])


class _Proxy(fx.Proxy):
    """Stands for a value in the graph; of what all calls have in common, such as a dtype, it gives the value itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node.meta[VALUE], name) if name in COMMON and isinstance(self.node.meta[VALUE], Tensor) else super().__getattr__(name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _Tracer(fx.Tracer):
    """Records the calls of one forward, and computes them along the way, so that branches by sizes are followed and guarded."""

    def __init__(self, arguments: Arguments) -> None:
        super().__init__()
        self.arguments, self.computing = arguments, False

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
            return target(*args, **kwargs)  # a function that its author marked as one node
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self.computing = True
        try:
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
        if kind == "call_function":
            return target(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if kind == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        return attribute(self.root, target) if kind == "get_attr" else None

    def _value(self, node: fx.Node) -> Any:
        """Return the value of a node; a buffer gets its node without :meth:`create_proxy`."""
        return node.meta[VALUE] if VALUE in node.meta else node.meta.setdefault(VALUE, attribute(self.root, str(node.target)))

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return which branch the call takes, and let the graph check that others take it too; only sizes may decide."""
        value = obj.node.meta[VALUE]
        if isinstance(value, Tensor):
            raise NotCaptured("values decide what it computes")
        self._guard(self.create_proxy("call_function", _equals, (obj, bool(value)), {}), "a size takes another branch than that of the example")
        return bool(value)

    def _guard(self, holds: fx.Proxy, otherwise: str) -> None:
        self.create_proxy("call_function", torch._assert, (holds, f"the model was compressed with an example_input: {otherwise}"), {})


def _equals(value: Any, expected: Any) -> bool:
    return bool(value) is expected if isinstance(expected, bool) else value == expected if expected is not None else value is None


def attribute(module: nn.Module, path: str) -> Any:
    """Return what a dotted path names, seen from a module."""
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def captured(module: nn.Module, arguments: Arguments, training: bool) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Return the graph of a module's forward in one mode, and constant tensors that it names. The module is left untouched.

    Each node's ``meta`` holds its value in the call.

    Raises:
        NotCaptured: the forward cannot be traced, keeps state of its own, or takes tensors inside other arguments.
    """
    twin = copy.deepcopy(module)
    twin.train(training)
    arguments = tree_map_only(Tensor, torch.clone, arguments)
    for value in arguments.values():
        if not isinstance(value, (Tensor, int, float, bool, str, type(None), torch.dtype, torch.device)):
            raise NotCaptured(f"it takes a {type(value).__name__}")
    before, versions = dict(vars(twin)), [buffer._version for buffer in twin._buffers.values() if buffer is not None]
    tracer = _Tracer(arguments)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            graph = tracer.trace(twin)
    except NotCaptured:
        raise
    except Exception as error:
        raise NotCaptured(" ".join(str(error).split())[:160] or type(error).__name__) from error
    changed = [name for name in vars(twin) if vars(twin)[name] is not before.get(name) and not name.startswith(CONSTANT)]
    if changed or versions != [buffer._version for buffer in twin._buffers.values() if buffer is not None]:
        raise NotCaptured(f"it keeps state of its own{': ' + changed[0] if changed else ''}")
    return graph, {name: value for name, value in vars(twin).items() if name.startswith(CONSTANT)}
