"""The Pareto archive: what it keeps, drops, writes and gives back."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pquant.errors import ConfigError
from pquant.pareto import front
from pquant.training.archive import ParetoArchive, load_archived
from pquant.training.task import Classification, Regression


def row(epoch: int, metric: float, ebops: float, name: str = "accuracy") -> dict[str, Any]:
    return {"epoch": epoch, "stage": "train", "ebops": ebops, "sparsity": 0.5, f"val/{name}": metric}


def model_of(epoch: int) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, epoch)
    return model


@pytest.mark.slow
@given(points=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=8), crash=st.integers(0, 7))
def test_it_holds_the_models_of_the_front_also_after_a_crash(points: list[tuple[int, int]], crash: int, tmp_path_factory: Any) -> None:
    folder: Path = tmp_path_factory.mktemp("run")
    rows = [row(epoch, accuracy / 10, ebops) for epoch, (accuracy, ebops) in enumerate(points, 1)]
    for position in range(1, len(rows) + 1):
        if position == crash:
            continue  # the checkpoint of this epoch was written, then the run died: it goes on by taking in the same epoch again
        if position == crash + 1 and crash:
            ParetoArchive(folder, Classification()).update(rows[: position - 1], model_of(position - 1))
        ParetoArchive(folder, Classification()).update(rows[:position], model_of(position))
    if crash == len(rows):
        ParetoArchive(folder, Classification()).update(rows, model_of(len(rows)))
    best = [index + 1 for index in front([(ebops, accuracy) for accuracy, ebops in points], "minimize", "maximize")]
    with (folder / "pareto.csv").open() as file:
        assert [int(line["epoch"]) for line in csv.DictReader(file)] == best
    assert sorted(path.name for path in (folder / "pareto").iterdir()) == [f"epoch_{epoch:04}.pt" for epoch in sorted(best)]
    for epoch in best:
        assert load_archived(folder, epoch)["weight"].item() == epoch
    shutil.rmtree(folder)


def test_epochs_that_were_not_evaluated_are_no_part_of_it(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "stage": "train"}, row(2, 0.5, 100), {"epoch": 3, "stage": "train"}, row(4, 0.6, 50)]
    for position in (2, 4):
        ParetoArchive(tmp_path, Classification()).update(rows[:position], model_of(position))
    assert [path.name for path in (tmp_path / "pareto").iterdir()] == ["epoch_0004.pt"]


def test_for_an_error_lower_is_better(tmp_path: Path) -> None:
    rows = [row(1, 0.5, 100, "rmse"), row(2, 0.4, 100, "rmse")]
    for position in (1, 2):
        ParetoArchive(tmp_path, Regression()).update(rows[:position], model_of(position))
    assert [path.name for path in (tmp_path / "pareto").iterdir()] == ["epoch_0002.pt"]


def test_the_plot_stands_alone(tmp_path: Path) -> None:
    rows = [row(1, 0.5, 100), row(2, 0.4, 50)]
    for position in (1, 2):
        ParetoArchive(tmp_path, Classification()).update(rows[:position], model_of(position))
    svg = (tmp_path / "pareto.svg").read_text()
    assert svg.startswith("<svg") and "var(" not in svg and "EBOPs" in svg


def test_an_epoch_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    ParetoArchive(tmp_path, Classification()).update([row(7, 0.5, 100)], model_of(7))
    with pytest.raises(ConfigError, match=r"from_epoch must be 'all' or an epoch of the run's Pareto archive, got 3; .* has \[7\]"):
        load_archived(tmp_path, 3)
    (tmp_path / "pareto" / "epoch_0003.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="no readable checkpoint"):
        load_archived(tmp_path, 3)
    assert torch.equal(load_archived(tmp_path, 7)["weight"], torch.tensor([[7.0]]))
