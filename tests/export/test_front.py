import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pquant.errors import ConfigError, ConstantOutputError
from pquant.experiment import Experiment, Run
from pquant.export.front import write_front
from pquant.training import Training

SECTIONS = ("data", "model", "optimizer", "scheduler", "pruning", "quantization", "fitcompress", "finetuning", "tracker", "export")


class FakeExperiment(Experiment):
    """An experiment whose metrics follow from its epoch; nothing is loaded or trained."""

    def _run(self, run: Run, *arguments: Callable[..., None]) -> dict[str, Any]:
        assert isinstance(self.from_epoch, int) and run.folder.is_dir()
        if self.from_epoch > 90:
            raise ConstantOutputError("the model gives the same output")
        return {"val/accuracy": self.from_epoch / 10, "ebops": 5, "rtl/luts_estimated": 100 * self.from_epoch, "seed": 0}


def experiment(source: Path) -> Experiment:
    sections: dict[str, Any] = dict.fromkeys(SECTIONS)
    return FakeExperiment(**sections, training=Training(), from_run=str(source), from_epoch="all")


def archive(folder: Path, *epochs: int) -> Path:
    (folder / "pareto").mkdir(parents=True)
    for epoch in epochs:
        (folder / "pareto" / f"epoch_{epoch:04}.pt").touch()
    return folder


def test_every_model_of_the_archive_is_exported(tmp_path: Path) -> None:
    summary = experiment(archive(tmp_path / "run", 3, 7)).run(Run(tmp_path / "new", {}, ""))
    assert sorted(folder.name for folder in (tmp_path / "new").glob("epoch_*")) == ["epoch_0003", "epoch_0007"]
    rows = list(csv.DictReader((tmp_path / "new" / "front.csv").open()))
    assert [row["rtl/luts_estimated"] for row in rows] == ["300", "700"] and "seed" not in rows[0]
    assert "LUTs (estimated)" in (tmp_path / "new" / "front.svg").read_text()
    assert summary["epoch"] == 7


def test_counted_luts_go_before_estimated_ones(tmp_path: Path) -> None:
    figures = [{"epoch": epoch, "val/accuracy": 0.5, "ebops": 1, "rtl/luts_estimated": 2, "rtl/luts_yosys": 3} for epoch in (1, 2)]
    write_front(tmp_path, figures)
    assert "LUTs (Yosys)" in (tmp_path / "front.svg").read_text()
    write_front(tmp_path, [figures[0], {name: value for name, value in figures[1].items() if name != "rtl/luts_yosys"}])
    assert "LUTs (estimated)" in (tmp_path / "front.svg").read_text()


def test_a_model_whose_output_ignores_its_input_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment(archive(tmp_path / "run", 3, 91)).run(Run(tmp_path / "new", {}, ""))
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "new" / "front.csv").open())] == ["3"]
    assert "epoch 91 is left out: the model gives the same output" in caplog.text
    with pytest.raises(ConfigError, match="no model of the Pareto archive of .* can be exported"):
        experiment(archive(tmp_path / "other", 91)).run(Run(tmp_path / "none", {}, ""))


def test_three_exports_are_enough_for_a_fit_of_luts(tmp_path: Path) -> None:
    figures = [{"epoch": epoch, "val/accuracy": 0.5, "ebops": epoch, "rtl/luts_estimated": 2 * epoch + 1} for epoch in (1, 2, 3)]
    write_front(tmp_path, figures[:2])
    assert not (tmp_path / "luts.html").exists()
    write_front(tmp_path, figures)
    assert "LUTs (estimated) = 2 · EBOPs + 1" in (tmp_path / "luts.html").read_text()


def test_a_run_without_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="from_epoch=all needs a run with a Pareto archive"):
        experiment(tmp_path).run(Run(tmp_path, {}, ""))
