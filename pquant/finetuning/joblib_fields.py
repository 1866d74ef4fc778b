"""Checks of the fields of Hydra's Joblib launcher in a study."""

from omegaconf import DictConfig, OmegaConf

from pquant.errors import ConfigError

USED = ("n_jobs", "inner_max_num_threads", "_target_")
INSTEAD = {"timeout": "; finetuning.trial_timeout limits the time of a trial"}


def check_joblib(launcher: DictConfig, threads: int) -> None:
    """Refuse fields of the Joblib launcher that have no effect, since a study itself starts each trial in a loky worker.

    Other launchers are not checked.

    Args:
        launcher: the node ``hydra.launcher``.
        threads: the field ``training.threads``.

    Raises:
        ConfigError: a field that has no effect is set.
    """
    if not str(launcher._target_).endswith(".JoblibLauncher"):
        return
    from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

    defaults = OmegaConf.structured(JobLibLauncherConf)
    for name in map(str, launcher):
        value = launcher[name]
        unset = (defaults.get(name), "loky", None) if name == "backend" else (defaults.get(name),)
        if name not in USED and value not in unset:
            raise ConfigError(f"hydra.launcher.{name} = {value} has no effect in a study{INSTEAD.get(name, '')}: leave it out")
    own = launcher.get("inner_max_num_threads")
    if threads and own:
        raise ConfigError(f"hydra.launcher.inner_max_num_threads = {own} has no effect beside training.threads = {threads}: leave one out")
