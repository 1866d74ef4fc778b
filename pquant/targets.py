"""The allow-list of classes that each section of a configuration may build. It is checked before anything is built.

Others may have written a configuration. Therefore each ``_target_`` must be a class of a kind that its section accepts, from the library of that
kind, and not any callable. Users allow packages of their own in $PQUANT_ALLOW.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import ListConfig

from pquant.errors import ConfigError, unknown

ALLOW = "PQUANT_ALLOW"


class Kind(NamedTuple):
    """The public subclasses of ``base`` that the package ``module`` defines, and its functions that ``constructs`` knows by name."""

    module: str
    base: str
    constructs: Callable[[str], bool] | None = None

    def has(self, target: str, found: Any) -> bool:
        """Return whether ``found``, which ``target`` names, is of this kind."""
        if not f"{target}.".startswith(f"{self.module}.") or not f"{getattr(found, '__module__', '')}.".startswith(f"{self.module}."):
            return False
        if self.constructs is not None and not isinstance(found, type):
            return self.constructs(found.__name__)
        owner = found.__self__ if getattr(found, "__name__", "") == "from_config" else found
        return isinstance(owner, type) and issubclass(owner, self._base())

    def _base(self) -> Any:
        module, _, name = self.base.rpartition(".")
        return getattr(import_module(module), name)

    def __str__(self) -> str:
        """Return a description of the kind, for messages."""
        return f"a {self.base.rpartition('.')[2]} of {self.module}"


def _torchvision(name: str) -> bool:
    return name in import_module("torchvision.models").list_models()


def _timm(name: str) -> bool:
    return bool(import_module("timm.models").is_model(name))


SETTINGS = "pquant.settings.Settings"
MODULE = "torch.nn.Module"
KINDS: dict[str, tuple[Kind, ...]] = {
    "data": (Kind("pquant.data", SETTINGS),),
    "model": (
        Kind("torch.nn", MODULE),
        Kind("pquant.models", MODULE, {"torchvision_model", "timm_model"}.__contains__),
        Kind("torchvision.models", MODULE, _torchvision),
        Kind("timm.models", MODULE, _timm),
    ),
    "optimizer": (Kind("torch.optim", "torch.optim.Optimizer"), Kind("pquant.training.p_norm", "torch.optim.Optimizer")),
    "scheduler": (Kind("torch.optim", "torch.optim.lr_scheduler.LRScheduler"),),
    "training": (Kind("pquant.training", SETTINGS),),
    "pruning": (Kind("pquant.pruning", "pquant.pruning.method.PruningMethod"),),
    "quantization": (Kind("pquant.quantization", SETTINGS),),
    "fitcompress": (Kind("pquant.fitcompress", SETTINGS),),
    "distillation": (Kind("pquant.distillation", SETTINGS),),
    "finetuning": (Kind("pquant.finetuning", SETTINGS),),
    "tracker": (Kind("pquant.tracking", SETTINGS),),
    "export": (Kind("pquant.export", SETTINGS),),
    "sampler": (Kind("optuna.samplers", "optuna.samplers.BaseSampler"),),
    "early_stopping": (Kind("optuna.pruners", "optuna.pruners.BasePruner"),),
}
"""The kinds that each section may build, at any depth."""
INSIDE = {("distillation", "model"): "model"}
"""Fields that may build the kinds of another section, by section and key."""


def allowed_packages() -> tuple[str, ...]:
    """Return the packages (or single dotted names) that $PQUANT_ALLOW lists, without a trailing ``.*``."""
    return tuple(name.strip().removesuffix(".*") for name in os.environ.get(ALLOW, "").split(",") if name.strip())


def is_allowed(section: str, target: str) -> bool:
    """Return whether ``section`` may build ``target``, which must be of one of its kinds, or in a package that $PQUANT_ALLOW lists.

    Raises:
        ConfigError: the package of a kind has no object of this name.
    """
    if any(f"{target}.".startswith(f"{package}.") for package in allowed_packages()):
        return True
    kinds = [kind for kind in KINDS.get(section, ()) if target.startswith(f"{kind.module}.")]
    if not kinds or any(part.startswith("_") for part in target.split(".")):
        return False
    found = _find(target)
    return any(kind.has(target, found) for kind in kinds)


def check_targets(config: Mapping[Any, Any]) -> None:
    """Check every ``_target_`` of a configuration against the kinds of its section.

    Raises:
        ConfigError: targets that are not allowed (the message lists all of them), or that do not exist.
    """
    sections = {str(key): config[key] for key in config if isinstance(config[key], Mapping)}
    found = dict.fromkeys(pair for section, node in sections.items() for pair in _targets(section, node))
    refused = [(section, name) for section, name in found if not is_allowed(section, name)]
    if refused:
        names = ", ".join(f"'{name}' ({section})" for section, name in refused)
        kinds = " or ".join(map(str, KINDS.get(refused[0][0], ()))) or "nothing"
        raise ConfigError(
            f"a configuration may not build {names}: {refused[0][0]} takes {kinds}; "
            f"to allow a package of your own, list it in ${ALLOW}: {ALLOW}=my_package"
        )


def build(section: str, node: Any) -> Any:
    """Return the object that a node of the configuration describes, built with all nodes inside it; other values are returned unchanged.

    Raises:
        ConfigError: a target that the section may not build, or that does not exist.
        InstantiationException: a constructor failed.
    """
    if not isinstance(node, Mapping):
        return node
    check_targets({section: node})
    found = list(_targets(section, node))
    for _, target in found:
        _find(target)
    packages = (*(kind.module for name in {section, *(name for name, _ in found)} for kind in KINDS.get(name, ())), *allowed_packages())
    return instantiate(node, _convert_="all", _execution_whitelist_=[*(target for _, target in found), *(f"{package}.*" for package in packages)])


def named(section: str, target: str) -> Any:
    """Return the object that ``target`` names; None if the section may not build it, or it does not exist."""
    try:
        return _find(target) if is_allowed(section, target) else None
    except (ConfigError, ImportError):
        return None


def _find(target: str) -> Any:
    parent, _, name = target.rpartition(".")
    if not parent:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ConfigError(f"{name} cannot be imported: it needs the module '{error.name}', which is not installed") from error
            raise ConfigError(f"there is no module '{name}' on Python's path; for one in this folder: PYTHONPATH=.") from error
        except Exception as error:
            raise ConfigError(f"{name} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}") from error
    owner = _find(parent)
    if isinstance(owner, ModuleType) and not hasattr(owner, name):
        try:
            return import_module(target)
        except ModuleNotFoundError:
            pass
    if not hasattr(owner, name):
        public = getattr(owner, "__all__", [one for one in vars(owner) if not one.startswith("_")])
        raise ConfigError(unknown(f"name in {parent}", name, public))
    return getattr(owner, name)


def _targets(section: str, node: Any) -> Iterator[tuple[str, str]]:
    """Yield (section, target) for each ``_target_`` inside a node, with interpolations resolved; the target must be of a kind of that section."""
    if isinstance(node, Mapping):
        for key in node:
            if key == "_target_":
                yield section, str(node[key])
            else:
                yield from _targets(INSIDE.get((section, str(key)), section), node[key])
    elif isinstance(node, (ListConfig, Sequence)) and not isinstance(node, str):
        for item in node:
            yield from _targets(section, item)
