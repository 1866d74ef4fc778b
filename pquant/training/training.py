"""The training section: how long each stage lasts and how a step is made."""

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
        epochs: of one round of the train stage, with pruning at work.
        fine_tuning_epochs: with frozen masks, at the end.
        pretraining_epochs: without pruning, at the beginning.
        rewind: when the saved weights are put back: after every round and the last ("every-round"), or only after the last ("post-training-stage").
        rounds: how often the train stage is gone through.
        save_weights_epoch: epoch of the first round at whose start the weights are saved for ``rewind``; -1: none.
        batch_size: examples of a step.
        baseline: whether a float baseline is trained first, so that the results can say what compression cost.
        device: "auto" (a GPU if there is one) or what torch calls one, such as ``cpu`` or ``cuda:0``.
        threads: torch's CPU threads; 0 leaves them as they are.
        pareto: whether the model is kept after every epoch that is Pareto-optimal in validation metric and EBOPs; "auto" does where ``hgq_beta`` has
            a schedule.
        evaluate_every: epochs from one evaluation to the next: validation loss and metric, sparsity and EBOPs, the Pareto archive and the checkpoint.
            The last epoch of each stage has one too. Of the epochs between, there is only the training loss, a schedule that follows the validation
            loss rests, and a run that is killed trains them again.
        compile: whether forward and losses are compiled into one graph for each stage, which takes 10 seconds to some minutes each; "auto" times
            the first eager steps, and compiles where a compiler is present and the steps left are worth it.
        precision: with "bf16" layers multiply in bfloat16 in training steps; quantizers, losses and evaluation stay in float32.
        sync_batch_norm: whether the batch norms of a model that several processes train take the statistics of the whole batch, as one process does,
            instead of those of each process's part.
        on_nan: what to do when data, loss, gradients or weights are not finite: stop at the end of that epoch and say where it began, or take back
            every such step (which costs each step a copy of the model and its momenta).
        extra: all other keys of the section, for the user's own code.
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
            raise self.error("rewind", "'never' or 'every-round' without fine-tuning epochs, which are what follows 'post-training-stage'")
        if self.save_weights_epoch >= max(self.epochs, 1):
            raise self.error("save_weights_epoch", f"below epochs = {self.epochs}")
        if self.total_epochs > MOST_EPOCHS:
            raise ConfigError(f"Training has {self.total_epochs} epochs in all its stages and rounds, at most {MOST_EPOCHS} can be planned")

    def warnings(self) -> list[str]:
        """Return which settings have no effect, and which keys that are no field look like one that is misspelt."""
        names = [field.name for field in fields(self)]
        hints = {key: did_you_mean(key, names) for key in self.extra}
        found = [f"training.save_weights_epoch = {self.save_weights_epoch} has no effect with rewind=never"] if self._saves_for_nothing() else []
        found += ["training.sync_batch_norm has no effect in a single process"] if self.sync_batch_norm and distributed.count() == 1 else []
        return found + [f"training.{key} is no setting of this package and has no effect{hint}" for key, hint in hints.items() if hint]

    def _saves_for_nothing(self) -> bool:
        return self.save_weights_epoch >= 0 and self.rewind == "never"

    @classmethod
    def from_config(cls, **settings: Any) -> Self:
        """Return the settings of a config section, with all keys that are no field in ``extra``."""
        names = {field.name for field in fields(cls)}
        extra = {key: value for key, value in settings.items() if key not in names} | settings.get("extra", {})
        return cls(**{key: value for key, value in settings.items() if key in names} | {"extra": extra})

    def torch_device(self) -> torch.device:
        """Return the device to train on.

        Raises:
            ConfigError: torch knows no such device, or there is none here.
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
        """Epochs of all stages together."""
        return total_epochs({field.name: getattr(self, field.name) for field in fields(self)})

    def horizon(self, steps_per_epoch: int) -> Horizon:
        """Return how long the train stage lasts."""
        return Horizon(self.epochs, steps_per_epoch, self.rounds)


def total_epochs(section: Mapping[str, Any]) -> int:
    """Return the epochs of all stages together; as the config resolver ``total_epochs``, what a scheduler over the whole run needs."""
    return section["pretraining_epochs"] + section["rounds"] * section["epochs"] + section["fine_tuning_epochs"]
