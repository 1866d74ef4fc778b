"""The source of a teacher: the float baseline of the run, another run's folder, or a file of weights.

A run saves its teacher in its own folder, with everything needed to build it again, so that it resumes with the same teacher if the source changes.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from pquant.data.splits import Splits, examples
from pquant.errors import ConfigError
from pquant.models.build import Model, build_model
from pquant.saved_model import SUFFIX, WEIGHTS, finalized_model, model_sections, with_weights
from pquant.tracking.files import write_atomic

TEACHER = "teacher.safetensors"
"""The file in a run's folder that holds its teacher."""
FLOAT = "float"
SEED = "seed"
FIELD = "distillation.source"


@dataclass
class TeacherModel:
    """A teacher and its source.

    Attributes:
        module: the teacher with its weights; a float baseline has its weights only after training.
        baseline: whether the teacher is the float baseline of the run.
        sections: sections of the teacher's run that build it again, and the seed of that run; empty for other sources.
        digest: SHA-256 of the file in which this run has saved the teacher; None before it is saved.
    """

    module: nn.Module
    baseline: bool = False
    sections: Mapping[str, Any] | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Kept:
    """The saved teacher of a run: the folder of the run, and the digest in its checkpoint."""

    folder: Path
    digest: str


def load_teacher(source: str, model: Model | None, float_model: nn.Module, splits: Splits) -> TeacherModel:
    """Return the teacher of a new run from ``source``; for "float" a copy of the float model, which is trained later.

    Raises:
        ConfigError: the run or file does not exist, a run has no finalized model, or the weights do not fit the module.
    """
    if source == FLOAT:
        return TeacherModel(copy.deepcopy(float_model), baseline=True)
    path = Path(source)
    if path.suffix == SUFFIX:
        return TeacherModel(with_weights(_own(model, splits), path, FIELD))
    sections = model_sections(path, FIELD)
    return TeacherModel(with_weights(_of_run(sections, splits, str(path)), path / WEIGHTS, FIELD), sections=sections)


def kept_teacher(kept: Kept, source: str, model: Model | None, float_model: nn.Module, splits: Splits) -> TeacherModel:
    """Return the saved teacher of a run, without reading its source.

    Raises:
        ConfigError: the file is missing, or its digest differs from that in the checkpoint.
    """
    path = kept.folder / TEACHER
    if not path.is_file():
        raise ConfigError(f"the run in {kept.folder} cannot go on without its teacher: there is no {path}")
    if _digest(path.read_bytes()) != kept.digest:
        raise ConfigError(f"the run in {kept.folder} cannot go on with another teacher: {path} has changed since its checkpoint")
    try:
        with safe_open(path, "pt") as file:
            sections = json.loads((file.metadata() or {}).get("sections", "null"))
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if sections is not None:
        module = _of_run(sections, splits, str(path))
    else:
        module = copy.deepcopy(float_model) if source == FLOAT else _own(model, splits)
    return TeacherModel(with_weights(module, path, FIELD), source == FLOAT, sections, kept.digest)


def keep(teacher: TeacherModel, folder: Path) -> str:
    """Write the teacher to a run's folder, atomically; return the digest of the file."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in teacher.module.state_dict().items() if isinstance(value, Tensor)}
    content = tensor_bytes(tensors, {"sections": json.dumps(teacher.sections)})
    write_atomic(folder / TEACHER, content)
    return _digest(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _own(model: Model | None, splits: Splits) -> nn.Module:
    assert model is not None, "Teacher takes no file of weights without a model"
    return copy.deepcopy(build_model(model, splits, "distillation.model"))


def _of_run(sections: Mapping[str, Any], splits: Splits, where: str) -> nn.Module:
    return finalized_model(sections, examples(splits), splits.num_outputs, where, FIELD)
