"""The settings of the distillation section: a teacher for the network in training.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531; for features A. Romero et al., "FitNets: Hints
for Thin Deep Nets", ICLR 2015, arXiv 1412.6550.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pquant.data.splits import Splits, examples
from pquant.distillation.losses import Distiller, NoDistiller, Recorder, Weights, recording, soft_target_loss
from pquant.distillation.source import FLOAT, SUFFIX, Kept, kept_teacher, load_teacher
from pquant.errors import ConfigError, unknown
from pquant.layers.modes import evaluating
from pquant.settings import Settings, schema, setting
from pquant.training.training import Training
from pquant.training.weighting import squared_error

StageName = Literal["pretrain", "train", "finetune"]
STAGES = ("pretrain", "train", "finetune")
Shapes = dict[str, torch.Size | None]


class Distillation(Protocol):
    """The interface of the distillation settings."""

    def distiller(self, student: nn.Module, float_model: nn.Module, splits: Splits, training: Training, kept: Kept | None) -> NoDistiller:
        """Return the distiller of a compressed model; raise a ConfigError if the teacher does not fit the model or the data.

        ``kept`` is the saved teacher of a resumed run, else None.
        """
        ...

    def warnings(self, splits: Splits) -> list[str]:
        """Return which settings have no effect."""
        ...


@schema("distillation", "none")
@dataclass(frozen=True)
class NoDistillation(Settings):
    """No teacher."""

    def distiller(self, student: nn.Module, float_model: nn.Module, splits: Splits, training: Training, kept: Kept | None) -> NoDistiller:
        """Return a distiller that adds no losses."""
        return NoDistiller()

    def warnings(self, splits: Splits) -> list[str]:
        """Return no warnings."""
        return []


@schema("distillation", "teacher")
@dataclass(frozen=True)
class Teacher(Settings):
    """A trained network whose outputs and features are additional targets of the network in training.

    The loss of a step is (1 - weight) task + weight soft + feature_weight features + penalty. Here soft is the soft-target loss of the logits, or for
    a regression the mean squared difference from the teacher's outputs.

    Args:
        source: "float": the float baseline, which the run trains first; the folder of a run: its finalized model; a file ``*.safetensors``: weights
            of ``model``.
        model: the module whose weights ``source`` holds, as in the section ``model`` (``${model}`` is that one); null for the other sources.
        temperature: temperature of the softmax of both logits; a higher temperature gives small probabilities more weight.
        weight: share of the loss on the teacher's outputs; the task's loss has the rest.
        features: layers whose outputs are compared too: a list of names, or a dictionary from the student's names to the teacher's.
        feature_weight: factor of the loss on features: the mean squared error of each pair of layers, summed over the pairs.
        stages: the training stages in which the teacher is used.
    """

    source: str = FLOAT
    model: Any = None
    temperature: float = setting(2.0, gt=0)
    weight: float = setting(0.5, ge=0, le=1)
    features: Any = None
    feature_weight: float = setting(1.0, ge=0)
    stages: list[StageName] = setting(list(STAGES))

    def __post_init__(self) -> None:
        """Check the fields, and that they go together."""
        super().__post_init__()
        if not self.source:
            raise self.error("source", f"'{FLOAT}', the folder of a run or a file {SUFFIX}")
        of_file = Path(self.source).suffix == SUFFIX
        if of_file and not callable(self.model):
            raise self.error("model", f"the module whose weights {self.source} holds, such as '${{model}}'")
        if not of_file and self.model is not None:
            raise self.error("model", f"null unless source is a file {SUFFIX}, whose weights it has")
        if not self.stages:
            raise self.error("stages", f"some of {', '.join(STAGES)}")
        names = self.features if self.features is not None else []
        pairs = [*names.items()] if isinstance(names, dict) else [(name, name) for name in names] if isinstance(names, list) else [(None, None)]
        if not all(isinstance(name, str) and name for pair in pairs for name in pair):
            raise self.error("features", "a list of layers' names, or a dictionary of teacher's by student's names")

    @property
    def pairs(self) -> dict[str, str]:
        """Teacher's layers by student's layers."""
        return self.features if isinstance(self.features, dict) else {name: name for name in self.features or []}

    def warnings(self, splits: Splits) -> list[str]:
        """Return which settings have no effect."""
        found, defaults = [], {field.name: field.default for field in fields(self)}
        if splits.num_classes is None and self.temperature != defaults["temperature"]:
            found.append(f"distillation.temperature = {self.temperature:g} has no effect on a regression")
        if not self.pairs and self.feature_weight != defaults["feature_weight"]:
            found.append(f"distillation.feature_weight = {self.feature_weight:g} has no effect without distillation.features")
        if not self.weight and not (self.pairs and self.feature_weight):
            found.append("the teacher has no effect: distillation.weight is 0, and no features count")
        return found

    def distiller(self, student: nn.Module, float_model: nn.Module, splits: Splits, training: Training, kept: Kept | None) -> Distiller:
        """Return the distiller of a compressed model; neither model changes.

        Raises:
            ConfigError: none of ``stages`` has epochs, the teacher does not exist, does not take the data or returns outputs of another shape, or a
                layer in ``features`` is unknown, unused, or has an output of another shape than its pair.
        """
        lengths = dict(zip(STAGES, (training.pretraining_epochs, training.epochs, training.fine_tuning_epochs), strict=True))
        if not any(lengths[stage] for stage in self.stages):
            raise self.error("stages", f"a stage that has epochs in this run ({', '.join(stage for stage in STAGES if lengths[stage]) or 'none'})")
        given = (self.source, self.model, float_model, splits)
        teacher = kept_teacher(kept, *given) if kept else load_teacher(*given)
        theirs = _shapes("teacher", teacher.module, list(self.pairs.values()), splits)
        mine = _shapes("student", student, list(self.pairs), splits)
        for name, other in self.pairs.items():
            if mine[name] != theirs[other]:
                raise ConfigError(
                    f"distillation.features: the outputs of the student's layer '{name}', {tuple(mine[name])}, and of the teacher's layer '{other}', "
                    f"{tuple(theirs[other])}, must have the same shape"
                )
        loss = squared_error if splits.num_classes is None else partial(soft_target_loss, temperature=self.temperature)
        return Distiller(teacher, loss, Weights(self.weight, self.feature_weight), self.pairs, self.stages)


@torch.no_grad()
def _shapes(who: str, module: nn.Module, names: Sequence[str], splits: Splits) -> dict[str, torch.Size]:
    """Return the shapes of the outputs of layers for two examples, in evaluation mode.

    Raises:
        ConfigError: an unknown or unused layer, or outputs of the module that do not fit the data.
    """
    known = [name for name, _ in module.named_modules() if name]
    for name in names:
        if name not in known:
            raise ConfigError(f"distillation.features: {unknown(f'layer of the {who}', name, known)}")
    x, recorders = examples(splits)[:2], {name: Recorder(training=False, on=True) for name in names}
    try:
        with evaluating(module), recording(module, recorders), torch.random.fork_rng(devices=[]):
            output = module(x)
    except Exception as error:
        raise ConfigError(f"distillation: the {who} does not take the data: {' '.join(str(error).split())[:300]}") from error
    needed = (len(x), splits.num_outputs)
    if not isinstance(output, Tensor) or tuple(output.shape) != needed:
        found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(f"distillation: the {who} gives {found} for {len(x)} examples, the data needs {needed}")
    outputs = {name: recorder.taken() for name, recorder in recorders.items()}
    for name, value in outputs.items():
        if not isinstance(value, Tensor):
            raise ConfigError(f"distillation.features: layer '{name}' of the {who} gives no tensor for the data")
        if splits.is_weighted and value.shape[:1] != x.shape[:1]:
            found = f"gives {tuple(value.shape)} for {len(x)} examples"
            raise ConfigError(f"distillation.features: layer '{name}' of the {who} {found}, whose first axis must be the examples with data.weight")
    return {name: value.shape for name, value in outputs.items()}
