import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pquant.errors import ConfigError
from pquant.experiment import Run
from pquant.export.front import export_front, write_front


@dataclass(frozen=True)
class Exported:
    """Stands for an experiment: gives figures that its epoch determines."""

    from_run: str
    from_epoch: Any = "all"
    ran: list[Path] = field(default_factory=list)

    def run(self, run: Run) -> dict[str, Any]:
        self.ran.append(run.folder)
        return {"val/accuracy": self.from_epoch / 10, "ebops": 5, "rtl/luts_estimated": 100 * self.from_epoch, "seed": 0}


def archive(folder: Path, *epochs: int) -> Path:
    (folder / "pareto").mkdir(parents=True)
    for epoch in epochs:
        (folder / "pareto" / f"epoch_{epoch:04}.pt").touch()
    return folder


def test_every_model_of_the_archive_is_exported(tmp_path: Path) -> None:
    experiment = Exported(str(archive(tmp_path / "run", 3, 7)))
    summary = export_front(experiment, Run(tmp_path / "new", {}, ""))  # type: ignore[arg-type]
    assert experiment.ran == [tmp_path / "new" / "epoch_0003", tmp_path / "new" / "epoch_0007"]
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


def test_a_run_without_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="from_epoch=all needs a run with a Pareto archive"):
        export_front(Exported(str(tmp_path)), Run(tmp_path, {}, ""))  # type: ignore[arg-type]
