"""A study of Optuna: its storage, the sampler of each trial, and the settings of the study."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, GridSampler, QMCSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy import URL

from pquant.errors import ConfigError
from pquant.finetuning.server_storage import ServerStorage
from pquant.targets import ALLOW, allowed_packages, build
from pquant.tracking.environment import difference
from pquant.tracking.files import plain, without_passwords

SETTINGS = "settings"
RETRIES = "retries"
CMA_ES, CMA_ES_STATES = "optuna.samplers.CmaEsSampler", ("cma", "sepcma", "cmawm")
SECONDS_TO_WAIT = 60
MOST_TRIALS = 1000

optuna.logging.set_verbosity(optuna.logging.WARNING)


@lru_cache(maxsize=8)
def storage(name: str, folder: Path) -> BaseStorage:
    """Return the storage called ``name``: the URL of a database, or a file in ``folder``, ``*.db`` for SQLite and ``*.journal`` for Optuna's journal.

    All trials of a process share the storage.

    Raises:
        ConfigError: the name is neither, or the database cannot be opened.
    """
    if name.endswith(".journal"):
        return JournalStorage(JournalFileBackend(str(folder / name)))
    try:
        if name.endswith(".db") and "://" not in name:
            url = URL.create("sqlite", database=str(folder / name)).render_as_string()  # escapes characters such as ? and %
            return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": SECONDS_TO_WAIT}})
        if "://" in name:
            return ServerStorage(name)
    except Exception as error:
        reason = without_passwords(f"'{name}' cannot be opened: {' '.join(str(error).split())}")
        raise ConfigError(f"FineTuning.storage {reason}") from error
    raise ConfigError(f"FineTuning.storage must be a file *.db or *.journal, or the URL of a database, got '{without_passwords(name)}'")


def open_study(name: str, store: BaseStorage, directions: Sequence[str], settings: Mapping[str, Any]) -> optuna.Study:
    """Return the study ``name`` of a storage; create it if it does not exist. All trials of a study have the same ``settings``.

    Raises:
        ConfigError: the study exists with other settings.
    """
    study = optuna.create_study(study_name=name, storage=store, directions=list(directions), load_if_exists=True)  # type: ignore[arg-type]
    now = json.loads(json.dumps(plain(settings)))
    earlier = study.user_attrs.get(SETTINGS)
    if earlier is None:
        study.set_user_attr(SETTINGS, now)
    elif earlier != now:
        key, before, after = difference(earlier, now)
        raise ConfigError(
            f"the study '{name}' exists already, with {key} = {before!r} instead of {after!r}: give this one another finetuning.experiment_name"
        )
    return study


def check_state(study: optuna.Study) -> None:
    """Refuse a state of CMA-ES in the study's storage: Optuna reads it by ``pickle``, which executes code that others may have stored there.

    Raises:
        ConfigError: the storage has such a state, and $PQUANT_ALLOW does not list the sampler.
    """
    kept = any(name.partition(":")[0] in CMA_ES_STATES for trial in study.get_trials(deepcopy=False) for name in trial.system_attrs)
    if kept and CMA_ES not in allowed_packages():
        raise ConfigError(
            f"the study '{study.study_name}' holds the pickled state of CMA-ES, which can run code; if it is yours, allow that: {ALLOW}={CMA_ES}"
        )


def retry_failed(study: optuna.Study) -> None:
    """Queue each failed trial again with its parameters, unless it was queued again before."""
    tried = retried(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if trial.number not in tried:
            study.enqueue_trial(trial.params, user_attrs={RETRIES: trial.number})


def retried(study: optuna.Study) -> set[int]:
    """Return the numbers of the failed trials that other trials repeat."""
    return {trial.user_attrs[RETRIES] for trial in study.get_trials(deepcopy=False) if RETRIES in trial.user_attrs}


def sampler(kind: partial[BaseSampler], grid: Mapping[str, Sequence[Any]] | None, number: int) -> BaseSampler:
    """Return the sampler that draws trial ``number``.

    Samplers that walk through one sequence (grid, quasi-Monte Carlo) keep their seed; every other sampler gets one seed per
    trial, so that the values of a trial depend neither on the process that draws them nor on how often the study was stopped.

    Raises:
        ConfigError: the sampler does not accept its params.
    """
    seed = kind.keywords.get("seed") or 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            if grid is not None:
                return kind(grid, seed=seed)
            return kind(seed=seed if kind.func is QMCSampler else MOST_TRIALS * seed + number)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"Sampler.params do not suit {kind.func.__name__}: {error}") from error


def pruner(node: DictConfig | None) -> BasePruner:
    """Return the pruner that a node with ``_partial_`` describes; for None, a pruner that never stops a trial.

    Raises:
        ConfigError: the pruner does not accept its params.
    """
    if not node:
        return NopPruner()
    kind = build("early_stopping", node)
    try:
        return kind()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"EarlyStopping.params do not suit {kind.func.__name__}: {error}") from error


def check_trial(
    kind: partial[BaseSampler], grid: Mapping[str, Sequence[Any]] | None, space: Mapping[str, BaseDistribution], node: DictConfig | None
) -> None:
    """Check the params: draw and report two trials of a study in memory, since Optuna checks some params only then.

    Raises:
        ConfigError: the sampler or the pruner fails.
    """
    study = optuna.create_study()
    study.pruner = pruner(node)
    for number in range(2):
        study.sampler = sampler(kind, grid, number)
        try:
            trial = study.ask(dict(space))
        except Exception as error:
            raise ConfigError(f"Sampler.params {kind.keywords} do not suit {kind.func.__name__}: {error}") from error
        try:
            trial.report(0.5, 0)
            trial.should_prune()
        except Exception as error:
            raise ConfigError(f"EarlyStopping.params do not suit {type(study.pruner).__name__}: {error}") from error


def drawn(trial: optuna.Trial, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return the parameters of a trial. They are checked, since they become a command, and others may write to the storage.

    Raises:
        ConfigError: parameters that are not in ``space``, or values that are not in the range of a parameter.
    """
    strange = [name for name in (*trial.params, *space) if name not in trial.params or name not in space or not _has(space[name], trial.params[name])]
    if strange:
        raise ConfigError(f"trial {trial.number} of the study '{trial.study.study_name}' was not drawn from this search: {', '.join(strange)}")
    return trial.params


def _has(distribution: Any, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(type(value) is type(choice) and value == choice for choice in distribution.choices)
    return isinstance(value, (int, float)) and distribution.low <= value <= distribution.high


def is_grid(kind: partial[BaseSampler]) -> bool:
    """Return whether the sampler is a grid sampler, which needs the grid as an argument."""
    return kind.func is GridSampler
