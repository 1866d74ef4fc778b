"""Models of earlier runs, built again, and weights from files. No code in a folder is executed; its configuration may build only allowed classes."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.layers.convert import compress
from pquant.layers.finalize import finalize
from pquant.models.build import model_for
from pquant.resume import CHECKPOINT, environment_refused, saved_config
from pquant.targets import build
from pquant.tracking.files import plain
from pquant.training.checkpoint import has_checkpoint, load_checkpoint

WEIGHTS = "model.safetensors"
SUFFIX = ".safetensors"
SECTIONS = ("model", "pruning", "quantization", "fitcompress")
"""The sections of a run that determine its model."""


def model_sections(folder: Path, field: str) -> dict[str, Any]:
    """Return the sections of the run in ``folder`` that determine its model, as plain values, and its seed.

    Raises:
        ConfigError: not the folder of a run, or a run that did not finish; the message names the ``field``.
    """
    config = saved_config(field, folder)
    with environment_refused():
        sections = {name: plain(OmegaConf.to_container(config[name], resolve=True)) for name in SECTIONS if name in config}
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{field}: the run in {folder} has no {WEIGHTS}, as it did not finish: resume it first, with resume={folder}")
    return sections | {"seed": config.get("seed")}


def finalized_model(sections: Mapping[str, Any], example: Tensor, num_outputs: int, where: str, field: str) -> nn.Module:
    """Return the finalized model of a run, without trained weights.

    Args:
        sections: the result of :func:`model_sections`.
        example: a batch of inputs.
        num_outputs: number of outputs of the model.
        where: the location of the configuration, for messages.
        field: the setting that needs the model, for messages.

    Raises:
        ConfigError: a section is missing, or names a class that is not allowed.
    """
    missing = [name for name in SECTIONS if name not in sections]
    if missing:
        raise ConfigError(f"{field}: the configuration of {where} has no section '{missing[0]}'")
    made = {name: build(name, sections[name]) for name in SECTIONS}
    float_model = model_for(made["model"], tuple(example.shape[1:]), num_outputs, field)
    return finalize(compress(float_model, made["fitcompress"].masks(made["pruning"]), made["quantization"], example))


def with_weights(module: nn.Module, path: Path, field: str) -> nn.Module:
    """Return the module with the weights of a safetensors file.

    Raises:
        ConfigError: the file does not exist, or its weights do not fit the module.
    """
    try:
        module.load_state_dict(read_weights(path, field))
    except RuntimeError as error:
        raise ConfigError(f"{field}: the weights in {path} do not fit the model: {' '.join(str(error).split())[:300]}") from error
    return module


def read_weights(path: Path, field: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        ConfigError: the file does not exist or cannot be read.
    """
    try:
        return load_tensors(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{field}: there is no file {path}") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{field}: {path} cannot be read as safetensors: {' '.join(str(error).split())}") from error


def take_weights(model: nn.Module, source: str, field: str = "init_from") -> None:
    """Load weights by name into a float model: the trained weights of a run, before masks and rounding, or those of a safetensors file.

    The weights of a run are those of its last epoch, or of the epoch that ``training.select`` chose. Other tensors of the source, such as those of
    quantizers, are ignored.

    Raises:
        ConfigError: the run or file does not exist, or a tensor of the model is missing in it or has another shape.
    """
    path = Path(source)
    if path.suffix == SUFFIX:
        given = read_weights(path, field)
    elif has_checkpoint(path / CHECKPOINT):
        state = load_checkpoint(path / CHECKPOINT)
        given = (state.get("best") or state["state"])["model"]
    else:
        raise ConfigError(f"{field} must be the folder of an earlier run, with {CHECKPOINT} in it, or a {SUFFIX} file, got '{source}'")
    own = model.state_dict()
    if any(name not in given for name in own):
        given = {**given, **_joined(model, given, f"{field}: '{{}}' is {{}} in {source} and {{}} in the model")}
    for name, tensor in own.items():
        if name not in given:
            raise ConfigError(f"{field}: {source} has no '{name}', which the model needs: give the model of that run; it has {_few(given)}")
        if given[name].shape != tensor.shape:
            raise ConfigError(f"{field}: '{name}' is {tuple(given[name].shape)} in {source} and {tuple(tensor.shape)} in the model")
    model.load_state_dict({name: given[name] for name in own})


def _joined(model: nn.Module, given: Mapping[str, Tensor], mismatch: str) -> dict[str, Tensor]:
    """Return by name the parameters of a float model that its compressed form holds in parts, such as the projections of attention.

    The place of each value is found from a compressed model whose float parameters hold the numbers 0, 1, 2...
    """
    numbered, ends = copy.deepcopy(model).double(), 0
    places: dict[int, slice] = {}
    for parameter in numbered.parameters():
        places[id(parameter)] = slice(ends, ends := ends + parameter.numel())
        parameter.data = torch.arange(places[id(parameter)].start, ends, dtype=torch.float64).view_as(parameter)
    values, known = torch.zeros(ends), torch.zeros(ends, dtype=torch.bool)
    for name, part in compress(numbered).named_parameters(remove_duplicate=False):
        if name in given:
            if given[name].shape != part.shape:
                raise ConfigError(mismatch.format(name, tuple(given[name].shape), tuple(part.shape)))
            at = part.detach().long().flatten()
            values[at], known[at] = given[name].flatten().float(), True
    parameters = numbered.named_parameters(remove_duplicate=False)
    whole = {name: (places[id(parameter)], parameter.shape) for name, parameter in parameters if bool(known[places[id(parameter)]].all())}
    return {name: values[place].view(shape) for name, (place, shape) in whole.items() if name not in given}


def _few(names: Mapping[str, Tensor]) -> str:
    return ", ".join(list(names)[:5]) + (", ..." if len(names) > 5 else "")
