"""The start of a job: as a new run, from its own checkpoint, or from the folder of an earlier run."""

import json
import logging
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from pquant.errors import ConfigError
from pquant.installation import PROGRAM, program
from pquant.targets import ALLOW, allowed_packages
from pquant.tracking.environment import difference, saved_command, versions
from pquant.tracking.files import copy_over, plain, without_passwords, write_atomic
from pquant.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
CONFIG, HYDRA, OVERRIDES = ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"
AUTO = "auto"
ENVIRONMENT = "oc.env"
"""The resolver of OmegaConf that reads an environment variable."""
SECTIONS_THAT_MAY_DIFFER = ("resume", "progress", "tracker", "export", "finetuning", "dry_run", "from_run", "from_epoch")
TRAINING_FIELDS_THAT_MAY_DIFFER = ("threads", "device")
LENGTHS = ("epochs", "fine_tuning_epochs")
"""Fields of training that ``resume=<folder>`` may raise, to make a run longer."""
FREE_TRAINING_FIELDS = tuple(f"training.{name}" for name in TRAINING_FIELDS_THAT_MAY_DIFFER)
TAKEN_BY_RESUME = ("resume", "progress", "tracker", "export", "dry_run", *FREE_TRAINING_FIELDS, *(f"training.{name}" for name in LENGTHS))
TAKEN_BY_FROM_RUN = ("from_run", "from_epoch", "progress", "tracker", "export", *FREE_TRAINING_FIELDS)


@dataclass(frozen=True)
class Run:
    """The folder and the origin of one run.

    Args:
        folder: the folder of the run's files.
        config: the resolved configuration.
        command: the command line that repeats the run.
        resume: whether the run resumes from a checkpoint.
        files: text files that describe the run, by name in the folder; they are written once all checks have passed.
        source: the folder of the checkpoint, if it is another one: the run continues the earlier run in ``folder``, and ``source`` does not change.
    """

    folder: Path
    config: dict[str, Any]
    command: str
    resume: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    source: Path | None = None

    @property
    def goes_on_here(self) -> bool:
        """Whether the run resumes in its own folder, which already has its files and checkpoint."""
        return self.resume and self.source is None

    def checkpoint(self) -> dict[str, Any] | None:
        """Return the state to resume from, None for a new run.

        Raises:
            ConfigError: the checkpoint belongs to other settings, or no checkpoint can be read.
        """
        if not self.resume:
            return None
        state = _checkpoint(self.source or self.folder)
        earlier, now = json.loads(state["settings"]), fixed_settings(self.config)
        if self.source is not None:
            for settings in (earlier, now):
                for name in LENGTHS:
                    settings.get("training", {}).pop(name, None)
                settings.pop("scheduler", None)
        check_same_settings(self.source or self.folder, earlier, now)
        for name, here in versions().items():
            if here != state["versions"].get(name):
                log.warning("the run began with %s %s and resumes with %s: its results may differ", name, state["versions"].get(name), here)
        return state

    def identity(self) -> dict[str, Any]:
        """Return the entries of a checkpoint besides the state of training: configuration, settings that must not change, and versions."""
        settings = json.dumps(fixed_settings(self.config))
        return {"config": self.files.get(CONFIG, ""), "settings": settings, "versions": versions()}

    def begin(self, state: dict[str, Any] | None) -> None:
        """Write the files that describe the run, and copy files from ``source``; a run that resumes in its own folder already has them."""
        for name, text in self.files.items():
            path = self.folder / name
            if not (self.goes_on_here and path.is_file()):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, text)
        if state and self.source:
            for name in ("fitcompress.json", "teacher.safetensors", "pareto", "pareto.csv"):
                copy_over(self.source / name, self.folder / name)
            save_checkpoint(self.folder / CHECKPOINT, state | self.identity())


def fixed_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that must not change when a run resumes."""
    fixed = {key: value for key, value in plain(config).items() if key not in SECTIONS_THAT_MAY_DIFFER}
    if isinstance(fixed.get("training"), dict):
        fixed["training"] = {key: value for key, value in fixed["training"].items() if key not in TRAINING_FIELDS_THAT_MAY_DIFFER}
    return fixed


def check_same_settings(folder: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare the fixed settings of the run in ``folder`` with those of the run that resumes it.

    Raises:
        ConfigError: the settings differ; the message names the first field that differs.
    """
    if earlier != now:
        lengths, others = ({f"training.{name}": settings.get("training", {}).get(name) for name in LENGTHS} for settings in (earlier, now))
        key, before, after = difference(lengths, others) if lengths != others else difference(earlier, now)
        longer = f"to train longer: resume={folder} {key}={after}" if key in lengths else "give the same with resume=auto, or another hydra.run.dir"
        raise ConfigError(f"the run in {folder} was started with other settings, {key} = {before!r} instead of {after!r}; {longer}")


