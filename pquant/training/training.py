"""The settings of the training section: the length of each stage, and how steps are made."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch

from pquant.errors import ConfigError, did_you_mean
from pquant.settings import Settings, schema, setting
from pquant.training import distributed
from pquant.training.stage import Horizon

MOST_EPOCHS = 1_000_000
Rewind = Literal["never", "every-round", "post-training-stage"]


@schema("training", "training", open_to_extra_keys=True)
@dataclass(frozen=True)
class Training(Settings):
    """Lengths of the stages in epochs, the rewinding policy, and the batch.

    The run is ``pretraining_epochs`` without pruning, ``rounds`` times ``epochs`` with it, then ``fine_tuning_epochs`` with frozen masks.

    Args:
        epochs: number of epochs of one round of the train stage, in which pruning is active.
        fine_tuning_epochs: number of epochs of the finetune stage, in which masks are frozen.
        pretraining_epochs: number of epochs of the pretrain stage, in which nothing is pruned.
        rewind: when the weights are reset to the saved ones: "every-round": after every round; "post-training-stage": once, before fine-tuning.
        rounds: number of rounds of the train stage.
        save_weights_epoch: the weights are saved for ``rewind`` at the start of this epoch of the first round; -1: they are not saved.
        batch_size: number of examples in a training step.
        baseline: whether a float baseline is trained first; the report then compares it with the compressed model.
        device: a device of torch, such as ``cpu`` or ``cuda:0``; "auto": a GPU if there is one.
        threads: number of CPU threads of torch; 0: torch's default.
        pareto: whether the run keeps the model of every epoch that is Pareto-optimal in validation metric and EBOPs; "auto": if ``hgq_beta`` has a
            schedule.
        evaluate_every: number of epochs between evaluations. An evaluation computes validation loss and metric, sparsity and EBOPs, updates the
            Pareto archive and writes the checkpoint. The last epoch of each stage is always evaluated. The other epochs have only the training loss:
            schedules that depend on the validation loss do nothing, and a run that is killed trains these epochs again.
        compile: whether forward and losses are compiled into one graph for each stage, which takes 10 seconds to some minutes per stage. "auto":
            times the first eager steps, and compiles if a compiler is installed and compiling saves time in total.
        select: which epoch's weights become the final model. "best": the best by ``monitor`` of the evaluated epochs that reach the targets of
            sparsity and EBOPs; without a target, of the last stage's. A run of which no epoch reaches them ends with the last, and a warning.
        monitor: what ``select`` and ``patience`` compare, on the validation data: the task's metric (accuracy or rmse), or the loss.
        patience: number of evaluations in a row without improvement after which pretraining, or fine-tuning, ends; null: never. The train stage
            always has all its epochs, as pruning methods and targets of EBOPs follow schedules over them. The learning rate schedule continues as if
            the skipped epochs had been trained.
        min_delta: how much better than the best value so far an evaluation must be to count as an improvement for ``patience``.
        precision: "bf16": layers multiply in bfloat16 in training steps; quantizers, losses and evaluation stay in float32.
        sync_batch_norm: whether batch norms use the statistics of the whole batch if several processes train; else each process uses those of its
            part.
        on_nan: what to do if data, loss, gradients or weights are not finite. "stop": end the run after that epoch, and name the layer and step.
            "skip_step": undo every such step; each step then needs a copy of the model and the optimizer's state.
        extra: all other keys of the section, for code of your own.
    """

    epochs: int = setting(200, ge=0, le=MOST_EPOCHS)
    fine_tuning_epochs: int = setting(0, ge=0, le=MOST_EPOCHS)
    pretraining_epochs: int = setting(50, ge=0, le=MOST_EPOCHS)
    rewind: Rewind = "never"
    rounds: int = setting(1, ge=1, le=MOST_EPOCHS)
    save_weights_epoch: int = setting(-1, ge=-1)
    batch_size: int = setting(128, ge=1, le=2**31 - 1)
    baseline: bool = False
    device: str = "auto"
    threads: int = setting(0, ge=0, le=1024)
    pareto: bool | Literal["auto"] = "auto"
    evaluate_every: int = setting(1, ge=1, le=MOST_EPOCHS)
    compile: bool | Literal["auto"] = "auto"
    select: Literal["last", "best"] = "last"
    monitor: Literal["metric", "loss"] = "metric"
    patience: int | None = setting(None, ge=1, le=MOST_EPOCHS)
    min_delta: float = setting(0.0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    sync_batch_norm: bool = False
    on_nan: Literal["stop", "skip_step"] = "stop"
    extra: dict[str, Any] = setting({})

    def __post_init__(self) -> None:
        """Check the fields and that rewinding has weights to go back to."""
        super().__post_init__()
        if self.rewind != "never" and self.save_weights_epoch < 0:
            raise self.error("save_weights_epoch", f"an epoch of round 0 when rewind is '{self.rewind}'")
        if self.rewind == "post-training-stage" and not self.fine_tuning_epochs:
            raise self.error("rewind", "'never' or 'every-round' without fine-tuning epochs, before which 'post-training-stage' rewinds")
        if self.save_weights_epoch >= max(self.epochs, 1):
            raise self.error("save_weights_epoch", f"below epochs = {self.epochs}")
        if self.total_epochs > MOST_EPOCHS:
            raise ConfigError(f"Training has {self.total_epochs} epochs in all its stages and rounds, at most {MOST_EPOCHS} can be planned")

    def warnings(self) -> list[str]:
        """Return one message per setting without effect, and one per unknown key that looks like a misspelt field."""
        names = [field.name for field in fields(self)]
        hints = {key: did_you_mean(key, names) for key in self.extra}
        found = [f"training.save_weights_epoch = {self.save_weights_epoch} has no effect with rewind=never"] if self._saves_for_nothing() else []
        found += ["training.sync_batch_norm has no effect in a single process"] if self.sync_batch_norm and distributed.count() == 1 else []
        return found + [f"training.{key} is no setting of this package and has no effect{hint}" for key, hint in hints.items() if hint]

    def _saves_for_nothing(self) -> bool:
        return self.save_weights_epoch >= 0 and self.rewind == "never"

    @classmethod
    def from_config(cls, **settings: Any) -> Self:
        """Return the settings of a config section; keys that are not fields go into ``extra``."""
        names = {field.name for field in fields(cls)}
        extra = {key: value for key, value in settings.items() if key not in names} | settings.get("extra", {})
        return cls(**{key: value for key, value in settings.items() if key in names} | {"extra": extra})

    def torch_device(self) -> torch.device:
        """Return the device to train on.

        Raises:
            ConfigError: torch does not know the device, or the machine does not have it.
        """
        if self.device == "auto":
            return torch.device(f"cuda:{distributed.local_index() or 0}" if torch.cuda.is_available() else "cpu")
        wrong = self.error("device", "'auto' or a device that torch has here and that computes, such as 'cpu' or 'cuda:0'")
        try:
            torch.empty(0, device=self.device)
            device = torch.device(self.device)
        except (RuntimeError, AssertionError) as error:
            raise wrong from error
        if device.type == "meta":
            raise wrong
        return device

    @property
    def total_epochs(self) -> int:
        """Number of epochs of all stages."""
        return total_epochs({field.name: getattr(self, field.name) for field in fields(self)})

    def horizon(self, steps_per_epoch: int) -> Horizon:
        """Return the length of the train stage."""
        return Horizon(self.epochs, steps_per_epoch, self.rounds)


def total_epochs(section: Mapping[str, Any]) -> int:
    """Return the number of epochs of all stages of a training section; schedulers use it as the config resolver ``total_epochs``."""
    return section["pretraining_epochs"] + section["rounds"] * section["epochs"] + section["fine_tuning_epochs"]
