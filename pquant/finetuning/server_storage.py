"""A study's storage in the database of a server, which may restart while the study runs."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError

log = logging.getLogger(__name__)

SECONDS_TO_RESTART = 120
UNREACHABLE = (OperationalError, InterfaceError, PendingRollbackError)
CALLED_BY_OPTUNAS_CACHE = ("_create_new_trial", "_set_trial_param", "_get_trials")


class ServerStorage(RDBStorage):
    """Optuna's storage in a database server. If the server cannot be reached, calls are repeated for up to two minutes."""

    def __init__(self, url: str) -> None:
        super().__init__(url, engine_kwargs={"pool_pre_ping": True})


def _again(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def calling(*args: Any, **kwargs: Any) -> Any:
        start = time.monotonic()
        while True:
            try:
                return call(*args, **kwargs)
            except (StorageInternalError, *UNREACHABLE) as error:
                if not _unreachable(error) or time.monotonic() - start > SECONDS_TO_RESTART:
                    raise
            log.info("the database of the study cannot be reached; waiting")
            time.sleep(1)

    return calling


def _unreachable(error: Exception) -> bool:
    return isinstance(error.__cause__ if isinstance(error, StorageInternalError) else error, UNREACHABLE)


for _name in (*BaseStorage.__abstractmethods__, *CALLED_BY_OPTUNAS_CACHE):
    setattr(ServerStorage, _name, _again(getattr(RDBStorage, _name)))
