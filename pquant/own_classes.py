"""Classes that replace those of a preset: your own, by ``model._target_=net.Deep``, and a model by ``finetuning.model_name``."""

from collections.abc import Sequence
from inspect import signature

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from pquant.errors import ConfigError, unknown
from pquant.installation import CONF
from pquant.targets import KINDS, named

TARGET = "_target_"
OPEN = {"model=torch", "model=torchvision", "model=timm"}
"""Presets that do not name a class, or that pass any field on."""


def model_preset(name: str) -> str:
    """Return the preset of ``conf/model/`` that a model's name stands for.

    Raises:
        ConfigError: no preset has this name.
    """
    presets = sorted(file.stem for file in (CONF / "model").glob("*.yaml"))
    if name not in presets:
        raise ConfigError(f"{unknown('preset of a model', name, presets)}; of a library: model=torchvision model.name={name}")
    return name


def with_model_preset(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line, where ``finetuning.model_name=...`` chooses the preset of the model, too.

    Raises:
        ConfigError: no preset has the name of the model.
    """
    names = [word.partition("=")[2] for word in arguments if word.lstrip("+").startswith("finetuning.model_name=")]
    return [*arguments, *(f"model={model_preset(name)}" for name in names)]


def with_new_fields(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line, with ``++`` before the fields of a section whose class is given, since its preset may not have them."""
    own = {word.lstrip("+").partition(f".{TARGET}=")[0] for word in arguments if f".{TARGET}=" in word} & KINDS.keys()
    own |= {"model"} if OPEN & {*arguments} else set()
    return [f"++{word}" if word.partition(".")[0] in own and "=" in word else word for word in arguments]


def without_foreign_fields(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a configuration without the fields of a preset that do not belong to a class given in the overrides of the job.

    Fields that the overrides give stay, so that a field that the class does not take is an error.
    """
    given: dict[str, set[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        section, _, field = str(override.key_or_group).partition(".")
        given.setdefault(section, set()).add(field.partition(".")[0])
    config = config.copy()
    for section in KINDS:
        if TARGET in given.get(section, ()) and (made := named(section, str(config[section][TARGET]))) is not None:
            keep = {TARGET, "_partial_", *signature(made).parameters, *given[section]}
            with open_dict(config):
                config[section] = OmegaConf.masked_copy(config[section], [key for key in config[section] if key in keep])
    return config
