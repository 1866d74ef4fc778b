"""The life of a compressed model in a user's own loop, and a method that the package has never heard of."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.pruning import CS, DST, Pruner, PruningMethod
from pquant.pruning.schedule import ScheduledPruner
from pquant.quantization import Quantization
from pquant.training.stage import Horizon

ROOT = Path(__file__).parents[2]
THIRD_PARTY = '''
"""A method of somebody else: keeps every n-th weight."""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pquant.pruning import Pruner, PruningMethod


class EveryNthPruner(Pruner):
    def train_mask(self, weight: Tensor) -> Tensor:
        return (torch.arange(weight.numel(), device=weight.device) % self.method.n == 0).view_as(weight)


@dataclass(frozen=True)
class EveryNth(PruningMethod):
    n: int = 2

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> EveryNthPruner:
        return EveryNthPruner(self, weight)
'''


def test_a_third_party_method_is_named_by_target_and_trained(tmp_path: Path) -> None:
    (tmp_path / "somebodys_package.py").write_text(THIRD_PARTY)
    groups = tmp_path / "conf" / "pruning"
    groups.mkdir(parents=True)
    (groups / "every_nth.yaml").write_text("_target_: somebodys_package.EveryNth\nn: 4\ndisable_pruning_for_layers: [layers.6]\n")
    command = [sys.executable, str(ROOT / "run.py"), f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "pruning=every_nth", "tracker=none"]
    command += ["training.pretraining_epochs=0", "training.epochs=1", "training.fine_tuning_epochs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PQUANT_ALLOW": "somebodys_package"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["mask_sparsity"] == 0.75

    refused = subprocess.run(command, env={**environment, "PQUANT_ALLOW": ""}, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode != 0 and "PQUANT_ALLOW=my_package" in refused.stderr


class Diary(ScheduledPruner):
    """Writes down what happens to it."""

    def __init__(self, method: PruningMethod, weight: Tensor) -> None:
        super().__init__(method, weight)
        self.entries: list[str] = []

    def follow(self, epoch: int, horizon: Horizon) -> None:
        self.entries.append(f"epoch {epoch}")

    def on_batch_end(self, weight: Tensor) -> None:
        self.entries.append("step")

    def on_round_end(self, weight: Tensor) -> None:
        self.entries.append("round")


class Keeper(PruningMethod):
    """A method with a diary."""

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> Pruner:
        return Diary(self, weight)


def test_events_reach_the_pruner_of_a_shared_weight_once() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    model = pquant.compress(tied, Keeper())
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(2, 1, 2))
    pquant.on_batch_end(model)
    pquant.on_epoch_end(model)
    pquant.on_round_end(model)
    assert model[0].pruner is model[1].pruner
    assert model[0].pruner.entries == ["epoch 0", "step", "epoch 1", "round"]


def test_a_scheduled_method_must_know_how_long_training_lasts() -> None:
    model = pquant.compress(nn.Linear(3, 3), CS(threshold_decay=1e-4))
    with pytest.raises(RuntimeError, match="CS must know how long training lasts"):
        pquant.set_stage(model, pquant.Stage.TRAIN)


def test_a_loop_of_ten_lines_compresses_a_model() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, :2].sum(1) > 0).long()
    model = pquant.compress(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)), DST(alpha=1e-2), example_input=x)
    optimizer = torch.optim.Adam(pquant.parameter_groups(model), 1e-2)
    for stage, epochs in ((pquant.Stage.PRETRAIN, 5), (pquant.Stage.TRAIN, 60), (pquant.Stage.FINETUNE, 5)):
        pquant.set_stage(model, stage, pquant.Horizon(epochs, 1))
        for _ in range(epochs):
            loss = nn.functional.cross_entropy(model(x), y) + pquant.penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pquant.on_batch_end(model)
            pquant.on_epoch_end(model, loss.item())
    final = pquant.finalize(model)
    assert (final(x).argmax(1) == y).float().mean() > 0.95
    assert pquant.sparsity(final) > 0.4


@pytest.mark.parametrize("stage", [pquant.Stage.PRETRAIN, pquant.Stage.TRAIN])
def test_weights_that_fine_tuning_has_rescaled_are_not_rescaled_again(stage: pquant.Stage) -> None:
    for method, refused in ((CS(), True), (DST(), False)):
        model = pquant.compress(nn.Linear(4, 4), method)
        for one in (pquant.Stage.PRETRAIN, pquant.Stage.TRAIN, pquant.Stage.FINETUNE, pquant.Stage.FINETUNE):
            pquant.set_stage(model, one, Horizon(3, 2))
        if not refused:
            pquant.set_stage(model, stage, Horizon(3, 2))
            continue
        with pytest.raises(ConfigError, match=f"set_stage: {stage.name} cannot follow FINETUNE"):
            pquant.set_stage(model, stage, Horizon(3, 2))


def test_the_calls_of_a_loop_may_be_made_for_a_part_of_the_model() -> None:
    section = Quantization(use_hgq=True)
    model = pquant.compress(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), DST(), section, torch.randn(2, 4))
    for part in (model, model[0], model, model[1]):
        pquant.on_batch_end(part)
        pquant.on_epoch_end(part)


def test_metrics_leave_the_modes_of_all_modules_as_they_are() -> None:
    model = pquant.compress(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), DST(), Quantization(use_hgq=True), torch.randn(2, 4)).train()
    model[0].pruner.eval()
    before = {name: module.training for name, module in model.named_modules()}
    pquant.metrics.model_metrics(model)
    assert {name: module.training for name, module in model.named_modules()} == before
