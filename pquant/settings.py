"""Settings: frozen dataclasses that check themselves and double as Hydra schemas.

A method object (``Wanda``, ``Quantization``, ``Training``...) is a subclass of :class:`Settings`. Each field is declared once, with
its type, default and range; :func:`schema` registers the class so that a YAML file under ``conf/`` can extend it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode, DictConfig, IntegerNode, OmegaConf, ValidationError, ValueNode

from pquant.errors import ConfigError, did_you_mean

T = TypeVar("T", bound=type)
LARGEST = 2**63 - 1


def setting(default: Any = dataclasses.MISSING, **bounds: float) -> Any:
    """Declare a field with bounds: any of ``ge``, ``gt``, ``le``, ``lt``. Lists and dicts are copied for each object."""
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=bounds)
    return dataclasses.field(default=default, metadata=bounds)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of every method object: checks the type and range of each field when it is built.

    Raises:
        ConfigError: a value of the wrong type, outside its range, or not finite; the message names class, field and value.
    """

    def __post_init__(self) -> None:
        """Check every field; an ``int`` given for a ``float``, 1e4 given for an ``int``, and 0/1 given for a ``bool`` are converted."""
        check_fields(self, *(field.name for field in dataclasses.fields(self)))

    def error(self, field: str, expected: str) -> ConfigError:
        """Return the error for a wrong value of ``field``: the expected and the actual value."""
        return ConfigError(f"{type(self).__name__}.{field} must be {expected}, got {getattr(self, field)!r}")


def check_fields(owner: Any, *names: str) -> None:
    """Check fields of a dataclass by type and range, and convert each to its type.

    Raises:
        ConfigError: a value of the wrong type, outside its range, or not finite; the message names class, field and value.
    """
    hints = get_type_hints(type(owner))
    for field in dataclasses.fields(owner):
        if field.name not in names:
            continue
        given, label = getattr(owner, field.name), f"{type(owner).__name__}.{field.name}"
        value = _typed(label, OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given, hints[field.name])
        object.__setattr__(owner, field.name, value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _in_range(label, value, dict(field.metadata))


def _typed(label: str, value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in allowed:
        fits, converted = _fit(value, kind)
        if fits:
            return converted
    choices = [choice for kind in allowed if get_origin(kind) is Literal for choice in get_args(kind)]
    hint_text = did_you_mean(value, choices) if isinstance(value, str) else ""
    raise ConfigError(f"{label} must be {' or '.join(map(describe, allowed))}, got {value!r}{hint_text}")


def _in_range(label: str, value: float, bounds: dict[str, float]) -> None:
    low, high = _ends(bounds)
    inside = low <= value <= high and value != bounds.get("gt") and value != bounds.get("lt")
    if inside and isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{label} must be in [-2^63, 2^63), got a number of {len(str(abs(value)))} digits")
    if inside and math.isfinite(value):
        return
    expected = f"in {interval(bounds)}" if bounds else "finite"
    raise ConfigError(f"{label} must be {expected}, got {value!r}")


def interval(bounds: Mapping[str, float]) -> str:
    """Return the bounds of a :func:`setting` in interval notation: ``(0, 1]``."""
    low, high = _ends(bounds)
    return f"{'[' if 'ge' in bounds else '('}{low:g}, {high:g}{']' if 'le' in bounds else ')'}"


def _ends(bounds: Mapping[str, float]) -> tuple[float, float]:
    return bounds.get("ge", bounds.get("gt", -math.inf)), bounds.get("le", bounds.get("lt", math.inf))


def _fit(value: Any, kind: Any) -> tuple[bool, Any]:
    """Return whether ``value`` is of ``kind``, and the value as that kind."""
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind) and isinstance(value, str), value
    if origin is list:
        fitted = [_fit(item, get_args(kind)[0]) for item in value] if isinstance(value, (list, tuple)) else [(False, None)]
        return all(fits for fits, _ in fitted), [item for _, item in fitted]
    if origin is dict or kind is dict:
        return isinstance(value, dict), value
    if kind is Any:
        return True, value
    if isinstance(kind, type) and issubclass(kind, Settings) and isinstance(value, dict):
        return True, kind(**value)
    if kind is bool:
        fits = isinstance(value, (bool, int)) and value in (0, 1)
        return fits, bool(value) if fits else value
    if isinstance(value, bool):
        return False, value
    if kind is float and isinstance(value, int):
        return True, float(value)
    if kind is int and _is_whole(value):
        return True, int(value)
    return isinstance(value, NoneType if kind is None else kind), value


def describe(kind: Any) -> str:
    """Return a description of a type."""
    origin = get_origin(kind)
    if origin is Literal:
        choices = [repr(choice) for choice in get_args(kind)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if kind is NoneType:
        return "null"
    if origin is list:
        return f"a list of {describe(get_args(kind)[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", dict: "a dictionary"}
    return names.get(origin or kind, getattr(kind, "__name__", str(kind)))


def schema(group: str, name: str, *, open_to_extra_keys: bool = False) -> Callable[[T], T]:
    """Register a settings class as ``schema/<group>/<name>``, which a YAML extends by ``- /schema/<group>/<name>@_here_``.

    With ``open_to_extra_keys`` the YAML and ``+group.key=value`` may add keys that the class does not have.
    """

    def register(cls: T) -> T:
        target = ("_target_", str, dataclasses.field(default=f"{cls.__module__}.{cls.__name__}"))
        node = OmegaConf.structured(dataclasses.make_dataclass(cls.__name__, [target], bases=(cls,), frozen=True))
        _unlock(node)
        if open_to_extra_keys:
            node = DictConfig({key: node._get_node(key) for key in node})
        ConfigStore.instance().store(group=f"schema/{group}", name=name, node=node)
        return cls

    return register


class _OwnNode(ValueNode):
    """A node that is copied as a node of its own class; OmegaConf's nodes are copied as nodes of OmegaConf's class."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy of the same class."""
        copied = type(self)()  # type: ignore[call-arg]
        self._deepcopy_impl(copied, memo)
        return copied


class StrictBoolean(_OwnNode, BooleanNode):
    """A boolean node of a schema that accepts true, false, 0 and 1, but not strings."""

    def _validate_and_convert_impl(self, value: Any) -> bool:
        if isinstance(value, (bool, int)) and value in (0, 1):
            return bool(value)
        raise ValidationError("must be true or false, got '$VALUE'")


class WholeNumber(_OwnNode, IntegerNode):
    """An integer node of a schema that also accepts a number such as 1e4, which YAML and Hydra read as a float."""

    def _validate_and_convert_impl(self, value: Any) -> int:
        return super()._validate_and_convert_impl(int(value) if _is_whole(value) else value)


def _is_whole(value: Any) -> bool:
    """Return whether a value is a float without a fraction."""
    return isinstance(value, float) and value.is_integer()


def _unlock(node: DictConfig) -> None:
    """Allow a composed config to change fields of frozen classes and to add keys to plain dictionaries; use the nodes of this module."""
    own: dict[type, type] = {BooleanNode: StrictBoolean, IntegerNode: WholeNumber}
    OmegaConf.set_readonly(node, None)
    for key in node:
        inner: Any = node._get_node(key)
        if type(inner) in own:
            inner.__class__ = own[type(inner)]
        if isinstance(node[key], DictConfig):
            _unlock(node[key])
            if OmegaConf.get_type(node, str(key)) is dict:
                OmegaConf.set_struct(node[key], False)
