"""The training loop."""

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, TensorDataset

from pquant.data.batches import AugmentedBatches, batches
from pquant.data.splits import Splits
from pquant.distillation.losses import NoDistiller
from pquant.errors import ConfigError, DivergedError, blaming
from pquant.layers.calibrate import calibrate, trace_ranges
from pquant.layers.norm import synchronize
from pquant.layers.queries import pruned_layers
from pquant.metrics import Penalty, ebops, finalized_parameters, sparsity
from pquant.training import distributed
from pquant.training.checkpoint import cloned
from pquant.training.compile import StepCompiler
from pquant.training.lifecycle import StepEvents, on_epoch_end, on_round_end, set_stage
from pquant.training.numerics import Diagnosis, SkipStep, Step, all_finite, trained
from pquant.training.optimizer import follow_schedule, parameter_groups
from pquant.training.plan import Epoch, plan
from pquant.training.saved_weights import SavedWeights
from pquant.training.selection import Selection
from pquant.training.stage import Stage
from pquant.training.task import task_for
from pquant.training.training import Training

log = logging.getLogger(__name__)

CALIBRATION_BATCHES = 8
Row = dict[str, Any]
OnBatch = Callable[[Tensor, Tensor], None]


def _ignore(output: Tensor, target: Tensor) -> None:
    pass


def _nothing() -> None:
    pass


