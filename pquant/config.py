"""Build an experiment from a composed configuration, and explain a configuration error in one line."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from functools import partial
from inspect import signature
from types import ModuleType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

import pquant.distillation  # noqa: F401  (each import registers schemas)
import pquant.export  # noqa: F401
import pquant.models  # noqa: F401
import pquant.pruning  # noqa: F401
from pquant.errors import ConfigError, DivergedError, LostProcessError, blaming, did_you_mean, unknown
from pquant.experiment import Experiment
from pquant.finetuning.expressions import optuna_object, search_expressions
from pquant.finetuning.objectives import directions
from pquant.fitcompress.result import saved_layer_rules
from pquant.installation import PROGRAM
from pquant.search_path import register
from pquant.settings import describe
from pquant.targets import INSIDE, KINDS, build, check_targets
from pquant.tracking.files import without_passwords
from pquant.training.seed import seed_everything
from pquant.training.training import total_epochs

for resolver in (total_epochs, search_expressions, optuna_object):
    OmegaConf.register_resolver(resolver.__name__, resolver, replace=True)
OmegaConf.register_resolver("fitcompress", saved_layer_rules, replace=True)
OmegaConf.register_resolver("study_directions", directions, replace=True)
OmegaConf.register_resolver("program", lambda: " ".join(PROGRAM), replace=True)
register()


def check_overrides(arguments: Sequence[str]) -> None:
    """Check the overrides of a command line before Hydra composes a configuration from them.

    Raises:
        ConfigError: an override that is not ``key=value``, an empty folder, a password, or a value for a section that is not the name of a choice.
    """
    parser = OverridesParser.create()
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-") or before in FLAGS_WITH_A_VALUE:
            continue
        try:
            (override,) = parser.parse_overrides([argument])
        except OverrideParseException as error:
            raise ConfigError(
                f"'{argument}' cannot be read: give key=value, as in training.epochs=3, with quotes for the shell around both"
            ) from error
        key, value = str(override.key_or_group), override.value()
        if without_passwords(argument) != argument:
            raise ConfigError(f"{key} has a password, which everybody on this machine can read in a command: give it as '${{oc.env:NAME}}'")
        if not key:
            raise ConfigError(f"'{argument}' has no key: give key=value, as in training.epochs=3")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and value == "":
            raise ConfigError(f"{key} must be a folder, got an empty name")
        if (
            key in SECTIONS
            and not override.is_delete()
            and not override.is_sweep_override()
            and not isinstance(value, (str, dict, list, QuotedString))
        ):
            raise ConfigError(
                f"{key} takes the name of a choice, got {'null' if value is None else value}; a field of it is given as {key}.<name>=..."
            )


def check_complete(config: DictConfig) -> None:
    """Raise a ConfigError that names the fields of a configuration that must be given (``???``)."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{' and '.join(missing)} must be given: {missing[0]}=...")


def build_experiment(config: DictConfig) -> Experiment:
    """Return the experiment that a composed configuration describes.

    Raises:
        ConfigError: a method object rejects a value, or a ``_target_`` is not allowed.
    """
    try:
        sections = [field.name for field in fields(Experiment)]
        for key in config:
            if key not in sections:
                raise ConfigError(unknown("section", str(key), sections))
        for field in fields(Experiment):
            if field.name not in config and field.default is MISSING:
                raise ConfigError(f"section '{field.name}' is missing")
        check_targets(config)
        if isinstance(seed := config.get("seed", 0), int) and 0 <= seed < 2**32:
            seed_everything(seed)  # the model, with its random weights, may be built here; an invalid seed is refused below
        values = {str(key): _built(str(key), config[key]) for key in config}
    except InstantiationException as error:
        raise ConfigError(explain(error)) from error
    return Experiment(**values)


def _built(section: str, node: Any) -> Any:
    if not OmegaConf.is_config(node):
        return node
    with blaming(section):
        built = build(section, node)
    inside = {f"{section}.{key}": getattr(built, key, None) for above, key in INSIDE if above == section}
    for name, part in {section: built, **inside}.items():
        if isinstance(part, partial):
            _check_kinds(name, part)
    return built