def composed_run(config: DictConfig, resume: bool = False) -> tuple[Run, DictConfig]:
    """Return the run of the current Hydra job, and its configuration.

    Folder and configuration are those of Hydra. With ``config.resume`` they are those of that run; with ``config.from_run`` the folder is new and the
    configuration is that of the earlier run. With ``config.resume`` "auto", or ``resume``, the run resumes if Hydra's folder (``hydra.run.dir``) has
    a checkpoint, and starts as a new run otherwise.

    Raises:
        ConfigError: ``resume`` or ``from_run`` is not the folder of a run, both are given, or an override is given that they do not allow.
    """
    hydra = HydraConfig.get()
    _check_command(config, hydra.job.env_set)
    own, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    command = shlex.join([*program(), *sys.argv[1:]] if hydra.mode is RunMode.RUN else [*PROGRAM, *overrides])
    if config.from_run is not None:
        composed = saved_config("from_run", Path(config.from_run))
        given = _checked("from_run", overrides, TAKEN_BY_FROM_RUN)
        _take(composed, config, dict.fromkeys(["export", "tracker", "progress", "from_run", "from_epoch", *given]))
        resolved = _resolved(composed)
        return _run(own, composed, resolved, command, overrides), resolved
    if config.resume in (None, AUTO):
        resumes = (resume or config.resume == AUTO) and has_checkpoint(own / CHECKPOINT)
        return _run(own, config, config, command, overrides, resumes), config
    folder = Path(config.resume)
    composed = saved_config("resume", folder)
    _take(composed, config, _checked("resume", overrides, TAKEN_BY_RESUME))
    if composed.get("from_run") is not None:
        raise ConfigError(f"the run in {folder} evaluated the model of another one: give from_run={composed.from_run}")
    resolved = _resolved(composed)
    if _is_longer(folder, composed):
        if own.resolve() == folder.resolve():
            raise ConfigError(f"{folder} holds the earlier run, which must not change: choose another hydra.run.dir for the longer run")
        return _run(own, composed, resolved, command, overrides, True, folder), resolved
    return _run(folder, composed, resolved, saved_command(folder) or command, overrides, has_checkpoint(folder / CHECKPOINT)), resolved


def _check_command(config: DictConfig, environment: Mapping[str, Any]) -> None:
    ours = [name for name in environment if str(name).startswith("PQUANT_")]
    if ours:
        raise ConfigError(f"hydra.job.env_set may not set {', '.join(ours)}: only the environment of the command can")
    for key in ("resume", "from_run"):
        if config[key] is not None and not (isinstance(config[key], str) and config[key]):
            raise ConfigError(f"{key} must be the folder of an earlier run, got {config[key]!r}")
    if config.resume is not None and config.from_run is not None:
        raise ConfigError("resume continues a run and from_run starts from one: give only one of them")
    if config.from_run is None and config.from_epoch is not None:
        raise ConfigError("from_epoch needs from_run, the folder of the run with this epoch")


def _run(
    folder: Path, composed: DictConfig, resolved: DictConfig, command: str, overrides: list[str], resumes: bool = False, source: Path | None = None
) -> Run:
    hydra = OmegaConf.create({"hydra": HydraConfig.get()})
    texts = {CONFIG: OmegaConf.to_yaml(composed), HYDRA: OmegaConf.to_yaml(hydra), OVERRIDES: OmegaConf.to_yaml(overrides)}
    settings: Any = OmegaConf.to_container(resolved, resolve=True)
    files = {name: without_passwords(text) for name, text in texts.items()}
    return Run(folder, without_passwords(plain(settings)), without_passwords(command), resumes, files, source)


def check_from_run(words: Sequence[str]) -> None:
    """Check the overrides of a command with ``from_run``, before Hydra looks for their fields in another configuration than that of the run.

    Raises:
        ConfigError: an override that ``from_run`` does not allow.
    """
    given = [word for word in words if "=" in word and not word.startswith(("-", "hydra", "resume="))]
    if any(word.startswith("from_run=") and word != "from_run=null" for word in given):
        _checked("from_run", given, TAKEN_BY_FROM_RUN)


