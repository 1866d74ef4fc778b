"""Convert a PQuantML configuration to a command of this package: ``python -m pquant.convert_config old.yaml``."""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from pquant.config import CLEAR_ERRORS, build_experiment, explain
from pquant.errors import ConfigError
from pquant.installation import CONF, PROGRAM
from pquant.pquantml import Converted, meaning
from pquant.tracking.files import write_atomic


def convert(old: Any) -> Converted:
    """Convert a PQuantML configuration, and check the result by building an experiment from it.

    Raises:
        ConfigError: this is not a PQuantML configuration, the pruning method is unknown, or a value is invalid.
    """
    new = meaning(old)
    build_experiment(_compose(overrides(new)))
    return new


def overrides(new: Converted) -> list[str]:
    """Return Hydra overrides: the choices, then the values that differ from the presets."""
    choices = [f"{group}={choice}" for group, choice in new.choices.items()]
    preset: Any = OmegaConf.to_container(_compose(choices))
    changed = {name: value for name, value in new.values.items() if preset.get(name.split(".")[0], {}).get(name.split(".")[1]) != value}
    return choices + [f"{name}={shown(value)}" for name, value in changed.items()]


def command(new: Converted, job: list[str]) -> str:
    """Return the command that runs ``job``, as a study if the configuration has one."""
    study = [f"{name}={shown(value)}" for name, value in new.study.items()]
    return shlex.join([*PROGRAM, *(["-m"] if study else []), *job, *study])


def as_yaml(new: Converted) -> str:
    """Return a complete configuration file, for ``python run.py --config-dir=<its folder> --config-name=<its name>``."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in new.values.items():
        group, _, key = name.partition(".")
        sections.setdefault(group, {})[key] = value
    defaults = ["config", *({f"override /{group}": choice} for group, choice in new.choices.items()), "_self_"]
    return yaml.safe_dump({"defaults": defaults, **sections}, sort_keys=False)


def _compose(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(config_dir=str(CONF)):
        return compose("config", overrides=overrides)


def shown(value: Any) -> str:
    """Return a value in the grammar of Hydra's command line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return value if isinstance(value, str) and re.fullmatch(r"[\w-]+", value) else json.dumps(value)


def read(path: Path) -> Any:
    """Return the content of a YAML file, as plain values.

    Raises:
        ConfigError: the file is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML file of plain values: {' '.join(str(error).split())}") from error


def main() -> None:
    """Print the command; warnings go to the standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m pquant.convert_config", description="Turn a PQuantML configuration into a command of this package."
    )
    parser.add_argument("old", type=Path, help="PQuantML's YAML file")
    parser.add_argument("--yaml", type=Path, metavar="NEW", help="write a configuration file, and print the command that runs it")
    given = parser.parse_args()
    try:
        new = convert(read(given.old))
        for warning in new.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        job = overrides(new)
        if given.yaml is not None:
            write_atomic(given.yaml, as_yaml(new))
            job = [f"--config-dir={given.yaml.parent}", f"--config-name={given.yaml.stem}"]
        print(command(new, job))
    except CLEAR_ERRORS as error:
        sys.exit(f"error: {explain(error)}")


if __name__ == "__main__":
    main()
