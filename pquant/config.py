"""Build an experiment from a composed configuration, and explain a configuration error in one line."""

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

import pquant.export  # noqa: F401  (each import registers schemas)
import pquant.models  # noqa: F401
import pquant.pruning  # noqa: F401
from pquant.errors import ConfigError, DivergedError, blaming, did_you_mean, unknown
from pquant.experiment import Experiment
from pquant.finetuning.expressions import optuna_object, search_expressions
from pquant.finetuning.objectives import directions
from pquant.fitcompress.result import saved_layer_rules
from pquant.resume import CHECKPOINT
from pquant.tracking.environment import saved_command
from pquant.training.checkpoint import has_checkpoint
from pquant.training.training import total_epochs

ALLOW = "PQUANT_ALLOW"
TARGETS = ("pquant.*", "torch.nn.*", "torch.optim.*", "torch.utils.data.*", "torchvision.*", "sklearn.*", "optuna.*")

for resolver in (total_epochs, search_expressions, optuna_object):
    OmegaConf.register_resolver(resolver.__name__, resolver, replace=True)
OmegaConf.register_resolver("fitcompress", saved_layer_rules, replace=True)
OmegaConf.register_resolver("study_directions", directions, replace=True)


def allowed_targets() -> tuple[str, ...]:
    """Return the targets that a configuration may build: this package, its libraries, and the packages that $PQUANT_ALLOW lists."""
    own = [name.strip() for name in os.environ.get(ALLOW, "").split(",") if name.strip()]
    return TARGETS + tuple(name if name.endswith(".*") else f"{name}.*" for name in own)


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
        values = {str(key): _built(str(key), config[key]) for key in config}
    except InstantiationException as error:
        raise ConfigError(explain(error)) from error
    return Experiment(**values)


def _built(section: str, node: Any) -> Any:
    if not OmegaConf.is_config(node):
        return node
    with blaming(section):
        built = instantiate(node, _convert_="all", _execution_whitelist_=allowed_targets())
    if isinstance(built, partial):
        _check_booleans(section, built)
    return built


def _check_booleans(section: str, built: "partial[Any]") -> None:
    """Reject a string for a boolean parameter of a library's or user's callable; Python would take any string for true."""
    for name, parameter in signature(built.func).parameters.items():
        kinds = get_args(parameter.annotation) or (parameter.annotation,)
        boolean = isinstance(parameter.default, bool) or any(kind in (bool, "bool", "bool | None") for kind in kinds)
        value = built.keywords.get(name)
        if boolean and isinstance(value, str) and str not in kinds:
            raise ConfigError(f"{section}.{name} must be true or false, got {value!r}")


def explain(error: BaseException) -> str:
    """Return one line for one of the ``CLEAR_ERRORS``: the value, what was expected, the nearest valid name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ConfigError):
            return str(cause)
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and isinstance(cause.parent_node, Container):
            return _unknown_key(cause)
        if isinstance(cause, ValidationError):
            return f"{cause.full_key}: {str(cause).splitlines()[0]}"
        if isinstance(cause, MissingConfigException) and cause.options:
            group, _, name = str(cause.missing_cfg_file).rpartition("/")
            return unknown(f"choice for {group}", name, cause.options)
        if isinstance(cause, AttributeError) and isinstance(cause.obj, ModuleType):
            return unknown(f"name in {cause.obj.__name__}", str(cause.name), getattr(cause.obj, "__all__", dir(cause.obj)))
    refused = next((line for cause in causes for line in [_one_line(cause)] if "whitelist" in line), None)
    if refused:
        return f"{refused} (to allow a package of your own, list it in ${ALLOW}: {ALLOW}=my_package)"
    return _one_line(causes[-1])


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
CLEAR_ERRORS = (*CONFIGURATION_ERRORS, DivergedError, OSError)
"""Errors that one line explains better than a traceback."""


NOT_FROM_EARLIER_RUN = ("export", "tracker", "progress", "from_run", "from_epoch")
"""Keys that a command with ``from_run`` sets itself; all others come from the earlier run's configuration."""


AUTO = "auto"


def run_folder(config: DictConfig) -> tuple[Path, DictConfig, bool]:
    """Return the folder of a job, its configuration, and whether it resumes from the checkpoint there.

    The folder and the configuration are Hydra's; with ``resume``, those of that run; with ``from_run``, a new folder and that run's configuration.
    ``resume`` "auto" resumes if Hydra's folder (``hydra.run.dir``) has a checkpoint, and starts a new run if not.

    Raises:
        ConfigError: ``resume`` or ``from_run`` names no run's folder, or both are given.
    """
    if config.resume is not None and config.from_run is not None:
        raise ConfigError("resume continues a run and from_run starts from one: give only one of them")
    if config.resume not in (None, AUTO):
        folder = Path(config.resume)
        return folder, _saved_config("resume", folder), has_checkpoint(folder / CHECKPOINT)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.from_run is None:
        if config.from_epoch is not None:
            raise ConfigError("from_epoch needs from_run, the folder of the run whose epoch it is")
        return folder, config, config.resume == AUTO and has_checkpoint(folder / CHECKPOINT)
    saved = _saved_config("from_run", Path(config.from_run))
    for key in NOT_FROM_EARLIER_RUN:
        saved[key] = config[key]
    return folder, saved, False


def command(config: DictConfig, folder: Path) -> str:
    """Return the command line of a job, quoted for a shell; for a trial and with ``resume=<folder>``, the command that repeats that job."""
    own = HydraConfig.get().mode is not RunMode.RUN or config.resume not in (None, AUTO)
    return (saved_command(folder) if own else None) or shlex.join(["python", *sys.argv])


def _saved_config(key: str, folder: Path) -> DictConfig:
    saved = folder / ".hydra" / "config.yaml"
    if not saved.is_file():
        raise ConfigError(f"{key} must be the folder of an earlier run, with .hydra/config.yaml in it, got '{folder}'")
    try:
        return DictConfig(OmegaConf.load(saved))
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{saved} is not a complete configuration: {_one_line(error)}") from error
