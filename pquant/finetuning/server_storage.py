"""A study's storage in the database of a server, which may restart while the study runs."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError

log = logging.getLogger(__name__)

SECONDS_TO_RESTART = 120
UNREACHABLE = (OperationalError, InterfaceError, PendingRollbackError)
CALLED_BY_OPTUNAS_CACHE = ("_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id")


class ServerStorage(RDBStorage):
    """Optuna's storage in a database server. If the server cannot be reached, calls are repeated for up to two minutes."""

    def __init__(self, url: str) -> None:
        super().__init__(url, engine_kwargs={"pool_pre_ping": True})


def _again(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def calling(*args: Any, **kwargs: Any) -> Any:
        start, waited = time.monotonic(), False
        while True:
            try:
                if waited and call is RDBStorage.set_trial_state_values and _has_state(*args, **kwargs):
                    return True
                return call(*args, **kwargs)
            except (StorageInternalError, *UNREACHABLE) as error:
                if not _unreachable(error) or time.monotonic() - start > SECONDS_TO_RESTART:
                    raise
            log.info("the database of the study cannot be reached; waiting")
            time.sleep(1)
            waited = True

    return calling


def _has_state(storage: BaseStorage, trial_id: int, state: TrialState, values: Any = None) -> bool:
    """Return whether a trial has a state already: the server may have stopped after it set the state, and a finished trial refuses a second call."""
    return storage.get_trial(trial_id).state is state


def _unreachable(error: Exception) -> bool:
    return isinstance(error.__cause__ if isinstance(error, StorageInternalError) else error, UNREACHABLE)


for _name in (*(name for name in vars(BaseStorage) if not name.startswith("_")), *CALLED_BY_OPTUNAS_CACHE):
    setattr(ServerStorage, _name, _again(getattr(RDBStorage, _name)))
