"""The MLflow tracker, in addition to the local files."""

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
from pquant.installation import extra
from pquant.settings import Settings, schema
from pquant.tracking.environment import dotted
from pquant.tracking.files import plain
from pquant.tracking.session import Session
from pquant.tracking.tracker import artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

END = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
BATCH, LONGEST = 100, 5000
"""MLflow's limits: parameters per request, and characters per value."""


@schema("tracker", "mlflow")
@dataclass(frozen=True)
class MlflowTracker(Settings):
    """Writes the metrics of a run, its configuration, report and model into an MLflow store.

    Data is sent to the store only. If the store fails, the tracker logs one warning and the run continues without it.

    Args:
        experiment: the name of MLflow's experiment.
        group: the value of the tag ``group``.
        name: the name of the run; null: MLflow chooses one.
        uri: the URI of the store; null: ``$MLFLOW_TRACKING_URI``, else an SQLite file ``mlflow.db`` in the run's folder.
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
            raise ConfigError(f"tracker=mlflow cannot import mlflow ({error}): {extra('mlflow')}, or use tracker=none") from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self._session.begin(folder, lambda: _Run(MlflowClient(uri), uri, self, config))

    def log(self, row: Mapping[str, Any]) -> None:
        """Log an epoch's metrics at step ``row["epoch"]``."""
        self._session.do_in_background(lambda run: run.log_metrics(row, row["epoch"]))

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Log the final metrics after the last epoch, the values that are not numbers as tags, and the run's files as artifacts."""
        self._session.do(lambda run: run.end(metrics, artifacts(self._session.folder)))

    def finish(self, status: str) -> None:
        """End the MLflow run with its status."""
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

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log all finite numbers."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(_key(name), float(value), now, step) for name, value in metrics.items() if _is_number(value)])

    def end(self, metrics: Mapping[str, Any], files: list[Path]) -> None:
        """Log the final metrics and the files."""
        from mlflow.entities import RunTag

        self.log_metrics(metrics, metrics.get("epochs", 0))
        texts = {name: value for name, value in metrics.items() if value is not None and not isinstance(value, (int, float))}
        self.client.log_batch(self.id, tags=[RunTag(_key(name), str(value)[:LONGEST]) for name, value in texts.items()])
        for file in files:
            self.client.log_artifact(self.id, str(file))


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """Return the id of an experiment, created if it does not exist; the artifacts of an SQLite store lie beside its file."""
    from mlflow.exceptions import MlflowException

    beside = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri() if uri.startswith("sqlite:///") else None
    try:
        found = client.get_experiment_by_name(name)
        return found.experiment_id if found else client.create_experiment(name, artifact_location=beside)
    except MlflowException:
        created_meanwhile = client.get_experiment_by_name(name)
        if created_meanwhile is None:
            raise
        return created_meanwhile.experiment_id


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _key(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
