"""Descriptions of every field of a configuration, from the docstrings, types and ranges of the classes that it names.

The reference pages of the documentation and the comments of ``python run.py --cfg job`` use them.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.utils import get_object

from pquant.experiment import Experiment
from pquant.settings import Settings, describe, interval
from pquant.targets import KINDS, named

ENTRY = re.compile(r"^(\w+)(?: \(.*?\))?: (.*)$")
KEY = re.compile(r"^( *)'?([^\s:#'\"-][^\s:']*)'?:(?= |$)")
COLUMN = 44


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: its name, dotted inside nested settings, its type, default, range and description."""

    name: str
    type: str
    default: str
    range: str
    description: str


def class_of(target: str) -> Any:
    """Return the class that a ``_target_`` of this package or its libraries builds."""
    return _owner(get_object(target))


def _owner(found: Any) -> Any:
    return getattr(found, "__self__", found)


def first_line(cls: Any) -> str:
    """Return the first paragraph of the docstring, in one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def descriptions(cls: Any) -> dict[str, str]:
    """Return the description of each name in the ``Args`` sections of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__ if inspect.isclass(cls) else [cls]):
        if base.__doc__:
            found |= _entries(inspect.cleandoc(base.__doc__))
    return found


def _entries(doc: str) -> dict[str, str]:
    section = re.search(r"^Args:\n((?:[ ].*\n?|\n)+)", doc, re.MULTILINE)
    if section is None:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(section.group(1)).splitlines():
        entry = ENTRY.match(line)
        if entry:
            name = entry.group(1)
            found[name] = entry.group(2).strip()
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def fields(cls: Any, prefix: str = "") -> list[Field]:
    """Return the fields of a settings class, with nested fields after their parent; for other classes, the constructor's documented parameters."""
    texts = descriptions(cls)
    if not dataclasses.is_dataclass(cls):
        given = inspect.signature(cls).parameters
        return [Field(name, "", _shown(given[name].default), "", texts[name].split(". ")[0].split(" (default")[0]) for name in given if name in texts]
    hints, found = get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], prefix + field.name
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        nested = inspect.isclass(hint) and issubclass(hint, Settings)
        written = "" if nested or isinstance(default, Settings) else _shown(default)
        found.append(Field(name, _type(hint), written, _range(field), texts.get(field.name, "")))
        if nested:
            found += fields(hint, f"{name}.")
    return found


def _type(hint: Any) -> str:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return " or ".join("anything" if kind is Any else describe(kind) for kind in kinds)


def _range(field: "dataclasses.Field[Any]") -> str:
    return interval(field.metadata) if field.metadata else ""


def _shown(value: Any) -> str:
    if value in (dataclasses.MISSING, inspect.Parameter.empty):
        return "required"
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).removesuffix("...\n").strip()


def explained(text: str) -> str:
    """Return a configuration as YAML with a comment beside each documented section and field; the values do not change."""
    config = yaml.safe_load(text)
    if not isinstance(config, Mapping):
        return text
    known = _known(config)
    lines: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        key = KEY.match(line)
        if key:
            path = [*path[: len(key.group(1)) // 2], key.group(2)]
        comment = known.get(".".join(path)) if key else None
        lines.append(f"{line:<{COLUMN}}# {comment.replace('``', '')}" if comment else line)
    commented = "\n".join(lines) + "\n"
    try:
        return commented if yaml.safe_load(commented) == config else text
    except yaml.YAMLError:  # the line is part of a string over several lines
        return text


def _known(config: Mapping[str, Any]) -> dict[str, str]:
    if "_target_" in config:  # the configuration is a single section
        found = next(filter(None, (named(section, str(config["_target_"])) for section in KINDS)), None)
        return {} if found is None else _comments(_owner(found))
    known = _comments(Experiment)
    for name, section in config.items():
        found = named(name, str(section["_target_"])) if isinstance(section, Mapping) and "_target_" in section else None
        if found is not None:
            known[name] = first_line(_owner(found))
            known |= {f"{name}.{key}": text for key, text in _comments(_owner(found)).items()}
    return known


def _comments(cls: Any) -> dict[str, str]:
    return {field.name: _comment(field) for field in fields(cls)}


def _comment(field: Field) -> str:
    return f"{field.description.removesuffix('.')}; {field.type}" if "one of" in field.type else field.description


@contextmanager
def explaining(arguments: Sequence[str]) -> Iterator[None]:
    """Add comments to Hydra's output if the ``arguments`` ask for the configuration (``--cfg job``)."""
    if not any(argument in ("--cfg", "-c") or argument.startswith("--cfg=") for argument in arguments):
        yield
        return
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(explained(printed.getvalue()))
