"""MLflow: a run of it beside the local files, and never in their way."""

import logging
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pquant.errors import ConfigError
from pquant.settings import Settings, schema
from pquant.tracking.environment import dotted
from pquant.tracking.files import plain
from pquant.tracking.session import Session
from pquant.tracking.tracker import artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

END = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
BATCH, LONGEST = 100, 5000
"""What MLflow takes at once, and the characters of a value."""


@schema("tracker", "mlflow")
@dataclass(frozen=True)
class MlflowTracker(Settings):
    """Writes the figures of a run, its configuration, report and model into an MLflow store.

    Nothing is sent anywhere but to the store. When it fails, that is logged once and the run goes on without it.

    Args:
        experiment: name of MLflow's experiment, which holds runs.
        group: a tag of that name.
        name: of the run; None takes the folder's.
        uri: of the store; None takes what ``$MLFLOW_TRACKING_URI`` says, else an SQLite file ``mlflow.db`` in the run's folder.
    """

    experiment: str = "pquant"
    group: str | None = None
    name: str | None = None
    uri: str | None = None

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Begin an MLflow run with the configuration as its parameters, by dotted key.

        Raises:
            ConfigError: mlflow cannot be imported.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow import MlflowClient
        except Exception as error:
            raise ConfigError(f"tracker=mlflow cannot import mlflow ({error}): pip install 'pquant[mlflow]', or use tracker=none") from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self._session.begin(folder, lambda: _Run(MlflowClient(uri), uri, self, config))

    def log(self, row: Mapping[str, Any]) -> None:
        """Log an epoch's figures at step ``row["epoch"]``."""
        self._session.do_behind(lambda run: run.metrics(row, row["epoch"]))

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Log the final figures after the last epoch, what is no number as tags, and keep the run's files as artifacts."""
        self._session.do(lambda run: run.end(figures, artifacts(self._session.folder)))

    def finish(self, status: str) -> None:
        """End the MLflow run with a status that says how it ended."""
        self._session.end(lambda run: run.client.set_terminated(run.id, END[status]))

    @cached_property
    def _session(self) -> "Session[_Run]":
        return Session("MLflow")


class _Run:
    """A run of an MLflow store."""

    def __init__(self, client: "MlflowClient", uri: str, tracker: MlflowTracker, config: dict[str, Any]) -> None:
        from mlflow.entities import Param

        self.client = client
        tags = {"group": tracker.group} if tracker.group else {}
        self.id: str = client.create_run(_experiment(client, uri, tracker.experiment), run_name=tracker.name, tags=tags).info.run_id
        params = [Param(_key(key), str(value)[:LONGEST]) for key, value in dotted(plain(config))]
        for start in range(0, len(params), BATCH):
            client.log_batch(self.id, params=params[start : start + BATCH])

    def metrics(self, figures: Mapping[str, Any], step: int) -> None:
        """Log all finite numbers."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(_key(name), float(value), now, step) for name, value in figures.items() if _is_number(value)])

    def end(self, figures: Mapping[str, Any], files: list[Path]) -> None:
        """Log the last figures and the files."""
        from mlflow.entities import RunTag

        self.metrics(figures, figures.get("epochs", 0))
        words = {name: value for name, value in figures.items() if value is not None and not isinstance(value, (int, float))}
        self.client.log_batch(self.id, tags=[RunTag(_key(name), str(value)[:LONGEST]) for name, value in words.items()])
        for file in files:
            self.client.log_artifact(self.id, str(file))


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """Return the id of an experiment, made where it is not there; the artifacts of an SQLite store lie beside its file."""
    from mlflow.exceptions import MlflowException

    beside = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri() if uri.startswith("sqlite:///") else None
    try:
        found = client.get_experiment_by_name(name)
        return found.experiment_id if found else client.create_experiment(name, artifact_location=beside)
    except MlflowException:
        made_meanwhile = client.get_experiment_by_name(name)
        if made_meanwhile is None:
            raise
        return made_meanwhile.experiment_id


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _key(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