def _check_kinds(section: str, built: "partial[Any]") -> None:
    """Reject unknown arguments of a library's or user's callable, strings for booleans (any string is true), and values that are not numbers."""
    parameters = signature(built.func).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in built.keywords:
            if name not in parameters:
                raise ConfigError(f"{section}: {unknown(f'argument of {built.func.__name__}', name, parameters)}")
    for name, parameter in signature(built.func).parameters.items():
        if name not in built.keywords:
            continue
        value, words = built.keywords[name], set(re.findall(r"\w+", str(parameter.annotation)))
        default = type(parameter.default).__name__
        if (default == "bool" or "bool" in words) and not words & {"str", "int", "float", "Any"} and value is not None and not _is_boolean(value):
            raise ConfigError(f"{section}.{name} must be true or false, got {value!r}")
        number = words & {"int", "float"} or ("empty" in words and default in ("int", "float"))
        if number and value is None and parameter.default is not None and not words & {"None", "Optional"}:
            raise ConfigError(f"{section}.{name} must be a number, got null")
        if number and not words & {"str", "Any", "Literal"} and _has_text(value):
            raise ConfigError(f"{section}.{name} must be {'a number' if isinstance(value, str) else 'numbers'}, got {value!r}")


def _is_boolean(value: Any) -> bool:
    return isinstance(value, (bool, int)) and value in (0, 1)


def _has_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and any(map(_has_text, value)))


FLAGS_WITH_A_VALUE = "--cfg -c --package -p --config-path -cp --config-name -cn --config-dir -cd --info -i --experimental-rerun".split()
"""Flags of Hydra whose value may be the next word of the command line."""
MERGED = re.compile(r"Error merging override '?([^=\s]+)=")
"""Matches Hydra's message when OmegaConf refuses a value; OmegaConf's own message may name only the place in a list."""
UNCONVERTED = re.compile(r"Value (?P<value>'.*') of type '(?P<type>\w+)' could not be converted to (?P<kind>\w+)")
KINDS_OF_NODES = {"Integer": int, "Float": float}
SECTIONS = tuple(field.name for field in fields(Experiment) if field.name in KINDS)


def explain(error: BaseException) -> str:
    """Return one line for one of the ``CLEAR_ERRORS``: the value, what was expected, the nearest valid name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, (ConfigError, LostProcessError)):
            return str(cause)
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and isinstance(cause.parent_node, Container):
            return _unknown_key(cause)
        if isinstance(cause, ValidationError):
            merged = [found[1] for one in causes for found in [MERGED.search(str(one))] if found]
            return f"{merged[0] if merged else cause.full_key}{_expected(cause)}"
        if isinstance(cause, MissingConfigException) and cause.options:
            group, _, name = str(cause.missing_cfg_file).rpartition("/")
            return unknown(f"choice for {group}", name, cause.options)
        if isinstance(cause, AttributeError) and isinstance(cause.obj, ModuleType):
            return unknown(f"name in {cause.obj.__name__}", str(cause.name), getattr(cause.obj, "__all__", dir(cause.obj)))
    return _one_line(causes[-1])


def _expected(error: ValidationError) -> str:
    """Return what OmegaConf expected, in the words that other settings use."""
    message = str(error).splitlines()[0]
    found = UNCONVERTED.match(message)
    if found and found["kind"] in KINDS_OF_NODES:
        return f" must be {describe(KINDS_OF_NODES[found['kind']])}, got {found['value'] if found['type'] == 'str' else found['value'][1:-1]}"
    if message.endswith("is not Optional"):
        return " must not be null"
    if message.startswith("Invalid value assigned") and "list" in message:
        return " must be a list: [a, b]"
    return f" {message}" if message.startswith("must be") else f": {message}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__


def _unknown_key(error: OmegaConfBaseException) -> str:
    parent: Any = error.parent_node
    options = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
    section = str(error.full_key).rpartition(".")[0]
    where = f" in section '{section}'" if section else ""
    return f"unknown key '{error.key}'{where}{did_you_mean(str(error.key), options) or ';'} valid: {', '.join(sorted(options))}"


CONFIGURATION_ERRORS = (ConfigError, ConfigCompositionException, MissingConfigException, InstantiationException, OmegaConfBaseException)
CLEAR_ERRORS = (*CONFIGURATION_ERRORS, DivergedError, LostProcessError, OSError)
"""Errors that one line explains better than a traceback."""
