"""The distillation losses, and the classes that add them to a training step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.distillation.source import SEED, TeacherModel, keep
from pquant.training.stage import Stage
from pquant.training.weighting import squared_error, weighted_mean

OutputLoss = Callable[..., Tensor]
"""A loss of the student's and the teacher's outputs; its argument ``weight`` holds the weights of the examples, or None."""


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over a batch of logits (batch, classes), a scalar.

    With ``weight`` (batch,) it is a weighted mean.

    Its gradient is that of the cross-entropy with soft targets. T^2 keeps the size of that gradient about the same at every temperature: G. Hinton,
    O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, section 2.
    """
    soft, target = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    if weight is not None:
        return temperature**2 * weighted_mean(F.kl_div(soft, target, reduction="none", log_target=True).sum(1), weight)
    return temperature**2 * F.kl_div(soft, target, reduction="batchmean", log_target=True)


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
    """Return the mean squared error between outputs of layers, pairs of equal shape, summed over the pairs: a scalar.

    With ``weight`` (batch,) it is a weighted mean over outputs (batch, ...).

    It is the hint of A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, equation 3, without the regressor.
    """
    return torch.stack([squared_error(mine.float(), target.float(), weight) for mine, target in zip(student, teacher, strict=True)]).sum()


class Recorder:
    """A forward hook that stores the last output of a layer while it is ``on``, either in training or in evaluation mode. Copies are off."""

    def __init__(self, training: bool, on: bool = False) -> None:
        self.training, self.on = training, on
        self.output: Any = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Store the output."""
        if self.on and module.training is self.training:
            self.output = output

    def __deepcopy__(self, memo: Any) -> Self:
        """Return a recorder that is off."""
        return type(self)(self.training)

    def taken(self) -> Any:
        """Return the stored output, and clear it."""
        output, self.output = self.output, None
        return output


@contextmanager
def recording(model: nn.Module, recorders: Mapping[str, Recorder]) -> Iterator[None]:
    """Attach each recorder to the layer of ``model`` of the same name in the block."""
    handles = [model.get_submodule(name).register_forward_hook(recorder) for name, recorder in recorders.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Weights(NamedTuple):
    """The weights of the terms of the loss.

    Attributes:
        soft: weight of the loss on the teacher's outputs; the loss of the task has weight 1 - soft.
        features: factor of the loss on features.
    """

    soft: float
    features: float


class NoDistiller:
    """No teacher: the loss of a step is the loss of the task plus the penalty."""

    metrics: tuple[str, ...] = ()
    """Names of the metrics of additional losses."""
    teacher: TeacherModel | None = None

    def warnings(self, seed: int) -> list[str]:
        """Return possible problems with the teacher of a run with this ``seed``."""
        return []

    def take_baseline(self, trained: nn.Module) -> None:
        """Let the float baseline, now trained, be the teacher, if that is what the teacher is."""

    def to(self, device: torch.device) -> None:
        """Move the teacher, if any, to a device."""

    def set_stage(self, stage: Stage) -> None:
        """Start a stage."""

    @contextmanager
    def attached(self, student: nn.Module) -> Iterator[None]:
        """See the features of the model in training while the context lasts."""
        yield

    def losses(self, x: Tensor, output: Tensor, weight: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the losses that the teacher adds for a batch; ``output`` is the student's output for ``x``."""
        return ()

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        """Return the total loss from the loss of the task, the penalty and the result of :meth:`losses`."""
        return losses[0] + losses[1]

    def keep(self, folder: Path) -> dict[str, Any]:
        """Save the teacher in a run's folder; return its entry in the checkpoint."""
        return {}


class Distiller(NoDistiller):
    """Adds the losses of a teacher to training steps. The teacher runs in evaluation mode, in float32, without gradients and random numbers.

    Args:
        teacher: the teacher, which is frozen. It is not part of the student, so that no optimizer updates it.
        loss: loss of the student's and the teacher's outputs.
        weights: weights of the terms.
        features: names of the teacher's layers by names of the student's layers.
        stages: stages in which the teacher is used.
    """

    metrics = ("train/distillation",)
    teacher: TeacherModel

    def __init__(self, teacher: TeacherModel, loss: OutputLoss, weights: Weights, features: Mapping[str, str], stages: Sequence[str]) -> None:
        self.teacher, self.loss, self.weights, self.stages = teacher, loss, weights, tuple(map(Stage, stages))
        self.module = teacher.module.requires_grad_(False)
        self.module.eval()
        self.student_features = {name: Recorder(training=True) for name in features}
        self.teacher_features = [Recorder(training=False, on=True) for _ in features]
        self.active = False
        for name, recorder in zip(features.values(), self.teacher_features, strict=True):
            self.module.get_submodule(name).register_forward_hook(recorder)

    def warnings(self, seed: int) -> list[str]:
        """Return what may be wrong with the teacher of a run with this ``seed``."""
        other = (self.teacher.sections or {}).get(SEED, seed)
        leaks = (
            f"the teacher's run had seed {other} and this one has {seed}: if the seed splits the data, the teacher has seen examples of this test set"
        )
        return [leaks] if other != seed else []

    def take_baseline(self, trained: nn.Module) -> None:
        """Let the float baseline, now trained, be the teacher, if that is what the teacher is."""
        if self.teacher.baseline:
            self.module.load_state_dict(trained.state_dict())

    def to(self, device: torch.device) -> None:
        """Move the teacher to a device."""
        self.module.to(device)

    def set_stage(self, stage: Stage) -> None:
        """Start a stage, and use the teacher if the stage is in ``stages``."""
        self.active = stage in self.stages
        for recorder in self.student_features.values():
            recorder.on = self.active

    @contextmanager
    def attached(self, student: nn.Module) -> Iterator[None]:
        """See the features of the model in training while the context lasts."""
        with recording(student, self.student_features):
            yield

    def losses(self, x: Tensor, output: Tensor, weight: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return (distillation,), the weighted sum of the losses on outputs and features; () in stages without the teacher.

        Args:
            x: inputs of the batch.
            output: output of the student for these inputs, float32.
            weight: weights of the examples, (batch,), if any.
        """
        if not self.active:
            return ()
        with torch.no_grad():
            target = self.module(x).float()
        distillation = self.weights.soft * self.loss(output, target, weight=weight)
        if self.teacher_features:
            mine = [recorder.taken() for recorder in self.student_features.values()]
            theirs = [recorder.taken() for recorder in self.teacher_features]
            distillation = distillation + self.weights.features * feature_loss(mine, theirs, weight)
        return (distillation,)

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        """Return (1 - soft) task + penalty + distillation; in stages without the teacher, task + penalty."""
        if len(losses) == 2:
            return losses[0] + losses[1]
        return (1 - self.weights.soft) * losses[0] + losses[1] + losses[2]

    def keep(self, folder: Path) -> dict[str, Any]:
        """Save the teacher in a run's folder, once; return the digest of its file for the checkpoint."""
        if self.teacher.digest is None:
            self.teacher.digest = keep(self.teacher, folder)
        return {"teacher": self.teacher.digest}