def _checked(key: str, overrides: list[str], taken: Sequence[str]) -> list[str]:
    """Return the names of the fields and sections that ``overrides`` set.

    Raises:
        ConfigError: an override sets a name that is not in ``taken``.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    for one in parsed:
        name = str(one.key_or_group)
        if one.is_delete() or (name not in taken and name.partition(".")[0] not in taken):
            others = ", ".join(field for field in taken if field != key)
            advice = f"; for other data: {' '.join(PROGRAM)} predict run=<folder> data.path=<file>" if name.partition(".")[0] == "data" else ""
            raise ConfigError(f"{name} cannot be given with {key}, which uses the settings of the earlier run, except {others}{advice}")
    return [str(one.key_or_group) for one in parsed]


def _take(composed: DictConfig, config: DictConfig, names: Iterable[str]) -> None:
    """Copy values of this command's configuration into that of an earlier run, whole sections before single fields.

    Raises:
        ConfigError: a field that the earlier run's section does not have.
    """
    for name in sorted(names, key=lambda one: one.count(".")):
        section, _, field = name.rpartition(".")
        if section and field not in (OmegaConf.select(composed, section) or {}):
            raise ConfigError(f"{name} cannot be given: '{section}' of the earlier run has no such field")
        OmegaConf.update(composed, name, OmegaConf.select(config, name), merge=False, force_add=True)


def _is_longer(folder: Path, composed: DictConfig) -> bool:
    """Return whether a configuration has more epochs than the checkpoint in ``folder`` was made for.

    Raises:
        ConfigError: fewer epochs, or more epochs of a stage that is over.
    """
    if not has_checkpoint(folder / CHECKPOINT):
        return False
    state = _checkpoint(folder)
    made, now = json.loads(state["settings"])["training"], composed.training
    for name in LENGTHS:
        if now[name] < made[name]:
            raise ConfigError(f"training.{name} = {now[name]}: the run in {folder} was made for {made[name]} epochs and can only become longer")
    trained = made["pretraining_epochs"] + made["epochs"] * made["rounds"]
    if now.epochs > made["epochs"]:
        if made["rounds"] > 1:
            raise ConfigError(
                f"training.epochs is the length of each of {made['rounds']} rounds, which cannot change: raise training.fine_tuning_epochs"
            )
        if state["position"] > trained:
            raise ConfigError(f"the train stage of the run in {folder} is over and its masks are frozen: raise training.fine_tuning_epochs instead")
    return any(now[name] > made[name] for name in LENGTHS)


@contextmanager
def environment_refused() -> Iterator[None]:
    """Make ``${oc.env:...}`` raise a ConfigError in the block, since a configuration written by others could leak environment variables."""
    if ENVIRONMENT in allowed_packages():
        yield
        return

    def refuse(*names: str) -> None:
        raise ConfigError(
            f"the configuration of the earlier run reads the environment variable '{names[0]}'; if it is yours, allow that: {ALLOW}={ENVIRONMENT}"
        )

    OmegaConf.register_resolver(ENVIRONMENT, refuse, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_resolver(ENVIRONMENT, oc.env, replace=True)


def _resolved(composed: DictConfig) -> DictConfig:
    """Return an earlier run's configuration with its interpolations resolved."""
    resolved = composed.copy()
    with environment_refused():
        OmegaConf.resolve(resolved)
    return resolved


def saved_config(key: str, folder: Path) -> DictConfig:
    """Return the configuration of the run in ``folder``, from its checkpoint, or from its files without a checkpoint.

    Raises:
        ConfigError: no configuration can be read.
    """
    file = folder / CONFIG
    if has_checkpoint(folder / CHECKPOINT):
        return DictConfig(OmegaConf.create(_checkpoint(folder)["config"]))
    if not file.is_file():
        raise ConfigError(f"{key} must be the folder of an earlier run, with {CONFIG} in it, got '{folder}'")
    try:
        return DictConfig(OmegaConf.load(file))
    except (YAMLError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} is not a complete configuration: {' '.join(str(error).split())}") from error


def _checkpoint(folder: Path) -> dict[str, Any]:
    state = load_checkpoint(folder / CHECKPOINT)
    if not {"config", "settings", "versions"} <= state.keys():
        raise ConfigError(f"the checkpoint in {folder} was made by another version of pquant, which this one does not read")
    return state
