"""Hydra's search path for configurations: the user's ``conf/``, then that of the package, then ``experiments/`` of a checkout."""

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin

from pquant.errors import ConfigError
from pquant.installation import CONF, IS_CHECKOUT, ROOT

PACKAGED = "pkg://pquant.conf"
PRIMARY = str(CONF) if IS_CHECKOUT else PACKAGED
"""The argument ``config_path`` of ``hydra.main``."""
GROUP = "experiment"


class ExperimentSource(ConfigSource):
    """The YAML files of ``experiments/<folder>/`` as the group ``experiment/<folder>``; in a wheel they are in ``conf/experiment/``."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.files = FileConfigSource(provider, self.path)

    @staticmethod
    def scheme() -> str:
        """Return the scheme of this source in a search path."""
        return "experiments"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a configuration of the group."""
        return self.files.load_config(_below(config_path) or "")

    def is_group(self, config_path: str) -> bool:
        """Return whether a path is the group, or a folder in it."""
        below = _below(config_path)
        return not config_path or (below is not None and self.files.is_group(below))

    def is_config(self, config_path: str) -> bool:
        """Return whether a path is a configuration of the group."""
        below = _below(config_path)
        return bool(below) and self.files.is_config(str(below))

    def available(self) -> bool:
        """Return whether there are experiments."""
        return self.files.available()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the names of groups and configurations at a path."""
        below = _below(config_path)
        if below is None:
            return [GROUP] if not config_path and results_filter is not ObjectType.CONFIG else []
        return self.files.list(below, results_filter)


def _below(config_path: str) -> str | None:
    """Return a path inside the group, without the group; None for another one."""
    group, _, below = config_path.partition("/")
    return below if group == GROUP else None


class PackageSearchPath(SearchPathPlugin):
    """Adds the user's ``conf/`` before the configuration of this package, and the experiments after it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add both, for an application whose primary configuration is that of this package.

        Raises:
            ConfigError: the user's folder would replace the primary configuration.
        """
        paths = {entry.path for entry in search_path.get_path()}
        if not paths & {PACKAGED, str(CONF), f"file://{CONF}"}:
            return
        own = Path("conf").absolute()
        if own.is_dir() and own.resolve() != CONF.resolve():
            _check(own / "config.yaml")
            search_path.prepend("user", f"file://{own}", SearchPathQuery(provider="main"))
        if IS_CHECKOUT:
            search_path.append("experiments", f"{ExperimentSource.scheme()}://{ROOT / 'experiments'}", SearchPathQuery(provider="main"))


def _check(primary: Path) -> None:
    """Refuse a primary configuration other than that of the package; a checkout of the package contains the same one."""
    if primary.is_file() and primary.read_bytes() != (CONF / primary.name).read_bytes():
        raise ConfigError(
            f"{primary} would replace the whole configuration of pquant: rename it, say to mine.yaml, let it begin with "
            "'defaults: [config, _self_]', and add --config-name=mine to the command"
        )


def register() -> None:
    """Register the search path of this package with Hydra."""
    for plugin in (ExperimentSource, PackageSearchPath):
        if plugin not in Plugins.instance().discover():
            Plugins.instance().register(plugin)
