"""The MLflow tracker, with a real store."""

import json
import logging
import sys
from pathlib import Path

import pytest

from pquant.errors import ConfigError
from pquant.tracking import MlflowTracker

pytest.importorskip("mlflow")
CONFIG = {
    "pruning": {"alpha": 0.1, "layers": {"a.*": 1}, "empty": {}},
    "seed": 3,
    "long": "x" * 9000,
    **{f"key{number}": number for number in range(150)},
}


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def whole_run(tracker: MlflowTracker, folder: Path, status: str = "finished") -> None:
    tracker.start(folder, CONFIG)
    tracker.log({"epoch": 1, "stage": "train", "val/accuracy": 0.5, "ebops": float("nan")})
    tracker.log({"epoch": 2, "stage": "train", "val/accuracy": 0.75})
    (folder / "report.html").write_text("<html>")
    tracker.summary({"test/accuracy": 0.8, "epochs": 2, "git_commit": "abc", "platform": None})
    tracker.finish(status)


def read(uri: str):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("pquant")
    return client, client.search_runs([experiment.experiment_id])


def test_a_run_is_in_a_store_in_its_folder(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        whole_run(MlflowTracker(group="g", name="n"), tmp_path)
    assert caplog.records == []
    client, (run,) = read(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run.info.run_name == "n" and run.info.status == "FINISHED" and run.data.tags["group"] == "g"
    assert run.data.params["pruning.alpha"] == "0.1" and run.data.params["key149"] == "149" and run.data.params["pruning.empty"] == "{}"
    assert len(run.data.params["long"]) == 5000 and run.data.params["pruning.layers.a._"] == "1"
    history = client.get_metric_history(run.info.run_id, "val/accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.75)]
    assert run.data.metrics["test/accuracy"] == 0.8 and "ebops" not in run.data.metrics and run.data.tags["git_commit"] == "abc"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]
    assert list((tmp_path / "mlartifacts").rglob("report.html"))


def test_runs_share_a_store_that_the_environment_or_the_field_names_and_say_how_they_ended(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for status in ("failed", "interrupted"):
        (tmp_path / status).mkdir()
        whole_run(MlflowTracker(uri=uri if status == "failed" else None), tmp_path / status, status)
    _, runs = read(uri)
    assert sorted(run.info.status for run in runs) == ["FAILED", "KILLED"]
    assert not (tmp_path / "failed" / "mlflow.db").exists()


def test_a_store_that_fails_costs_one_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="pquant"):
        whole_run(MlflowTracker(uri="nonsense://store"), tmp_path)
    ours = [record.message for record in caplog.records if record.name.startswith("pquant")]
    assert len(ours) == 1 and ours[0].startswith("MLflow failed, the run continues without it")


def test_a_missing_mlflow_is_a_configuration_error_that_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pquant\[mlflow\]"):
        MlflowTracker().start(tmp_path, {})
    assert json.dumps(list(tmp_path.iterdir())) == "[]"