class Trainer:
    """Trains a model through its stages.

    Args:
        model: a compressed model, or a float one, for which all stages are alike.
        splits: the data; data sets of tensors are moved to ``device``.
        training: settings of the training section.
        optimizer: builds the optimizer from parameter groups.
        scheduler: builds the learning rate schedule from the optimizer; it makes one step per epoch over the whole run.
        device: device of the training.
        seed: seed of the order of the training data.
        distiller: adds the loss of a teacher to the steps; None: no teacher.

    ``state_dict`` holds everything that resuming needs in addition to the constructor's arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        training: Training,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        device: torch.device,
        seed: int,
        distiller: NoDistiller | None = None,
    ) -> None:
        self.model, self.training, self.device = model.to(device), training, device
        self.task, self.distiller = task_for(splits), distiller or NoDistiller()
        self.distiller.to(device)
        self.splits = replace(splits, train=_on(device, splits.train), validation=_on(device, splits.validation), test=_on(device, splits.test))
        with blaming("optimizer"):
            self.optimizer = optimizer(parameter_groups(self.model))
        with blaming("scheduler"):
            self.scheduler = scheduler(self.optimizer)
        self.order = torch.Generator().manual_seed(seed)
        self.loader = batches(self.splits.train, training.batch_size, self.order, self._leaves_one_out())
        if splits.augment is not None:
            self.loader = AugmentedBatches(self.loader, splits.augment, self.order)
        self.plan = plan(training)
        self.horizon = training.horizon(len(self.loader))
        self.pruned, self.penalty = list(pruned_layers(self.model).values()), Penalty(self.model)
        goal = next((layer.pruner.method.goal for layer in self.pruned), None)
        self.selection = Selection(training, self.task, goal, bool(self._budget()))
        self.step: Step = SkipStep(self._step, self.model, self.optimizer) if training.on_nan == "skip_step" else self._step
        self.losses = StepCompiler(self._losses, self.model, training.compile, device, self._graphs_and_steps)
        self.overlapping: distributed.Losses | None = None
        if training.sync_batch_norm:
            synchronize(self.model)
        self.step_events = StepEvents(self.model)
        self.position = self.step_count = 0
        self.saved_weights = SavedWeights(self.model)
        self.safe: dict[str, Any] | None = None
        self.safe_position = 0
        self.rows: list[Row] = []
        self.lines: list[str] = []

    def fit(self, on_epoch: Callable[[Row], None], before_train: Callable[[], None] = _nothing, after_step: Callable[[], None] = _nothing) -> None:
        """Run the remaining epochs.

        Args:
            on_epoch: called after each epoch with its row of metrics, which are only the training losses if the epoch is not evaluated.
            before_train: called at the start of the train stage, after pretraining.
            after_step: called after every step; it may raise an exception to end the run.

        Raises:
            DivergedError: a value is not finite.
        """
        if self.position == 0:
            calibrate(self.model, islice(self._inputs(), CALIBRATION_BATCHES))
        with self.distiller.attached(self.model):
            while self.position < len(self.plan):
                epoch, start = self.plan[self.position], time.perf_counter()
                if epoch.stage is Stage.TRAIN and epoch.index == 0 and epoch.round == 0:
                    before_train()
                if self._enter(epoch) or self.safe is None:
                    self._keep()
                budget = self._budget()
                losses = self._train_epoch(epoch, after_step)
                self._leave(epoch, losses["train/loss"])
                row = {"stage": epoch.stage.value, "round": epoch.round, "epoch": epoch.number, **losses}
                measured = self._measure(epoch) | budget if epoch.evaluated else {}
                row |= measured | {"lr": self.optimizer.param_groups[0]["lr"]}
                follow_schedule(self.scheduler, row.get("val/loss"))
                self.position += 1
                self.rows.append(row | {"seconds": time.perf_counter() - start})
                if epoch.evaluated:
                    self.selection.update(self.rows[-1], self.model)
                    if self.training.patience and distributed.decided(self.selection.ends_stage(self.rows), self.device):
                        self._end_stage(epoch)
                    self._keep()
                on_epoch(self.rows[-1])

    def _end_stage(self, epoch: Epoch) -> None:
        """Skip the remaining epochs of a stage; the learning rate schedule continues as if they had been trained."""
        first = self.position
        while self.position < len(self.plan) and self.plan[self.position].stage is epoch.stage:
            follow_schedule(self.scheduler, None)
            self.position += 1
        if self.position > first and distributed.leads():
            message = "%s ends after epoch %d instead of %d: no better %s in training.patience = %d evaluations"
            log.info(message, epoch.stage.value, epoch.number, self.position, self.selection.monitored, self.training.patience)

    def take_best(self) -> int | None:
        """Load the weights of the epoch that ``training.select`` chooses; return its number, or None if the weights are those of the last epoch."""
        return self.selection.take(self.model)

    def _keep(self) -> None:
        self.safe, self.safe_position = cloned(self._state()), self.position

    def _measure(self, epoch: Epoch) -> Row:
        """Return loss and metric of the model on the validation data, its sparsity and its EBOPs.

        Raises:
            DivergedError: the loss is not finite.
        """
        row = self.evaluate("validation", "val")
        if not math.isfinite(row["val/loss"]):
            raise DivergedError(f"the validation loss is not finite after epoch {epoch.number} ({epoch.stage.value})")
        parameters = finalized_parameters(self.model)
        return row | {"sparsity": sparsity(self.model, parameters), "ebops": ebops(self.model, parameters)}

    def _budget(self) -> Row:
        """Return the EBOPs target and the current beta; {} for a model without a target."""
        budget = self.penalty.budget
        return {"target_ebops": budget.target, "beta": float(budget.beta)} if budget else {}

    def _graphs_and_steps(self) -> tuple[int, int]:
        """Return how many stages and how many steps are left, including the current step."""
        left = self.plan[self.position :]
        return len({epoch.stage for epoch in left}), len(left) * len(self.loader) - self.step_count % max(len(self.loader), 1)

    def _leaves_one_out(self) -> bool:
        """Return whether the last batch of an epoch must be left out because it has a single example, for which BatchNorm1d fails in training.

        Raises:
            ConfigError: every batch would have a single example.
        """
        count, size = len(self.splits.train), self.training.batch_size  # type: ignore[arg-type]
        if not any(isinstance(module, nn.BatchNorm1d) for module in self.model.modules()):
            return False
        if min(count, size) < 2:
            raise ConfigError(f"batch norm needs 2 examples a batch: training.batch_size is {size}, the training set has {count}")
        return count % size == 1

    def trace_ranges(self) -> None:
        """Set the integer bits that follow the data to the range of the training data, before ``finalize``; see :func:`pquant.trace_ranges`."""
        trace_ranges(self.model, self._inputs())

    def _inputs(self) -> Iterator[tuple[Tensor, ...]]:
        return ((batch[0].to(self.device),) for batch in batches(self.splits.train, self.training.batch_size))

    def _enter(self, epoch: Epoch) -> bool:
        """Prepare for an epoch; return whether that changed the model or the saved weights."""
        begins = epoch.index == 0 and epoch.round == 0
        if begins:
            if epoch.stage is Stage.TRAIN:
                calibrate(self.model, islice(self._inputs(), CALIBRATION_BATCHES))
            set_stage(self.model, epoch.stage, self.horizon)
            if epoch.stage is Stage.FINETUNE and self.training.rewind != "never":
                self.saved_weights.restore(self.optimizer)
        saves = epoch.stage is Stage.TRAIN and epoch.round == 0 and epoch.index == self.training.save_weights_epoch
        if saves:
            self.saved_weights.save()
        return begins or saves

    def _leave(self, epoch: Epoch, loss: float) -> None:
        distributed.mean_buffers(self.model)
        on_epoch_end(self.model, loss)
        if epoch.stage is not Stage.TRAIN or not epoch.ends_round:
            return
        if epoch.round < self.training.rounds - 1:
            if self.training.rewind == "every-round":
                self.saved_weights.restore(self.optimizer)
            on_round_end(self.model)

    def _train_epoch(self, epoch: Epoch, after_step: Callable[[], None]) -> Row:
        self.model.train()
        self.overlapping = distributed.overlapping(self.losses, self.model)
        self.distiller.set_stage(epoch.stage)
        names = ("train/loss", "train/penalty", *self.distiller.metrics)
        *totals, count, good = torch.zeros(len(names) + 2, device=self.device).unbind()
        for batch in self.loader:
            examples = len(batch[0])
            with self.losses.timed():
                *losses, kept = self.step(*(tensor.to(self.device) for tensor in batch))
                for total, loss in zip(totals, losses, strict=False):
                    total.add_(loss, alpha=examples)
                count.add_(kept, alpha=examples)
                good.add_(kept)
            self.step_count += 1
            after_step()
        skipped, allowed = len(self.loader) - int(good), len(self.loader) - 1 if self.training.on_nan == "skip_step" else 0
        if skipped > allowed or not (math.isfinite(sum(totals)) and bool(all_finite(trained(self.model, self.optimizer)))):
            self._replay()
            diagnosis = Diagnosis(self.model, self.optimizer, self._losses, self.distiller.total, self.follow_step)
            where = diagnosis.locate(self.loader, self.device) or "a value is not finite"
            raise DivergedError(f"{where} of epoch {epoch.number} ({epoch.stage.value}); correct the data or lower optimizer.lr")
        if skipped:
            log.warning("epoch %d: %d of %d steps had values that are not finite and were skipped", epoch.number, skipped, len(self.loader))
        return {name: float(total) / float(count) for name, total in zip(names, totals, strict=True)}

    def _replay(self) -> None:
        """Restore the state at the start of the current epoch: load the last saved state, and repeat the epochs since then."""
        assert self.safe is not None
        self._load(self.safe)
        for epoch in self.plan[self.safe_position : self.position]:
            for batch in self.loader:
                self.step(*(tensor.to(self.device) for tensor in batch))
            self._leave(epoch, next(row["train/loss"] for row in reversed(self.rows) if row["epoch"] == epoch.number))
            follow_schedule(self.scheduler, None)

    def _step(self, *batch: Tensor) -> tuple[Tensor, ...]:
        finite = torch.isfinite(batch[0].sum(dtype=torch.float64))
        mine, weight = distributed.part(*batch)
        self.optimizer.zero_grad()
        losses = (self.overlapping or self.losses)(*mine)
        together = self.distiller.total(losses)
        if self.overlapping:
            (together * (weight * distributed.count())).backward()
        else:
            (together if weight == 1 else together * weight).backward()
            distributed.total_gradients(self.model.parameters())
        self.follow_step()
        loss, penalty, *taught = (value.detach() for value in losses)
        return distributed.total(loss * weight), penalty, *(distributed.total(value * weight) for value in taught), finite

    def follow_step(self) -> None:
        """Make the update of the optimizer, then that of the pruners and trained bits."""
        self.optimizer.step()
        self.step_events()

    def _losses(self, x: Tensor, y: Tensor, *weight: Tensor) -> tuple[Tensor, ...]:
        """Return the losses of a training step: the loss of the task, the penalty and, with a teacher, the distillation loss."""
        reduced = self.training.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if reduced else nullcontext():
            output = self.model(x)
        output = output.float()
        return self.task.loss(output, y, *weight), self.penalty().to(self.device), *self.distiller.losses(x, output, *weight)

    @torch.no_grad()
    def evaluate(self, part: str, prefix: str, model: nn.Module | None = None, on_batch: OnBatch = _ignore) -> Row:
        """Return loss and metric of the model on one part ("validation" or "test") of the data, named ``prefix/loss`` and ``prefix/<metric>``.

        Both are weighted means if the examples have weights. ``on_batch`` is called with the (output, target) of every batch.
        """
        model = model or self.model
        model.eval()
        loss, score = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        count: float | Tensor = 0
        for batch in batches(getattr(self.splits, part), 4 * self.training.batch_size):
            x, y, *weight = (tensor.to(self.device) for tensor in batch)
            output = model(x)
            loss += self.task.loss(output, y, *weight) * len(x)
            score += self.task.score(output, y, *weight)
            on_batch(output, y)
            count += weight[0].sum() if weight else len(x)
        count = float(count)
        return {f"{prefix}/loss": float(loss) / count, f"{prefix}/{self.task.metric}": self.task.finish(float(score) / count)}

    @torch.no_grad()
    def gives_one_output(self, model: nn.Module) -> bool:
        """Return whether a model returns the same output for all examples of the validation set, as a model without any weights left does."""
        model.eval()
        outputs = [model(x.to(self.device)) for x, *_ in batches(self.splits.validation, 4 * self.training.batch_size)]
        return all(bool((output == outputs[0][:1]).all()) for output in outputs) and sum(map(len, outputs)) > 1

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state after the last evaluated epoch."""
        if self.safe is None:
            self._keep()
        self.lines += map(json.dumps, self.rows[len(self.lines) :])
        count = sum(row["epoch"] <= self.safe_position for row in self.rows)
        rows = f"[{','.join(self.lines[:count])}]"
        return {"position": self.safe_position, "epochs": len(self.plan), "rows": rows, "state": self.safe, "best": self.selection.best}

    def _state(self) -> dict[str, Any]:
        """Return the state that an epoch changes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "snapshot": self.saved_weights.tensors,
            "losses": self.losses.state_dict(),
            "order": self.order.get_state(),
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned.

        If the number of epochs differs from that of the saved run, learning rate and pruners follow the schedules of this run from here on.
        """
        self.position, self.rows, self.lines, self.safe = state["position"], json.loads(state["rows"]), [], None
        schedule = self._schedule_at(self.position) if len(self.plan) != state["epochs"] else None
        self._load(state["state"])
        self.selection.load(state.get("best"))
        if schedule is None:
            return
        before = [group["lr"] for group in self.optimizer.param_groups]
        self.scheduler.load_state_dict(schedule[0])
        for group, rate in zip(self.optimizer.param_groups, schedule[1], strict=True):
            group["lr"] = rate
        for layer in self.pruned:
            layer.pruner.horizon = layer.pruner.horizon and self.horizon
        log.info(
            "resuming from epoch %d to %d instead of %d: from now on the learning rate (%.3g instead of %.3g) and the pruning method follow the "
            "schedules of the longer run",
            self.position,
            len(self.plan),
            state["epochs"],
            schedule[1][0],
            before[0],
        )

    def _schedule_at(self, position: int) -> tuple[dict[str, Any], list[float]]:
        """Return the scheduler's state and the learning rates of all groups after ``position`` epochs of this run; call it before the first step."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns if a scheduler steps before its optimizer
            losses = {row["epoch"]: row.get("val/loss") for row in self.rows}
            for epoch in self.plan[:position]:
                follow_schedule(self.scheduler, losses.get(epoch.number))
        return self.scheduler.state_dict(), [group["lr"] for group in self.optimizer.param_groups]

    def _load(self, state: dict[str, Any]) -> None:
        self.saved_weights.tensors = {name: value.to(self.device) for name, value in state["snapshot"].items()}
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.losses.load_state_dict(state["losses"])
        self.order.set_state(state["order"].cpu())
        torch.set_rng_state(state["rng"].cpu())
        if self.device.type == "cuda" and state["device_rng"] is not None:
            torch.cuda.set_rng_state(state["device_rng"].cpu(), self.device)


def _on(device: torch.device, data: Dataset[tuple[Tensor, ...]]) -> Dataset[tuple[Tensor, ...]]:
    return TensorDataset(*(tensor.to(device) for tensor in data.tensors)) if type(data) is TensorDataset else data
