"""Selection of the epoch whose weights become the final model, and early end of a stage."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pquant.quantization.budget import TOLERANCE
from pquant.training.checkpoint import cloned
from pquant.training.stage import Stage
from pquant.training.task import Task
from pquant.training.training import Training

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
SPARSITY_TOLERANCE = 0.01
"""How far, as a fraction, the sparsity of an epoch may lie below its target and still count as reaching it."""


class Selection:
    """Keeps the weights of the best epoch so far (``training.select``) and counts evaluations without improvement (``training.patience``).

    Only evaluated epochs count. A candidate for the best epoch is

    - where the run has a target, of sparsity or of EBOPs: an epoch of the train or finetune stage that reaches all of them, that is, whose sparsity
      is at most one percentage point below its target, and whose EBOPs are at most 5 % above theirs;
    - where it has none: an epoch of the last stage that the run has, of the last round if that is the train stage.

    Of equal epochs the first is the best.

    Args:
        training: the settings.
        task: the task, whose metric is compared.
        sparsity: target sparsity of the pruning method; None without one.
        has_budget: whether the run has an EBOPs target.
    """

    def __init__(self, training: Training, task: Task, sparsity: float | None, has_budget: bool) -> None:
        self.training, self.sparsity = training, sparsity
        self.has_target = bool(training.epochs) and (sparsity is not None or has_budget)
        self.monitored = "val/loss" if training.monitor == "loss" else f"val/{task.metric}"
        self.sign = 1 if training.monitor == "metric" and task.higher_is_better else -1
        self.best: dict[str, Any] | None = None
        """The best epoch so far: its number ``epoch``, stage, the ``value`` of the monitored metric and the state of the ``model``."""

    def update(self, row: Row, model: nn.Module) -> None:
        """Record an evaluated epoch: its ``row`` of metrics and its model."""
        if self.training.select != "best" or not self._is_candidate(row):
            return
        value = row[self.monitored]
        if self.best is None or self.sign * value > self.sign * self.best["value"]:
            self.best = {"epoch": row["epoch"], "stage": row["stage"], "value": value, "model": cloned(model.state_dict())}

    def _is_candidate(self, row: Row) -> bool:
        if not self.has_target:
            last = last_stage(self.training)
            return bool(row["stage"] == last.value and (last is not Stage.TRAIN or row["round"] == self.training.rounds - 1))
        reached = self.sparsity is None or row["sparsity"] >= self.sparsity - SPARSITY_TOLERANCE
        held = row["ebops"] <= row.get("target_ebops", math.inf) * (1 + TOLERANCE)
        return bool(reached and held and row["stage"] != Stage.PRETRAIN.value)

    def ends_stage(self, rows: Sequence[Row]) -> bool:
        """Return whether the stage of the last of ``rows``, an evaluated epoch, ends by ``patience``. The train stage never ends early."""
        stage = rows[-1]["stage"]
        if self.training.patience is None or stage == Stage.TRAIN.value:
            return False
        best, since = -math.inf, 0
        for row in rows:
            if row["stage"] == stage and (value := row.get(self.monitored)) is not None:
                improves = self.sign * value > best + self.training.min_delta
                best, since = (self.sign * value, 0) if improves else (best, since + 1)
        return since >= self.training.patience

    def take(self, model: nn.Module) -> int | None:
        """Load the weights of the best epoch into the model, with ``select`` "best"; return its number, or None if the model did not change."""
        if self.training.select != "best":
            return None
        if self.best is None:
            log.warning(
                "no epoch reached the targets of sparsity and EBOPs that training.select=best needs: the final model is that of the last epoch"
            )
            return None
        model.load_state_dict(self.best["model"])
        log.info("the final model is that of epoch %d, with %s = %.4g", self.best["epoch"], self.monitored, self.best["value"])
        epoch: int = self.best["epoch"]
        return epoch

    def load(self, best: dict[str, Any] | None) -> None:
        """Restore the best epoch of a checkpoint, if it is also a candidate in this run, which may be longer than the resumed one."""
        kept = best is not None and (self.has_target or best["stage"] == last_stage(self.training).value)
        self.best = best if kept else None

    def warnings(self, prunes: bool) -> list[str]:
        """Return one message per setting without effect, and one if the best epoch may be less sparse than the last.

        ``prunes`` says whether the run prunes."""
        training, found = self.training, []
        if training.select == "best" and prunes and not self.has_target and last_stage(training) is Stage.TRAIN:
            found.append(
                "training.select=best may choose an epoch that is pruned less than the last: the pruning method has no target and masks change until "
                "fine-tuning; set training.fine_tuning_epochs"
            )
        if training.patience is not None and not training.pretraining_epochs + training.fine_tuning_epochs:
            found.append(f"training.patience = {training.patience} has no effect without pretraining and fine-tuning epochs")
        if training.patience is None and training.min_delta:
            found.append(f"training.min_delta = {training.min_delta:g} has no effect without training.patience")
        if training.patience is None and training.select == "last" and training.monitor != "metric":
            found.append(f"training.monitor = {training.monitor} has no effect without training.select=best or training.patience")
        return found


def last_stage(training: Training) -> Stage:
    """Return the last stage that has epochs."""
    lengths = {Stage.FINETUNE: training.fine_tuning_epochs, Stage.TRAIN: training.epochs}
    return next((stage for stage, length in lengths.items() if length), Stage.PRETRAIN)
