"""One job: the method objects that a configuration names, and the steps of their run."""

import copy
import dataclasses
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pquant.data.checks import check_data
from pquant.data.splits import DataSource, Splits, examples
from pquant.distillation.losses import NoDistiller
from pquant.distillation.source import Kept
from pquant.distillation.teacher import Distillation, NoDistillation
from pquant.errors import ConfigError, ConstantOutputError, ExportError
from pquant.export.exporter import Exporter
from pquant.export.front import write_front
from pquant.export.raw_inputs import check_raw_inputs
from pquant.export.weights import save_model
from pquant.finetuning.finetuning import FineTuning
from pquant.fitcompress.deferred_quantization import release
from pquant.fitcompress.fitcompress import FITCompress
from pquant.layers.convert import compress
from pquant.layers.coverage import coverage
from pquant.layers.finalize import finalize
from pquant.metrics import layer_table, model_metrics
from pquant.models.build import build_model
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.reporting.confusion import Confusion
from pquant.reporting.console import Console
from pquant.reporting.html import Details, write_report
from pquant.reporting.layers import summarize
from pquant.reporting.weights import weight_histograms
from pquant.resume import CHECKPOINT, Run
from pquant.saved_model import take_weights
from pquant.settings import check_fields, setting
from pquant.signals import graceful, prompt
from pquant.tracking.environment import config_hash, environment
from pquant.tracking.files import BackgroundSync, MetricsCsv, only_run_in, read_json, write_json
from pquant.tracking.status import recorded_status
from pquant.tracking.tracker import Tracker
from pquant.training import distributed
from pquant.training.archive import ParetoArchive, archived_epochs, load_archived
from pquant.training.checkpoint import load_checkpoint, save_checkpoint
from pquant.training.lifecycle import check_budget
from pquant.training.optimizer import check_steps
from pquant.training.seed import seed_everything
from pquant.training.task import check_model, task_for
from pquant.training.trainer import Row, Trainer
from pquant.training.training import Training

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """The method objects of one job.

    Args:
        data: the data set.
        model: a module, or a function that makes one; its parameters ``input_shape`` and ``num_outputs``, if any, come from the data.
        optimizer: a function that makes the optimizer from groups of parameters.
        scheduler: a function that makes the learning rate schedule, which advances once per epoch.
        training: the lengths of the stages, and the settings of a training step.
        pruning: the pruning method.
        quantization: the bits of each tensor of each layer.
        fitcompress: the search for bits and sparsity before training.
        finetuning: the study that this run is a trial of, if any.
        tracker: logs the run to a service, in addition to the files in its folder.
        export: the exporter of the finalized model.
        distillation: the teacher, if any.
        seed: the seed of data splits, initial weights, the order of examples and dropout.
        dry_run: print how each layer would be pruned and quantized, and train nothing.
        init_from: a run's folder, or a safetensors file of the float model, with the weights from which training starts.
        resume: a run's folder, to resume after its last complete epoch; "auto": resume in hydra.run.dir if it has a checkpoint.
        from_run: a run's folder, to evaluate and export its final model without training.
        from_epoch: with ``from_run``: the epoch of the run's Pareto archive whose model is evaluated and exported instead, or "all".
        progress: "auto": a live line on a terminal, else as "plain"; "plain": lines of text; "quiet": no output.
    """

    data: DataSource
    model: nn.Module | Callable[..., nn.Module]
    optimizer: Callable[[list[dict[str, Any]]], Optimizer]
    scheduler: Callable[[Optimizer], LRScheduler]
    training: Training
    pruning: PruningMethod
    quantization: Quantization
    fitcompress: FITCompress
    finetuning: FineTuning
    tracker: Tracker
    export: Exporter
    distillation: Distillation = NoDistillation()
    seed: int = setting(0, ge=0, lt=2**32)
    dry_run: bool = False
    init_from: str | None = None
    resume: str | None = None
    from_run: str | None = None
    from_epoch: int | Literal["all"] | None = None
    progress: Literal["auto", "plain", "quiet"] = "auto"

    def __post_init__(self) -> None:
        """Check the fields that are not sections."""
        check_fields(self, "seed", "dry_run", "init_from", "resume", "from_run", "from_epoch", "progress")

    def run(self, run: Run, callback: Callable[[Row], None] = lambda row: None) -> dict[str, Any]:
        """Train, prune, quantize, finalize, evaluate, report and export; return the metrics of ``summary.json``.

        With ``from_run`` nothing is trained: the model is the final one of an earlier run, or with ``from_epoch`` the one of that epoch in its Pareto
        archive. With ``from_epoch`` "all" each model of the archive gets a run in its own folder, and the summary is that of the last.
        ``callback`` gets the row of every epoch, and may raise ``StoppedEarly``.

        Raises:
            ConfigError: settings conflict with each other, with the data or with the model; raised before training.
            DivergedError: the loss is not finite.
        """
        if self.from_epoch == "all":
            return self._export_archive(run)
        with distributed.joined(self.training.torch_device()):
            return self._run(run, callback)

    def _run(self, run: Run, callback: Callable[[Row], None]) -> dict[str, Any]:
        start, console = time.perf_counter(), Console(self.progress)
        leads = distributed.leads() and not self.dry_run
        with ExitStack() as held:
            held.enter_context(prompt())
            if leads and run.goes_on_here:
                held.enter_context(only_run_in(run.folder))
            state = run.checkpoint()
            check_steps(self.optimizer, self.scheduler, self.training.total_epochs)
            self.fitcompress.check(self.pruning, self.quantization, self.training)
            if self.training.threads:
                torch.set_num_threads(self.training.threads)
            splits = self.data.load(self.seed)
            check_data(splits, train_finite=self.training.on_nan == "stop")
            seed_everything(self.seed)
            float_model = self.build_model(splits)
            check_model(float_model, splits, task_for(splits))
            model = compress(float_model, self.fitcompress.masks(self.pruning), self.quantization, examples(splits))
            self.export.check(model, tuple(splits.input_shape))
            if getattr(self.export, "raw_inputs", False):
                check_raw_inputs(splits)
            trainer = self.trainer(model, splits, self._distiller(model, float_model, splits, run, state))
            pruning = self.pruning.warnings(trainer.horizon) if self.training.epochs else []
            teacher = [*self.distillation.warnings(splits), *trainer.distiller.warnings(self.seed)]
            training = [*self.training.warnings(), *trainer.selection.warnings(bool(trainer.pruned))]
            for warning in [*pruning, *self.quantization.warnings(trains=bool(self.training.epochs)), *training, *teacher]:
                log.warning(warning)
            if self.dry_run:
                return self._preview(model, splits)
            for warning in self.fitcompress.prepare(model):
                log.warning(warning)
            if not leads:
                return self._assist(trainer, float_model, state)
            if not run.goes_on_here:
                held.enter_context(only_run_in(run.folder))
            run.begin(state)
            with recorded_status(run.folder, run.config, self.tracker):
                if self.from_run:
                    baseline = self._load_earlier_run(trainer, Path(self.from_run))
                else:
                    baseline = self._baseline(float_model, trainer, console)
                    self._fit(trainer, run, state, console, callback)
                summary = self._finish(trainer, splits, run, baseline, start)
        console.summary(summary, run.folder)
        return summary

    def _finish(self, trainer: Trainer, splits: Splits, run: Run, baseline: dict[str, Any], start: float) -> dict[str, Any]:
        """Finalize the trained model, evaluate, save, export and report it; return the metrics of ``summary.json``."""
        selected = trainer.take_best() if self.from_epoch is None else None
        trainer.trace_ranges()
        measured = model_metrics(trainer.model) | {f"coverage/{share}": value for share, value in coverage(trainer.model).items()}
        final = finalize(trainer.model)
        constant = trainer.gives_one_output(final)
        if constant:
            log.warning(
                "the finalized model gives the same output for every input: too much was pruned; "
                "lower hgq_beta or hgq_gamma, raise target_ebops or target_luts, or prune less"
            )
        confusion = Confusion(splits.num_classes, trainer.device) if splits.num_classes else None
        tested = trainer.evaluate("test", "test", final, confusion.add) if confusion else trainer.evaluate("test", "test", final)
        summary = {**tested, **trainer.evaluate("validation", "val", final), **baseline, **measured}
        summary |= {"epochs": len(trainer.rows), "wall_seconds": time.perf_counter() - start, "seed": self.seed}
        summary |= {"selected_epoch": selected} if selected is not None else {}
        summary |= {"planned_epochs": len(trainer.plan)} if self.training.patience is not None else {}
        summary |= {"constant_output": constant, **splits.units, **check_budget(trainer.model, measured["ebops"])}
        summary |= {"config_hash": config_hash(run.config), **environment()}
        final = final.cpu()
        save_model(final, run.folder, splits.interface)
        archived = archived_epochs(Path(self.from_run) if self.from_run else run.folder)
        details = Details(weight_histograms(trainer.model), confusion.table() if confusion else None, archived, splits.classes)
        try:
            summary |= self.export.export(final, splits, run.folder)
        except (ConfigError, ExportError):
            self._report(run, summary, trainer.rows, final, details)
            raise
        self._report(run, summary, trainer.rows, final, details)
        return summary

    def _export_archive(self, run: Run) -> dict[str, Any]:
        """Evaluate and export the model of each epoch in the Pareto archive of ``from_run``, each in its own folder; return the last summary.

        A model whose output ignores its input is left out, with a warning.

        Raises:
            ConfigError: a run without an archive, or no model to export.
        """
        epochs = archived_epochs(Path(str(self.from_run)))
        if not epochs:
            raise ConfigError(f"from_epoch=all needs a run with a Pareto archive (training.pareto=true), '{self.from_run}' has none")
        summaries = []
        for epoch in epochs:
            folder = run.folder / f"epoch_{epoch:04}"
            folder.mkdir(parents=True, exist_ok=True)
            experiment = dataclasses.replace(self, from_epoch=epoch)
            try:
                summaries.append({"epoch": epoch} | experiment.run(dataclasses.replace(run, folder=folder)))
            except ConstantOutputError as error:
                log.warning("epoch %d is left out: %s", epoch, error)
        if not summaries:
            raise ConfigError(f"no model of the Pareto archive of '{self.from_run}' can be exported: the output of each ignores its input")
        write_front(run.folder, summaries)
        return summaries[-1]

    def build_model(self, splits: Splits) -> nn.Module:
        """Return the float model for the data, with the weights that training starts from."""
        model = build_model(self.model, splits)
        if self.init_from and not self.from_run:
            take_weights(model, self.init_from)
        return model

    def trainer(self, model: nn.Module, splits: Splits, distiller: NoDistiller | None = None) -> Trainer:
        """Seed all generators and return a trainer for ``model``."""
        seed_everything(self.seed)
        return Trainer(model, splits, self.training, self.optimizer, self.scheduler, self.training.torch_device(), self.seed, distiller)

    def _distiller(self, model: nn.Module, float_model: nn.Module, splits: Splits, run: Run, state: dict[str, Any] | None) -> NoDistiller:
        """Return the distiller of the run; for an earlier run, which is not trained, one that adds no losses."""
        if self.from_run:
            return NoDistiller()
        kept = Kept(run.source or run.folder, state["teacher"]) if state and "teacher" in state else None
        return self.distillation.distiller(model, float_model, splits, self.training, kept)

    def _baseline(self, float_model: nn.Module, main: Trainer, console: Console) -> dict[str, Any]:
        """Train a float baseline for the same number of epochs, and use it as the teacher if the teacher is the float baseline.

        Return its test metrics as ``float/...``; {} if neither ``training.baseline`` nor the teacher needs a baseline. A baseline that the run has
        saved as its teacher is not trained again. The baseline has no ``training.patience``, since its learning rate falls over all epochs.
        """
        teacher = main.distiller.teacher
        if teacher and teacher.baseline and teacher.digest:
            return main.evaluate("test", "float", teacher.module)
        if not self.training.baseline and not (teacher and teacher.baseline):
            return {}
        console.note("training the float baseline")
        lengths = {"pretraining_epochs": self.training.total_epochs, "epochs": 0, "fine_tuning_epochs": 0}
        training = dataclasses.replace(self.training, **lengths, rewind="never", save_weights_epoch=-1, patience=None)  # type: ignore[arg-type]
        experiment = dataclasses.replace(self, training=training)
        trainer = experiment.trainer(copy.deepcopy(float_model), main.splits)
        trainer.fit(lambda row: None)
        trainer.take_best()
        main.distiller.take_baseline(trainer.model)
        seed_everything(self.seed)
        return trainer.evaluate("test", "float")

    def _fit(self, trainer: Trainer, run: Run, state: dict[str, Any] | None, console: Console, callback: Callable[[Row], None]) -> None:
        metrics = MetricsCsv(run.folder / "metrics.csv")
        archive = ParetoArchive(run.folder, trainer.task) if self._keeps_front() else None
        identity = run.identity() | trainer.distiller.keep(run.folder)
        if state:
            self._load(trainer, state)
            console.note(f"resuming after epoch {trainer.position}")
            if archive:
                archive.update(trainer.rows, trainer.model)
        metrics.rewrite(trainer.rows)
        for row in trainer.rows:
            self.tracker.log(row)

        def on_epoch(row: Row) -> None:
            evaluated = "ebops" in row
            if evaluated:
                save_checkpoint(run.folder / CHECKPOINT, trainer.state_dict() | identity, sync)
            metrics.append(row)
            if archive and evaluated:
                archive.update(trainer.rows, trainer.model)
            self.tracker.log(row)
            console.epoch(row)
            callback(row)

        console.start(len(trainer.plan))
        try:
            with BackgroundSync(run.folder / CHECKPOINT) as sync, graceful() as check:
                trainer.fit(on_epoch, lambda: self._search(trainer, run.folder), check)
        finally:
            console.finish()

    def _assist(self, trainer: Trainer, float_model: nn.Module, state: dict[str, Any] | None) -> dict[str, Any]:
        """Train in a process of rank 1 or higher, which writes no files; return no metrics."""
        if not self.from_run:
            self._baseline(float_model, trainer, Console("quiet"))
            if state:
                self._load(trainer, state)
            trainer.fit(lambda row: None, lambda: self._search(trainer, None))
        return {}

    def _keeps_front(self) -> bool:
        return bool(self.quantization.hgq_beta_schedule) if self.training.pareto == "auto" else self.training.pareto

    def _load(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint into a trainer."""
        if state["position"] > self.training.pretraining_epochs:
            release(trainer.model)
        trainer.load_state_dict(state)

    def _load_earlier_run(self, trainer: Trainer, folder: Path) -> dict[str, Any]:
        """Load the model and the epochs of an earlier run into a trainer; return the metrics of that run's float baseline."""
        self._load(trainer, load_checkpoint(folder / CHECKPOINT))
        if isinstance(self.from_epoch, int):
            trainer.model.load_state_dict(load_archived(folder, self.from_epoch))
            trainer.rows = [row for row in trainer.rows if row["epoch"] <= self.from_epoch]
        summary = folder / "summary.json"
        try:
            metrics = read_json(summary) if summary.exists() else {}
        except ConfigError as error:
            log.warning("no float baseline: %s", error)
            metrics = {}
        return {name: value for name, value in metrics.items() if name.startswith("float/")}

    def _search(self, trainer: Trainer, folder: Path | None) -> None:
        """Let FITCompress choose bits and masks, if it is enabled."""
        if self.fitcompress.enable_fitcompress:
            result = self.fitcompress.apply(trainer.model, trainer.splits.train, trainer.task.loss)
            if folder is None:
                return
            write_json(folder / "fitcompress.json", result.as_json())

    def _report(self, run: Run, summary: dict[str, Any], rows: list[Row], model: nn.Module, details: Details) -> None:
        write_json(run.folder / "summary.json", summary)
        write_report(run.folder, summary, rows, layer_table(model), run.config, run.command, details)
        self.tracker.summary(summary)

    def _preview(self, model: nn.Module, splits: Splits) -> dict[str, Any]:
        """Print for each layer whether it would be pruned and with which bits; train nothing."""
        summarize(model, examples(splits))
        return {}
